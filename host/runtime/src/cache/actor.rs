//! The actor that keeps the store in bounds.

use super::store::Store;
use crate::actor::{Panicked, guarded};
use crate::config::CacheConfig;
use actix::{Actor, AsyncContext, Context, Handler, Message, Supervised};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often it looks for answers that are too old.
const TICK: Duration = Duration::from_secs(10);

/// Owns eviction, flushing and the bounds. The answers themselves are shared, so they outlive its restarts.
pub(super) struct CacheActor {
    pub(super) store: Arc<Store>,
    /// Whether an eviction was asked for and has not run yet.
    pub(super) wanted: Arc<AtomicBool>,
    pub(super) restarts: Arc<AtomicU64>,
}

impl CacheActor {
    fn guarded<R>(
        &mut self,
        context: &mut Context<Self>,
        work: impl FnOnce(&mut Self) -> R,
    ) -> Result<R, Panicked> {
        let restarts = self.restarts.clone();
        guarded(self, context, "cache", &restarts, |actor, _| work(actor))
    }

    fn evict(&mut self) {
        // Before, not after: what is put while it runs may ask for the next.
        self.wanted.store(false, Ordering::Relaxed);
        self.store.evict(Instant::now());
    }
}

impl Actor for CacheActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(64);
        context.run_interval(TICK, |actor, context| {
            // A panic has been logged and stops the actor; its supervisor starts it again.
            let _ = actor.guarded(context, Self::evict);
        });
    }
}

impl Supervised for CacheActor {
    fn restarting(&mut self, _: &mut Self::Context) {
        // An eviction that was asked for died with the old mailbox's message; another may ask again.
        self.wanted.store(false, Ordering::Relaxed);
        tracing::warn!(restarts = self.restarts.load(Ordering::Relaxed), "cache actor is back");
    }
}

/// Makes room.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Evict;

impl Handler<Evict> for CacheActor {
    type Result = ();

    fn handle(&mut self, _: Evict, context: &mut Self::Context) {
        let _ = self.guarded(context, Self::evict);
    }
}

/// Drops everything.
#[derive(Message)]
#[rtype(result = "Result<u64, Panicked>")]
pub(super) struct Flush;

impl Handler<Flush> for CacheActor {
    type Result = Result<u64, Panicked>;

    fn handle(&mut self, _: Flush, context: &mut Self::Context) -> Self::Result {
        self.guarded(context, |actor| actor.store.flush())
    }
}

/// Other bounds.
#[derive(Message)]
#[rtype(result = "Result<(), Panicked>")]
pub(super) struct Configure(pub CacheConfig);

impl Handler<Configure> for CacheActor {
    type Result = Result<(), Panicked>;

    fn handle(&mut self, message: Configure, context: &mut Self::Context) -> Self::Result {
        self.guarded(context, |actor| {
            actor.store.configure(&message.0);
            actor.evict();
        })
    }
}

/// Panics: tests show that the actor comes back.
#[cfg(test)]
#[derive(Message)]
#[rtype(result = "Result<(), Panicked>")]
pub(super) struct Panic;

#[cfg(test)]
impl Handler<Panic> for CacheActor {
    type Result = Result<(), Panicked>;

    fn handle(&mut self, _: Panic, context: &mut Self::Context) -> Self::Result {
        self.guarded(context, |_| panic!("asked to"))
    }
}
