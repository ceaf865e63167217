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
    pub(super) fn begin_close(&mut self, entry: &Entry) -> Option<Arc<Backend>> {
        let backend = entry.take_backend()?;
        entry.set_stage(Stage::Closing);
        self.watchers.remove(&entry.name());
        Some(backend)
    }

    pub(super) fn close(&mut self, entry: &Arc<Entry>, context: &mut Context<Self>) {
        let name = entry.name();
        if let Stage::Loading = entry.stage() {
            self.give_up_closed(&name);
        }
        let Some(backend) = self.begin_close(entry) else { return };
        let closed = Closed { entry: entry.clone() };
        // A host that stops has given its requests the time they may take.
        let drain = if self.stopping { Duration::ZERO } else { backend.settings().drain };
        let (address, inner) = (context.address(), backend.clone());
        let spawned = std::thread::Builder::new().name(format!("close {name}")).spawn(move || {
            close_and_wait(inner, drain);
            tell(&address, closed);
        });
        if let Err(error) = spawned {
            tracing::error!(model = &*name, %error, "no thread to close a model; it is closed without one");
            backend.close(Duration::ZERO);
            self.closed(entry, context);
        }
    }

    pub(super) fn closed(&mut self, entry: &Arc<Entry>, context: &mut Context<Self>) {
        let name = entry.name();
        tracing::info!(model = &*name, "model closed");
        entry.set_memory(0);
        if self.shelf.holds(entry) {
            entry.set_stage(Stage::Idle);
            if let Some(keep_alive) = self.reopen.remove(&name) {
                self.open(entry, keep_alive, context);
            }
        } else {
            // Whoever asked for it while it was being closed waits in vain.
            entry.set_stage(Stage::Failed(Instant::now(), self.shelf.not_found(&name)));
        }
    }

    /// Closes what nobody has used for its time.
    pub(super) fn close_expired(&mut self, context: &mut Context<Self>) {
        for entry in self.shelf.entries() {
            if entry.expires_in().is_some_and(|left| left.is_zero()) && entry.is_idle() {
                tracing::info!(model = &*entry.name(), "idle: closing");
                self.close(&entry, context);
            }
        }
    }
}

/// Closes a backend, whose open requests may take as long as `drain`, and waits until nobody holds it, so that its memory is back when this returns.
pub(super) fn close_and_wait(backend: Arc<Backend>, drain: Duration) {
    backend.close(drain);
    let deadline = Instant::now() + Duration::from_secs(5);
    while Arc::strong_count(&backend) > 1 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(backend);
    trim_memory();
}
