//! A host inside another program: on any executor, beside another host, and gone without a trace.

#![allow(clippy::unwrap_used, reason = "in a test a failure is the test's")]

mod support;

use backplane::{Answer, Next};
use serde_json::json;
use std::future::Future;
use std::process::Command;
use std::sync::Arc;
use std::task::{Context, Poll, Wake};
use std::thread::Thread;
use std::time::{Duration, Instant};
use support::{Running, echo, host, text, threads};

const MODELS: [&str; 3] = ["echo", "echo-serial", "echo-continuous"];

/// The smallest executor there is: a thread that sleeps until it is woken.
fn park_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park_timeout(Duration::from_secs(5)),
        }
    }
}

async fn answers(running: &Running) -> Vec<Answer> {
    let asked = MODELS.map(|model| async move {
        let request = echo(json!({"text": model, "chunks": 3, "delay_ms": 5})).model(model);
        running.host.serve(request).await.unwrap().collect().await.unwrap()
    });
    futures::future::join_all(asked).await
}

fn all() -> usize {
    threads("")
}

fn names() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok()).collect()
}

/// Waits until there are as few threads as before.
fn settles_at(before: usize, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while before < all() {
        assert!(Instant::now() < deadline, "{what}: {before} threads before, now {:?}", names());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// One test, since it counts the threads of the process.
#[test]
fn a_host_runs_on_any_executor_and_leaves_no_thread() {
    // What is made once for a process is made now.
    drop(host(|_| {}));
    let before = all();

    let running = host(|_| {});
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let on_tokio = runtime.block_on(answers(&running));
    let on_futures = futures::executor::block_on(answers(&running));
    let on_nothing = park_on(answers(&running));
    for answer in [on_tokio, on_futures, on_nothing].concat() {
        assert_eq!(text(&answer), *answer.route.model);
    }
    // A reply that is made on one executor and read on another.
    let mut reply = runtime
        .block_on(
            running.host.serve(echo(json!({"text": "ab", "chunks": 2, "chunk_delay_ms": 20})).streamed()),
        )
        .unwrap();
    drop(runtime);
    let pieces = park_on(async {
        let mut pieces = 0;
        while let Next::Chunk(_) = reply.next().await.unwrap() {
            pieces += 1;
        }
        pieces
    });
    assert_eq!(pieces, 2);
    assert!(before < all());
    park_on(running.host.shutdown(Duration::from_secs(5)));
    settles_at(before, "after a shutdown");
    let error = park_on(running.host.serve(echo(json!({})))).err().unwrap();
    assert_eq!(error.reason, "shutting_down", "it says so, on a host that is no more");
    assert_eq!(park_on(running.host.unload("echo")).err().unwrap().reason, "shutting_down");
    drop(running);

    // Two hosts, of which one goes while it is at work.
    let (one, two) = (host(|_| {}), host(|_| {}));
    park_on(answers(&one));
    park_on(answers(&two));
    let slow = |model| echo(json!({"text": "x", "delay_ms": 60_000})).model(model).streamed();
    let replies: Vec<_> = MODELS.iter().map(|model| park_on(one.host.serve(slow(*model))).unwrap()).collect();
    let began = Instant::now();
    drop(one);
    assert!(began.elapsed() < Duration::from_secs(5), "nobody waits for what nobody can read");
    for reply in replies {
        let error = park_on(reply.collect()).err().unwrap();
        assert_eq!(error.reason, "shutting_down", "{error}");
    }
    for answer in park_on(answers(&two)) {
        assert_eq!(text(&answer), *answer.route.model, "the other is well");
    }
    drop(two);
    settles_at(before, "after both were dropped");

    // Again and again leaves nothing behind.
    for _ in 0..3 {
        let running = host(|_| {});
        park_on(answers(&running));
    }
    settles_at(before, "after three more");
    the_example();
}

/// As its first lines say it is run.
fn the_example() {
    let ran = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "-p", "backplane", "--example", "embed", "--"])
        .arg(support::plugins())
        .args(["echo", r#"{"text": "hello", "chunks": 2}"#, "echo-continuous"])
        .env_remove("BACKPLANE_STATE")
        .output()
        .unwrap();
    let said = String::from_utf8(ran.stderr).unwrap();
    assert!(ran.status.success(), "{said}");
    assert!(said.contains(r#"{"text":"he"}"#) && said.contains("answered by `echo-continuous`"), "{said}");
}
