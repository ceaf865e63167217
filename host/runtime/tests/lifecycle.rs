//! A model's life while requests come: opened, closed, changed and removed at the wrong moment.

#![allow(clippy::unwrap_used, reason = "in a test a failure is the test's")]

mod support;

use backplane::config::{Override, RouteConfig};
use backplane::{Config, ErrorCode, Host, KeepAlive, ModelState, Next, Request};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use support::{Running, echo, host, soon, text, threads};

/// Lets a built-in model of echo take so long to open.
fn opens_in(ms: u64, model: &str) -> impl FnOnce(&mut Config) {
    let parameters = [("open_ms".to_owned(), json!(ms))].into_iter().collect();
    let over = Override { parameters, ..Override::default() };
    let model = model.to_owned();
    move |config| drop(config.models.overrides.insert(model, over))
}

/// A card of a model that echo serves, in a folder of its own.
fn card(dir: &Path, parameters: &str) -> PathBuf {
    std::fs::write(dir.join("weights"), "none").unwrap();
    let path = dir.join("model.toml");
    let card = format!(
        "name = 'mine'\nformat = 'echo'\nplugin = 'dev.backplane.echo'\ncapabilities = ['echo']\n\
         [parameters]\n{parameters}\n[[files]]\nrole = 'model'\npath = 'weights'\n"
    );
    std::fs::write(&path, card).unwrap();
    path
}

async fn ask(host: &Host, request: Request) -> backplane::Result<backplane::Answer> {
    host.serve(request).await?.collect().await
}

fn state(running: &Running, model: &str) -> ModelState {
    running.host.model(model).unwrap().state
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_come_while_a_model_is_closed_are_served_or_told() {
    let running = host(|_| {});
    // At once, and with time for some to be served.
    const CLOSED: usize = 30;
    let closer = tokio::spawn({
        let host = running.host.clone();
        async move {
            for pause in (0..8).cycle().take(CLOSED) {
                host.unload("echo").await.unwrap();
                tokio::time::sleep(Duration::from_millis(pause * 20)).await;
            }
        }
    });
    let (mut served, mut told) = (0, 0);
    while !closer.is_finished() {
        let asked = (0..4).map(|_| ask(&running.host, echo(json!({"text": "x"}))));
        for answer in futures::future::join_all(asked).await {
            match answer {
                Ok(answer) => {
                    assert_eq!(text(&answer), "x");
                    served += 1;
                }
                // By hand, while it was being opened: that is said, and nothing else goes wrong.
                Err(error) => {
                    assert!(error.message.contains("closed while it was being opened"), "{error}");
                    told += 1;
                }
            }
        }
    }
    closer.await.unwrap();
    assert!(0 < served, "{served} served, {told} told");
    // Who asks after a closing waits for the next opening: one closing is told to those who waited, and to no other.
    assert!(told <= 4 * CLOSED, "{served} served, {told} told");
    ask(&running.host, echo(json!({"text": "x"}))).await.unwrap();
}

#[tokio::test]
async fn a_keep_alive_of_nothing_closes_after_every_request_and_refuses_none() {
    let running = host(|_| {});
    for _ in 0..5 {
        let mut request = echo(json!({"text": "x"}));
        request.keep_alive = Some(KeepAlive::For(Duration::ZERO));
        ask(&running.host, request).await.unwrap();
        soon("it closes", || state(&running, "echo") == ModelState::Idle).await;
    }
    assert!(running.host.metrics().render().contains("backplane_model_loads_total{outcome=\"opened\"} 5"));
}

#[tokio::test]
async fn who_waits_for_a_model_is_told_when_it_is_closed_and_the_next_is_served() {
    let running = host(opens_in(2000, "echo"));
    let waits = tokio::spawn({
        let host = running.host.clone();
        async move { ask(&host, echo(json!({"text": "x"}))).await }
    });
    soon("it is being opened", || state(&running, "echo") == ModelState::Loading).await;
    let began = Instant::now();
    running.host.unload("echo").await.unwrap();
    let error = waits.await.unwrap().unwrap_err();
    assert!(error.message.contains("closed while it was being opened"), "{error}");
    assert!(began.elapsed() < Duration::from_millis(1500), "told at once");
    soon("what came too late is gone", || state(&running, "echo") == ModelState::Idle).await;
    ask(&running.host, echo(json!({"text": "x"}))).await.unwrap();
}

#[tokio::test]
async fn an_opening_that_takes_too_long_is_given_up_and_costs_one_thread() {
    let running = host(|config| {
        opens_in(3000, "echo-serial")(config);
        config.models.load_timeout = Duration::from_millis(100);
    });
    let asked = || ask(&running.host, echo(json!({"text": "x"})).model("echo-serial"));
    let began = Instant::now();
    let error = asked().await.unwrap_err();
    assert_eq!((error.code, error.reason.as_ref()), (ErrorCode::Unavailable, "load_failed"));
    assert!(error.message.contains("was not open after 100ms"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(2));
    // Looking again lets a failed model be tried again; the plugin is still at the first attempt.
    running.host.refresh().await.unwrap();
    let error = asked().await.unwrap_err();
    assert!(error.message.contains("still at opening"), "{error}");
    assert_eq!(threads("open echo-seria"), 1);
    soon("the thread is done, and the model can be tried again", || {
        threads("open echo-seria") == 0 && state(&running, "echo-serial") == ModelState::Idle
    })
    .await;
    assert!(running.host.model("echo-serial").unwrap().running.is_none(), "what came too late is not used");
    assert_eq!(text(&ask(&running.host, echo(json!({"text": "y"}))).await.unwrap()), "y");
}

#[tokio::test]
async fn a_model_that_is_removed_while_it_opens_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let path = card(dir.path(), "open_ms = 2500");
    let running = host(|config| config.models.cards.push(path.clone()));
    let waits = tokio::spawn({
        let host = running.host.clone();
        async move { ask(&host, echo(json!({"text": "x"})).model("mine")).await }
    });
    soon("it is being opened", || state(&running, "mine") == ModelState::Loading).await;
    std::fs::remove_file(&path).unwrap();
    let began = Instant::now();
    running.host.refresh().await.unwrap();
    let error = waits.await.unwrap().unwrap_err();
    assert_eq!(error.reason, "model_not_found", "{error}");
    assert!(began.elapsed() < Duration::from_secs(2), "told at once, not when the plugin is done");
    assert!(running.host.model("mine").is_none());
    soon("its thread is done", || threads("open mine") == 0).await;
    soon("and nothing of it is left", || threads("mine") == 0).await;

    // It comes back under its name.
    card(dir.path(), "open_ms = 0");
    running.host.refresh().await.unwrap();
    ask(&running.host, echo(json!({"text": "x"})).model("mine")).await.unwrap();
}

#[tokio::test]
async fn a_model_that_is_changed_while_it_opens_opens_as_it_is_now() {
    let dir = tempfile::tempdir().unwrap();
    let path = card(dir.path(), "open_ms = 500\nexecution = 'serial'");
    let running = host(|config| config.models.cards.push(path));
    let waits = tokio::spawn({
        let host = running.host.clone();
        async move { ask(&host, echo(json!({"text": "x"})).model("mine")).await }
    });
    soon("it is being opened", || state(&running, "mine") == ModelState::Loading).await;
    card(dir.path(), "execution = 'concurrent'");
    running.host.refresh().await.unwrap();
    assert_eq!(text(&waits.await.unwrap().unwrap()), "x");
    assert_eq!(running.host.model("mine").unwrap().running.unwrap().slots, 64, "concurrent, not serial");
}

#[tokio::test]
async fn a_model_that_is_removed_while_it_serves_finishes_first() {
    let dir = tempfile::tempdir().unwrap();
    let path = card(dir.path(), "");
    let running = host(|config| config.models.cards.push(path.clone()));
    let request = echo(json!({"text": "a b", "chunks": 2, "chunk_delay_ms": 300})).model("mine");
    let mut reply = running.host.serve(request.streamed()).await.unwrap();
    assert!(matches!(reply.next().await.unwrap(), Next::Chunk(_)));
    std::fs::remove_file(&path).unwrap();
    running.host.refresh().await.unwrap();
    let error = ask(&running.host, echo(json!({"text": "x"})).model("mine")).await.unwrap_err();
    assert_eq!(error.reason, "model_not_found");
    assert!(matches!(reply.next().await.unwrap(), Next::Chunk(_)));
    assert!(matches!(reply.next().await.unwrap(), Next::Done(_)));
    soon("its threads are gone", || threads("close mine") + threads("mine") == 0).await;
}

/// A thousand times at once: who finds it closing or opening is told so or waits, and nothing of it is left over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_loads_unloads_asks_and_looks_at_one_model_at_once_leaves_nothing_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = card(dir.path(), "execution = 'serial'");
    // Its threads are counted, and others have a model `mine`, too.
    let named = std::fs::read_to_string(&path).unwrap().replace("'mine'", "'stirred'");
    std::fs::write(&path, named).unwrap();
    let running = host(|config| config.models.cards.push(path));
    let asks = |host: Host| async move {
        ask(&host, echo(json!({"text": "x"})).model("stirred")).await.map(|answer| text(&answer))
    };
    let all = (0..8).map(|who| {
        let host = running.host.clone();
        tokio::spawn(async move {
            for round in 0..125 {
                let told = match (who + round) % 4 {
                    0 => host.load("stirred", None).await.err(),
                    1 => host.unload("stirred").await.err(),
                    2 => host.refresh().await.err(),
                    _ => asks(host.clone()).await.err(),
                };
                if let Some(error) = told {
                    assert!(error.message.contains("closed while it was being opened"), "{error}");
                }
            }
        })
    });
    for one in futures::future::join_all(all).await {
        one.unwrap();
    }
    assert_eq!(asks(running.host.clone()).await.unwrap(), "x");
    soon("one lane is left, of the model that is open", || threads("stirred#") == 1).await;
    running.host.unload("stirred").await.unwrap();
    soon("its lane has ended", || threads("stirred#") == 0).await;
}

#[tokio::test]
async fn refreshes_at_once_agree() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.toml");
    let running = host(|config| config.models.cards.push(path.clone()));
    card(dir.path(), "");
    let all = futures::future::join_all((0..8).map(|_| running.host.refresh())).await;
    assert!(all.into_iter().all(|refreshed| refreshed.is_ok()));
    assert!(running.host.model("mine").is_some());
    let loaded = running.host.plugins().into_iter().filter(|plugin| plugin.id == "dev.backplane.echo");
    assert_eq!(loaded.count(), 1);
}

#[tokio::test]
async fn aliases_that_go_round_in_a_circle_are_no_model() {
    let running = host(|config| {
        for (name, to) in [("a", "b"), ("b", "a"), ("c", "d"), ("d", "echo")] {
            config.models.aliases.insert(name.to_owned(), to.to_owned());
        }
    });
    let error = ask(&running.host, echo(json!({})).model("a")).await.unwrap_err();
    assert_eq!(error.reason, "model_not_found");
    assert!(running.host.model("a").is_none() && running.host.load("a", None).await.is_err());
    // An alias of an alias means the same everywhere.
    assert_eq!(&*running.host.load("c", None).await.unwrap().name, "echo");
    assert_eq!(&*running.host.find("c").unwrap().name, "echo");
    assert_eq!(&*ask(&running.host, echo(json!({})).model("c")).await.unwrap().route.model, "echo");
}

#[tokio::test]
async fn a_stream_does_not_escalate() {
    let running = host(|config| {
        let models = vec!["echo".to_owned(), "echo-continuous".to_owned()];
        config.models.routes.insert("steps".to_owned(), RouteConfig { models, escalate_below: 0.5 });
    });
    let unsure = echo(json!({"text": "x", "confidence": 0.1})).model("steps").streamed();
    let answer = ask(&running.host, unsure).await.unwrap();
    assert_eq!(&*answer.route.model, "echo");
    assert!(running.host.model("echo-continuous").unwrap().running.is_none(), "nobody else was asked");
}

#[tokio::test]
async fn a_host_that_shuts_down_tells_who_waits_for_a_model() {
    let running = host(opens_in(4000, "echo"));
    let waits = tokio::spawn({
        let host = running.host.clone();
        async move { ask(&host, echo(json!({"text": "x"}))).await }
    });
    soon("it is being opened", || state(&running, "echo") == ModelState::Loading).await;
    let began = Instant::now();
    running.host.shutdown(Duration::from_secs(5)).await;
    let error = waits.await.unwrap().unwrap_err();
    assert_eq!(error.reason, "shutting_down", "{error}");
    assert!(began.elapsed() < Duration::from_secs(3));
    soon("what came too late is closed", || threads("open echo") == 0).await;
    let parsed: Value = serde_json::to_value(running.host.model("echo").unwrap().state).unwrap();
    assert_ne!(parsed, json!("ready"));
}

#[tokio::test]
async fn a_shutdown_takes_no_longer_than_its_drain_time() {
    let running = host(|config| config.server.drain = Duration::from_secs(60));
    let slow = || echo(json!({"text": "x", "delay_ms": 60_000}));
    let runs = running.host.serve(slow()).await.unwrap();
    let continuous = running.host.serve(slow().model("echo-continuous")).await.unwrap();
    let began = Instant::now();
    running.host.shutdown(Duration::from_millis(100)).await;
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    for reply in [runs, continuous] {
        assert_eq!(reply.collect().await.unwrap_err().reason, "shutting_down");
    }
}
