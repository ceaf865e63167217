//! The supervisor: watches every other actor and part, and publishes how they are.
//!
//! actix restarts an actor that stopped itself after a panic ([`crate::actor::guarded`]); the supervisor sees that it is
//! back, counts, and says so. The request path reads [`Snapshot`] and asks nobody.

pub mod actor;

use crate::info::{Health, PartHealth};
use arc_swap::ArcSwap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A part that is watched.
pub struct Watched {
    /// Whether looking may wait for a disk. It is then done on a thread of its own.
    pub blocks: bool,
    /// How it is.
    pub look: Box<dyn Fn() -> PartHealth + Send + Sync>,
}

/// How everything is, as of the last look.
#[derive(Clone)]
pub struct Snapshot(Arc<ArcSwap<Health>>);

impl Default for Snapshot {
    fn default() -> Self {
        Self(Arc::new(ArcSwap::from_pointee(Health { ready: false, parts: Vec::new() })))
    }
}

impl Snapshot {
    /// The report.
    pub fn read(&self) -> Health {
        Health::clone(&self.0.load())
    }

    fn publish(&self, health: Health) {
        self.0.store(Arc::new(health));
    }
}

/// How often an actor came back.
#[derive(Clone, Debug, Default)]
pub struct Restarts(Arc<AtomicU64>);

impl Restarts {
    /// The counter itself, for [`crate::actor::guarded`].
    pub fn counter(&self) -> Arc<AtomicU64> {
        self.0.clone()
    }

    /// How often.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
