//! What every actor here shares: a handler that panics stops its actor, and the supervisor starts it again.
//!
//! actix restarts a supervised actor only after `ctx.stop()`. A panic that gets out of a handler ends the actor's
//! task for good and closes its mailbox. So every handler runs inside [`guarded`].

use actix::{Actor, ActorContext};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

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
    work: impl FnOnce(&mut A) -> R,
) -> Result<R, Panicked>
where
    A: Actor,
    A::Context: ActorContext,
{
    catch_unwind(AssertUnwindSafe(|| work(actor))).map_err(|payload| {
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
