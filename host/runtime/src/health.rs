//! What the health report says of each part.

use crate::catalog::{CatalogHandle, Shelf};
use crate::info::{ModelState, PartHealth, PartState};
use crate::limiter::LimiterHandle;
use crate::loader::in_quarantine;
use crate::store;
use crate::supervisor::{Restarts, Watched};
use backplane_registry::size_text;
use std::path::Path;
use std::sync::atomic::Ordering;

/// A part, and whether looking at it may wait for a disk.
pub(crate) fn watched(blocks: bool, look: impl Fn() -> PartHealth + Send + Sync + 'static) -> Watched {
    Watched { blocks, look: Box::new(look) }
}

pub(crate) fn actor_part(
    part: &'static str,
    restarts: Restarts,
    alive: impl Fn() -> bool + Send + Sync + 'static,
) -> Watched {
    watched(false, move || actor_health(part, &restarts, alive()))
}

fn actor_health(part: &'static str, restarts: &Restarts, alive: bool) -> PartHealth {
    let (state, detail) = if alive {
        (PartState::Ok, String::new())
    } else {
        (PartState::Down, "its mailbox is closed; restart the host".to_owned())
    };
    PartHealth { part, state, detail, restarts: restarts.count() }
}

/// Budgets need a journal; rates, and keys without a limit, do without.
pub(crate) fn limiter_part(limiter: &LimiterHandle, restarts: &Restarts) -> PartHealth {
    let health = actor_health("limiter", restarts, limiter.is_alive());
    match limiter.check() {
        Err(error) if health.state == PartState::Ok => PartHealth {
            state: PartState::Degraded,
            detail: format!("keys with a token budget are refused: {error}"),
            ..health
        },
        _ => health,
    }
}

fn part(part: &'static str, state: PartState, detail: impl Into<String>) -> PartHealth {
    PartHealth { part, state, detail: detail.into(), restarts: 0 }
}

pub(crate) fn store_part(store: &store::SqliteStore) -> PartHealth {
    match store.check() {
        Ok(()) => part("store", PartState::Ok, ""),
        Err(error) => part("store", PartState::Down, error.to_string()),
    }
}

/// Below this the journal and a pull may soon fail.
const LOW_DISK: u64 = 256 << 20;

pub(crate) fn disk_part(dir: &Path) -> PartHealth {
    match crate::metrics::disk::free_bytes(dir) {
        Ok(free) if free < LOW_DISK => {
            part("disk", PartState::Degraded, format!("{} are free in the state directory", size_text(free)))
        }
        Ok(free) => part("disk", PartState::Ok, format!("{} free", size_text(free))),
        Err(error) => part("disk", PartState::Degraded, format!("the free space is not known: {error}")),
    }
}

pub(crate) fn plugins_part(shelf: &Shelf) -> PartHealth {
    let plugins = shelf.plugins();
    // What is turned off, shadowed, or waits for a restart is as somebody wanted it.
    let broken: Vec<String> = plugins
        .iter()
        .filter_map(|found| {
            let name = found.id().map_or_else(|| found.file(), str::to_owned);
            // It was loaded, and is not started any more.
            if found.plugin.is_some() && found.is_quarantined() {
                return Some(format!("{name}: {}", in_quarantine(&name)));
            }
            if let Some(revoked) = found.still_revoked() {
                return Some(format!("{name}: {revoked}"));
            }
            Some(format!("{name}: {}", found.problem.as_deref().filter(|_| found.refused)?))
        })
        .collect();
    let ready = plugins.iter().filter(|found| found.plugin.is_some() && !found.is_quarantined()).count();
    if broken.is_empty() {
        part("plugins", PartState::Ok, format!("{ready} loaded"))
    } else {
        part("plugins", PartState::Degraded, format!("{ready} loaded; {}", broken.join("; ")))
    }
}

pub(crate) fn models_part(catalog: &CatalogHandle) -> PartHealth {
    let census = catalog.census();
    let count = |state| census.get(&state).copied().unwrap_or_default();
    let (ready, failed) = (count(ModelState::Ready), count(ModelState::Failed));
    let all: usize = census.values().sum();
    let state = if failed == 0 { PartState::Ok } else { PartState::Degraded };
    let restarts = catalog.shelf().backend_restarts.load(Ordering::Relaxed);
    let detail = format!("{all} installed, {ready} open, {failed} failed");
    PartHealth { restarts, ..part("models", state, detail) }
}

/// GPUs come with the CUDA plugin; the host only says whether a driver is there.
pub(crate) fn gpu_part() -> PartHealth {
    if Path::new("/proc/driver/nvidia/version").exists() {
        part("gpu", PartState::Ok, "an NVIDIA driver is loaded; no plugin here uses it yet")
    } else {
        part("gpu", PartState::Absent, "no NVIDIA driver is loaded")
    }
}
