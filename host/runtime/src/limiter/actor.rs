//! The actor behind the limits: checkpoints and configuration, and nothing on the request path.

use super::books::{Books, CheckpointError};
use crate::actor::{Backoff, Panicked, blocking, guarded};
use crate::auth::KeyLimits;
use crate::store::UsageStore;
use actix::fut::WrapFuture;
use actix::{
    Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, Message, ResponseActFuture,
    Supervised,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const NAME: &str = "limiter";
/// How often it looks whether a checkpoint is due.
const LOOK: Duration = Duration::from_secs(1);
/// Something was written: a checkpoint is due this long after the last.
const EVERY: Duration = Duration::from_secs(5);
/// Much was written: a checkpoint is due at the next look, so that a restart has little to read.
const MUCH: u64 = 4 << 20;

/// Makes checkpoints. The books outlive it: open reservations are in them, so a restart of the actor must not put books
/// from the disk in their place, which cannot know of a reservation that is just being written. What it rebuilds is what
/// it owns: the defaults in force, and a checkpoint by which books, journal and store agree.
pub struct LimiterActor {
    books: Arc<Books>,
    store: Arc<dyn UsageStore>,
    defaults: KeyLimits,
    last: Instant,
    at_work: bool,
    /// Checkpoints that failed, one after the other.
    failures: u32,
    restarts: Arc<AtomicU64>,
    backoff: Backoff,
}

/// Why a checkpoint was not made.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Restarting(#[from] Panicked),
}

impl LimiterActor {
    /// An actor for these books, in which the defaults are in force already.
    pub fn new(
        books: Arc<Books>,
        store: Arc<dyn UsageStore>,
        defaults: KeyLimits,
        restarts: Arc<AtomicU64>,
    ) -> Self {
        let backoff = Backoff::default();
        Self { books, store, defaults, last: Instant::now(), at_work: false, failures: 0, restarts, backoff }
    }

    fn guarded<T>(
        &mut self,
        context: &mut Context<Self>,
        work: impl FnOnce(&mut Self) -> T,
    ) -> Result<T, Panicked> {
        let restarts = self.restarts.clone();
        guarded(self, context, NAME, &restarts, |actor, _| work(actor))
    }

    /// Makes a checkpoint on a thread of its own.
    fn checkpoint(&mut self) -> ResponseActFuture<Self, Result<(), Failed>> {
        (self.last, self.at_work) = (Instant::now(), true);
        let (books, store) = (self.books.clone(), self.store.clone());
        let made = blocking(NAME, move || books.checkpoint(&*store)).into_actor(self);
        Box::pin(made.map(|made, actor, context| {
            actor.at_work = false;
            match made {
                // What is not in the store is in the journals, which stay until it is.
                Ok(Err(error)) => {
                    actor.failures += 1;
                    tracing::error!(%error, "no checkpoint could be made");
                    Err(error.into())
                }
                Ok(Ok(())) => {
                    actor.failures = 0;
                    Ok(())
                }
                Err(panicked) => {
                    actor.restarts.fetch_add(1, Ordering::Relaxed);
                    context.stop();
                    Err(panicked.into())
                }
            }
        }))
    }

    fn look(&mut self, context: &mut Context<Self>) {
        let due = self.guarded(context, |actor| {
            let written = actor.books.journal().bytes();
            // A journal in trouble may do well in a new file.
            let much = MUCH < written || actor.books.journal().check().is_err();
            let pause = if much { LOOK } else { EVERY } * (1 << actor.failures.min(6));
            !actor.at_work && (much || written != 0) && pause <= actor.last.elapsed()
        });
        if due == Ok(true) {
            let made = self.checkpoint();
            context.spawn(made.map(|_, _, _| ()));
        }
    }
}

impl Actor for LimiterActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(64);
        context.run_interval(LOOK, Self::look);
    }
}

impl Supervised for LimiterActor {
    fn restarting(&mut self, context: &mut Self::Context) {
        self.books.set_defaults(self.defaults);
        let pause = actix_rt::time::sleep(self.backoff.next(Instant::now())).into_actor(self);
        context.wait(pause.then(|(), actor, _| actor.checkpoint()).map(|_, actor, _| {
            tracing::warn!(restarts = actor.restarts.load(Ordering::Relaxed), "limiter actor is back");
        }));
    }
}

impl Drop for LimiterActor {
    fn drop(&mut self) {
        // The host ends: the next start finds everything in the store. A panic here must not abort the process.
        match catch_unwind(AssertUnwindSafe(|| self.books.checkpoint(&*self.store))) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(%error, "no last checkpoint could be made; the journal is kept")
            }
            Err(_) => tracing::error!("the last checkpoint panicked; the journal is kept"),
        }
        self.books.journal().close();
    }
}

/// Puts defaults into force.
#[derive(Message)]
#[rtype(result = "Result<(), Panicked>")]
pub struct Configure(pub KeyLimits);

impl Handler<Configure> for LimiterActor {
    type Result = Result<(), Panicked>;

    fn handle(&mut self, message: Configure, context: &mut Self::Context) -> Self::Result {
        self.guarded(context, |actor| {
            actor.defaults = message.0;
            actor.books.set_defaults(message.0);
        })
    }
}

/// Writes what was spent into the store.
#[derive(Message)]
#[rtype(result = "Result<(), Failed>")]
pub struct Checkpoint;

impl Handler<Checkpoint> for LimiterActor {
    type Result = ResponseActFuture<Self, Result<(), Failed>>;

    fn handle(&mut self, _: Checkpoint, _: &mut Self::Context) -> Self::Result {
        self.checkpoint()
    }
}

/// Panics after it has spoilt the state: tests show that the actor comes back with what is right.
#[cfg(test)]
#[derive(Message)]
#[rtype(result = "()")]
pub struct Panic;

#[cfg(test)]
impl Handler<Panic> for LimiterActor {
    type Result = ();

    fn handle(&mut self, _: Panic, context: &mut Self::Context) {
        let _ = self.guarded(context, |actor| {
            actor.at_work = true;
            actor.books.set_defaults(KeyLimits { requests_per_minute: Some(1), tokens: None });
            panic!("asked to");
        });
    }
}
