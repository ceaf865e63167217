//! The actor behind a backend: timers, and nothing on the request path.

use super::Backend;
use crate::actor::guarded;
use actix::{Actor, ActorContext, AsyncContext, Context, Supervised};
#[cfg(test)]
use actix::{Handler, Message};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often deadlines and leavers are looked at while there are requests.
const TICK: Duration = Duration::from_millis(10);
/// And while there are none: an open model that nobody uses should cost next to nothing.
const IDLE: Duration = Duration::from_millis(50);
/// How often instances are asked how they are.
const HEALTH: Duration = Duration::from_secs(5);

/// Watches one backend. Its state is the backend itself, so a restart loses nothing.
pub struct BackendActor {
    backend: Arc<Backend>,
    restarts: Arc<AtomicU64>,
    health_check: Option<std::thread::JoinHandle<()>>,
}

impl BackendActor {
    /// `restarts` is counted up each time the actor comes back after a panic.
    pub fn new(backend: Arc<Backend>, restarts: Arc<AtomicU64>) -> Self {
        Self { backend, restarts, health_check: None }
    }

    fn look(&mut self, context: &mut Context<Self>) {
        if self.backend.is_closed() {
            // The catalog has dropped its address, so the supervisor lets it end.
            context.stop();
            return;
        }
        let restarts = self.restarts.clone();
        // A panic has been logged and stops the actor; the supervisor starts it again.
        let looked =
            guarded(self, context, "backend", &restarts, |actor, _| actor.backend.tick(Instant::now()));
        if looked.is_ok() {
            context.run_later(if self.backend.is_idle() { IDLE } else { TICK }, Self::look);
        }
    }

    /// Health checks may block, so each runs on a thread of its own, and the next only when it is done.
    fn check(&mut self) {
        if self.health_check.as_ref().is_some_and(|check| !check.is_finished()) {
            tracing::warn!(model = self.backend.name(), "an instance has not answered its health check yet");
            return;
        }
        let backend = self.backend.clone();
        self.health_check = std::thread::Builder::new()
            .name(format!("{} health", backend.name()))
            .spawn(move || backend.check_health())
            .inspect_err(|error| tracing::error!(%error, "no thread for a health check"))
            .ok();
    }
}

impl Actor for BackendActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(16);
        context.run_later(TICK, Self::look);
        context.run_interval(HEALTH, |actor, _| actor.check());
    }
}

impl Supervised for BackendActor {
    fn restarting(&mut self, _: &mut Self::Context) {
        self.health_check = None;
        tracing::warn!(
            model = self.backend.name(),
            restarts = self.restarts.load(Ordering::Relaxed),
            "backend actor is back"
        );
    }
}

/// Panics: tests show that the actor comes back.
#[cfg(test)]
#[derive(Message)]
#[rtype(result = "()")]
pub struct Panic;

#[cfg(test)]
impl Handler<Panic> for BackendActor {
    type Result = ();

    fn handle(&mut self, _: Panic, context: &mut Self::Context) {
        let restarts = self.restarts.clone();
        let _ = guarded(self, context, "backend", &restarts, |_, _| panic!("asked to"));
    }
}
