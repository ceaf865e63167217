//! A Rust plugin that panics wherever it is asked to, in-process and in a worker. The SDK catches it inside the plugin: who asked
//! is told, and neither the host nor the worker ends. What is seen is a table of `docs/isolation.md`; `BACKPLANE_UPDATE=1`
//! writes it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod support;

use backplane::config::Isolation;
use backplane::{Caller, Config, Error, Host, Request};
use serde_json::json;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use support::echo_library;

const PANICS: &str = "com.example.panics";

/// Where it panics, and what who asks one of its models then sees: in both modes.
const PLACES: &[(&str, &str)] = &[
    ("init", NOT_LOADED),
    ("bid", NO_BID),
    ("open", TOLD),
    ("describe", TOLD),
    ("instance", TOLD),
    ("submit", TOLD),
    ("count_tokens", SERVED),
    ("stats", SERVED),
    ("health", SERVED),
    ("drop", SERVED),
    ("close", SERVED),
];
const NOT_LOADED: &str = "it is listed and not loaded, with the panic's words";
const NO_BID: &str = "an error: it failed to bid";
const TOLD: &str = "an error that says so";
const SERVED: &str = "an answer; the log says so";

/// `tests/plugins/panics.rs`, compiled.
fn library() -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "-p", "e2e", "--example", "panics", "--message-format=json"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let messages = String::from_utf8(output.stdout).unwrap();
    let file = messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == "panics").then_some(())?;
        message["filenames"]
            .as_array()?
            .iter()
            .find_map(|file| file.as_str()?.strip_suffix(".so").map(str::to_owned))
    });
    format!("{}.so", file.unwrap()).into()
}

struct Scene {
    host: Host,
    _state: tempfile::TempDir,
}

impl Scene {
    fn start(library: &Path, isolation: Isolation, init: bool) -> Self {
        let state = tempfile::tempdir().unwrap();
        std::fs::create_dir(state.path().join("plugins")).unwrap();
        std::fs::copy(library, state.path().join("plugins/libpanics.so")).unwrap();
        std::fs::copy(echo_library(), state.path().join("plugins/libecho.so")).unwrap();
        let mut config = Config::for_tests();
        config.plugins.isolation.insert(PANICS.to_owned(), isolation);
        if init {
            let panic = [("panic".to_owned(), json!("init"))].into_iter().collect();
            config.plugins.settings.insert(PANICS.to_owned(), panic);
        }
        let host = Host::builder().config(config).state_dir(state.path()).start().unwrap();
        Self { host, _state: state }
    }

    async fn ask(&self, capability: &str, model: &str) -> Result<(), Error> {
        let request = Request::new(Caller::internal("tests"), capability, r#"{"text":"hello"}"#).model(model);
        self.host.serve(request.within(Duration::from_secs(60))).await?.collect().await.map(|_| ())
    }

    /// Workers that ended without being asked to; instances that are replaced are another thing.
    fn crashes(&self) -> usize {
        let figures = self.host.metrics().render();
        let faults = figures.lines().filter(|line| line.starts_with("backplane_plugin_faults_total{"));
        faults.filter(|line| !line.contains("kind=\"instance\"")).count()
    }
}

/// What who asks sees, three times over; with the others served, and no worker gone.
async fn seen(scene: &Scene, place: &str) -> String {
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(match scene.ask("com.example.panic", &format!("panics-{place}")).await {
            Ok(()) => SERVED.to_owned(),
            // What was submitted when it panicked is ended without the words, which the log has.
            Err(error) if error.message.contains("the plugin panicked") => TOLD.to_owned(),
            Err(error) if error.message.contains("failed to bid") => NO_BID.to_owned(),
            Err(error) => format!("{error}"),
        });
        scene.ask("echo", "echo").await.unwrap();
        assert_eq!(scene.crashes(), 0, "{place}: a worker ended");
    }
    // Closed, so that what is dropped is dropped; figures are read behind the requests' backs.
    let _ = scene.host.unload(&format!("panics-{place}")).await;
    scene.host.metrics().render();
    scene.ask("echo", "echo").await.unwrap();
    assert_eq!(scene.crashes(), 0, "{place}: a worker ended");
    seen.dedup();
    seen.join(", then ")
}

#[tokio::test]
async fn a_panic_is_an_error_and_ends_neither_the_host_nor_the_worker() {
    let library = library();
    let mut wrong = Vec::new();
    for isolation in [Isolation::InProcess, Isolation::Worker] {
        let scene = Scene::start(&library, isolation, false);
        let plugin = scene.host.plugins().into_iter().find(|plugin| plugin.id == PANICS).unwrap();
        assert!(plugin.ready && plugin.isolation == isolation.name(), "{:?}", plugin.problem);
        for (place, expected) in PLACES.iter().filter(|(place, _)| *place != "init") {
            let seen = seen(&scene, place).await;
            if seen != *expected {
                wrong.push(format!("{place} {}: {seen}, not {expected}", isolation.name()));
            }
        }
        scene.host.shutdown(Duration::from_secs(5)).await;

        let scene = Scene::start(&library, isolation, true);
        let plugin = scene.host.plugins().into_iter().find(|plugin| plugin.id == PANICS).unwrap();
        let problem = plugin.problem.unwrap_or_default();
        if plugin.ready || !problem.contains("the plugin panicked: asked to panic in init") {
            wrong.push(format!("init {}: {problem}", isolation.name()));
        }
        scene.ask("echo", "echo").await.unwrap();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The table that people read is the one that was checked.
#[test]
fn the_table_of_the_documentation_is_this_one() {
    const BEGIN: &str = "<!-- panics: written by host/worker/tests/panics.rs -->\n";
    const END: &str = "<!-- panics: end -->\n";
    let mut table = "| a Rust plugin panics in | in-process | in a worker |\n|---|---|---|\n".to_owned();
    for (place, seen) in PLACES {
        writeln!(table, "| `{place}` | {seen} | {seen} |").unwrap();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/isolation.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("docs/isolation.md has the table's first line");
    let (written, after) = rest.split_once(END).expect("docs/isolation.md has the table's last line");
    if std::env::var_os("BACKPLANE_UPDATE").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
    } else {
        assert_eq!(written, table, "docs/isolation.md is stale: run this test with BACKPLANE_UPDATE=1");
    }
}
