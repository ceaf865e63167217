//! `docs/errors.md` has every code that an error can have.

use std::path::{Path, PathBuf};

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The words in quotes that follow `before`, where they look like a code.
fn quoted<'a>(text: &'a str, before: &str) -> Vec<&'a str> {
    let words =
        text.split(before).skip(1).filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next());
    words
        .filter(|word| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
        .collect()
}

#[test]
fn every_code_is_explained() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let documented = std::fs::read_to_string(root.join("docs/errors.md")).unwrap();
    let mut files = Vec::new();
    for folder in ["host/server/src", "host/runtime/src", "plugins"] {
        sources(&root.join(folder), &mut files);
    }
    let mut codes = 0;
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        // What tests say is for tests.
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let mut found = quoted(text, "with_reason(");
        if path.ends_with("host/server/src/error.rs") || path.ends_with("host/server/src/fault.rs") {
            found.extend(quoted(text, ": &str ="));
        }
        if let Some((_, reasons)) = text.split_once("fn reason(&self) -> &'static str {") {
            found.extend(quoted(reasons, "=>"));
        }
        for code in found {
            assert!(
                documented.contains(&format!("`{code}`")),
                "`{code}` of {} is not explained",
                path.display()
            );
            codes += 1;
        }
    }
    assert!(50 < codes, "only {codes} codes were found: is this test still looking at the right places?");
}
