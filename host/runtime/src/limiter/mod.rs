//! What a key may use: a request rate and a token budget.
//!
//! Requests reserve before they run and settle after ([`LimiterHandle::reserve`], [`Reservation`]), on atomics and one
//! uncontended lock; they send no message. The [`actor`] owns the timers, the checkpoints and the configuration.
//!
//! - A rate lives in memory: a restart forgets it.
//! - A budget survives `kill -9`: a line of the [`journal`] is on its way to the disk before the reservation is used.

mod actor;
mod budget;
mod gcra;
mod journal;

use actor::LimiterActor;

use crate::auth::{Caller, KeyLimits, TokenBudget};
use crate::config::LimitsConfig;
use crate::error::{Error, ErrorCode, Result};
use crate::store::{Spent, StoreError, UsageStore};
use actix::{Addr, Supervisor};
use arc_swap::ArcSwap;
use budget::{Budget, Held, Short};
use dashmap::DashMap;
use gcra::Gcra;
use journal::{Journal, Line};
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant, SystemTime};

/// How one limit of a caller stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
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

/// Why a request was not admitted.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    /// Too many requests.
    #[error("this key may make {limit} requests a minute, and made them; retry in {}", shown(*.retry_after))]
    Rate {
        /// Requests a minute.
        limit: u32,
        /// Exactly how long to wait.
        retry_after: Duration,
    },
    /// The budget is used up.
    #[error("this key may spend {limit} tokens in a window; {remaining} are left{}, and this request may cost {estimate}; wait, ask for less with `max_tokens`, or have the budget raised", resets_in.map_or_else(String::new, |wait| format!(" for the next {}", shown(wait))))]
    Budget {
        /// Tokens in a window.
        limit: u64,
        /// What is left.
        remaining: u64,
        /// What the request may cost.
        estimate: u64,
        /// When the window ends.
        resets_in: Option<Duration>,
    },
    /// More than a whole budget.
    #[error(
        "this request may cost {estimate} tokens, and its key may spend {limit} in a window; ask for less with `max_tokens`, or have the budget raised"
    )]
    TooLarge {
        /// Tokens in a window.
        limit: u64,
        /// What the request may cost.
        estimate: u64,
    },
    /// The journal cannot be written, so no token can be spent.
    #[error(
        "token budgets cannot be kept now, since the journal cannot be written; requests of keys with a budget wait until it can"
    )]
    Store(#[source] std::io::Error),
}

fn shown(wait: Duration) -> humantime::FormattedDuration {
    // Rounded up to what a person reads; the exact figure is in the headers.
    let unit = if wait < Duration::from_secs(1) { 1 } else { 1000 };
    let millis = (wait.as_millis() as u64).div_ceil(unit) * unit;
    humantime::format_duration(Duration::from_millis(millis.max(1)))
}

impl From<LimitError> for Error {
    fn from(error: LimitError) -> Self {
        let message = error.to_string();
        match error {
            LimitError::Rate { limit, retry_after } => Error::new(ErrorCode::ResourceExhausted, message)
                .with_reason("rate_limit_exceeded")
                .with_detail("scope", "key")
                .with_detail("limit", limit)
                .with_retry_after(retry_after),
            LimitError::Budget { limit, remaining, estimate, .. } => {
                Error::new(ErrorCode::ResourceExhausted, message)
                    .with_reason("insufficient_quota")
                    .with_detail("scope", "key")
                    .with_detail("limit", limit)
                    .with_detail("remaining", remaining)
                    .with_detail("estimate", estimate)
            }
            LimitError::TooLarge { limit, estimate } => Error::new(ErrorCode::InvalidArgument, message)
                .with_reason("limit_too_small")
                .with_param("max_tokens")
                .with_detail("limit", limit)
                .with_detail("estimate", estimate),
            LimitError::Store(cause) => {
                tracing::error!(error = %cause, "the journal cannot be written");
                Error::new(ErrorCode::Unavailable, message)
                    .with_reason("quota_store_unavailable")
                    .with_retry_after(Duration::from_secs(5))
            }
        }
    }
}

/// The limits of one key.
struct Ledger {
    limits: KeyLimits,
    rate: Option<Gcra>,
    budget: Option<Budget>,
}

impl Ledger {
    fn new(limits: KeyLimits) -> Self {
        Self {
            rate: limits.requests_per_minute.map(Gcra::new),
            budget: limits.tokens.map(|budget| Budget::new(budget.tokens, budget.window)),
            limits,
        }
    }
}

/// What the request path reads and writes.
struct Books {
    ledgers: DashMap<Arc<str>, Arc<Ledger>>,
    defaults: ArcSwap<KeyLimits>,
    journal: Journal,
    /// Spent before this start, by keys that nobody has used since.
    unclaimed: DashMap<String, Vec<Spent>>,
    origin: Instant,
}

impl Books {
    fn limits_of(&self, caller: &Caller) -> KeyLimits {
        let defaults = self.defaults.load();
        KeyLimits {
            requests_per_minute: caller.limits.requests_per_minute.or(defaults.requests_per_minute),
            tokens: caller.limits.tokens.or(defaults.tokens),
        }
    }

    /// The ledger of a caller; `None` for callers without a key.
    fn ledger(&self, caller: &Caller) -> Option<Arc<Ledger>> {
        let key = caller.key.as_ref()?;
        let limits = self.limits_of(caller);
        if let Some(ledger) = self.ledgers.get(key)
            && ledger.limits == limits
        {
            return Some(ledger.clone());
        }
        let mut entry =
            self.ledgers.entry(key.clone()).or_insert_with(|| Arc::new(Ledger::new(KeyLimits::default())));
        if entry.limits != limits {
            let new = Ledger::new(limits);
            if let Some(budget) = &new.budget {
                let now = unix(SystemTime::now());
                for spent in self.unclaimed.remove(&**key).map(|(_, spent)| spent).unwrap_or_default() {
                    budget.restore(spent.window_start, spent.tokens, now);
                }
                // Changed limits do not forgive what was spent.
                if let Some(old) = &entry.budget {
                    let (window_start, tokens) = old.spent();
                    budget.restore(window_start, tokens, now);
                }
            }
            *entry = Arc::new(new);
        }
        Some(entry.clone())
    }

    /// What every key has spent, claimed or not.
    fn spent(&self) -> Vec<Spent> {
        let mut all: Vec<Spent> = self.unclaimed.iter().flat_map(|entry| entry.value().clone()).collect();
        for entry in &self.ledgers {
            if let Some(budget) = &entry.value().budget {
                let (window_start, tokens) = budget.spent();
                if tokens != 0 {
                    all.push(Spent { key: entry.key().to_string(), window_start, tokens });
                }
            }
        }
        all
    }

    fn now(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }
}

fn unix(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

/// What callers hold.
#[derive(Clone)]
pub struct LimiterHandle {
    books: Arc<Books>,
    actor: Addr<LimiterActor>,
}

/// A request that was admitted, until it is settled. Dropping it charges what was reserved: whoever forgets to settle
/// does not get it for nothing.
pub struct Reservation {
    books: Arc<Books>,
    held: Option<(Arc<Ledger>, Held, Arc<str>, String)>,
}

impl std::fmt::Debug for Reservation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tokens = self.held.as_ref().map_or(0, |(_, held, ..)| held.tokens);
        f.debug_struct("Reservation").field("tokens", &tokens).finish_non_exhaustive()
    }
}

impl Reservation {
    /// Charges what the request cost, and gives the rest back.
    pub fn settle(mut self, tokens: u64) {
        self.charge(Some(tokens));
    }

    fn charge(&mut self, tokens: Option<u64>) {
        let Some((ledger, held, key, id)) = self.held.take() else { return };
        let cost = tokens.unwrap_or(held.tokens);
        if let Some(budget) = &ledger.budget {
            budget.settle(held, cost);
        }
        self.books.journal.settle(Line {
            settles: true,
            key: key.to_string(),
            window_start: held.window_start,
            tokens: cost,
            id,
        });
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.charge(None);
    }
}

impl LimiterHandle {
    /// Takes one request and `estimate` tokens from every limit of the caller, or nothing from any.
    ///
    /// `id` names the request in the journal and must be new.
    ///
    /// # Errors
    /// Which limit forbids it, and when it will not.
    pub fn reserve(&self, caller: &Caller, id: &str, estimate: u64) -> Result<Reservation, LimitError> {
        self.reserve_at(caller, id, estimate, self.books.now(), unix(SystemTime::now()))
    }

    fn reserve_at(
        &self,
        caller: &Caller,
        id: &str,
        estimate: u64,
        now: u64,
        wall: i64,
    ) -> Result<Reservation, LimitError> {
        let free = Reservation { books: self.books.clone(), held: None };
        let (Some(ledger), Some(key)) = (self.books.ledger(caller), caller.key.clone()) else {
            return Ok(free);
        };
        if let Some(rate) = &ledger.rate {
            rate.admit(now).map_err(|wait| LimitError::Rate {
                limit: rate.per_minute(),
                retry_after: Duration::from_nanos(wait),
            })?;
        }
        let undo = || {
            if let Some(rate) = &ledger.rate {
                rate.undo(now);
            }
        };
        let Some(budget) = &ledger.budget else { return Ok(free) };
        let held = budget.reserve(estimate, wall).map_err(|short| {
            undo();
            let limit = budget.limit();
            match short {
                Short::Never => LimitError::TooLarge { limit, estimate },
                Short::Now { remaining, resets_in } => LimitError::Budget {
                    limit,
                    remaining,
                    estimate,
                    resets_in: resets_in.map(|wait| Duration::from_secs(wait.unsigned_abs())),
                },
            }
        })?;
        let line = Line {
            settles: false,
            key: key.to_string(),
            window_start: held.window_start,
            tokens: held.tokens,
            id: id.to_owned(),
        };
        if let Err(error) = self.books.journal.reserve(line) {
            budget.settle(held, 0);
            undo();
            return Err(LimitError::Store(error));
        }
        let mut admitted = free;
        admitted.held = Some((ledger.clone(), held, key, id.to_owned()));
        Ok(admitted)
    }

    /// Whether a request of this caller has to be estimated.
    pub fn counts_tokens(&self, caller: &Caller) -> bool {
        caller.key.is_some() && self.books.limits_of(caller).tokens.is_some()
    }

    /// How every limit of a caller stands.
    pub fn snapshot(&self, caller: &Caller) -> Vec<LimitStatus> {
        let Some(ledger) = self.books.ledger(caller) else { return Vec::new() };
        let mut all = Vec::new();
        if let Some(rate) = &ledger.rate {
            let standing = rate.standing(self.books.now());
            all.push(LimitStatus {
                scope: "key",
                dimension: "requests",
                limit: u64::from(rate.per_minute()),
                remaining: standing.remaining,
                reset: Some(Duration::from_nanos(standing.reset)),
            });
        }
        if let Some(budget) = &ledger.budget {
            let standing = budget.standing(unix(SystemTime::now()));
            all.push(LimitStatus {
                scope: "key",
                dimension: "tokens",
                limit: budget.limit(),
                remaining: standing.remaining,
                reset: standing.resets_in.map(|wait| Duration::from_secs(wait.unsigned_abs())),
            });
        }
        all
    }

    /// Puts the configured defaults into force.
    ///
    /// # Errors
    /// When the actor is gone.
    pub async fn configure(&self, config: &LimitsConfig) -> Result<()> {
        self.actor.send(actor::Configure(defaults(config))).await.map_err(|_| Error::shutting_down())
    }

    /// Writes what was spent into the store now.
    ///
    /// # Errors
    /// When the actor is gone.
    pub async fn checkpoint(&self) -> Result<()> {
        self.actor.send(actor::Checkpoint).await.map_err(|_| Error::shutting_down())
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
    #[error("the journal cannot be used: {0}")]
    Journal(#[from] std::io::Error),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Starts the actor: reads what was spent, from the store and from the journal behind it.
///
/// # Errors
/// When either cannot be read, or what was read cannot be written down.
pub fn start(
    store: Arc<dyn UsageStore>,
    state: &Path,
    config: &LimitsConfig,
    restarts: Arc<AtomicU64>,
) -> Result<LimiterHandle, StartError> {
    let (generation, mut spent) = store.usage()?;
    let (journal, replayed) = Journal::open(&state.join("journal"), generation)?;
    if replayed.unreadable != 0 || replayed.open != 0 {
        tracing::warn!(
            unreadable = replayed.unreadable,
            open = replayed.open,
            "the last host did not end well: open reservations count as spent"
        );
    }
    spent.extend(replayed.spent);
    let unclaimed: DashMap<String, Vec<Spent>> = DashMap::new();
    for row in merge(spent) {
        unclaimed.entry(row.key.clone()).or_default().push(row);
    }
    let books = Arc::new(Books {
        ledgers: DashMap::new(),
        defaults: ArcSwap::from_pointee(defaults(config)),
        journal,
        unclaimed,
        origin: Instant::now(),
    });
    store.checkpoint(replayed.next, &books.spent())?;
    books.journal.forget_before(replayed.next);
    let inner = books.clone();
    let actor = Supervisor::start(move |_| LimiterActor::new(inner, store, restarts));
    Ok(LimiterHandle { books, actor })
}

/// One row for each key and window.
fn merge(mut rows: Vec<Spent>) -> Vec<Spent> {
    rows.sort_by(|a, b| (&a.key, a.window_start).cmp(&(&b.key, b.window_start)));
    rows.dedup_by(|next, row| {
        let same = next.key == row.key && next.window_start == row.window_start;
        if same {
            row.tokens = row.tokens.saturating_add(next.tokens);
        }
        same
    });
    rows
}

#[cfg(test)]
mod tests;
