//! What a key may use: a request rate and a token budget.
//!
//! Requests are let in ([`LimiterHandle::admit`]), reserve before they run ([`LimiterHandle::reserve`]) and settle after
//! ([`Reservation`]). They send no message;
//! the [`actor`] owns the timers, the checkpoints and the configuration.
//!
//! - A rate lives in memory: a restart forgets it.
//! - A budget survives `kill -9`: a line of the [`journal`] is with the kernel before its reservation is used.
//! - When the journal cannot be written, keys with a budget are refused, and rates go on.

mod actor;
mod books;
mod budget;
mod error;
pub(crate) mod gcra;
mod journal;
#[cfg(test)]
mod tests;
mod window;

pub use actor::LimiterActor;
pub use books::{CheckpointError, Reservation};
pub use budget::Estimate;
pub use error::LimitError;
pub use journal::JournalError;
pub use window::{BadPeriod, Period, Window};

use crate::auth::{Caller, KeyLimits, TokenBudget};
use crate::config::LimitsConfig;
use crate::error::{Error, Result};
use crate::store::{StoreError, UsageStore};
use actix::{Addr, Supervisor};
use books::Books;
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// How one limit of a caller stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LimitStatus {
    /// Whose limit it is: `"key"`.
    pub scope: &'static str,
    /// `"requests"` or `"tokens"`.
    pub dimension: &'static str,
    /// The limit: requests a minute, or tokens in a window.
    pub limit: u64,
    /// What is left now.
    pub remaining: u64,
    /// Until all of it is there again; `None`: never.
    pub reset: Option<Duration>,
}

/// How the token budget of a key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetStatus {
    /// Tokens that may be spent in a window.
    pub limit: u64,
    /// How long a window is.
    pub window: Period,
    /// Tokens that were spent in this one. More than the limit where a request cost more than it had reserved.
    pub spent: u64,
    /// Tokens that are set aside for requests that are open.
    pub reserved: u64,
    /// What is left now.
    pub remaining: u64,
    /// Until the next window begins; `None`: never.
    pub reset: Option<Duration>,
}

/// What callers hold.
#[derive(Clone)]
pub struct LimiterHandle {
    books: Arc<Books>,
    actor: Addr<LimiterActor>,
}

impl LimiterHandle {
    /// Takes one request from the caller's rate, if its budget could pay for the least of `estimate` now; else takes
    /// nothing. Says whether there is a rate. Sends no message.
    ///
    /// # Errors
    /// Which limit forbids it, and when it will not.
    pub fn admit(&self, caller: &Caller, estimate: impl Into<Estimate>) -> Result<bool, LimitError> {
        self.books.admit(caller, estimate.into(), self.books.now())
    }

    /// Sets tokens aside: the most of `estimate`, or what is left of the budget. Sends no message.
    ///
    /// `request` names the request in the journal, for people. It need not be unique: what is charged twice is reserved
    /// twice.
    ///
    /// # Errors
    /// That not even the least of it is left, and when it will be.
    pub fn reserve(
        &self,
        caller: &Caller,
        request: &str,
        estimate: impl Into<Estimate>,
    ) -> Result<Reservation, LimitError> {
        self.books.reserve(caller, request, estimate.into(), self.books.now())
    }

    /// Whether a request of this caller has to be estimated.
    pub fn counts_tokens(&self, caller: &Caller) -> bool {
        self.books.counts_tokens(caller)
    }

    /// How every limit of a caller stands. Sends no message.
    pub fn snapshot(&self, caller: &Caller) -> Vec<LimitStatus> {
        self.books.standing(caller, self.books.now())
    }

    /// How the token budget of a key with these limits of its own stands; `None` where it has none. Sends no message.
    pub fn budget(&self, key: &str, own: &KeyLimits) -> Option<BudgetStatus> {
        self.books.budget(key, own, self.books.now())
    }

    /// Puts the configured defaults into force.
    ///
    /// # Errors
    /// When the actor is gone.
    pub async fn configure(&self, config: &LimitsConfig) -> Result<()> {
        let sent = self.actor.send(actor::Configure(defaults(config))).await;
        sent.map_err(|_| Error::shutting_down())?.map_err(|panicked| Error::unavailable(panicked.to_string()))
    }

    /// Writes what was spent into the store now.
    ///
    /// # Errors
    /// When the store or the journal cannot be written, or the actor is gone.
    pub async fn checkpoint(&self) -> Result<()> {
        let sent = self.actor.send(actor::Checkpoint).await;
        sent.map_err(|_| Error::shutting_down())?
            .map_err(|error| Error::unavailable(error.to_string()).with_reason("quota_store_unavailable"))
    }

    /// Whether token budgets can be kept.
    ///
    /// # Errors
    /// Why not; keys with a budget are refused until it is over.
    pub fn check(&self) -> Result<(), JournalError> {
        self.books.journal().check()
    }

    /// Makes the actor panic.
    #[cfg(test)]
    pub async fn panic(&self) {
        self.actor.send(actor::Panic).await.ok();
    }

    /// Whether the actor takes messages.
    pub fn is_alive(&self) -> bool {
        self.actor.connected()
    }
}

fn defaults(config: &LimitsConfig) -> KeyLimits {
    KeyLimits {
        requests_per_minute: config.requests_per_minute,
        tokens: config.tokens.map(|tokens| TokenBudget { tokens, window: config.window }),
    }
}

/// Why the limiter did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The journal cannot be used.
    #[error("the journal in the state directory cannot be used: {0}")]
    Journal(#[from] std::io::Error),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Starts the actor on this thread's system: reads what was spent, from the store and from the journal behind it.
///
/// # Errors
/// When either cannot be read, or what was read cannot be written down.
pub fn start(
    store: Arc<dyn UsageStore>,
    state: &Path,
    config: &LimitsConfig,
    restarts: Arc<AtomicU64>,
) -> Result<LimiterHandle, StartError> {
    let books = Arc::new(Books::open(&*store, state, defaults(config))?);
    let (owned, defaults) = (books.clone(), defaults(config));
    let actor = Supervisor::start(move |_| LimiterActor::new(owned, store, defaults, restarts));
    Ok(LimiterHandle { books, actor })
}
