//! A plugin that breaks down takes its worker with it, and nothing else.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod support;

use backplane::isolation::{Confinement, Launch, Quarantine};
use backplane_testkit::{Answer, Code, End, Instance, Running};
use std::process::Command;
use std::time::{Duration, Instant};
use support::{LONG, cpu, faulty, faulty_launch, launch, through};

/// An instance of the faulty plugin, and the folder that its library is in.
fn start() -> (tempfile::TempDir, Instance) {
    let (folder, library) = faulty(None);
    let instance =
        through(faulty_launch(library, cpu())).open(r#"{"name":"faulty"}"#).unwrap().instance().unwrap();
    (folder, instance)
}

fn ask(instance: &Instance, what: &str) -> Answer {
    instance.submit("com.example.faulty.do", &format!(r#"{{"do":"{what}"}}"#), vec![]).wait()
}

/// The same, after the pause that a plugin has to make which crashed a moment ago.
fn ask_in_time(instance: &Instance, what: &str) -> Answer {
    let start = Instant::now();
    loop {
        let answer = ask(instance, what);
        match &answer.end {
            End::Refused(wait) if wait.reason == "worker_crashed" && start.elapsed() < LONG => {
                assert!(0 < wait.retry_after_ms, "{wait}");
            }
            _ => return answer,
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A request that the worker certainly has: it has answered a part of it. One that it has not read yet would be given
/// to the next worker.
fn stream(instance: &Instance) -> Running {
    let running = instance.submit("com.example.faulty.do", r#"{"do":"stream"}"#, vec![]);
    assert!(running.wait_for_chunks(3) && running.is_open());
    running
}

fn pid(instance: &Instance) -> i64 {
    let answer = ask(instance, "pid");
    answer.json()["errno"].as_i64().unwrap_or_else(|| panic!("{}", answer.end))
}

fn signal(pid: i64, signal: &str) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

/// It ended once, with words that say what happened, and the next request is answered.
fn crashed(instance: &Instance, answer: &Answer, how: &str) {
    let failure = answer.failure().unwrap_or_else(|| panic!("{how}: {}", answer.end));
    assert_eq!(
        (failure.canonical(), &*failure.reason),
        (Some(Code::Unavailable), "worker_crashed"),
        "{failure}"
    );
    assert!(failure.message.contains(how) && failure.message.contains("`com.example.faulty`"), "{failure}");
    assert_eq!(ask(instance, "nothing").json()["errno"], -1, "the next one, after {how}");
    assert_eq!(instance.model().faults(), [], "after {how}");
}

#[test]
fn a_stream_whose_worker_is_killed_ends_with_an_error() {
    let (_folder, instance) = start();
    let running = stream(&instance);
    signal(pid(&instance), "-9");
    let answer = running.wait();
    assert!(3 <= answer.chunks.len(), "what had come is the reader's");
    crashed(&instance, &answer, "SIGKILL");
}

#[test]
fn one_that_is_killed_while_it_idles_is_not_missed() {
    let (_folder, instance) = start();
    let first = pid(&instance);
    signal(first, "-9");
    // A process that is being killed may take one more request with it, which then fails; one that is gone does not.
    let (process, start) = (format!("/proc/{first}"), Instant::now());
    while std::path::Path::new(&process).exists() {
        assert!(start.elapsed() < LONG, "nobody waits for the worker that was killed");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_ne!(pid(&instance), first);
}

#[test]
fn one_that_does_not_answer_is_ended() {
    let (_folder, instance) = start();
    let running = stream(&instance);
    signal(pid(&instance), "-STOP");
    let answer = running.wait();
    crashed(&instance, &answer, "does not answer");
}

/// What lay in the connection of a worker that died is not lost: nobody had begun it, so the next worker does.
#[test]
fn work_that_no_worker_has_read_is_done_by_the_next() {
    let (_folder, instance) = start();
    let first = pid(&instance);
    signal(first, "-STOP");
    // A thread that has not stopped yet would read what comes.
    let stopped = |task: std::io::Result<std::fs::DirEntry>| {
        let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
        stat.rsplit(") ").next().unwrap().starts_with('T')
    };
    let (tasks, began) = (format!("/proc/{first}/task"), Instant::now());
    while !std::fs::read_dir(&tasks).unwrap().all(stopped) {
        assert!(began.elapsed() < LONG, "it does not stop");
        std::thread::sleep(Duration::from_millis(1));
    }
    let answer = std::thread::scope(|scope| {
        let asked = scope.spawn(|| ask(&instance, "pid"));
        std::thread::sleep(Duration::from_millis(300));
        signal(first, "-9");
        asked.join().unwrap()
    });
    let second = answer.json()["errno"].as_i64();
    assert!(second.is_some_and(|second| second != first), "{} {second:?}", answer.end);
    assert_eq!(instance.model().faults(), []);
}

/// Others that were with it fail too, once each; who waits for the memory of one request does not.
#[test]
fn all_requests_of_a_worker_end_with_it() {
    let (_folder, instance) = start();
    let others: Vec<_> = (0..3).map(|_| stream(&instance)).collect();
    let answer = ask(&instance, "segv");
    for running in others {
        let answer = running.wait();
        assert_eq!(answer.failure().map(|why| &*why.reason), Some("worker_crashed"), "{}", answer.end);
    }
    crashed(&instance, &answer, "SIGSEGV");
}

/// What says of itself that it is broken for good is not asked again: its worker is another one, and the request had its
/// own answer.
#[test]
fn one_that_cannot_serve_any_more_is_started_again() {
    let (_folder, instance) = start();
    let (first, other) = (pid(&instance), stream(&instance));
    let failure = ask(&instance, "fatal").failure().cloned().unwrap();
    assert!(
        failure.canonical() == Some(Code::Internal) && failure.message.contains("the driver"),
        "{failure}"
    );
    let answer = other.wait();
    crashed(&instance, &answer, "said that it cannot serve any more");
    assert_ne!(pid(&instance), first);
}

#[test]
fn a_request_that_crashed_it_twice_is_refused_and_others_are_not() {
    let (_folder, instance) = start();
    for _ in 0..2 {
        let answer = ask_in_time(&instance, "segv");
        assert_eq!(answer.failure().unwrap().reason, "worker_crashed", "{}", answer.end);
    }
    let failure = ask_in_time(&instance, "segv").failure().cloned().unwrap();
    assert_eq!(
        (failure.canonical(), &*failure.reason),
        (Some(Code::InvalidArgument), "request_crashes_plugin")
    );
    assert_eq!(ask(&instance, "nothing").json()["errno"], -1);
}

/// However alike they are: who sends requests that crash a plugin cannot have another's refused.
#[test]
fn a_request_that_differs_in_its_middle_is_another_one() {
    let (_folder, instance) = start();
    let padded = |at: usize| {
        let mut padding = "x".repeat(1 << 20);
        padding.replace_range(at..=at, "y");
        format!("segv\",\"padding\":\"{padding}")
    };
    for _ in 0..2 {
        let answer = ask_in_time(&instance, &padded(0));
        assert_eq!(answer.failure().unwrap().reason, "worker_crashed", "{}", answer.end);
    }
    let reason = |at| ask_in_time(&instance, &padded(at)).failure().unwrap().reason.clone();
    assert_eq!(reason(0), "request_crashes_plugin");
    assert_eq!(reason(1 << 19), "worker_crashed", "it was never there before");
}

#[test]
fn one_that_crashes_again_and_again_is_not_started_any_more_nor_by_the_next_host() {
    let (folder, library) = faulty(None);
    let note = folder.path().join("quarantine");
    let launch =
        Launch { quarantine: Some(Quarantine::at(&note)), ..faulty_launch(library, Confinement::Nothing) };
    let instance = through(launch.clone()).open(r#"{"name":"faulty"}"#).unwrap().instance().unwrap();
    for crash in 0..5 {
        // Each time another request.
        let answer = ask_in_time(&instance, &format!("segv\",\"n\":\"{crash}"));
        assert!(
            answer.failure().is_some_and(|why| why.message.contains("SIGSEGV")),
            "{crash}: {}",
            answer.end
        );
    }
    let last = ask(&instance, "segv\",\"n\":\"5");
    assert_eq!(last.failure().map(|why| &*why.reason), Some("plugin_quarantined"), "{}", last.end);
    // Over a restart.
    let again = through(launch.clone()).open(r#"{"name":"faulty"}"#).err().unwrap();
    assert_eq!(again.code, 14, "{again}");
    std::fs::remove_file(note).unwrap();
    assert!(through(launch).open(r#"{"name":"faulty"}"#).is_ok());
}

/// Refused requests while it pauses are no crashes: whoever asks often must not take a plugin from all others.
#[test]
fn a_crash_counts_once_however_many_ask_before_it_is_started_again() {
    for per_instance in [false, true] {
        let (folder, library) = faulty(None);
        let note = folder.path().join("quarantine");
        let launch = faulty_launch(library, Confinement::Nothing);
        let launch = Launch { per_instance, quarantine: Some(Quarantine::at(&note)), ..launch };
        let instance = through(launch).open(r#"{"name":"faulty"}"#).unwrap().instance().unwrap();
        for crash in 0..2 {
            let answer = ask(&instance, &format!("segv\",\"n\":\"{crash}"));
            let words = answer.failure().map(|why| why.message.clone()).unwrap_or_default();
            assert!(words.contains("SIGSEGV"), "{crash}: {}", answer.end);
        }
        for _ in 0..10 {
            let answer = ask(&instance, "nothing");
            let reason = answer.failure().map(|why| why.reason.clone());
            assert!(reason.is_none_or(|reason| reason == "worker_crashed"), "{}", answer.end);
        }
        assert_eq!(ask_in_time(&instance, "nothing").json()["errno"], -1);
        assert!(!note.exists(), "two crashes are not five");
    }
}

/// One that ends each time before it serves is as broken as one that ends while it does.
#[test]
fn one_that_crashes_each_time_it_is_started_again_is_put_in_quarantine() {
    for (how, per_instance) in [("segv", false), ("init-segv", false), ("init-segv", true)] {
        let (folder, library) = faulty(None);
        let note = folder.path().join("quarantine");
        let launch = faulty_launch(library.clone(), Confinement::Nothing);
        let launch = Launch { per_instance, quarantine: Some(Quarantine::at(&note)), ..launch };
        let instance = through(launch).open(r#"{"name":"faulty"}"#).unwrap().instance().unwrap();
        let (_broken, broken) = faulty(Some(how));
        replace(&library, &broken);
        ask(&instance, "segv");
        let start = Instant::now();
        let last = loop {
            let answer = ask(&instance, "nothing");
            if answer.failure().is_some_and(|why| why.reason == "plugin_quarantined") {
                break answer;
            }
            assert!(start.elapsed() < LONG, "{how}: {}", answer.end);
            std::thread::sleep(Duration::from_millis(20));
        };
        let note =
            std::fs::read_to_string(&note).unwrap_or_else(|error| panic!("{how}: {error}: {}", last.end));
        assert!(note.contains("SIGSEGV"), "{note}");
    }
}

/// What keeps it from being started that is no crash has its own name, and it is tried again.
#[test]
fn one_that_cannot_be_started_again_is_not_counted_as_crashed() {
    let (folder, library) = faulty(None);
    let note = folder.path().join("quarantine");
    let launch = faulty_launch(library.clone(), Confinement::Nothing);
    let program = folder.path().join("backplane-worker");
    std::os::unix::fs::symlink(&launch.program, &program).unwrap();
    let launch = Launch { quarantine: Some(Quarantine::at(&note)), program: program.clone(), ..launch };
    let installed = std::fs::read_link(&program).unwrap();
    let instance = through(launch).open(r#"{"name":"faulty"}"#).unwrap().instance().unwrap();
    let works = folder.path().join("works.so");
    std::fs::copy(&library, &works).unwrap();
    let (_broken, broken) = faulty(Some("init-error"));
    for (what, words) in [("program", "is not there"), ("init", "its `init` failed")] {
        if what == "program" {
            std::fs::remove_file(&program).unwrap()
        } else {
            replace(&library, &broken)
        }
        ask(&instance, &format!("segv\",\"n\":\"{what}"));
        // So many tries as would be five crashes.
        let (start, mut tries, mut wait) = (Instant::now(), 0, 0);
        while tries < 4 {
            let answer = ask(&instance, "nothing");
            let why = answer.failure().unwrap_or_else(|| panic!("{what}: {}", answer.end));
            if why.reason != "worker_crashed" {
                assert_eq!(why.reason, "worker_not_started", "{why}");
                assert!(why.message.contains(words), "{why}");
                // Each time it is told to wait longer it was tried.
                tries += u32::from(wait < why.retry_after_ms);
                wait = why.retry_after_ms;
            }
            assert!(start.elapsed() < LONG, "{tries} tries");
            std::thread::sleep(Duration::from_millis(20));
        }
        if what == "program" {
            std::os::unix::fs::symlink(&installed, &program).unwrap();
        } else {
            replace(&library, &works);
        }
        let served = loop {
            let answer = ask(&instance, "nothing");
            match answer.failure() {
                Some(why) if why.reason == "worker_not_started" => assert!(start.elapsed() < LONG, "{why}"),
                _ => break answer,
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(served.json()["errno"], -1, "{what}: {}", served.end);
    }
    assert!(!note.exists());
}

/// Puts a library into the place of another, which a worker that runs has mapped.
fn replace(library: &std::path::Path, with: &std::path::Path) {
    let beside = library.with_extension("new");
    std::fs::copy(with, &beside).unwrap();
    std::fs::rename(beside, library).unwrap();
}

#[test]
fn one_that_misbehaves_before_it_is_entered_fails_to_load() {
    use backplane::isolation::WorkerEntry;
    use std::sync::Arc;
    for (what, words) in [
        ("exit", "exited with status 0"),
        ("segv", "SIGSEGV"),
        ("hang", "not ready within"),
        ("wrong-layout", "was built with an SDK that this host does not fit"),
    ] {
        let (_folder, library) = faulty(Some(what));
        let limit = if what == "hang" { Duration::from_secs(2) } else { LONG };
        let entry = Arc::new(WorkerEntry::new(Launch { limit, ..launch(library, Confinement::Nothing) }));
        let test = backplane_testkit::PluginTest::entered_by(entry.clone());
        assert!(test.open(r#"{"name":"faulty"}"#).is_err());
        let problem = entry.problem().unwrap();
        assert!(problem.contains(words), "{what}: {problem}");
    }
}
