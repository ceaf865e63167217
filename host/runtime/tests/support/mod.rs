//! A host with the echo plugin, loaded from the shared library as in real life.

#![allow(dead_code, clippy::unwrap_used, reason = "each test uses its part; a helper fails by panicking")]

use backplane::{Answer, Caller, Config, Host, Request};
use serde_json::Value;
use std::time::{Duration, Instant};

mod library;
#[allow(unused_imports, reason = "each test uses its part")]
pub use library::{device, plugins, slow};

/// A running host and the state directory it dies with.
pub struct Running {
    pub host: Host,
    pub state: tempfile::TempDir,
}

/// A host with the echo plugin.
pub fn host(change: impl FnOnce(&mut Config)) -> Running {
    let state = tempfile::tempdir().unwrap();
    let mut config = Config::for_tests();
    change(&mut config);
    let host = Host::builder().config(config).state_dir(state.path()).plugin_dir(plugins()).start().unwrap();
    Running { host, state }
}

/// A request to echo.
pub fn echo(params: Value) -> Request {
    Request::new(Caller::internal("tests"), "echo", params.to_string()).model("echo")
}

/// The text of an answer, its pieces joined.
pub fn text(answer: &Answer) -> String {
    answer.json::<Value>().unwrap().iter().map(|piece| piece["text"].as_str().unwrap().to_owned()).collect()
}

/// Waits for something that must come true soon.
pub async fn soon(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is() {
        assert!(Instant::now() < deadline, "{what} did not come true");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Threads of this process whose name begins so; the kernel keeps 15 letters of a name.
pub fn threads(name: &str) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|other| other.starts_with(name)).count()
}
