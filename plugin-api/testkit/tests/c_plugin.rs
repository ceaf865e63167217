//! A plugin in C with nothing but the header keeps the contract, and the suite finds every fault that is put into it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test helper fails by panicking")]

use backplane_testkit::{Case, Level, Outcome, PluginTest, Report, TensorInput};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Compiles a fixture as docs/writing-plugins.md says, with every warning an error.
fn compile(fixture: &str, fault: Option<&str>, into: &Path) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let library = into.join(format!("lib{}.so", fault.unwrap_or(fixture)));
    let output = Command::new("cc")
        .args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-O1"])
        .args(["-shared", "-fPIC", "-fvisibility=hidden", "-Wl,-z,nodelete"])
        .args(fault.map(|fault| format!("-DFAULT=\"{fault}\"")))
        .arg("-I")
        .arg(folder.join("../include"))
        .arg(folder.join("tests/fixtures").join(format!("{fixture}.c")))
        .arg("-o")
        .arg(&library)
        .output()
        .expect("`cc` is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    library
}

fn case() -> Case {
    Case::new(r#"{"name":"upper","capabilities":["com.example.upper"]}"#, "com.example.upper", "{}")
        .tensor(TensorInput::strings("text", &[2, 2], &["one", "two", "", "Ünicode"]))
}

#[test]
fn a_plugin_in_c_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let plugin = PluginTest::load(compile("upper", None, folder.path())).unwrap();
    let report = plugin.check_conformance(&[case()]);
    report.assert_ok();
    let did = |name: &str| {
        report.checks.iter().any(|check| check.name.starts_with(name) && check.result == Outcome::Passed)
    };
    assert!(did("manifest.note") && did("scarcity.memory") && did("concurrency.batch"), "{report}");
}

#[test]
fn a_plugin_in_c_answers() {
    let folder = tempfile::tempdir().unwrap();
    let plugin = PluginTest::load(compile("upper", None, folder.path())).unwrap();
    let instance = plugin.open(r#"{"name":"upper"}"#).unwrap().instance().unwrap();
    let text = TensorInput::strings("text", &[2], &["hello", "world"]);
    let answer = instance.submit("com.example.upper", "{}", vec![text]).wait();
    assert_eq!(
        answer.tensor("text").unwrap().data,
        TensorInput::strings("text", &[2], &["HELLO", "WORLD"]).data
    );
}

/// The fault, and the check that has to find it.
const FAULTS: &[(&str, &str)] = &[
    ("takes_null", "abi.entry-with-nulls"),
    ("takes_any_host", "abi.host-table-smaller"),
    ("wants_its_own_host", "abi.host-table-larger"),
    ("has_no_name", "abi.plugin-table"),
    ("differs_from_its_manifest", "manifest.note"),
    ("knows_every_extension", "abi.extensions"),
    ("reads_any_struct", "abi.request-flags"),
    ("bids_without_init", "load.before-init"),
    ("starts_twice", "load.init-twice"),
    ("opens_anything", "load.bad-model"),
    ("bids_beyond_the_struct", "bid.struct-sizes"),
    ("bids_by_chance", "bid.pure"),
    ("bids_too_much", "bid.pure"),
    ("is_of_no_class", "lifecycle.model-table"),
    ("has_no_close", "lifecycle.model-table"),
    ("wants_its_own_placement", "lifecycle.placement-larger"),
    ("is_in_no_state", "lifecycle.health"),
    ("leaks_descriptors", "lifecycle.nothing-left"),
    ("answers_any_capability", "data.unknown-capability"),
    ("blames_itself", "data.malformed-tensors"),
    ("has_no_words", "data.malformed-tensors"),
    ("invents_a_code", "data.malformed-tensors"),
    ("overstates_its_tensor", "stream.repeats"),
    ("writes_no_json", "stream.repeats"),
    ("writes_no_utf8", "stream.repeats"),
    ("forgets_struct_size", "stream.repeats"),
    ("invents_a_sink", "stream.repeats"),
    ("writes_after_push", "stream.repeats"),
    ("is_sure_beyond_reason", "stream.repeats"),
    ("finishes_twice", "stream.repeats"),
    ("pushes_after_finish", "stream.repeats"),
    ("leaks_buffers", "stream.repeats"),
    ("releases_twice", "stream.repeats"),
    ("refuses_what_it_finished", "stream.repeats"),
    ("never_finishes", "stream.repeats"),
    ("loses_refused_pieces", "stream.slow-reader"),
    ("counts_rows_by_its_own_size", "concurrency.batch"),
    ("is_deaf", "cancel.before-submit"),
];

#[test]
fn every_fault_is_found_by_the_check_that_is_about_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut missed = Vec::new();
    for (fault, check) in FAULTS {
        let plugin = PluginTest::load(compile("faulty", Some(fault), folder.path())).unwrap();
        let report = plugin.rounds(20).patience(Duration::from_millis(250)).check_conformance(&[case()]);
        if !found(&report, check) {
            missed.push(format!("`{fault}` was not found by `{check}`, but by: {}", names(&report)));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

fn found(report: &Report, check: &str) -> bool {
    report.failed(Level::Contract).any(|failed| failed.name.split(' ').next() == Some(check))
}

fn names(report: &Report) -> String {
    let names: Vec<_> = report.failed(Level::Contract).map(|failed| failed.name.as_str()).collect();
    names.join(", ")
}
