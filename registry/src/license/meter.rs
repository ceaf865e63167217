//! What one licensed plugin uses: counters that requests add to, and that limits are compared with.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;

use super::gate::Place;
use super::{Entry, State, Use};

/// The counters of one plugin, whatever licence it has: a renewal begins none of them anew.
#[derive(Debug, Default)]
pub struct Meter {
    all: Counts,
    /// By tenant. It grows only, and by one for each tenant of the host.
    tenants: ArcSwap<BTreeMap<String, Arc<Counts>>>,
    instances: AtomicU64,
    /// Those of this machine that the plugin may use.
    gpus: AtomicU64,
    refused: [AtomicU64; State::ALL.len()],
    joining: Mutex<()>,
}

/// What somebody uses.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Requests under way.
    concurrency: AtomicU64,
    /// Tokens of this month.
    tokens: AtomicU64,
    /// Tokens and requests that are in no log yet.
    unwritten: [AtomicU64; 2],
    /// Used in this month.
    active: AtomicU64,
}

/// What was used and is in no log yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unwritten {
    pub tenant: String,
    pub tokens: u64,
    pub requests: u64,
}

impl Counts {
    /// One request more is under way. How many there are with it.
    fn enter(&self) -> u64 {
        self.concurrency.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Whether it was used this month.
    pub(super) fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed) == 1
    }

    pub(super) fn activate(&self) {
        self.active.store(1, Ordering::Relaxed);
    }

    fn end(&self) {
        self.concurrency.fetch_sub(1, Ordering::Relaxed);
    }

    fn add(&self, tokens: u64) {
        self.tokens.fetch_add(tokens, Ordering::Relaxed);
        self.unwritten[0].fetch_add(tokens, Ordering::Relaxed);
        self.unwritten[1].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn used(&self) -> Use {
        Use {
            nodes: 1,
            concurrency: self.concurrency.load(Ordering::Relaxed),
            tokens_month: self.tokens.load(Ordering::Relaxed),
            ..Use::default()
        }
    }
}

impl Meter {
    /// Counts of this month, from what was written of it.
    pub fn restore<'a>(&self, entries: impl Iterator<Item = &'a Entry>) {
        for entry in entries {
            for counts in [&self.all, &*self.of(&entry.tenant)] {
                counts.tokens.fetch_add(entry.tokens, Ordering::Relaxed);
                counts.activate();
            }
        }
    }

    /// A month has begun.
    pub fn begin_month(&self) {
        for counts in std::iter::once(&self.all).chain(self.tenants.load().values().map(|counts| &**counts)) {
            counts.tokens.store(0, Ordering::Relaxed);
            counts.active.store(0, Ordering::Relaxed);
        }
    }

    /// The plugin asks for a GPU, and may use so many of this machine.
    pub fn see_gpus(&self, count: u64) {
        self.gpus.fetch_max(count, Ordering::Relaxed);
    }

    pub fn gpus(&self) -> u64 {
        self.gpus.load(Ordering::Relaxed)
    }

    /// What is used now.
    pub fn used(&self) -> Use {
        Use {
            instances: self.instances.load(Ordering::Relaxed),
            gpus: self.gpus(),
            tenants: self.tenants.load().values().filter(|counts| counts.is_active()).count() as u64,
            ..self.all.used()
        }
    }

    /// The tenants of this month, this one among them.
    pub(super) fn tenants_with(&self, tenant: &str) -> u64 {
        let tenants = self.tenants.load();
        let others = tenants.iter().filter(|(name, counts)| *name != tenant && counts.is_active()).count();
        others as u64 + 1
    }

    /// What is in no log yet; from now on it counts as written.
    pub fn take_unwritten(&self) -> Vec<Unwritten> {
        let taken = |(tenant, counts): (&String, &Arc<Counts>)| {
            let [tokens, requests] =
                [0, 1].map(|place: usize| counts.unwritten[place].swap(0, Ordering::Relaxed));
            Unwritten { tenant: tenant.clone(), tokens, requests }
        };
        let used = |taken: &Unwritten| taken.tokens != 0 || taken.requests != 0;
        self.tenants.load().iter().map(taken).filter(used).collect()
    }

    /// It could not be written.
    pub fn put_back(&self, unwritten: &Unwritten) {
        let counts = self.of(&unwritten.tenant);
        counts.unwritten[0].fetch_add(unwritten.tokens, Ordering::Relaxed);
        counts.unwritten[1].fetch_add(unwritten.requests, Ordering::Relaxed);
    }

    /// How often it was refused, by state.
    pub fn refused(&self) -> impl Iterator<Item = (State, u64)> {
        let count = |state: &State| (*state, self.refused[*state as usize].load(Ordering::Relaxed));
        State::ALL.iter().map(count).filter(|(_, count)| *count != 0)
    }

    pub(super) fn all(&self) -> &Counts {
        &self.all
    }

    /// Held by a tenant that is new this month, until it is counted or refused.
    pub(super) fn join(&self) -> MutexGuard<'_, ()> {
        self.joining.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn instances(&self) -> &AtomicU64 {
        &self.instances
    }

    pub(super) fn count_refusal(&self, state: State) {
        self.refused[state as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A tenant's counts, made at its first request.
    pub(super) fn of(&self, tenant: &str) -> Arc<Counts> {
        if let Some(counts) = self.tenants.load().get(tenant) {
            return counts.clone();
        }
        let new = Arc::new(Counts::default());
        let all = self.tenants.rcu(|all| {
            let mut all = BTreeMap::clone(all);
            all.entry(tenant.to_owned()).or_insert_with(|| new.clone());
            all
        });
        // What was there before, with the new one in it; or somebody else's.
        all.get(tenant).cloned().unwrap_or_else(|| self.tenants.load().get(tenant).cloned().unwrap_or(new))
    }
}

/// A request that was let in. It is under way until this is dropped.
#[derive(Debug)]
pub struct Pass {
    meter: Arc<Meter>,
    pub(super) tenant: Arc<Counts>,
}

impl Pass {
    /// Counts a request.
    pub(super) fn count(meter: &Arc<Meter>, tenant: &str) -> (Self, Place) {
        let pass = Self { meter: meter.clone(), tenant: meter.of(tenant) };
        let place = Place::Counted { all: meter.all.enter(), tenant: pass.tenant.enter() };
        (pass, place)
    }

    /// The request took so many tokens.
    pub fn used(&self, tokens: u64) {
        self.meter.all.add(tokens);
        self.tenant.add(tokens);
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.meter.all.end();
        self.tenant.end();
    }
}

/// Instances that were let in. They count until this is dropped.
#[derive(Debug)]
pub struct Seats {
    pub(super) meter: Arc<Meter>,
    pub(super) count: u64,
}

impl Drop for Seats {
    fn drop(&mut self) {
        self.meter.instances.fetch_sub(self.count, Ordering::Relaxed);
    }
}
