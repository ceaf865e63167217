//! Two versions of a plugin: models opened beside themselves by the new one, and the switch.

use super::Found;
use super::actor::CatalogActor;
use super::entry::{Canary, Entry, Listed, Stage};
use super::opening::Wish;
use super::plan;
use crate::backend::Backend;
use crate::backend::actor::BackendActor;
use crate::loader::Plugin;
use crate::metrics::memory;
use crate::upgrade::trial::Trial;
use actix::{Context, Handler, Message, Supervisor};
use std::sync::Arc;

/// Whether there is room for so many bytes with everything that is open left as it is.
#[derive(Message)]
#[rtype(result = "bool")]
pub struct Room(pub u64);

/// A thread has opened a model with the new version. `false` when the old version has it open no more: then it is to be
/// closed again.
#[derive(Message)]
#[rtype(result = "bool")]
pub struct Beside {
    pub entry: Arc<Entry>,
    /// The old version.
    pub old: Arc<Plugin>,
    pub canary: Canary,
}

/// Takes what a trial's new version has open from the request path. Somebody has to close it.
#[derive(Message)]
#[rtype(result = "Vec<Arc<Backend>>")]
pub struct Withdraw(pub Arc<Trial>);

/// Puts a listing into force in which one plugin is another version.
#[derive(Message)]
#[rtype(result = "Switched")]
pub struct Promote {
    pub trial: Arc<Trial>,
    pub plugins: Vec<Found>,
    pub listed: Vec<Listed>,
}

/// What a switch did.
#[derive(Default)]
pub struct Switched {
    /// What the version before had open, where the new one has it open too. Somebody has to close it.
    pub old: Vec<Arc<Backend>>,
    /// Models that are closed, and opened with the new version then.
    pub reopened: Vec<Arc<Entry>>,
}

impl CatalogActor {
    fn has_room(&self, bytes: u64) -> bool {
        let used: u64 =
            self.shelf.entries().iter().filter(|e| e.backend().is_some()).map(|e| e.memory()).sum();
        let open = plan::Open { name: "".into(), bytes: used, last_used: 0, evictable: false };
        let promised: u64 = self.promised();
        let free = memory::available_bytes().saturating_sub(promised);
        plan::decide(bytes, free, self.options.memory_budget.saturating_sub(promised), &[open]).fits
    }

    fn beside(&mut self, message: Beside) -> bool {
        let Beside { entry, old, canary } = message;
        let still =
            entry.backend().is_some() && entry.plugin().is_some_and(|plugin| Arc::ptr_eq(&plugin, &old));
        if self.stopping || !still || entry.canary().is_some() {
            return false;
        }
        let (watched, restarts) = (canary.backend.clone(), self.shelf.backend_restarts.clone());
        let watcher = Supervisor::start(move |_| BackendActor::new(watched, restarts));
        self.canary_watchers.insert(entry.name(), watcher);
        entry.set_canary(canary);
        true
    }

    fn withdraw(&mut self, trial: &Arc<Trial>) -> Vec<Arc<Backend>> {
        let mut taken = Vec::new();
        for entry in self.shelf.entries() {
            if entry.canary().is_some_and(|canary| Arc::ptr_eq(&canary.trial, trial)) {
                self.canary_watchers.remove(&entry.name());
                taken.extend(entry.take_canary().map(|canary| canary.backend.clone()));
            }
        }
        taken
    }

    fn promote(&mut self, message: Promote, context: &mut Context<Self>) -> Switched {
        let Promote { trial, plugins, listed } = message;
        let mut switched = Switched::default();
        for entry in self.shelf.entries() {
            let Some(canary) = entry.canary().filter(|canary| Arc::ptr_eq(&canary.trial, &trial)) else {
                continue;
            };
            switched.old.extend(entry.promote(&canary));
            let name = entry.name();
            if let Some(watcher) = self.canary_watchers.remove(&name) {
                // The one before ends by itself, when its backend is closed.
                self.watchers.insert(name, watcher);
            }
        }
        self.shelf.set_plugins(plugins);
        // What could not be open twice, or was opened meanwhile. Who asks for it waits.
        for entry in self.shelf.entries() {
            let replaced = |plugin: Arc<Plugin>| !self.shelf.lists(&plugin);
            if matches!(entry.stage(), Stage::Ready) && entry.plugin().is_some_and(replaced) {
                self.close(&entry, context);
                self.reopen.insert(entry.name(), Wish::default());
                switched.reopened.push(entry);
            }
        }
        self.list(listed, context);
        switched
    }
}

impl Handler<Room> for CatalogActor {
    type Result = bool;

    fn handle(&mut self, Room(bytes): Room, context: &mut Self::Context) -> bool {
        self.guarded(context, |actor, _| actor.has_room(bytes)).unwrap_or(false)
    }
}

impl Handler<Beside> for CatalogActor {
    type Result = bool;

    fn handle(&mut self, message: Beside, context: &mut Self::Context) -> bool {
        self.guarded(context, |actor, _| actor.beside(message)).unwrap_or(false)
    }
}

impl Handler<Withdraw> for CatalogActor {
    type Result = Vec<Arc<Backend>>;

    fn handle(&mut self, Withdraw(trial): Withdraw, context: &mut Self::Context) -> Self::Result {
        self.guarded(context, |actor, _| actor.withdraw(&trial)).unwrap_or_default()
    }
}

impl Handler<Promote> for CatalogActor {
    type Result = actix::MessageResult<Promote>;

    fn handle(&mut self, message: Promote, context: &mut Self::Context) -> Self::Result {
        actix::MessageResult(
            self.guarded(context, |actor, context| actor.promote(message, context)).unwrap_or_default(),
        )
    }
}
