//! A worker as a process: what it inherits, whom it speaks to, and whom it ends with.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod support;

use backplane::isolation::{Confinement, Launch, WorkerEntry};
use backplane_abi::worker::{Channel, Confine, PROTOCOL, ToHost, ToWorker, frame};
use backplane_testkit::PluginTest;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{LONG, cpu, echo_library, faulty, faulty_launch, launch, through};

/// Whoever opens a file without saying that it is for no other program does not mean the plugins by that.
#[test]
fn a_worker_inherits_nothing_of_the_hosts() {
    let (folder, library) = faulty(None);
    let secret = folder.path().join("the host's");
    // A copy is inherited.
    let _inherited = rustix::io::dup(std::fs::File::create(&secret).unwrap()).unwrap();
    let instance = through(faulty_launch(library, Confinement::Nothing))
        .open(r#"{"name":"faulty"}"#)
        .unwrap()
        .instance()
        .unwrap();
    let answer = instance.submit("com.example.faulty.do", r#"{"do":"pid"}"#, vec![]).wait();
    let open = |process: &str| -> Vec<_> {
        let all = std::fs::read_dir(format!("/proc/{process}/fd")).unwrap();
        all.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok()).collect()
    };
    assert!(open("self").contains(&secret), "it is open here");
    let theirs = open(&answer.json()["errno"].to_string());
    assert!(!theirs.is_empty() && !theirs.contains(&secret), "{theirs:?}");
}

/// Another release of the worker beside this host: a program that answers as one whose protocol is the next would.
#[test]
fn a_worker_of_another_release_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("worker.c"), folder.path().join("worker"));
    let theirs = PROTOCOL + 1;
    let text = format!(
        "#include <unistd.h>\n\
         int main(void) {{\n\
           unsigned char heard[65536], ready[9] = {{0, {theirs}}};\n\
           return read(0, heard, sizeof heard) < 0 || write(0, ready, sizeof ready) < 0;\n\
         }}\n"
    );
    std::fs::write(&source, text).unwrap();
    assert!(Command::new("cc").arg(&source).arg("-o").arg(&program).status().unwrap().success());
    let entry = Arc::new(WorkerEntry::new(Launch { program, ..launch(echo_library(), cpu()) }));
    assert!(PluginTest::entered_by(entry.clone()).open(r#"{"name":"echo"}"#).is_err());
    assert_eq!(
        entry.problem().unwrap(),
        format!(
            "its worker speaks protocol {theirs} and this host {PROTOCOL}: install both from one release"
        )
    );
}

/// And another release of the host beside this worker.
#[test]
fn a_host_of_another_release_is_told_so() {
    let (ours, theirs) = Channel::pair().unwrap();
    let mut worker = Command::new(env!("CARGO_BIN_EXE_backplane-worker"))
        .stdin(Stdio::from(theirs.into_fd()))
        .spawn()
        .unwrap();
    let (protocol, library) = (PROTOCOL + 1, &b"/nowhere.so"[..]);
    ours.send(&frame(&ToWorker::Start { protocol, library, confine: Confine::Nothing {} })).unwrap();
    let (body, _) = ours.receive().unwrap().unwrap();
    let ToHost::Ready { protocol: spoken, problem: Some(problem), .. } = body.read().unwrap() else {
        panic!("it takes what it does not understand")
    };
    assert_eq!(
        (spoken, String::from_utf8_lossy(problem).into_owned()),
        (
            PROTOCOL,
            format!(
                "the host speaks protocol {protocol} and this worker {PROTOCOL}: install both from one release"
            )
        )
    );
    assert!(worker.wait().unwrap().success());
}

const STANDS_FOR_THE_HOST: &str = "BACKPLANE_TEST_STANDS_FOR_THE_HOST";

/// Has no time to end anything.
#[test]
fn workers_end_with_a_host_that_is_killed() {
    if std::env::var_os(STANDS_FOR_THE_HOST).is_some() {
        return stand_for_the_host();
    }
    for how in ["cpu", "nothing"] {
        let mut host = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "workers_end_with_a_host_that_is_killed", "--nocapture"])
            .env(STANDS_FOR_THE_HOST, how)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(host.stdout.take().unwrap()).lines();
        let pid: u32 = lines.find_map(|line| line.unwrap().split_once("worker=")?.1.parse().ok()).unwrap();
        assert!(runs(pid), "{how}");
        host.kill().unwrap();
        host.wait().unwrap();
        let start = Instant::now();
        while runs(pid) {
            assert!(start.elapsed() < LONG, "{how}: the worker outlives its host");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Whether it is there, and no more than waited for.
fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    stat.is_ok_and(|stat| !stat.rsplit(") ").next().unwrap_or_default().starts_with(['Z', 'X']))
}

fn stand_for_the_host() {
    let confinement = match std::env::var(STANDS_FOR_THE_HOST).as_deref() {
        Ok("cpu") => cpu(),
        _ => Confinement::Nothing,
    };
    let (_folder, library) = faulty(None);
    let instance = through(faulty_launch(library, confinement))
        .open(r#"{"name":"faulty"}"#)
        .unwrap()
        .instance()
        .unwrap();
    let answer = instance.submit("com.example.faulty.do", r#"{"do":"pid"}"#, vec![]).wait();
    let mut told = std::io::stdout();
    writeln!(told, "worker={}", answer.json()["errno"]).unwrap();
    told.flush().unwrap();
    // With a request that the worker is at.
    let _running = instance.submit("com.example.faulty.do", r#"{"do":"stream"}"#, vec![]);
    std::thread::sleep(LONG);
}
