//! What the request path reads and writes: a meter for each key, and the journal.

use super::budget::{Allowance, Budget, Estimate, Hold, Short};
use super::error::LimitError;
use super::gcra::{Gcra, Rate, Refused};
use super::journal::{Journal, Open};
use super::{BudgetStatus, LimitStatus, StartError};
use crate::auth::{Caller, KeyLimits};
use crate::store::{Owner, Spent, StoreError, UsageStore};
use arc_swap::ArcSwap;
use dashmap::DashMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// The clocks, read once for each request.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Nanoseconds since the start, of a clock that is never set: for rates.
    pub steady: u64,
    /// Nanoseconds since 1970: for windows of the calendar.
    pub wall: u64,
}

/// What a key has used. Its limits are not in here: they come with each call, so that a change of them forgives nothing.
struct Meter {
    owner: Arc<Owner>,
    rate: Gcra,
    budget: Budget,
}

/// The limits of a caller that apply now.
struct Applied {
    rate: Option<Rate>,
    tokens: Option<Allowance>,
}

/// All meters. Shared by every thread that serves requests.
pub struct Books {
    meters: DashMap<Arc<str>, Arc<Meter>>,
    defaults: ArcSwap<KeyLimits>,
    journal: Journal,
    origin: Instant,
}

/// Why what was spent could not be put into the store.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A new journal cannot be begun.
    #[error("a new journal cannot be begun: {0}")]
    Journal(#[from] io::Error),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Books {
    /// Reads what was spent, from the store and the journals behind it, and puts all of it into the store.
    pub fn open(store: &dyn UsageStore, state: &Path, defaults: KeyLimits) -> Result<Self, StartError> {
        let dir = state.join("journal");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let (generation, stored) = store.usage()?;
        let (journal, replayed) = Journal::open(&dir, generation)?;
        if replayed.open != 0 || replayed.torn {
            tracing::warn!(
                open = replayed.open,
                torn = replayed.torn,
                "the last host was killed; its open reservations count as spent"
            );
        }
        let books = Self {
            meters: DashMap::new(),
            defaults: ArcSwap::from_pointee(defaults),
            journal,
            origin: Instant::now(),
        };
        let now = books.now().wall;
        for Spent { owner, window, tokens } in stored.into_iter().chain(replayed.spent) {
            books.meter(owner.tenant, owner.key).budget.restore(window, tokens, now);
        }
        store.checkpoint(books.journal.generation(), &books.spent())?;
        for (file, lines) in replayed.damaged {
            tracing::error!(file = %file.display(), lines, "a journal is damaged; what its other lines say counts, and the file is kept");
            fs::rename(&file, file.with_extension("damaged"))?;
        }
        books.journal.forget_before(books.journal.generation());
        Ok(books)
    }

    /// The clocks now.
    pub fn now(&self) -> Now {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Now { steady: nanos(self.origin.elapsed()), wall: nanos(wall) }
    }

    /// Puts defaults into force, for keys that have no limit of their own.
    pub fn set_defaults(&self, defaults: KeyLimits) {
        self.defaults.store(Arc::new(defaults));
    }

    fn meter(&self, tenant: Arc<str>, key: Arc<str>) -> Arc<Meter> {
        if let Some(meter) = self.meters.get(&key) {
            return meter.clone();
        }
        let new = || {
            let owner = Arc::new(Owner { tenant, key: key.clone() });
            Arc::new(Meter { owner, rate: Gcra::default(), budget: Budget::default() })
        };
        self.meters.entry(key.clone()).or_insert_with(new).clone()
    }

    /// The meter of a caller and the limits that apply; `None` for callers without a key.
    fn of(&self, caller: &Caller) -> Option<(Arc<Meter>, Applied)> {
        let key = caller.key.clone()?;
        Some((self.meter(caller.tenant.clone(), key), self.applied(&caller.limits)))
    }

    fn applied(&self, own: &KeyLimits) -> Applied {
        let defaults = self.defaults.load();
        Applied {
            rate: own.requests_per_minute.or(defaults.requests_per_minute).map(Rate::per_minute),
            tokens: own
                .tokens
                .or(defaults.tokens)
                .map(|budget| Allowance { limit: budget.tokens, period: budget.window }),
        }
    }

    /// Whether the caller has a token budget.
    pub fn counts_tokens(&self, caller: &Caller) -> bool {
        caller.key.is_some() && self.applied(&caller.limits).tokens.is_some()
    }

    /// How every limit of a caller stands.
    pub fn standing(&self, caller: &Caller, now: Now) -> Vec<LimitStatus> {
        let Some((meter, limits)) = self.of(caller) else { return Vec::new() };
        let requests = limits.rate.map(|rate| {
            let standing = meter.rate.standing(rate, now.steady);
            LimitStatus {
                scope: "key",
                dimension: "requests",
                limit: rate.limit(),
                remaining: standing.remaining,
                reset: Some(Duration::from_nanos(standing.reset)),
            }
        });
        let tokens = limits.tokens.map(|allowance| {
            let standing = meter.budget.standing(allowance, now.wall);
            LimitStatus {
                scope: "key",
                dimension: "tokens",
                limit: allowance.limit,
                remaining: standing.remaining,
                reset: standing.resets_in,
            }
        });
        requests.into_iter().chain(tokens).collect()
    }

    /// How the token budget of a key with these limits of its own stands; `None` where it has none. A key that was never
    /// used gets no meter by being looked at.
    pub fn budget(&self, key: &str, own: &KeyLimits, now: Now) -> Option<BudgetStatus> {
        let allowance = self.applied(own).tokens?;
        let standing = match self.meters.get(key) {
            Some(meter) => meter.budget.standing(allowance, now.wall),
            None => Budget::default().standing(allowance, now.wall),
        };
        Some(BudgetStatus {
            limit: allowance.limit,
            window: allowance.period,
            spent: standing.spent,
            reserved: standing.reserved,
            remaining: standing.remaining,
            reset: standing.resets_in,
        })
    }

    /// Takes one request from the caller's rate, if its budget could pay for the least of `estimate` now; else takes
    /// nothing. Says whether there is a rate.
    pub fn admit(&self, caller: &Caller, estimate: Estimate, now: Now) -> Result<bool, LimitError> {
        let Some((meter, limits)) = self.of(caller) else { return Ok(false) };
        if let Some(rate) = limits.rate {
            let refused = |refused| LimitError::RateExceeded {
                key: meter.owner.key.clone(),
                limit: rate.limit(),
                retry_after: match refused {
                    Refused::For(wait) => Duration::from_nanos(wait),
                    // One request is never more than a rate allows at once.
                    Refused::ForEver => Duration::MAX,
                },
            };
            meter.rate.take(rate, 1, now.steady).map_err(refused)?;
        }
        if let Some(allowance) = limits.tokens {
            let short = |short| too_much(&meter.owner.key, allowance, estimate, short);
            meter.budget.check(allowance, estimate.least, now.wall).map_err(short).inspect_err(|_| {
                if let Some(rate) = limits.rate {
                    meter.rate.settle(rate, 1, 0, now.steady);
                }
            })?;
        }
        Ok(limits.rate.is_some())
    }

    /// Sets aside the most of `estimate`, or what is left of the caller's budget.
    pub fn reserve(
        self: &Arc<Self>,
        caller: &Caller,
        request: &str,
        estimate: Estimate,
        now: Now,
    ) -> Result<Reservation, LimitError> {
        let Some((meter, Applied { tokens: Some(allowance), .. })) = self.of(caller) else {
            return Ok(Reservation::free());
        };
        let short = |short| too_much(&meter.owner.key, allowance, estimate, short);
        let hold = meter.budget.reserve(allowance, estimate, now.wall).map_err(short)?;
        let open = Open {
            owner: meter.owner.clone(),
            window: hold.window,
            tokens: hold.tokens,
            request: request.to_owned(),
        };
        match self.journal.reserve(open) {
            Ok(serial) => Ok(Reservation(Some(Held { books: self.clone(), meter, hold, serial }))),
            Err(source) => {
                meter.budget.settle(hold, 0);
                Err(LimitError::StoreUnavailable { key: meter.owner.key.clone(), source })
            }
        }
    }

    fn spent(&self) -> Vec<Spent> {
        let spent = |meter: &Meter| {
            let (window, tokens) = meter.budget.spent().filter(|(_, tokens)| *tokens != 0)?;
            Some(Spent { owner: Owner::clone(&meter.owner), window, tokens })
        };
        self.meters.iter().filter_map(|entry| spent(entry.value())).collect()
    }

    /// Puts what was spent into the store, and begins a new journal. Blocks for the disk.
    pub fn checkpoint(&self, store: &dyn UsageStore) -> Result<(), CheckpointError> {
        self.journal
            .checkpoint(|| self.spent(), |generation, spent| Ok(store.checkpoint(generation, &spent)?))
    }

    /// The journal.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }
}

/// Why `estimate` is not let through.
fn too_much(
    key: &Arc<str>,
    Allowance { limit, period: window }: Allowance,
    estimate: Estimate,
    short: Short,
) -> LimitError {
    let key = key.clone();
    match short {
        Short::ForEver => LimitError::TooLargeForLimit { key, limit, window, estimate },
        Short::Now(standing) => LimitError::BudgetExceeded {
            key,
            limit,
            window,
            remaining: standing.remaining,
            reserved: standing.reserved,
            estimate,
            resets_in: standing.resets_in,
        },
    }
}

/// Tokens that were set aside, until they are settled. Dropping it charges what was reserved: whoever forgets to settle
/// does not get it for nothing.
#[must_use = "dropping a reservation charges it"]
pub struct Reservation(Option<Held>);

struct Held {
    books: Arc<Books>,
    meter: Arc<Meter>,
    hold: Hold,
    serial: u64,
}

impl std::fmt::Debug for Reservation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reservation").field("tokens", &self.tokens()).finish_non_exhaustive()
    }
}

impl Reservation {
    /// Of a caller whose tokens are not counted.
    pub fn free() -> Self {
        Self(None)
    }

    /// How many.
    pub fn tokens(&self) -> u64 {
        self.0.as_ref().map_or(0, |held| held.hold.tokens)
    }

    /// Charges what the request cost, and gives the rest back. What it cost beyond its reservation is a debt.
    pub fn settle(mut self, tokens: u64) {
        self.charge(tokens);
    }

    fn charge(&mut self, tokens: u64) {
        if let Some(Held { books, meter, hold, serial }) = self.0.take() {
            books.journal.settle(serial, tokens, || meter.budget.settle(hold, tokens));
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.charge(self.tokens());
    }
}
