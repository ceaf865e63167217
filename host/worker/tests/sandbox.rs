//! The sandbox as a whole: who keeps to its work notices nothing, and without all of it there is no plugin. What it stops is
//! in `faulty.rs`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod support;

use backplane::isolation::{Confinement, Launch, WorkerEntry};
use backplane_testkit::PluginTest;
use std::sync::Arc;
use support::{cases, cpu, echo, faulty, faulty_launch, weakened};

#[test]
fn the_whole_suite_passes_in_the_sandbox() {
    echo(cpu()).check_conformance(&cases()).assert_ok();
}

/// No mechanism, no plugin.
#[test]
fn a_kernel_without_a_mechanism_is_refused() {
    let (_folder, library) = faulty(None);
    let problem = |launch: Launch| {
        let entry = Arc::new(WorkerEntry::new(launch));
        assert!(PluginTest::entered_by(entry.clone()).open(r#"{"name":"faulty"}"#).is_err());
        entry.problem().unwrap()
    };
    for (mechanism, words) in [("landlock", "Landlock"), ("seccomp", "seccomp")] {
        let program = weakened(&format!("absent {mechanism}"));
        let why = problem(Launch { program, ..faulty_launch(library.clone(), cpu()) });
        assert!(why.contains(words) && why.contains("sandbox cannot be set up"), "{why}");
    }
    // A path that is not there makes no rule, and so no sandbox.
    let nowhere = Confinement::Cpu { read: vec!["/nowhere/at/all".into()], memory: 0, threads: 64 };
    let why = problem(faulty_launch(library, nowhere));
    assert!(why.contains("/nowhere/at/all") && why.contains("sandbox cannot be set up"), "{why}");
}
