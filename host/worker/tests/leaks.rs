//! Requests leave nothing behind, however they end: no descriptor, no mapping, no memory that grows with their number; in the
//! worker as in the host. Alone in its process, whose descriptors it counts.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod support;

use backplane::config::Isolation;
use backplane::{Caller, Config, DType, Host, Next, Request, Tensor};
use serde_json::{Value, json};
use std::fmt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use support::{LONG, echo_library};

/// What a process has.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Has {
    descriptors: usize,
    mappings: usize,
    threads: usize,
    /// KiB that are its own.
    memory: usize,
}

impl Has {
    fn of(pid: u32) -> Self {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let status = std::fs::read_to_string(proc.join("status")).unwrap();
        let figure = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap().split_whitespace().next().unwrap().parse().unwrap()
        };
        Self {
            descriptors: std::fs::read_dir(proc.join("fd")).unwrap().count(),
            mappings: std::fs::read_to_string(proc.join("maps")).unwrap().lines().count(),
            threads: figure("Threads"),
            memory: figure("RssAnon") + figure("RssShmem"),
        }
    }
}

impl fmt::Debug for Has {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { descriptors, mappings, threads, memory } = self;
        write!(f, "{descriptors} descriptors, {mappings} mappings, {threads} threads, {memory} KiB")
    }
}

fn echo(params: &Value) -> Request {
    Request::new(Caller::internal("tests"), "echo", params.to_string()).model("echo")
}

/// A tensor of so many bytes. Beyond 64 KiB it crosses in an arena.
fn tensor(len: usize) -> Tensor {
    Tensor::new("numbers", DType::Uint8, vec![len as i64], vec![7; len]).unwrap()
}

/// One of each kind: small, by an arena and back, called from a worker and back, failed, left, and panicked.
async fn round(host: &Host, number: usize) {
    let ok = |params: Value, bytes: usize| {
        let mut request = echo(&params);
        if bytes > 0 {
            request.tensors = vec![tensor(bytes)];
        }
        async { host.serve(request).await.unwrap().collect().await.unwrap() }
    };
    ok(json!({"text": format!("small {number}"), "chunks": 2}), 100).await;
    let answer = ok(json!({"text": "large"}), 200_000).await;
    assert_eq!(answer.chunks[0].tensors[0].data.len(), 200_000);
    let call = json!({"capability": "echo", "model": "echo-serial", "params": {"text": "inner"}});
    let answer = ok(json!({"text": "outer", "call": call}), 100_000).await;
    assert_eq!(answer.chunks[0].tensors[0].data.len(), 100_000);

    let mut request = echo(&json!({"fail": {"code": "unavailable", "message": "no"}}));
    request.tensors = vec![tensor(100_000)];
    host.serve(request).await.unwrap().collect().await.unwrap_err();

    for params in [
        json!({"text": "left", "chunks": 1000, "chunk_delay_ms": 1}),
        json!({"text": "x", "call": {"capability": "echo", "model": "echo-continuous",
            "params": {"text": "left", "delay_ms": 60_000}}}),
    ] {
        let mut request = echo(&params);
        request.tensors = vec![tensor(100_000)];
        let mut reply = host.serve(request).await.unwrap();
        if params.get("chunks").is_some() {
            assert!(matches!(reply.next().await.unwrap(), Next::Chunk(_)));
        }
        drop(reply);
    }
    // It takes its instance with it, and those that were left and are not finished yet away from that.
    if number.is_multiple_of(5) {
        let panics = echo(&json!({"panic": true}));
        host.serve(panics).await.unwrap().collect().await.unwrap_err();
    }
    let busy = || {
        ["echo", "echo-serial", "echo-continuous"]
            .iter()
            .map(|model| host.model(model).unwrap().running.map_or(0, |running| running.busy))
            .sum::<u32>()
    };
    let deadline = Instant::now() + LONG;
    while 0 < busy() {
        assert!(Instant::now() < deadline, "what was left is not given back");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn requests_leave_nothing_behind() {
    let state = tempfile::tempdir().unwrap();
    let plugins = state.path().join("plugins");
    std::fs::create_dir(&plugins).unwrap();
    std::fs::copy(echo_library(), plugins.join("libecho.so")).unwrap();
    let mut config = Config::for_tests();
    config.plugins.isolation = [("*".to_owned(), Isolation::Worker)].into();
    let host = Host::builder().config(config).state_dir(state.path()).start().unwrap();
    let own = std::process::id();
    let workers = || {
        let output =
            Command::new("ps").args(["-o", "pid=,args=", "--ppid", &own.to_string()]).output().unwrap();
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter(|line| line.contains("backplane-worker"))
            .map(|line| line.split_whitespace().next().unwrap().parse().unwrap())
            .collect::<Vec<u32>>()
    };
    let [worker] = workers()[..] else { panic!("one worker") };
    // Lanes and arenas of allocators are made as they are needed, and kept.
    for number in 0..150 {
        round(&host, number).await;
    }
    let before = [own, worker].map(Has::of);
    for number in 0..600 {
        round(&host, number).await;
    }
    let after = [own, worker].map(Has::of);
    assert_eq!(workers(), [worker], "it is the same worker");
    for (who, before, after) in [("host", before[0], after[0]), ("worker", before[1], after[1])] {
        println!("{who}: {before:?}; after it: {after:?}");
        // Less than one for a hundred rounds, of which each has seven requests.
        assert!(after.descriptors <= before.descriptors + 5, "{who}: {before:?}; {after:?}");
        assert!(after.mappings <= before.mappings + 20, "{who}: {before:?}; {after:?}");
        assert!(after.threads <= before.threads + 5, "{who}: {before:?}; {after:?}");
        // A tensor of each tenth round would be more.
        assert!(after.memory <= before.memory + 6000, "{who}: {before:?}; {after:?}");
    }
    host.shutdown(Duration::from_secs(5)).await;
}
