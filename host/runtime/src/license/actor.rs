//! The actor that looks at licences once a second.

use super::LicenceBook;
use crate::actor::{Backoff, blocking, guarded};
use actix::fut::WrapFuture;
use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Supervised};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const NAME: &str = "license";
/// A licence that is installed, taken back or over counts this soon.
const TICK: Duration = Duration::from_secs(1);

/// Looks, and tells the host when a plugin may be loaded that could not be before. The gates and counters outlive it.
pub struct LicenseActor {
    book: LicenceBook,
    at_work: bool,
    restarts: Arc<AtomicU64>,
    backoff: Backoff,
}

impl LicenseActor {
    pub fn new(book: LicenceBook, restarts: Arc<AtomicU64>) -> Self {
        Self { book, at_work: false, restarts, backoff: Backoff::default() }
    }

    fn look(&mut self, context: &mut Context<Self>) {
        let restarts = self.restarts.clone();
        let free =
            guarded(self, context, NAME, &restarts, |actor, _| !std::mem::replace(&mut actor.at_work, true));
        if free != Ok(true) {
            return;
        }
        let book = self.book.clone();
        let looked = blocking(NAME, move || book.look()).into_actor(self);
        context.spawn(looked.map(|looked, actor, context| {
            actor.at_work = false;
            match looked {
                Ok(true) => actor.book.tell_new(),
                Ok(false) => {}
                Err(_) => {
                    actor.restarts.fetch_add(1, Ordering::Relaxed);
                    context.stop();
                }
            }
        }));
    }
}

impl Actor for LicenseActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(16);
        context.run_interval(TICK, Self::look);
    }
}

impl Supervised for LicenseActor {
    fn restarting(&mut self, context: &mut Self::Context) {
        self.at_work = false;
        let pause = actix_rt::time::sleep(self.backoff.next(Instant::now())).into_actor(self);
        context.wait(pause.map(|(), actor, _| {
            tracing::warn!(restarts = actor.restarts.load(Ordering::Relaxed), "license actor is back");
        }));
    }
}

impl Drop for LicenseActor {
    fn drop(&mut self) {
        // The host ends. A panic here must not abort the process.
        if catch_unwind(AssertUnwindSafe(|| self.book.close())).is_err() {
            tracing::error!("writing down what licensed plugins used panicked");
        }
    }
}
