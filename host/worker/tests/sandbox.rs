//! The sandbox as a whole: who keeps to its work notices nothing, and without all of it there is no plugin. What it stops is
//! in `faulty.rs`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod support;

use backplane::isolation::{Confinement, Granted, Launch, WorkerEntry};
use backplane_testkit::{Instance, PluginTest};
use std::net::TcpListener;
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

/// A lane looks for the next request for a moment, and sleeps when none comes.
#[test]
fn an_idle_worker_takes_no_processor() {
    let (_folder, library) = faulty(None);
    let instance =
        through(faulty_launch(library, cpu())).open(r#"{"name":"faulty"}"#).unwrap().instance().unwrap();
    let ask = || instance.submit("com.example.faulty.do", r#"{"do":"pid"}"#, vec![]).wait_for(LONG);
    let pid = ask().json()["errno"].as_i64().unwrap();
    (0..500).for_each(|_| assert_eq!(ask().json()["errno"], pid));
    let used = || {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let ran = threads.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("schedstat")));
        let ran = ran.map(|stat| stat.unwrap().split(' ').next().unwrap().parse::<u64>().unwrap());
        Duration::from_nanos(ran.sum())
    };
    let before = used();
    std::thread::sleep(Duration::from_secs(1));
    let took = used().checked_sub(before).unwrap();
    assert!(took < Duration::from_millis(20), "{took:?}");
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

/// What a plugin tries at a place, and the number of the error: 0 for none.
fn tried(instance: &Instance, what: &str, at: impl std::fmt::Display) -> i64 {
    let ask = format!(r#"{{"do":"{what}","at":"{at}"}}"#);
    let answer = instance.submit("com.example.faulty.do", &ask, vec![]).wait_for(LONG);
    answer.json()["errno"].as_i64().unwrap_or_else(|| panic!("{what} {at}: {}", answer.end))
}

/// Each path by itself: what is granted opens, and what lies beside it does not.
#[test]
fn a_path_that_is_granted_opens_and_its_sibling_does_not() {
    const REFUSED: i64 = 13;
    let (_folder, library) = faulty(None);
    let here = tempfile::tempdir().unwrap();
    let at = |path: &str| here.path().join(path);
    for folder in ["read", "write", "sibling"] {
        std::fs::create_dir(at(folder)).unwrap();
        std::fs::write(at(folder).join("file"), "the host's").unwrap();
    }
    for file in ["one", "two"] {
        std::fs::write(at(file), "the host's").unwrap();
    }
    let granted = Confinement::Sandbox(Granted {
        read: vec![at("read"), at("one")],
        write: vec![at("write")],
        ..Granted::default()
    });
    // As the installed worker is, and as on Linux 5.13: what its Landlock does not know may be done in what is granted only.
    for newest in [None, Some(1)] {
        let mut launch = faulty_launch(library.clone(), granted.clone());
        if let Some(newest) = newest {
            launch.program = weakened(&format!("knows {newest}"));
        }
        let instance = through(launch).open(r#"{"name":"faulty"}"#).unwrap().instance().unwrap();
        let tried = |what: &str, path: &str| tried(&instance, what, at(path).display());
        let cut = if newest.is_some() { 1 } else { 0 };
        for (what, path, expected) in [
            ("read-at", "read/file", 0),
            ("read-at", "one", 0),
            ("read-at", "write/file", 0),
            ("read-at", "two", REFUSED),
            ("read-at", "sibling/file", REFUSED),
            ("write-at", "write/file", cut),
            ("write-at", "write/new", cut),
            ("move-at", "write/file", 0),
            ("move-at", "read/file", REFUSED),
            ("move-at", "sibling/file", REFUSED),
        ] {
            assert_eq!(tried(what, path), expected, "{what} {path}, Landlock {newest:?}");
        }
        for path in ["read/file", "read/new", "one", "two", "new", "sibling/file"] {
            let errno = tried("write-at", path);
            assert!([1, REFUSED].contains(&errno), "write-at {path}, Landlock {newest:?}: {errno}");
        }
        for file in ["read/file", "one", "two", "sibling/file"] {
            assert_eq!(std::fs::read_to_string(at(file)).unwrap(), "the host's", "{file}");
        }
        std::fs::write(at("write/file"), "the host's").unwrap();
    }
}

/// Connections by port, which is what a kernel can tell apart; and where it cannot there is no plugin.
#[test]
fn a_port_that_is_granted_is_reached_and_another_is_not() {
    let (_folder, library) = faulty(None);
    let [granted, other] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    let ports = Confinement::Sandbox(Granted { ports: vec![port(&granted)], ..Granted::default() });
    let launch = || faulty_launch(library.clone(), ports.clone());
    let instance = through(launch()).open(r#"{"name":"faulty"}"#).unwrap().instance().unwrap();
    assert_eq!(tried(&instance, "connect-at", port(&granted)), 0);
    assert_eq!(tried(&instance, "connect-at", port(&other)), 13);
    // Nor by the ways that Landlock does not look at.
    for way in ["mptcp-at", "fast-at"] {
        assert_eq!(tried(&instance, way, port(&other)), 1, "{way}");
    }

    // All of the network is all of its ports.
    let any = Confinement::Sandbox(Granted { network: true, ..Granted::default() });
    let launch_any = faulty_launch(library.clone(), any);
    let instance = through(launch_any).open(r#"{"name":"faulty"}"#).unwrap().instance().unwrap();
    assert_eq!(tried(&instance, "connect-at", port(&other)), 0);

    let entry = Arc::new(WorkerEntry::new(Launch { program: weakened("knows 3"), ..launch() }));
    assert!(PluginTest::entered_by(entry.clone()).open(r#"{"name":"faulty"}"#).is_err());
    let why = entry.problem().unwrap();
    assert!(why.contains("Linux 6.7") && why.contains("network = true"), "{why}");
}
