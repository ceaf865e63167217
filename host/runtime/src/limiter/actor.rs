//! The actor behind the limiter: checkpoints, flushes, configuration.

use super::Books;
use crate::actor::guarded;
use crate::auth::KeyLimits;
use crate::store::UsageStore;
use actix::{Actor, AsyncContext, Context, Handler, Message, Supervised};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often the disk is asked to keep the journal.
const FLUSH: Duration = Duration::from_millis(50);
/// A checkpoint comes after so long, if anything was written...
const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);
/// ...or when the journal is so large.
const CHECKPOINT_BYTES: u64 = 4 << 20;

/// Owns the timers of the limiter. What it keeps is in the books and on disk, so a restart loses nothing.
pub struct LimiterActor {
    books: Arc<Books>,
    store: Arc<dyn UsageStore>,
    restarts: Arc<AtomicU64>,
    /// Flushes take milliseconds, so they happen on a thread.
    stop: Arc<AtomicBool>,
    last: Instant,
}

impl LimiterActor {
    pub fn new(books: Arc<Books>, store: Arc<dyn UsageStore>, restarts: Arc<AtomicU64>) -> Self {
        Self { books, store, restarts, stop: Arc::new(AtomicBool::new(false)), last: Instant::now() }
    }

    fn checkpoint(&mut self) {
        self.last = Instant::now();
        match self.books.journal.rotate(|| self.books.spent()) {
            Err(error) => tracing::error!(%error, "the journal could not be rotated"),
            Ok((generation, spent)) => {
                self.books.journal.sync();
                match self.store.checkpoint(generation, &spent) {
                    Ok(()) => self.books.journal.forget_before(generation),
                    // The older files stay, and are read again after a restart.
                    Err(error) => tracing::error!(%error, "usage could not be written; the journal is kept"),
                }
            }
        }
    }

    fn look(&mut self, context: &mut Context<Self>) {
        let restarts = self.restarts.clone();
        // A panic has been logged and stops the actor; the supervisor starts it again.
        let _ = guarded(self, context, "limiter", &restarts, |actor| {
            let bytes = actor.books.journal.len();
            if CHECKPOINT_BYTES < bytes || (bytes != 0 && CHECKPOINT_EVERY < actor.last.elapsed()) {
                actor.checkpoint();
            }
        });
    }
}

impl Actor for LimiterActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(64);
        context.run_interval(Duration::from_secs(1), Self::look);
        self.stop = Arc::new(AtomicBool::new(false));
        let (books, stop) = (self.books.clone(), self.stop.clone());
        let flusher = std::thread::Builder::new().name("journal".to_owned()).spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(FLUSH);
                books.journal.sync();
            }
        });
        if let Err(error) = flusher {
            tracing::error!(%error, "no thread to flush the journal");
        }
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Supervised for LimiterActor {
    fn restarting(&mut self, _: &mut Self::Context) {
        self.stop.store(true, Ordering::Relaxed);
        tracing::warn!(restarts = self.restarts.load(Ordering::Relaxed), "limiter actor is back");
    }
}

impl Drop for LimiterActor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // The host ends: the next start finds everything in the store. A panic here must not abort the process.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.checkpoint()));
    }
}

/// Puts defaults into force.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Configure(pub KeyLimits);

impl Handler<Configure> for LimiterActor {
    type Result = ();

    fn handle(&mut self, message: Configure, context: &mut Self::Context) {
        let restarts = self.restarts.clone();
        let _ = guarded(self, context, "limiter", &restarts, |actor| {
            actor.books.defaults.store(Arc::new(message.0));
        });
    }
}

/// Writes what was spent into the store.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Checkpoint;

impl Handler<Checkpoint> for LimiterActor {
    type Result = ();

    fn handle(&mut self, _: Checkpoint, context: &mut Self::Context) {
        let restarts = self.restarts.clone();
        let _ = guarded(self, context, "limiter", &restarts, Self::checkpoint);
    }
}

/// Panics: tests show that the actor comes back.
#[cfg(test)]
#[derive(Message)]
#[rtype(result = "()")]
pub struct Panic;

#[cfg(test)]
impl Handler<Panic> for LimiterActor {
    type Result = ();

    fn handle(&mut self, _: Panic, context: &mut Self::Context) {
        let restarts = self.restarts.clone();
        let _ = guarded(self, context, "limiter", &restarts, |_| panic!("asked to"));
    }
}
