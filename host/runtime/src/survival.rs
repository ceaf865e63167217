//! For each actor whose tests need a whole host: a handler panics, the actor comes back, its mailbox is alive, and
//! requests in between are served. (auth, limiter, cache and metrics have theirs beside them.)

#[path = "../tests/support/library.rs"]
mod library;

use crate::host::HostBuilder;
use crate::start::Running;
use crate::{Caller, Config, Host, Request};
use std::time::{Duration, Instant};

fn started() -> (tempfile::TempDir, Running) {
    let state = tempfile::tempdir().unwrap();
    let builder: HostBuilder =
        Host::builder().config(Config::for_tests()).state_dir(state.path()).plugin_dir(library::plugins());
    (state, crate::start::start(builder).unwrap())
}

async fn echoes(running: &Running) {
    let request = Request::new(Caller::internal("tests"), "echo", r#"{"text":"still here"}"#).model("echo");
    let answer = crate::serve::serve(&running.parts, request).await.unwrap().collect().await.unwrap();
    assert!(String::from_utf8_lossy(&answer.chunks[0].json).contains("still here"));
}

/// Restarts of a part, from the health report.
fn restarts(running: &Running, part: &str) -> u64 {
    running
        .started
        .health
        .read()
        .parts
        .iter()
        .find(|other| other.part == part)
        .map_or(0, |part| part.restarts)
}

async fn until(what: &str, is: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is() {
        assert!(Instant::now() < deadline, "{what} did not come true");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn the_router_comes_back_with_its_table() {
    let (_state, running) = started();
    let router = &running.parts.router;
    router.actor().send(crate::router::actor::Panic).await.unwrap();
    echoes(&running).await;
    until("the restart is reported", || restarts(&running, "router") == 1).await;
    assert!(router.is_alive() && !router.table().serving("echo").is_empty());
    router.rebuild(router.table().names().clone()).await.unwrap();
    echoes(&running).await;
}

#[tokio::test]
async fn the_catalog_comes_back_and_opens_and_closes_models() {
    let (_state, running) = started();
    echoes(&running).await;
    let catalog = &running.parts.catalog;
    catalog.actor().send(crate::catalog::actor::Panic).await.unwrap();
    echoes(&running).await;
    until("the restart is reported", || restarts(&running, "catalog") == 1).await;
    let entry = catalog.shelf().find("echo").unwrap();
    catalog.close(&entry).await.unwrap();
    assert!(entry.backend().is_none());
    echoes(&running).await;
}

#[tokio::test]
async fn a_backend_actor_comes_back_and_watches_on() {
    let (_state, running) = started();
    echoes(&running).await;
    let shelf = running.parts.catalog.shelf();
    running.parts.catalog.actor().send(crate::catalog::actor::PanicBackend("echo".into())).await.unwrap();
    echoes(&running).await;
    let counted = || shelf.backend_restarts.load(std::sync::atomic::Ordering::Relaxed) == 1;
    until("the restart is counted", counted).await;
    // It watches again: a request past its deadline is ended by nobody else.
    let late = Request::new(Caller::internal("tests"), "echo", r#"{"text":"x","hang_ms":400}"#)
        .model("echo-serial")
        .within(Duration::from_millis(20));
    let error = crate::serve::serve(&running.parts, late).await.unwrap().collect().await.unwrap_err();
    assert_eq!(error.reason, "deadline_exceeded");
}

#[tokio::test]
async fn the_supervisor_comes_back_and_reports() {
    let (_state, running) = started();
    running.started.panic_supervisor().await;
    echoes(&running).await;
    running.started.look().await;
    assert!(running.started.health.read().ready);
}
