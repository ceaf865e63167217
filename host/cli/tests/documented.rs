//! The environment is documented: what the sources read, the page says, and the other way round.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use support::run;

/// What is a part of the installed program.
const SOURCES: [&str; 6] =
    ["host/cli/src", "host/runtime/src", "host/server/src", "host/worker/src", "registry/src", "plugins"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The Rust files below a folder, but for tests.
fn sources(folder: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "tests" {
            sources(&path, found);
        } else if name.ends_with(".rs") && !["tests.rs", "build.rs"].contains(&&*name) {
            let text = std::fs::read_to_string(&path).unwrap();
            found.push(text.split("#[cfg(test)]").next().unwrap().to_owned());
        }
    }
}

fn is_name(word: &str) -> bool {
    2 < word.len() && word.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
}

/// Names of ours wherever they stand, and others where the environment is asked for them.
fn read_by(text: &str, names: &mut BTreeSet<String>) {
    for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
        let asked =
            ["var(", "var_os(", "set(", "env = ", ".map(|name| var"].iter().any(|word| line.contains(word));
        let parts: Vec<&str> = line.split('"').collect();
        for pair in parts.chunks_exact(2) {
            let (before, word) = (pair[0], pair[1]);
            let read = word.starts_with("BACKPLANE_") || (asked && !before.ends_with("value_name = "));
            if read && is_name(word) {
                names.insert(word.to_owned());
            }
        }
    }
}

#[test]
fn every_variable_that_is_read_is_in_the_page_and_none_that_is_not() {
    let mut texts = Vec::new();
    for folder in SOURCES {
        sources(&root().join(folder), &mut texts);
    }
    let mut read = BTreeSet::new();
    texts.iter().for_each(|text| read_by(text, &mut read));
    for name in ["BACKPLANE_API_KEY", "BACKPLANE_STATE", "HF_TOKEN", "NO_COLOR", "ORT_DYLIB_PATH"] {
        assert!(read.contains(name), "the sources are not read as they should be: no {name} in {read:?}");
    }

    let page = std::fs::read_to_string(root().join("docs/configuration.md")).unwrap();
    let table = page.split("| variable |").nth(1).unwrap();
    let rows = table.lines().filter_map(|row| row.strip_prefix("| ")?.split(" | ").next());
    let written: BTreeSet<String> =
        rows.flat_map(|cell| cell.split('`')).filter(|word| is_name(word)).map(str::to_owned).collect();
    let missing: Vec<_> = read.difference(&written).collect();
    assert!(missing.is_empty(), "docs/configuration.md does not say what these are for: {missing:?}");
    for name in written.iter().filter(|name| name.starts_with("BACKPLANE_") && !name.contains("__")) {
        assert!(read.contains(name), "docs/configuration.md has `{name}`, which nothing reads");
    }
}

#[test]
fn the_help_names_the_variables_of_ours() {
    let state = tempfile::tempdir().unwrap();
    let help = run(state.path(), &["--help"]).expect(0).out;
    for name in [
        "BACKPLANE_ADDR",
        "BACKPLANE_STATE",
        "BACKPLANE_CONFIG",
        "BACKPLANE_API_KEY",
        "BACKPLANE__SECTION__KEY",
        "BACKPLANE_PYPI_INDEX",
        "HF_TOKEN",
        "HTTPS_PROXY",
        "NO_COLOR",
    ] {
        assert!(help.contains(name), "{name}");
    }
}
