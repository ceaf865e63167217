//! A server to be tested.

use backplane::config::LoadOptions;
use backplane::{Config, Host};
use backplane_server::Server;
use reqwest::header::HeaderMap;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

/// A host with the scripted plugin, behind a server on a port of its own.
pub struct Running {
    pub host: Host,
    pub address: String,
    pub client: reqwest::Client,
    server: Option<Server>,
    _state: tempfile::TempDir,
}

/// The library of `examples/scripted.rs`. Built here, since cargo builds examples for some ways to run tests only.
fn plugin() -> &'static Path {
    static PLUGIN: OnceLock<PathBuf> = OnceLock::new();
    PLUGIN.get_or_init(|| {
        let built = Command::new(env!("CARGO"))
            .args(["build", "--package", env!("CARGO_PKG_NAME"), "--example", "scripted"])
            .args(["--message-format", "json-render-diagnostics"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(built.status.success(), "the scripted plugin does not build");
        let text = String::from_utf8(built.stdout).unwrap();
        let messages = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let artifact = messages
            .filter(|message| message["target"]["name"] == "scripted")
            .find_map(|message| message["filenames"][0].as_str().map(PathBuf::from));
        artifact.unwrap()
    })
}

/// Starts with keys off, and these settings besides those for tests.
pub fn start_with(settings: &[(&str, &str)]) -> Running {
    let state = tempfile::tempdir().unwrap();
    let plugins = tempfile::tempdir_in(state.path()).unwrap();
    std::fs::copy(plugin(), plugins.path().join("libscripted.so")).unwrap();
    let defaults = [
        ("server.address", "127.0.0.1:0"),
        ("server.workers", "1"),
        ("auth.enabled", "false"),
        ("plugins.isolation.\"*\"", "in-process"),
    ];
    let overrides =
        defaults.iter().chain(settings).map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let config =
        Config::load(LoadOptions { overrides: overrides.collect(), ..LoadOptions::default() }).unwrap();
    let server_config = config.server.clone();
    let host =
        Host::builder().config(config).state_dir(state.path()).plugin_dir(plugins.path()).start().unwrap();
    std::mem::forget(plugins); // goes with the state directory
    let server = Server::start(host.clone(), server_config).unwrap();
    let address = format!("http://{}", server.address());
    let client = reqwest::Client::builder().timeout(Duration::from_secs(30)).build().unwrap();
    Running { host, address, client, server: Some(server), _state: state }
}

/// Starts with keys off.
pub fn start() -> Running {
    start_with(&[])
}

/// An answer, read to its end.
pub struct Got {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Got {
    pub async fn of(response: reqwest::Response) -> Self {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Self { status, headers, body: response.bytes().await.unwrap().to_vec() }
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The data of each event.
    pub fn events(&self) -> Vec<String> {
        self.text()
            .split("\n\n")
            .filter_map(|event| event.strip_prefix("data: ").map(str::to_owned))
            .collect()
    }

    /// The data of each event but the last, which must be `[DONE]`, as JSON.
    pub fn pieces(&self) -> Vec<Value> {
        let mut events = self.events();
        assert_eq!(events.pop().as_deref(), Some("[DONE]"), "{}", self.text());
        events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }
}

impl Running {
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.address)
    }

    pub async fn get(&self, path: &str) -> Got {
        Got::of(self.client.get(self.url(path)).send().await.unwrap()).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Got {
        self.post_with(path, &[], body.to_string()).await
    }

    pub async fn post_with(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Got {
        let mut request =
            self.client.post(self.url(path)).header("content-type", "application/json").body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Got::of(request.send().await.unwrap()).await
    }

    /// Ends server and host, and waits for both.
    pub async fn stop(mut self) {
        if let Some(server) = self.server.take() {
            server.stop(Duration::from_secs(2)).await;
        }
        self.host.shutdown(Duration::from_secs(2)).await;
    }
}
