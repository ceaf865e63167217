//! What a plugin of a stranger tries and does not get; and that it gets it without the mechanism that stops it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod support;

use backplane::isolation::{Confinement, Launch, WorkerEntry};
use backplane_testkit::PluginTest;
use std::process::Command;
use std::sync::Arc;
use support::{LONG, cases, cpu, cpu_without, echo, hostile, launch, through};

const EPERM: i64 = 1;
const EACCES: i64 = 13;

/// What the hostile plugin was answered when it tried something.
fn tries(what: &str, confinement: Confinement) -> i64 {
    let (_folder, library) = hostile(None);
    let launch = Launch { id: "com.example.hostile".to_owned(), ..launch(library, confinement) };
    let instance = through(launch).open(r#"{"name":"hostile"}"#).unwrap().instance().unwrap();
    let answer = instance.submit("hostile", &format!(r#"{{"do":"{what}"}}"#), vec![]).wait_for(LONG);
    answer.json()["errno"].as_i64().unwrap_or_else(|| panic!("{what}: {}", answer.end))
}

/// Denied in the sandbox, by these mechanisms; without them it succeeds.
fn stopped(what: &str, errno: &[i64], by: &[&str]) {
    let denied = tries(what, cpu());
    assert!(errno.contains(&denied), "{what} was answered with {denied} in the sandbox");
    assert_eq!(tries(what, cpu_without(by)), 0, "{what} is not stopped by {by:?}");
}

#[test]
fn files_of_the_machine() {
    // Who is not root may not read it anywhere.
    match std::fs::File::open("/etc/shadow") {
        Ok(_) => stopped("shadow", &[EACCES], &["landlock"]),
        Err(_) => assert_eq!(tries("shadow", cpu()), EACCES),
    }
    stopped("write-tmp", &[EACCES], &["landlock"]);
    std::fs::remove_file(format!("/tmp/backplane-hostile-{}", std::process::id())).unwrap();
}

#[test]
fn secrets_of_the_host() {
    assert_eq!(tries("parent-environ", cpu()), EACCES);
    assert_eq!(tries("parent-environ", Confinement::Nothing), 0);
    assert_eq!(tries("environment", cpu()), 1, "its own has nothing in it");
}

#[test]
fn the_network() {
    stopped("connect", &[EPERM], &["seccomp", "landlock", "namespaces"]);
    // Without the filter it meets the next wall.
    assert_ne!(tries("connect", cpu_without(&["seccomp"])), 0);
}

#[test]
fn other_processes() {
    for what in ["kill-parent", "ptrace"] {
        assert_eq!(tries(what, cpu()), EPERM, "{what}");
        assert_eq!(tries(what, cpu_without(&["seccomp"])), EPERM, "{what}, stopped by landlock alone");
        let own_rules = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
        let forbidden_anyway = what == "ptrace" && own_rules.is_ok_and(|rules| rules.trim() != "0");
        assert!(forbidden_anyway || tries(what, Confinement::Nothing) == 0, "{what}");
    }
    stopped("fork", &[EPERM], &["seccomp"]);
    assert_eq!(tries("thread", cpu()), 0, "a thread is no process");
}

#[test]
fn more_than_its_share() {
    let limited = |off: &[&str]| {
        let Confinement::Cpu { read, missing, off, .. } = cpu_without(off) else { panic!("confined") };
        Confinement::Cpu { read, memory: 8 << 30, missing, off }
    };
    assert_ne!(tries("memory", limited(&[])), 0);
    assert_eq!(tries("memory", limited(&["limits"])), 0);
    assert!(tries("descriptors", limited(&[])) < 1024);
    // What this process may have, its workers may; that shows where it may have more.
    let own = Command::new("sh").args(["-c", "ulimit -n"]).output().unwrap().stdout;
    let own = String::from_utf8(own).unwrap();
    if own.trim().parse().map_or(own.trim() == "unlimited", |own: u64| 1100 < own) {
        assert!(1024 <= tries("descriptors", limited(&["limits"])));
    }
}

/// A plugin that keeps to its work notices nothing.
#[test]
fn the_whole_suite_passes_in_the_sandbox() {
    echo(cpu()).check_conformance(&cases()).assert_ok();
}

/// No mechanism, no plugin.
#[test]
fn a_kernel_without_a_mechanism_is_refused() {
    let (_folder, library) = hostile(None);
    let problem = |confinement| {
        let entry = Arc::new(WorkerEntry::new(launch(library.clone(), confinement)));
        let opened = PluginTest::entered_by(entry.clone()).open(r#"{"name":"hostile"}"#);
        assert!(opened.is_err());
        entry.problem().unwrap()
    };
    for (mechanism, words) in [("landlock", "Landlock"), ("seccomp", "seccomp")] {
        let Confinement::Cpu { read, memory, off, .. } = cpu() else { panic!("confined") };
        let why = problem(Confinement::Cpu { read, memory, off, missing: mechanism.to_owned() });
        assert!(why.contains(words) && why.contains("sandbox cannot be set up"), "{why}");
    }
    // A path that is not there makes no rule, and so no sandbox.
    let nowhere = Confinement::Cpu {
        read: vec!["/nowhere/at/all".into()],
        memory: 0,
        missing: String::new(),
        off: Vec::new(),
    };
    let why = problem(nowhere);
    assert!(why.contains("/nowhere/at/all"), "{why}");
}
