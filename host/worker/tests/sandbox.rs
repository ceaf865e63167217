//! The sandbox as a whole: who keeps to its work notices nothing, and without all of it there is no plugin. What it stops is
//! in `faulty.rs`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod support;

use backplane::isolation::{Confinement, Granted, Launch, WorkerEntry};
use backplane_testkit::PluginTest;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{LONG, cases, cpu, echo, faulty, faulty_launch, through, weakened};

#[test]
fn the_whole_suite_passes_in_the_sandbox() {
    echo(cpu()).check_conformance(&cases()).assert_ok();
}

/// What may be read may not be cut short by who opens it for reading: newer kernels' Landlock knows this, and where it does
/// not, the filter of system calls does. Nor is there a way around that filter by other numbers of the same calls.
#[test]
fn what_may_be_read_stays_whole_on_older_kernels_too() {
    let (_folder, library) = faulty(None);
    let own = format!("/tmp/backplane-faulty-own-{}", std::process::id());
    std::fs::write(&own, "the host's").unwrap();
    let granted =
        Confinement::Sandbox(Granted { read: vec![own.clone().into()], threads: 64, ..Granted::default() });
    for (program, refused) in [("knows 6", 13), ("knows 3", 13), ("knows 2", 1), ("knows 1", 1)] {
        let launch = Launch { program: weakened(program), ..faulty_launch(library.clone(), granted.clone()) };
        let instance = through(launch).open(r#"{"name":"faulty"}"#).unwrap().instance().unwrap();
        let errno = |what: &str| {
            let ask = format!(r#"{{"do":"{what}"}}"#);
            instance.submit("com.example.faulty.do", &ask, vec![]).wait_for(LONG).json()["errno"].as_i64()
        };
        assert_eq!((errno("cut"), errno("x32")), (Some(refused), Some(1)), "{program}");
        assert_eq!(std::fs::read_to_string(&own).unwrap(), "the host's", "{program}");
    }
    let whole = faulty_launch(library, granted);
    let instance = through(whole).open(r#"{"name":"faulty"}"#).unwrap().instance().unwrap();
    let answer = instance.submit("com.example.faulty.do", r#"{"do":"cut"}"#, vec![]).wait_for(LONG);
    assert_eq!(answer.json()["errno"], 13);
    assert_eq!(std::fs::read_to_string(&own).unwrap(), "the host's");
    std::fs::remove_file(own).unwrap();
}

/// The priorities of all threads of a process.
fn priorities(pid: i64) -> Vec<i64> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    // One that ended meanwhile has none.
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok());
    stats.map(|stat| stat.rsplit_once(") ").unwrap().1.split(' ').nth(16).unwrap().parse().unwrap()).collect()
}

/// That others are served says little on a machine that has time to spare; why they are is the priority.
#[test]
fn who_takes_every_processor_has_what_others_leave() {
    let (_folder, library) = faulty(None);
    let spin = |cores| {
        let granted = Confinement::Sandbox(Granted { cores, ..Granted::default() });
        let launch = faulty_launch(library.clone(), granted);
        let instance = through(launch).open(r#"{"name":"faulty"}"#).unwrap().instance().unwrap();
        let ask =
            |what: &str| instance.submit("com.example.faulty.do", &format!(r#"{{"do":"{what}"}}"#), vec![]);
        let pid = ask("pid").wait_for(LONG).json()["errno"].as_i64().unwrap();
        let spinning = ask("spin");
        assert!(spinning.wait_for_chunks(1));
        (pid, spinning)
    };
    let other = echo(cpu()).open(r#"{"name":"echo","capabilities":["echo"]}"#).unwrap().instance().unwrap();
    let serve = || assert!(other.submit("echo", r#"{"text":"hello"}"#, vec![]).wait_for(LONG).is_done());

    let (pid, spinning) = spin(0);
    let start = Instant::now();
    while priorities(pid).iter().any(|priority| *priority != 19) {
        assert!(start.elapsed() < LONG, "it is not lowered: {:?}", priorities(pid));
        serve();
        std::thread::sleep(Duration::from_millis(20));
    }
    (0..200).for_each(|_| serve());
    spinning.cancel();
    assert!(spinning.wait_for(LONG).is_done() || !spinning.is_open());

    // Without a bound nothing holds it back.
    let own = priorities(i64::from(std::process::id()))[0];
    let (pid, spinning) = spin(u32::MAX);
    std::thread::sleep(Duration::from_secs(8));
    assert!(priorities(pid).iter().all(|priority| *priority == own), "{:?}", priorities(pid));
    spinning.cancel();
    spinning.wait_for(LONG);
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
    let nowhere = Confinement::Sandbox(Granted {
        read: vec!["/nowhere/at/all".into()],
        threads: 64,
        ..Granted::default()
    });
    let why = problem(faulty_launch(library, nowhere));
    assert!(why.contains("/nowhere/at/all") && why.contains("sandbox cannot be set up"), "{why}");
}
