//! What every actor here shares: a handler that panics stops its actor, and the supervisor starts it again.
//!
//! actix restarts a supervised actor only after `ctx.stop()`. A panic that gets out of a handler ends the actor's
//! task for good and closes its mailbox. So every handler runs inside [`guarded`].

use actix::{Actor, ActorContext};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A handler panicked; the actor is being restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {0} failed inside and is being restarted; retry")]
pub struct Panicked(pub &'static str);

/// Runs a handler's work. After a panic the actor is stopped, which makes its supervisor call `restarting` and go on
/// with the same mailbox; `restarts` counts it.
///
/// # Errors
/// The work panicked.
pub fn guarded<A, R>(
    actor: &mut A,
    context: &mut A::Context,
    name: &'static str,
    restarts: &AtomicU64,
    work: impl FnOnce(&mut A, &mut A::Context) -> R,
) -> Result<R, Panicked>
where
    A: Actor,
    A::Context: ActorContext,
{
    catch_unwind(AssertUnwindSafe(|| work(actor, &mut *context))).map_err(|payload| {
        let text = payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_default();
        tracing::error!(actor = name, panic = text, "an actor panicked; it is being restarted");
        restarts.fetch_add(1, Ordering::Relaxed);
        context.stop();
        Panicked(name)
    })
}

/// Runs what may block on a thread of its own: the actors share one, and none may wait for another's disk.
///
/// # Errors
/// The work panicked, which is logged. The actor should stop itself, so that its supervisor starts it again.
pub async fn blocking<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Panicked> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(actor = name, %error, "an actor's work on another thread did not end well");
        Panicked(name)
    })
}

/// How long an actor that came back waits before it goes on: twice as long each time, until it has been well for a minute.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
    last: Option<Instant>,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(10);
    const LONGEST: Duration = Duration::from_secs(5);
    const WELL: Duration = Duration::from_secs(60);

    /// The wait after a failure at `now`.
    pub fn next(&mut self, now: Instant) -> Duration {
        let was_well = self.last.is_none_or(|last| Self::WELL < now.saturating_duration_since(last));
        self.failures = if was_well { 0 } else { self.failures + 1 };
        self.last = Some(now);
        Self::FIRST.saturating_mul(1 << self.failures.min(16)).min(Self::LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_actor_that_keeps_failing_waits_longer_and_one_that_is_well_again_does_not() {
        let (mut backoff, start) = (Backoff::default(), Instant::now());
        let waits: Vec<_> = (0..12).map(|_| backoff.next(start).as_millis()).collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5000, 5000, 5000]);
        assert_eq!(backoff.next(start + Duration::from_secs(61)), Backoff::FIRST);
    }
}
