//! The actor that looks at the process every few seconds.

use super::memory::resident_bytes;
use super::process::Process;
use super::{Inner, Resources};
use crate::actor::{Panicked, guarded};
use actix::{Actor, AsyncContext, Context, Handler, Message, Supervised};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const TICK: Duration = Duration::from_secs(5);

/// Publishes what the process takes, with the rates that one look cannot tell.
pub(super) struct MetricsActor {
    inner: Arc<Inner>,
    restarts: Arc<AtomicU64>,
    before: (Instant, Process),
}

impl MetricsActor {
    pub(super) fn new(inner: Arc<Inner>, restarts: Arc<AtomicU64>) -> Self {
        Self { inner, restarts, before: (Instant::now(), Process::read()) }
    }

    fn look(&mut self) {
        let (now, process) = (Instant::now(), Process::read());
        let (then, earlier) = std::mem::replace(&mut self.before, (now, process));
        let passed = now.saturating_duration_since(then).as_secs_f64();
        let used = process.cpu.saturating_sub(earlier.cpu).as_secs_f64();
        let resident_bytes = resident_bytes();
        let peak = self.inner.resources.load().peak_resident_bytes;
        self.inner.resources.store(Arc::new(Resources {
            resident_bytes,
            peak_resident_bytes: peak.max(resident_bytes),
            busy_cores: if passed > 0.0 { used / passed } else { 0.0 },
            threads: process.threads,
        }));
    }

    fn guarded<R>(
        &mut self,
        context: &mut Context<Self>,
        work: impl FnOnce(&mut Self) -> R,
    ) -> Result<R, Panicked> {
        let restarts = self.restarts.clone();
        guarded(self, context, "metrics", &restarts, |actor, _| work(actor))
    }
}

impl Actor for MetricsActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(16);
        context.run_interval(TICK, |actor, context| {
            // A panic has been logged and stops the actor; its supervisor starts it again.
            let _ = actor.guarded(context, Self::look);
        });
    }
}

impl Supervised for MetricsActor {
    fn restarting(&mut self, _: &mut Self::Context) {
        self.before = (Instant::now(), Process::read());
        tracing::warn!(restarts = self.restarts.load(Ordering::Relaxed), "metrics actor is back");
    }
}

/// Looks now.
#[derive(Message)]
#[rtype(result = "Result<(), Panicked>")]
pub(super) struct Look;

impl Handler<Look> for MetricsActor {
    type Result = Result<(), Panicked>;

    fn handle(&mut self, _: Look, context: &mut Self::Context) -> Self::Result {
        self.guarded(context, Self::look)
    }
}

/// Panics: tests show that the actor comes back.
#[cfg(test)]
#[derive(Message)]
#[rtype(result = "Result<(), Panicked>")]
pub(super) struct Panic;

#[cfg(test)]
impl Handler<Panic> for MetricsActor {
    type Result = Result<(), Panicked>;

    fn handle(&mut self, _: Panic, context: &mut Self::Context) -> Self::Result {
        self.guarded(context, |_| panic!("asked to"))
    }
}
