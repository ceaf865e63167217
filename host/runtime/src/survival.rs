//! For each actor, in a whole host: a handler panics, the actor comes back with its state and the same mailbox, and
//! requests in between are served. (auth, limiter, cache and metrics have more beside them.)

#[path = "../tests/support/library.rs"]
pub(crate) mod library;

use crate::config::Override;
use crate::host::HostBuilder;
use crate::start::Running;
use crate::{Caller, Config, Error, Host, Request};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

fn started(change: impl FnOnce(&mut Config)) -> (tempfile::TempDir, Running) {
    let state = tempfile::tempdir().unwrap();
    let mut config = Config::for_tests();
    change(&mut config);
    let builder: HostBuilder =
        Host::builder().config(config).state_dir(state.path()).plugin_dir(library::plugins());
    (state, crate::start::start(builder).unwrap())
}

async fn ask(parts: &crate::serve::Parts) -> Result<(), Error> {
    let request = Request::new(Caller::internal("tests"), "echo", r#"{"text":"still here"}"#).model("echo");
    let answer = crate::serve::serve(parts, request).await?.collect().await?;
    assert!(String::from_utf8_lossy(&answer.chunks[0].json).contains("still here"));
    Ok(())
}

async fn echoes(running: &Running) {
    ask(&running.parts).await.unwrap();
}

/// Restarts of a part, from the health report.
fn restarts(running: &Running, part: &str) -> u64 {
    let parts = running.started.health.read().parts;
    parts.iter().find(|other| other.part == part).map_or(0, |part| part.restarts)
}

async fn until(what: &str, is: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is() {
        assert!(Instant::now() < deadline, "{what} did not come true");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Requests from four callers, one after the other, until it is dropped. Says how many were served, and what went wrong.
struct Load {
    over: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    callers: Vec<tokio::task::JoinHandle<Vec<Error>>>,
}

impl Load {
    fn on(running: &Running) -> Self {
        let (over, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let callers = (0..4).map(|_| {
            let (parts, over, served) = (running.parts.clone(), over.clone(), served.clone());
            tokio::spawn(async move {
                let mut failures = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    match ask(&parts).await {
                        Ok(()) => drop(served.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => failures.push(error),
                    }
                    tokio::task::yield_now().await;
                }
                failures
            })
        });
        Self { callers: callers.collect(), over, served }
    }

    /// Waits until more requests were served.
    async fn goes_on(&self) {
        let before = self.served.load(Ordering::Relaxed);
        until("more requests are served", || before + 8 < self.served.load(Ordering::Relaxed)).await;
    }

    async fn end(self) -> Vec<Error> {
        self.over.store(true, Ordering::Relaxed);
        let mut failures = Vec::new();
        for caller in self.callers {
            failures.extend(caller.await.unwrap());
        }
        failures
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_actor_panics_under_load_and_no_request_fails() {
    let (_state, running) = started(|_| {});
    let (parts, started) = (&running.parts, &running.started);
    let load = Load::on(&running);
    load.goes_on().await;

    started.auth.panic().await;
    load.goes_on().await;
    until("auth's restart is reported", || restarts(&running, "auth") == 1).await;
    assert_eq!(started.auth.list().await.unwrap().len(), 1, "the first key, read again");

    parts.limiter.panic().await;
    load.goes_on().await;
    until("the limiter's restart is reported", || restarts(&running, "limiter") == 1).await;
    parts.limiter.checkpoint().await.unwrap();

    parts.cache.panic().await;
    load.goes_on().await;
    until("the cache's restart is reported", || restarts(&running, "cache") == 1).await;
    parts.cache.flush().await.unwrap();

    parts.metrics.panic().await;
    load.goes_on().await;
    until("the metrics' restart is reported", || restarts(&running, "metrics") == 1).await;
    assert!(parts.metrics.look().await);

    parts.catalog.actor().send(crate::catalog::actor::Panic).await.unwrap();
    load.goes_on().await;
    until("the catalog's restart is reported", || restarts(&running, "catalog") == 1).await;
    let entry = parts.catalog.shelf().find("echo-serial").unwrap();
    parts.catalog.ensure(&entry, None).await.unwrap();
    parts.catalog.close(&entry).await.unwrap();

    let panic = crate::catalog::actor::PanicBackend("echo".into());
    parts.catalog.actor().send(panic).await.unwrap();
    load.goes_on().await;
    until("the backend's restart is reported", || restarts(&running, "models") == 1).await;

    started.panic_supervisor().await;
    load.goes_on().await;
    until("the supervisor's restart is reported", || restarts(&running, "supervisor") == 1).await;
    started.look().await;

    let failures = load.end().await;
    assert!(failures.is_empty(), "{failures:?}");
    let health = started.health.read();
    assert!(health.ready, "{health:?}");
}

#[tokio::test]
async fn the_router_comes_back_with_its_table() {
    let (_state, running) = started(|_| {});
    let router = &running.parts.router;
    router.actor().send(crate::router::actor::Panic).await.unwrap();
    // It has spoilt its table; until it is back, a request is told that there is no such model.
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = ask(&running.parts).await {
        assert_eq!(error.reason, "model_not_found");
        assert!(Instant::now() < deadline, "the table is not back");
    }
    until("the restart is reported", || restarts(&running, "router") == 1).await;
    assert!(router.is_alive() && !router.table().serving("echo").is_empty());
    router.rebuild(router.table().names().clone()).await.unwrap();
    echoes(&running).await;
}

#[tokio::test]
async fn the_catalog_comes_back_and_opens_and_closes_models() {
    let slow = Override {
        parameters: [("open_ms".to_owned(), 300.into())].into_iter().collect(),
        ..Override::default()
    };
    let (_state, running) = started(|config| drop(config.models.overrides.insert("echo".to_owned(), slow)));
    let catalog = &running.parts.catalog;
    let entry = catalog.shelf().find("echo").unwrap();
    // While a model is being opened: its thread reports to the same mailbox.
    let parts = running.parts.clone();
    let waits = tokio::spawn(async move { ask(&parts).await });
    until("it is being opened", || matches!(entry.stage(), crate::catalog::Stage::Loading)).await;
    catalog.actor().send(crate::catalog::actor::Panic).await.unwrap();
    waits.await.unwrap().unwrap();
    until("the restart is reported", || restarts(&running, "catalog") == 1).await;
    // And while one is being closed.
    let closes = catalog.close(&entry);
    let (closed, _) = futures::join!(closes, catalog.actor().send(crate::catalog::actor::Panic));
    closed.unwrap();
    assert!(entry.backend().is_none());
    echoes(&running).await;
    until("the next restart is reported", || restarts(&running, "catalog") == 2).await;
}

#[tokio::test]
async fn a_backend_actor_comes_back_and_watches_on() {
    let (_state, running) = started(|_| {});
    echoes(&running).await;
    let shelf = running.parts.catalog.shelf();
    running.parts.catalog.actor().send(crate::catalog::actor::PanicBackend("echo".into())).await.unwrap();
    echoes(&running).await;
    let counted = || shelf.backend_restarts.load(Ordering::Relaxed) == 1;
    until("the restart is counted", counted).await;
    // It watches again: nobody else ends a request past its deadline while the plugin looks at nothing.
    let began = Instant::now();
    let late = Request::new(Caller::internal("tests"), "echo", r#"{"text":"x","hang_ms":4000}"#)
        .model("echo")
        .within(Duration::from_millis(20));
    let error = crate::serve::serve(&running.parts, late).await.unwrap().collect().await.unwrap_err();
    assert_eq!(error.reason, "deadline_exceeded");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test]
async fn the_supervisor_comes_back_and_reports() {
    let (_state, running) = started(|_| {});
    running.started.panic_supervisor().await;
    echoes(&running).await;
    running.started.look().await;
    assert!(running.started.health.read().ready);
    assert_eq!(restarts(&running, "supervisor"), 1);
    // It looks by itself again.
    running.parts.cache.panic().await;
    until("what happens after it is reported", || restarts(&running, "cache") == 1).await;
}
