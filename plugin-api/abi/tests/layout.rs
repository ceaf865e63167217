//! The Rust tables are laid out as C lays out `backplane.h`, and stay laid out that way.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test helper fails by panicking")]

#[allow(dead_code, reason = "each test uses a part of it")]
mod support;

use backplane_abi::{code::Code, dtype::DType, table};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::process::Command;
use support::{HEADER, assert_compiled, compilers, golden};

/// Name of a member in C, where the Rust one is a keyword.
fn c_name(rust: &str) -> &str {
    match rust {
        "self_" => "self",
        "r#in" => "in",
        other => other,
    }
}

/// `struct.member offset size`, and for each struct its size: one line each.
fn rust_layout() -> String {
    let mut text = String::new();
    for (name, size, fields) in table::layout() {
        writeln!(text, "{name} {size}").unwrap();
        for (field, offset, size) in fields {
            writeln!(text, "{name}.{} {offset} {size}", c_name(field)).unwrap();
        }
    }
    text
}

/// The structs that the header declares: `typedef struct NAME {`.
fn header_structs() -> BTreeSet<&'static str> {
    HEADER
        .lines()
        .filter_map(|line| line.strip_prefix("typedef struct ")?.strip_suffix(" {"))
        .filter(|name| *name != "bp_str")
        .collect()
}

/// The names that the header defines with a value: `#define NAME value`.
fn header_constants() -> Vec<&'static str> {
    HEADER
        .lines()
        .filter_map(|line| line.strip_prefix("#define ")?.split_once(' '))
        .map(|(name, _)| name)
        .filter(|name| !name.contains('('))
        .collect()
}

/// `pub const NAME: type = value;` of `table.rs`, values in decimal, text without quotes.
fn rust_constants() -> BTreeMap<String, String> {
    let mut constants: BTreeMap<String, String> = include_str!("../src/table.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("pub const ")?.strip_suffix(';'))
        .map(|line| {
            let (name, rest) = line.split_once(": ").unwrap();
            let (_, value) = rest.split_once(" = ").unwrap();
            let plain = value.replace('_', "");
            let value = match (value.strip_prefix('"'), plain.strip_prefix("0x")) {
                (Some(text), _) => text.trim_end_matches('"').to_owned(),
                (_, Some(hex)) => i64::from_str_radix(hex, 16).unwrap().to_string(),
                _ => plain,
            };
            (name.to_owned(), value)
        })
        .collect();
    // The numbers that stand in other files under names of their own.
    for code in Code::ALL {
        constants.insert(format!("BP_{}", code.name().to_uppercase()), (code as i32).to_string());
    }
    let kinds = [
        ("INT", DType::Int8),
        ("UINT", DType::Uint8),
        ("FLOAT", DType::Fp32),
        ("BFLOAT", DType::Bf16),
        ("BOOL", DType::Bool),
        ("BYTES", DType::Bytes),
    ];
    for (name, dtype) in kinds {
        constants.insert(format!("BP_DT_{name}"), dtype.raw().0.to_string());
    }
    let name = std::str::from_utf8(backplane_abi::NOTE_NAME).unwrap().trim_end_matches('\0');
    for (constant, value) in [
        ("BP_ABI_MAJOR", backplane_abi::ABI_MAJOR.to_string()),
        ("BP_ABI_MINOR", backplane_abi::ABI_MINOR.to_string()),
        ("BP_NOTE_SECTION", backplane_abi::NOTE_SECTION.to_owned()),
        ("BP_NOTE_NAME", name.to_owned()),
        ("BP_NOTE_MANIFEST", backplane_abi::NOTE_MANIFEST.to_string()),
    ] {
        constants.insert(constant.to_owned(), value);
    }
    constants
}

/// A program that prints what the compiler makes of the header: the layout, an empty line, the constants.
fn c_program() -> String {
    let mut text =
        String::from("#include <stddef.h>\n#include <stdio.h>\n#include \"backplane.h\"\nint main(void) {\n");
    for (name, _, fields) in table::layout() {
        writeln!(text, "printf(\"{name} %zu\\n\", sizeof({name}));").unwrap();
        for (field, ..) in fields {
            let field = c_name(field);
            writeln!(
                text,
                "printf(\"{name}.{field} %zu %zu\\n\", offsetof({name}, {field}), sizeof((({name} *)0)->{field}));"
            )
            .unwrap();
        }
    }
    text.push_str("puts(\"\");\n");
    for name in header_constants() {
        let is_text = HEADER.contains(&format!("#define {name} \""));
        let line = if is_text {
            format!("printf(\"{name} %s\\n\", {name});")
        } else {
            format!("printf(\"{name} %lld\\n\", (long long)({name}));")
        };
        writeln!(text, "{line}").unwrap();
    }
    text.push_str("return 0;\n}\n");
    text
}

#[test]
fn every_struct_of_the_header_has_a_table_in_rust() {
    let rust: BTreeSet<_> = table::layout().into_iter().map(|(name, ..)| name).collect();
    assert_eq!(header_structs(), rust, "left: backplane.h, right: table.rs");
    assert_eq!(size_of::<table::bp_str>(), 16);
}

#[test]
fn every_compiler_lays_the_structs_out_as_rust_does_and_gives_the_constants_the_same_values() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("layout.txt");
    std::fs::write(&source, c_program()).unwrap();
    for compiler in compilers() {
        let program = folder.path().join("layout");
        let output = compiler.compile(&source, &["-o", program.to_str().unwrap()]);
        assert_compiled(&compiler, &output);
        let printed = Command::new(&program).output().unwrap();
        assert!(printed.status.success());
        let printed = String::from_utf8(printed.stdout).unwrap();
        let (layout, constants) = printed.split_once("\n\n").unwrap();
        let rust = rust_layout();
        for (c, rust) in layout.lines().zip(rust.lines()) {
            assert_eq!(c, rust, "`name offset size`: left {compiler:?}, right Rust");
        }
        assert_eq!(layout.lines().count(), rust.lines().count());

        let header: BTreeMap<_, _> = constants.lines().map(|line| line.split_once(' ').unwrap()).collect();
        for (name, value) in rust_constants() {
            let defined = header.get(name.as_str());
            assert_eq!(defined, Some(&value.as_str()), "`{name}`: left {compiler:?}, right Rust");
        }
    }
}

#[test]
fn the_layout_is_the_one_that_was_published() {
    golden("tests/layout.golden", &rust_layout(), "layout");
}
