//! Closing models: by hand, for idleness, for room, because they are gone, and at the end.

use super::actor::{CatalogActor, Closed, tell};
use super::entry::{Entry, Stage};
use crate::backend::Backend;
use crate::loader::trim_memory;
use actix::{AsyncContext, Context};
use std::sync::Arc;
use std::time::{Duration, Instant};

impl CatalogActor {
    /// Takes a model from the request path; somebody has to close what is returned on a thread and report [`Closed`].
    /// During an upgrade there are two.
    pub(super) fn begin_close(&mut self, entry: &Entry) -> Option<Vec<Arc<Backend>>> {
        let backend = entry.take_backend()?;
        entry.set_stage(Stage::Closing);
        self.watchers.remove(&entry.name());
        self.canary_watchers.remove(&entry.name());
        let canary = entry.take_canary().map(|canary| canary.backend.clone());
        Some(std::iter::once(backend).chain(canary).collect())
    }

    pub(super) fn close(&mut self, entry: &Arc<Entry>, context: &mut Context<Self>) {
        let name = entry.name();
        if let Stage::Loading = entry.stage() {
            self.give_up_closed(&name);
        }
        let Some(backends) = self.begin_close(entry) else { return };
        let closed = Closed { entry: entry.clone() };
        // A host that stops has given its requests the time they may take.
        let drain = self.stopping.then_some(Duration::ZERO);
        let (address, inner) = (context.address(), backends.clone());
        let spawned = std::thread::Builder::new().name(format!("close {name}")).spawn(move || {
            close_all(inner, drain);
            tell(&address, closed);
        });
        if let Err(error) = spawned {
            tracing::error!(model = &*name, %error, "no thread to close a model; it is closed without one");
            backends.iter().for_each(|backend| backend.close(Duration::ZERO));
            self.closed(entry, context);
        }
    }

    pub(super) fn closed(&mut self, entry: &Arc<Entry>, context: &mut Context<Self>) {
        let name = entry.name();
        tracing::info!(model = &*name, "model closed");
        entry.set_memory(0);
        if self.shelf.holds(entry) {
            entry.set_stage(Stage::Idle);
            if let Some(wish) = self.reopen.remove(&name) {
                self.open(entry, wish, context);
            }
        } else {
            // Whoever asked for it while it was being closed waits in vain.
            entry.set_stage(Stage::Failed(Instant::now(), self.shelf.not_found(&name)));
        }
    }

    /// Closes what nobody has used for its time, and what can serve no more.
    pub(super) fn close_expired(&mut self, context: &mut Context<Self>) {
        for entry in self.shelf.entries() {
            if entry.backend().is_some_and(|backend| backend.is_lost()) {
                tracing::warn!(model = &*entry.name(), "its plugin is in quarantine: closing");
                self.close(&entry, context);
            } else if entry.expires_in().is_some_and(|left| left.is_zero()) && entry.is_idle() {
                tracing::info!(model = &*entry.name(), "idle: closing");
                self.close(&entry, context);
            }
        }
    }
}

/// Closes backends one after the other; without `drain` each has the time that its settings give it, from now on.
pub(super) fn close_all(backends: Vec<Arc<Backend>>, drain: Option<Duration>) {
    let now = Instant::now();
    for backend in backends {
        let drain = drain.unwrap_or_else(|| backend.settings().drain.saturating_sub(now.elapsed()));
        close_and_wait(backend, drain);
    }
}

/// Closes a backend, whose open requests may take as long as `drain`, and waits until nobody holds it, so that its memory is back when this returns.
pub(crate) fn close_and_wait(backend: Arc<Backend>, drain: Duration) {
    backend.close(drain);
    let deadline = Instant::now() + Duration::from_secs(5);
    while Arc::strong_count(&backend) > 1 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(backend);
    trim_memory();
}
