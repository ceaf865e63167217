//! What a machine can hold of the layout: which way imports point, where `unsafe` may be, that nothing names this machine.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

use e2e::root;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What each crate of ours may import of ours. Tests may import more: `dev-dependencies` are left out.
const IMPORTS: &[(&str, &[&str])] = &[
    ("backplane-abi", &[]),
    ("backplane-plugin", &["backplane-abi"]),
    ("backplane-testkit", &["backplane-abi"]),
    ("backplane-registry", &["backplane-abi"]),
    ("backplane", &["backplane-abi", "backplane-registry"]),
    ("backplane-server", &["backplane"]),
    // The conformance kit is a verb: docs/decisions/005-the-kit-is-in-the-program.md.
    ("backplane-cli", &["backplane", "backplane-registry", "backplane-server", "backplane-testkit"]),
    ("backplane-worker", &["backplane-abi"]),
    ("backplane-cuda", &["backplane-plugin"]),
    ("backplane-echo", &["backplane-plugin"]),
    ("backplane-llama", &["backplane-plugin"]),
    ("backplane-metered-echo", &["backplane-plugin"]),
    ("backplane-onnx", &["backplane-plugin"]),
    ("backplane-remote", &["backplane-plugin"]),
    ("backplane-translation", &["backplane-plugin"]),
    ("backplane-vector", &["backplane-plugin"]),
    ("backplane-vision", &["backplane-plugin"]),
    ("e2e", &[]),
];

/// Files and folders in which `unsafe` may stand, each with the reason at its top.
const UNSAFE: &[&str] = &[
    "plugin-api/abi/",
    "plugin-api/sdk/src/sys/",
    "plugin-api/sdk/src/export.rs",
    "plugin-api/testkit/src/host.rs",
    "plugin-api/testkit/src/host/",
    "host/runtime/src/loader/",
    // The worker's end of the tables, and the two system calls without a safe form.
    "host/worker/src/buffers.rs",
    "host/worker/src/callbacks.rs",
    "host/worker/src/calls.rs",
    "host/worker/src/library.rs",
    "host/worker/src/state.rs",
    "host/worker/src/table.rs",
    "host/worker/src/sandbox/syscalls.rs",
    "plugins/cuda/src/sys.rs",
    "plugins/llama/src/sys.rs",
    "plugins/onnx/src/sys.rs",
    "plugins/vector/src/sys.rs",
];

fn metadata() -> serde_json::Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Files of ours, as git knows them: what is committed, and what is new and not ignored.
fn files() -> Vec<PathBuf> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .unwrap();
    let names = String::from_utf8(output.stdout).unwrap();
    names.lines().map(PathBuf::from).filter(|path| root().join(path).is_file()).collect()
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(root().join(path)).unwrap()).into_owned()
}

#[test]
fn imports_point_one_way() {
    let metadata = metadata();
    let ours: BTreeMap<&str, BTreeSet<&str>> =
        IMPORTS.iter().map(|(name, imports)| (*name, imports.iter().copied().collect())).collect();
    let mut seen = BTreeSet::new();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let allowed =
            ours.get(name).unwrap_or_else(|| panic!("crate `{name}` is not in the list of this test"));
        seen.insert(name);
        for dependency in package["dependencies"].as_array().unwrap() {
            let imported = dependency["name"].as_str().unwrap();
            let normal = dependency["kind"].is_null();
            assert!(
                !normal || !ours.contains_key(imported) || allowed.contains(imported),
                "`{name}` must not import `{imported}`"
            );
        }
    }
    assert_eq!(seen.len(), IMPORTS.len(), "a crate of the list is gone");
}

#[test]
fn unsafe_stands_only_where_the_design_allows() {
    for path in files().into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
    {
        let name = path.to_string_lossy();
        let allowed = UNSAFE.iter().any(|place| name.starts_with(place)) || name == "tests/tidy.rs";
        let is_code = |line: &&str| {
            let line = line.trim_start();
            !line.starts_with("//")
                && ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "unsafe trait", "#[unsafe("]
                    .iter()
                    .any(|word| line.contains(word))
        };
        if let Some(line) = read(&path).lines().find(is_code) {
            assert!(allowed, "{name}: `{}`: unsafe has no place here", line.trim());
        }
    }
}

#[test]
fn only_the_server_knows_status_codes() {
    // The remote plugin is a client: the codes it knows are its upstreams'.
    let ours = |path: &PathBuf| {
        path.starts_with("host/runtime") || path.starts_with("plugins") && !path.starts_with("plugins/remote")
    };
    for path in files().into_iter().filter(ours) {
        if path.extension().is_some_and(|extension| extension == "rs") {
            let text = read(&path);
            assert!(
                !text.contains("StatusCode") && !text.contains("actix_web"),
                "{}: HTTP belongs to host/server",
                path.display()
            );
        }
    }
}

#[test]
fn every_plugin_has_a_manifest_and_is_built_by_make() {
    let makefile = read(Path::new("Makefile"));
    let line =
        |name: &str| makefile.lines().find_map(|line| line.strip_prefix(name)).unwrap().split_whitespace();
    let built: BTreeSet<&str> = line("PLUGINS := ").chain(line("EXAMPLES := ")).collect();
    let mut there = BTreeSet::new();
    for entry in std::fs::read_dir(root().join("plugins")).unwrap() {
        let path = entry.unwrap().path();
        if path.join("Cargo.toml").exists() {
            assert!(path.join("plugin.toml").exists(), "{} has no plugin.toml", path.display());
            there.insert(path.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
    assert_eq!(built, there.iter().map(String::as_str).collect());
}

#[test]
fn nothing_names_the_machine_it_was_written_on() {
    let home = format!("{}{}", "/ro", "ot/");
    let farm = format!("{}{}", "/wo", "rk/");
    for path in files() {
        let text = read(&path);
        for word in [&home, &farm] {
            // A path, not the end of another: `network/` or `plugins/work/` may be anywhere.
            let at = text.match_indices(word.as_str()).find(|(at, _)| {
                let before = text[..*at].chars().next_back();
                before.is_none_or(|c| c.is_whitespace() || "\"'`(=:".contains(c))
            });
            assert!(at.is_none(), "{} holds a path of a machine: {word}", path.display());
        }
    }
}

/// Who has the program installed has no folder `docs`: a message says the thing itself, or names a command or a path it serves.
#[test]
fn no_message_names_a_page_that_is_not_installed() {
    let ours = |path: &PathBuf| {
        let name = path.to_string_lossy();
        let part = |folder: &str| name.split('/').any(|part| part == folder);
        name.ends_with(".rs") && part("src") && !name.starts_with("tests/")
    };
    for path in files().into_iter().filter(ours) {
        let names = |line: &&str| {
            let line = line.trim_start();
            let told = line.starts_with("///") && path.starts_with("host/cli/src/args")
                || !line.starts_with("//") && !line.contains("include_str!");
            told && line.contains("docs/") && line.contains(".md")
        };
        if let Some(line) = read(&path).lines().find(names) {
            panic!("{}: `{}`", path.display(), line.trim());
        }
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    for path in files().into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "md"))
    {
        for link in read(&path)
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split([')', '#', ' ']).next().map(str::to_owned))
        {
            if link.is_empty() || link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let target = root().join(&path).parent().unwrap().join(&link);
            assert!(target.exists(), "{}: the link to `{link}` leads nowhere", path.display());
        }
    }
}

/// Whether an SPDX expression can be met with the allowed licences: `MIT OR (Apache-2.0 AND ISC)`.
fn can_be_met(expression: &str, allowed: &BTreeSet<String>) -> bool {
    // Some crates still write `MIT/Apache-2.0`.
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    either(&mut words, allowed)
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn either(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> bool {
    let mut met = both(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        met |= both(words, allowed);
    }
    met
}

fn both(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> bool {
    let mut met = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        met &= one(words, allowed);
    }
    met
}

fn one(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> bool {
    if words.next_if_eq(&"(").is_some() {
        let met = either(words, allowed);
        assert_eq!(words.next(), Some(")"), "a parenthesis is not closed");
        return met;
    }
    let mut name = words.next().unwrap_or_default().to_owned();
    if words.next_if_eq(&"WITH").is_some() {
        name = format!("{name} WITH {}", words.next().unwrap_or_default());
    }
    allowed.contains(&name)
}

/// What `deny.toml` allows holds here as well, without the tool: `make deny` also reads the texts of the licences.
#[test]
fn what_we_depend_on_has_a_licence_that_is_allowed_and_comes_from_where_all_do() {
    let allow = |text: &str| -> BTreeSet<String> {
        let list = text.split_once("allow = [").unwrap().1.split_once(']').unwrap().0;
        let lines = list.lines().map(|line| line.split('#').next().unwrap());
        lines.flat_map(|line| line.split('"').skip(1).step_by(2).map(str::to_owned)).collect()
    };
    let rules = read(Path::new("deny.toml"));
    let allowed = allow(&rules);
    let excepted = |name: &str| {
        let line = rules.lines().find(|line| line.contains(&format!("crate = \"{name}\"")));
        line.map(allow).unwrap_or_default()
    };
    assert!(can_be_met("GPL-3.0 OR (MIT AND ISC)", &allowed) && !can_be_met("MIT AND GPL-3.0", &allowed));

    let mut seen = 0;
    for platform in ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"] {
        let output = Command::new(env!("CARGO"))
            .args(["metadata", "--format-version=1", "--offline", "--filter-platform", platform])
            .current_dir(root())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        for package in metadata["packages"].as_array().unwrap() {
            let name = package["name"].as_str().unwrap();
            let Some(source) = package["source"].as_str() else { continue };
            assert!(source.ends_with("/rust-lang/crates.io-index"), "`{name}` comes from {source}");
            let licence = package["license"].as_str().unwrap_or_default();
            let all = allowed.union(&excepted(name)).cloned().collect();
            assert!(
                can_be_met(licence, &all),
                "`{name}` is under `{licence}`, which deny.toml does not allow"
            );
            seen += 1;
        }
    }
    assert!(200 < seen, "{seen} packages");
}
