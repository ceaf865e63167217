//! A plugin that does not come back out of a call is ended with its worker, when the call has taken what it may.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod support;

use backplane::config::Isolation;
use backplane::isolation::{Confinement, Launch, OnCrash, OpenLimit};
use backplane::{Caller, Config, ErrorCode, Host, Request};
use serde_json::{Value, json};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use support::{LONG, echo_library, faulty, faulty_launch, through};

/// How long a model may take to open.
const LIMIT: Duration = Duration::from_secs(1);

#[test]
fn no_call_lasts_for_ever() {
    for at in ["open", "instance", "health", "destroy", "close"] {
        let (_folder, library) = faulty(Some(&format!("hang-{at}")));
        let (crashed, crashes) = channel();
        let on_crash = OnCrash::new(move |_, crash| {
            let _gone = crashed.send(crash.kind);
        });
        let launch = faulty_launch(library, Confinement::Nothing);
        let test = through(Launch { open_limit: OpenLimit::new(LIMIT), on_crash, ..launch });
        let start = Instant::now();
        let opened = test.open(r#"{"name":"faulty"}"#).map(|model| (model.instance(), model));
        let failed = match opened {
            Err(why) => Some(why.message),
            Ok((Err(why), _)) => Some(why.message),
            Ok((Ok(instance), _model)) => {
                instance.health();
                None
            }
        };
        let doing = match at {
            "open" => Some("opening a model"),
            "instance" => Some("making an instance"),
            _ => None,
        };
        let words = |doing| format!("did not answer a call in time and was killed while it was {doing}");
        assert!(
            failed
                .as_ref()
                .map_or(doing.is_none(), |why| doing.is_some_and(|doing| why.ends_with(&words(doing)))),
            "{at}: {failed:?}"
        );
        assert_eq!(crashes.recv_timeout(LONG), Ok("slow"), "{at}");
        assert!(start.elapsed() < LONG, "{at}");
    }
}

/// Whoever asked for an answer that does not come is told so; the others meet the end of a worker.
#[test]
fn a_request_without_progress_is_ended() {
    let (_folder, library) = faulty(None);
    let (crashed, crashes) = channel();
    let on_crash = OnCrash::new(move |_, crash| {
        let _gone = crashed.send(crash.kind);
    });
    let launch = faulty_launch(library, Confinement::Nothing);
    let launch = Launch { progress: Some(5 * LIMIT), on_crash, ..launch };
    let instance = through(launch).open(r#"{"name":"faulty"}"#).unwrap().instance().unwrap();
    let submit =
        |what: &str| instance.submit("com.example.faulty.do", &format!(r#"{{"do":"{what}"}}"#), vec![]);
    // As long as pieces come it may take as long as it likes.
    let stream = submit("stream");
    std::thread::sleep(6 * LIMIT);
    assert!(stream.is_open());
    let answer = submit("hang").wait_for(LONG);
    let failure = answer.failure().unwrap_or_else(|| panic!("{}", answer.end));
    assert_eq!(failure.reason, "plugin_stuck", "{failure}");
    assert!(failure.message.contains("`plugins.workers.\"com.example.faulty\".progress`"), "{failure}");
    let other = stream.wait_for(LONG);
    let failure = other.failure().unwrap_or_else(|| panic!("{}", other.end));
    assert_eq!(failure.reason, "worker_crashed", "{failure}");
    assert!(failure.message.contains("made no progress with a request"), "{failure}");
    assert_eq!(crashes.recv_timeout(LONG), Ok("stuck"));
    // It is no crash: again and again, and there is no pause.
    assert_eq!(submit("nothing").wait_for(LONG).json()["errno"], -1);
}

fn config() -> Config {
    let mut config = Config::for_tests();
    config.plugins.isolation = [("*".to_owned(), Isolation::Worker)].into();
    config.models.load_timeout = LIMIT;
    config.server.drain = LIMIT;
    config
}

fn slow(host: &Host, plugin: &str) -> bool {
    let line = format!(r#"backplane_plugin_faults_total{{kind="slow",plugin="{plugin}"}} 1"#);
    host.metrics().render().lines().any(|other| other == line)
}

/// In-process a thread that hangs keeps its model until the host restarts. A worker is ended, and another opens it.
#[tokio::test]
async fn a_model_whose_opening_hangs_can_be_opened_again() {
    let state = tempfile::tempdir().unwrap();
    std::fs::create_dir(state.path().join("plugins")).unwrap();
    std::fs::copy(echo_library(), state.path().join("plugins/libecho.so")).unwrap();
    std::fs::write(state.path().join("weights"), "none").unwrap();
    let card = state.path().join("mine.toml");
    let write = |open_ms: u64| {
        let text = format!(
            "name = 'mine'\nformat = 'echo'\nplugin = 'dev.backplane.echo'\ncapabilities = ['echo']\n\
             [parameters]\nopen_ms = {open_ms}\n[[files]]\nrole = 'model'\npath = 'weights'\n"
        );
        std::fs::write(&card, text).unwrap();
    };
    write(3_600_000);
    let mut config = config();
    config.models.cards.push(card.clone());
    let host = Host::builder().config(config).state_dir(state.path()).start().unwrap();
    let ask = |model: &str| {
        let request = Request::new(Caller::internal("tests"), "echo", r#"{"text":"hello"}"#).model(model);
        let host = host.clone();
        async move { host.serve(request.within(LONG)).await?.collect().await }
    };
    let error = ask("mine").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable, "{error}");
    let start = Instant::now();
    while !slow(&host, "dev.backplane.echo") {
        assert!(start.elapsed() < LONG, "the worker that hangs is there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Whatever was wrong is mended.
    write(0);
    host.refresh().await.unwrap();
    let answer = loop {
        match ask("mine").await {
            Ok(answer) => break answer,
            Err(error) => assert!(start.elapsed() < LONG, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(answer.json::<Value>().unwrap()[0]["text"], "hello");
    host.shutdown(Duration::from_secs(5)).await;
}

/// What the host asks of its own accord.
#[tokio::test]
async fn a_bid_and_a_closing_instance_have_limits_too() {
    for at in ["bid", "quiesce"] {
        let (_folder, library) = faulty(Some(&format!("hang-{at}")));
        let state = tempfile::tempdir().unwrap();
        std::fs::create_dir(state.path().join("plugins")).unwrap();
        std::fs::copy(library, state.path().join("plugins/libfaulty.so")).unwrap();
        let host = Host::builder().config(config()).state_dir(state.path()).start().unwrap();
        if at == "bid" {
            let problem = host.plugins()[0].problem.clone();
            assert!(problem.unwrap().contains("did not answer within"));
        } else {
            let params = json!({"do": "nothing"}).to_string();
            let request = Request::new(Caller::internal("tests"), "com.example.faulty.do", params);
            host.serve(request.model("faulty")).await.unwrap().collect().await.unwrap();
            host.unload("faulty").await.unwrap();
        }
        let start = Instant::now();
        while !slow(&host, "com.example.faulty") {
            assert!(start.elapsed() < LONG, "{at}: the worker that hangs is there");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        host.shutdown(Duration::from_secs(5)).await;
    }
}
