//! `backplane.h` compiles everywhere it promises to, and its comments are the manual it promises to be.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test helper fails by panicking")]

#[allow(dead_code, reason = "each test uses a part of it")]
mod support;

use std::process::Output;
use support::{Compiler, HEADER, assert_compiled, compilers};

/// Compiles `structs`, then makes the compiler lay each of `names` out (clang warns of a hole only then).
fn compile(compiler: &Compiler, structs: &str, names: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source.txt");
    let sizes: String = names.iter().map(|name| format!("sizeof(struct {name}),")).collect();
    std::fs::write(&source, format!("{structs}\nunsigned long sizes[] = {{{sizes}}};\n")).unwrap();
    let object = folder.path().join("object.o");
    compiler.compile(&source, &["-Wpadded", "-c", "-o", object.to_str().unwrap()])
}

#[test]
fn the_header_compiles_as_c99_and_cpp11_without_a_warning_and_without_implicit_padding() {
    let names: Vec<_> = backplane_abi::table::layout().into_iter().map(|(name, ..)| name).collect();
    for compiler in compilers() {
        let twice = "#include \"backplane.h\"\n#include \"backplane.h\"";
        assert_compiled(&compiler, &compile(&compiler, twice, &names));
    }
}

/// A hole is found by each of them, so that the test above can fail.
#[test]
fn implicit_padding_would_be_an_error() {
    for compiler in compilers() {
        let output = compile(&compiler, "struct hole { char a; int b; };", &["hole"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("padded"), "{compiler:?}: {said}");
    }
}

/// Each function with the comment above it; functions that follow each other directly share one.
fn functions() -> Vec<(String, String)> {
    let (mut found, mut comment, mut in_comment) = (Vec::new(), String::new(), false);
    for line in HEADER.lines() {
        let trimmed = line.trim();
        if trimmed.starts_with("/*") && !line.starts_with("  /* BP_") {
            in_comment = true;
            comment.clear();
        }
        if in_comment {
            comment.push_str(trimmed.trim_start_matches(['/', '*', ' ']));
            comment.push('\n');
            in_comment = !trimmed.ends_with("*/");
            continue;
        }
        if trimmed.is_empty() {
            comment.clear();
        }
        let pointer = trimmed.split_once("(*").map(|(_, rest)| rest).filter(|_| line.starts_with("  "));
        let entry = trimmed.strip_prefix("bp_code bp_entry_v1(").map(|_| "bp_entry_v1)");
        if let Some((name, _)) = pointer.or(entry).and_then(|rest| rest.split_once(')')) {
            // `void (*release)(void *ctx)` inside a parameter list is an argument, not a member.
            if !line.starts_with("   ") {
                found.push((name.to_owned(), comment.clone()));
            }
        }
    }
    found
}

#[test]
fn every_function_says_its_thread_and_since_when() {
    let functions = functions();
    let members = HEADER
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter(|l| l.contains("(*"))
        .count();
    assert_eq!(functions.len(), members + 1, "one for each function pointer, and bp_entry_v1");
    for (name, comment) in functions {
        let tagged = ["[init]", "[instance-serial]", "[any]"].iter().any(|tag| comment.contains(tag));
        assert!(tagged || comment.contains("[any][no-block]"), "`{name}` has no thread tag:\n{comment}");
        assert!(comment.contains("since 1."), "`{name}` does not say since when:\n{comment}");
    }
}

#[test]
fn the_pages_that_the_header_mentions_exist() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut pages: Vec<_> = HEADER
        .split(|c: char| c.is_whitespace() || "();,:".contains(c))
        .filter(|word| word.starts_with("docs/") && word.ends_with(".md"))
        .collect();
    pages.dedup();
    assert!(!pages.is_empty());
    for page in pages {
        assert!(root.join(page).is_file(), "backplane.h mentions `{page}`, which is not there");
    }
}
