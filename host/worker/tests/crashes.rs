//! A plugin that breaks down takes its worker with it, and nothing else.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod support;

use backplane::isolation::{Confinement, Launch};
use backplane_testkit::{Answer, Code, Instance};
use std::process::Command;
use std::time::{Duration, Instant};
use support::{hostile, launch, through};

/// An instance of the hostile plugin, and the folder that its library is in.
fn start() -> (tempfile::TempDir, Instance) {
    let (folder, library) = hostile(None);
    let launch = Launch { id: "com.example.hostile".to_owned(), ..launch(library, Confinement::Nothing) };
    let instance = through(launch).open(r#"{"name":"hostile"}"#).unwrap().instance().unwrap();
    (folder, instance)
}

fn ask(instance: &Instance, what: &str) -> Answer {
    instance.submit("hostile", &format!(r#"{{"do":"{what}"}}"#), vec![]).wait_for(Duration::from_secs(20))
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
    assert!(failure.message.contains(how) && failure.message.contains("`com.example.hostile`"), "{failure}");
    assert_eq!(ask(instance, "nothing").json()["errno"], -1, "the next one, after {how}");
    assert_eq!(instance.model().faults(), [], "after {how}");
}

#[test]
fn whatever_kills_it_is_named_and_the_next_request_is_served() {
    for (what, how) in [
        ("segv", "SIGSEGV"),
        ("abort", "SIGABRT"),
        ("exit", "exited with status 0"),
        // The worker's runtime sees the guard page touched, says so, and aborts.
        ("overflow", "SIGABRT"),
        ("fpe", "SIGFPE"),
        ("garbage", "not in the protocol"),
        ("forged-finish", "not in the protocol"),
        ("forged-push", "not in the protocol"),
    ] {
        let (_folder, instance) = start();
        let answer = ask(&instance, what);
        crashed(&instance, &answer, how);
    }
}

#[test]
fn a_stream_whose_worker_is_killed_ends_with_an_error() {
    let (_folder, instance) = start();
    let running = instance.submit("hostile", r#"{"do":"stream"}"#, vec![]);
    assert!(running.wait_for_chunks(3));
    let pid = ask(&instance, "pid").json()["errno"].as_i64().unwrap();
    signal(pid, "-9");
    let answer = running.wait();
    assert!(3 <= answer.chunks.len(), "what had come is the reader's");
    crashed(&instance, &answer, "SIGKILL");
}

#[test]
fn one_that_is_killed_while_it_idles_is_not_missed() {
    let (_folder, instance) = start();
    let pid = ask(&instance, "pid").json()["errno"].as_i64().unwrap();
    signal(pid, "-9");
    // Whether the end was seen already or the request finds it out.
    let answer = ask(&instance, "pid");
    let other = answer.json()["errno"].as_i64().unwrap_or_else(|| panic!("{}", answer.end));
    assert_ne!(other, pid);
}

#[test]
fn one_that_does_not_answer_is_ended() {
    let (_folder, instance) = start();
    let running = instance.submit("hostile", r#"{"do":"hang"}"#, vec![]);
    let pid = ask(&instance, "pid").json()["errno"].as_i64().unwrap();
    signal(pid, "-STOP");
    let start = Instant::now();
    let answer = running.wait();
    assert!(start.elapsed() < Duration::from_secs(15));
    crashed(&instance, &answer, "does not answer");
}

/// Others that were with it fail too, once each; who waits for the memory of one request does not.
#[test]
fn all_requests_of_a_worker_end_with_it() {
    let (_folder, instance) = start();
    let hanging: Vec<_> = (0..3).map(|_| instance.submit("hostile", r#"{"do":"hang"}"#, vec![])).collect();
    let answer = ask(&instance, "segv");
    for running in hanging {
        assert_eq!(running.wait().failure().unwrap().reason, "worker_crashed");
    }
    crashed(&instance, &answer, "SIGSEGV");
}

#[test]
fn a_request_that_crashed_it_twice_is_refused_and_others_are_not() {
    let (_folder, instance) = start();
    for _ in 0..2 {
        let answer = ask(&instance, "segv");
        assert_eq!(answer.failure().unwrap().reason, "worker_crashed", "{}", answer.end);
        std::thread::sleep(Duration::from_millis(600));
    }
    let failure = ask(&instance, "segv").failure().cloned().unwrap();
    assert_eq!(
        (failure.canonical(), &*failure.reason),
        (Some(Code::InvalidArgument), "request_crashes_plugin")
    );
    assert_eq!(ask(&instance, "nothing").json()["errno"], -1);
}

#[test]
fn one_that_crashes_again_and_again_is_not_started_any_more_nor_by_the_next_host() {
    let (folder, library) = hostile(None);
    let note = folder.path().join("quarantine");
    let launch = Launch {
        id: "com.example.hostile".to_owned(),
        quarantine: Some(note.clone()),
        ..launch(library, Confinement::Nothing)
    };
    let instance = through(launch.clone()).open(r#"{"name":"hostile"}"#).unwrap().instance().unwrap();
    let (mut crashes, start) = (0, Instant::now());
    let last = loop {
        // Each time another request.
        let answer = ask(&instance, &format!("segv\",\"n\":\"{crashes}"));
        let refused = match answer.end {
            backplane_testkit::End::Refused(failure) => Some(failure),
            _ => None,
        };
        match refused {
            None => crashes += 1,
            Some(failure) if failure.reason == "plugin_quarantined" => break failure,
            Some(failure) => assert!(failure.retry_after_ms > 0, "{failure}"),
        }
        assert!(start.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(crashes, 5, "{last}");
    // Over a restart.
    let again = through(launch.clone()).open(r#"{"name":"hostile"}"#).err().unwrap();
    assert_eq!(again.code, 14, "{again}");
    std::fs::remove_file(note).unwrap();
    assert!(through(launch).open(r#"{"name":"hostile"}"#).is_ok());
}

#[test]
fn one_that_misbehaves_before_it_is_entered_fails_to_load() {
    use backplane::isolation::WorkerEntry;
    use std::sync::Arc;
    for (what, words) in [("exit", "exited with status 0"), ("segv", "SIGSEGV"), ("hang", "not ready within")]
    {
        let (_folder, library) = hostile(Some(what));
        let limit = Duration::from_secs(2);
        let entry = Arc::new(WorkerEntry::new(Launch { limit, ..launch(library, Confinement::Nothing) }));
        let test = backplane_testkit::PluginTest::entered_by(entry.clone());
        assert!(test.open(r#"{"name":"hostile"}"#).is_err());
        let problem = entry.problem().unwrap();
        assert!(problem.contains(words), "{what}: {problem}");
    }
}
