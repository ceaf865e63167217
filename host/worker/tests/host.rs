//! The real host with a plugin in a worker, by one line of configuration.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod support;

use backplane::config::Isolation;
use backplane::{Answer, Caller, Config, ErrorCode, Host, Next, Request};
use backplane_registry::package::{Level, PackOptions, Plugins, Trust, open, pack};
use backplane_registry::trust::{Role, SecretKey, Timestamp, TrustStore, TrustedKey};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use support::{LONG, echo_library};

/// A host with echo in a worker, and its state directory.
fn host() -> (tempfile::TempDir, Host) {
    host_with(|state| {
        let plugins = state.join("plugins");
        std::fs::create_dir(&plugins).unwrap();
        std::fs::copy(echo_library(), plugins.join("libecho.so")).unwrap();
    })
}

fn host_with(put: impl FnOnce(&Path)) -> (tempfile::TempDir, Host) {
    let state = tempfile::tempdir().unwrap();
    put(state.path());
    let mut config = Config::for_tests();
    config.plugins.isolation = [("*".to_owned(), Isolation::Auto)].into();
    let host = Host::builder().config(config).state_dir(state.path()).start().unwrap();
    (state, host)
}

fn echo(params: Value) -> Request {
    Request::new(Caller::internal("tests"), "echo", params.to_string()).model("echo")
}

async fn ask(host: &Host, text: &str) -> Answer {
    host.serve(echo(json!({"text": text}))).await.unwrap().collect().await.unwrap()
}

/// One at a time: they count the workers of this process.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Workers of this process.
fn workers() -> Vec<u32> {
    let own = std::process::id().to_string();
    let output = Command::new("ps").args(["-o", "pid=,args=", "--ppid", &own]).output().unwrap();
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|line| line.contains("backplane-worker"))
        .filter_map(|line| line.split_whitespace().next()?.parse().ok())
        .collect()
}

#[tokio::test]
async fn it_is_served_killed_and_served_again() {
    let _alone = ALONE.lock().await;
    let (_state, host) = host();
    let plugin = host.plugins().into_iter().find(|plugin| plugin.id == "dev.backplane.echo").unwrap();
    assert_eq!((plugin.isolation, plugin.ready), ("worker", true), "{:?}", plugin.problem);

    let answer = ask(&host, "hello").await;
    assert_eq!(answer.json::<Value>().unwrap()[0]["text"], "hello");
    let before = workers();
    assert_eq!(before.len(), 1);

    // In the middle of a stream.
    let mut reply =
        host.serve(echo(json!({"text": "slowly", "chunks": 100_000, "chunk_delay_ms": 20}))).await.unwrap();
    for _ in 0..3 {
        assert!(matches!(reply.next().await.unwrap(), Next::Chunk(_)));
    }
    assert!(Command::new("kill").args(["-9", &before[0].to_string()]).status().unwrap().success());
    let error = loop {
        match reply.next().await {
            Ok(Next::Chunk(_)) => {}
            Ok(Next::Done(_)) => panic!("it ended as if nothing had happened"),
            Err(error) => break error,
        }
    };
    assert_eq!((error.code, &*error.reason), (ErrorCode::Unavailable, "worker_crashed"), "{error}");

    let answer = ask(&host, "again").await;
    assert_eq!(answer.json::<Value>().unwrap()[0]["text"], "again");
    let after = workers();
    assert!(after.len() == 1 && after != before, "{before:?} {after:?}");
    host.shutdown(Duration::from_secs(5)).await;
    drop(host);
    let deadline = Instant::now() + LONG;
    while !workers().is_empty() {
        assert!(Instant::now() < deadline, "a worker outlives its host");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Packs echo, signs it, and installs it in a state directory that trusts the key.
fn install(state: &Path) {
    let key = SecretKey::of_seed(&[7; 32]);
    TrustStore::at(state).add(TrustedKey::new(key.public(), "acme", &[Role::Plugin])).unwrap();
    let package = state.join("echo.plg");
    pack(&echo_library(), &PackOptions::default()).unwrap().write(&package, &[&key]).unwrap();
    let trust = Trust::load(state, Level::Org, Timestamp::now()).unwrap();
    Plugins::at(state).install(&open(&package, &trust).unwrap(), &trust, "test").unwrap();
}

/// What was verified is what runs, also when the worker is started again after somebody has changed the file.
#[tokio::test]
async fn a_signed_package_runs_in_a_worker_from_its_sealed_copy() {
    let _alone = ALONE.lock().await;
    let (state, host) = host_with(install);
    let plugin = host.plugins().into_iter().find(|plugin| plugin.id == "dev.backplane.echo").unwrap();
    assert_eq!(
        (plugin.isolation, plugin.level, plugin.ready),
        ("worker", "org", true),
        "{:?}",
        plugin.problem
    );
    assert_eq!(ask(&host, "sealed").await.json::<Value>().unwrap()[0]["text"], "sealed");

    let package = Plugins::at(state.path()).in_use("dev.backplane.echo").unwrap();
    let name = echo_library().file_name().unwrap().to_owned();
    std::fs::remove_file(package.folder.join(&name)).unwrap();
    std::fs::write(package.folder.join(&name), "not what was verified").unwrap();
    let before = workers();
    assert!(Command::new("kill").args(["-9", &before[0].to_string()]).status().unwrap().success());
    let start = Instant::now();
    while workers() == before {
        assert!(start.elapsed() < LONG);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(ask(&host, "again").await.json::<Value>().unwrap()[0]["text"], "again");
    host.shutdown(Duration::from_secs(5)).await;
}
