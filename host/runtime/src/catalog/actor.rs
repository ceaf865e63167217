//! The actor that opens and closes models: the only writer of every [`Entry`].
//!
//! Opening and closing block, so each runs on a thread of its own and reports back by message. What a plugin's thread
//! or the request path may read is in the entries and in [`super::Shelf`].

use super::entry::{Entry, Listed, Stage};
use super::opening::{Loading, Wish};
use super::plugins::{Found, PluginOptions, discover};
use super::{Options, Shelf};
use crate::actor::{Panicked, blocking, guarded};
use crate::backend::actor::BackendActor;
use crate::backend::{Backend, Settings};
use crate::error::{Error, Result};
use crate::info::LoadPlan;
use crate::loader::{Bid, Plugin, Waits};
use actix::dev::ToEnvelope;
use actix::fut::WrapFuture;
use actix::{
    Actor, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message, ResponseActFuture, Supervised,
};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const NAME: &str = "catalog";
/// How often idle models and late openings are looked for.
const TICK: Duration = Duration::from_millis(100);

/// Opens, closes, evicts and lists models.
pub struct CatalogActor {
    pub(super) shelf: Arc<Shelf>,
    pub(super) options: Options,
    restarts: Arc<AtomicU64>,
    /// Actors of open backends, by model.
    pub(super) watchers: HashMap<Arc<str>, Addr<BackendActor>>,
    /// The same of what new versions have open beside.
    pub(super) canary_watchers: HashMap<Arc<str>, Addr<BackendActor>>,
    /// Threads that open models, by model.
    pub(super) loads: HashMap<Arc<str>, Loading>,
    pub(super) serial: u64,
    /// Asked for while it was being closed.
    pub(super) reopen: HashMap<Arc<str>, Wish>,
    /// Opens no more models.
    pub(super) stopping: bool,
}

impl CatalogActor {
    pub fn new(shelf: Arc<Shelf>, options: Options, restarts: Arc<AtomicU64>) -> Self {
        shelf.shared.open_limit.set(options.load_timeout);
        Self {
            shelf,
            options,
            restarts,
            watchers: HashMap::new(),
            canary_watchers: HashMap::new(),
            loads: HashMap::new(),
            serial: 0,
            reopen: HashMap::new(),
            stopping: false,
        }
    }

    pub(super) fn guarded<R>(
        &mut self,
        context: &mut Context<Self>,
        work: impl FnOnce(&mut Self, &mut Context<Self>) -> R,
    ) -> Result<R, Panicked> {
        let restarts = self.restarts.clone();
        guarded(self, context, NAME, &restarts, work)
    }

    fn look(&mut self, context: &mut Context<Self>) {
        // A panic has been logged and stops the actor; the supervisor starts it again.
        let _ = self.guarded(context, |actor, context| {
            actor.give_up_late();
            actor.close_expired(context);
        });
    }

    /// Puts a listing into force: new models appear, gone ones are closed, changed ones are closed and reopened on use.
    pub(super) fn list(&mut self, listed: Vec<Listed>, context: &mut Context<Self>) {
        for entry in self.shelf.entries() {
            let name = entry.name();
            if !listed.iter().any(|model| model.name == name) {
                self.shelf.remove(&name);
                self.reopen.remove(&name);
                self.give_up(&name, self.shelf.not_found(&name));
                self.close(&entry, context);
            }
        }
        for model in listed {
            let options = self.options.of(&model.name);
            let keep_alive = options.keep_alive.unwrap_or(self.options.keep_alive);
            match self.shelf.get(&model.name) {
                None => self.shelf.insert(Arc::new(Entry::new(model, keep_alive, options.pin))),
                Some(entry) => {
                    let settings = options.settings(&self.options, &model.limits);
                    let other = |backend: Arc<Backend>| {
                        // How long a close may take is no reason for one.
                        let drain = settings.drain;
                        Settings { drain, ..backend.settings().clone() } != settings
                    };
                    let replaced = entry.listed().files != model.files;
                    if replaced && entry.backend().is_some() {
                        tracing::info!(model = &*model.name, "its files were replaced: it is opened anew");
                    }
                    let changed = !entry.listed().opens_like(&model) || entry.backend().is_some_and(other);
                    entry.set_listed(model, keep_alive, options.pin);
                    match entry.stage() {
                        // What fails may have been mended. What is being opened is looked at when it is open.
                        Stage::Failed(..) => entry.set_stage(Stage::Idle),
                        Stage::Ready if changed => self.close(&entry, context),
                        _ => {}
                    }
                }
            }
        }
        self.shelf.changed();
    }
}

/// Asks the actor from a thread, waiting while its mailbox is full. `None` when the host has stopped.
pub(crate) fn ask<M>(address: &Addr<CatalogActor>, message: M) -> Option<M::Result>
where
    M: Message + Send + 'static,
    M::Result: Send,
    CatalogActor: Handler<M>,
    Context<CatalogActor>: ToEnvelope<CatalogActor, M>,
{
    futures::executor::block_on(address.send(message)).ok()
}

/// Tells the actor from a thread. Whether it heard: a host that has stopped does not.
pub(super) fn tell<M>(address: &Addr<CatalogActor>, message: M) -> bool
where
    M: Message<Result = ()> + Send + 'static,
    CatalogActor: Handler<M>,
{
    ask(address, message).is_some()
}

impl Actor for CatalogActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(1024);
        context.run_interval(TICK, Self::look);
    }
}

impl Supervised for CatalogActor {
    fn restarting(&mut self, _: &mut Self::Context) {
        // Entries and backends live on the shelf. Threads under way report to this same address, and what they are at is
        // still known here, since the actor's own value survives a restart.
        self.fail_orphans();
        tracing::warn!(restarts = self.restarts.load(Ordering::Relaxed), "catalog actor is back");
    }
}

/// Opens a model, if it is not open. What comes of it shows in the entry's stage.
#[derive(Message)]
#[rtype(result = "()")]
pub struct OpenModel {
    pub entry: Arc<Entry>,
    pub wish: Wish,
}

/// Closes a model, if it is open.
#[derive(Message)]
#[rtype(result = "()")]
pub struct CloseModel {
    pub name: Arc<str>,
}

/// Closes every model, and opens none from now on.
#[derive(Message)]
#[rtype(result = "()")]
pub struct CloseAll;

/// Plans the opening of a model.
#[derive(Message)]
#[rtype(result = "Result<LoadPlan>")]
pub struct PlanModel {
    pub name: Arc<str>,
}

/// Puts options and a new listing into force.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Relist {
    pub options: Options,
    pub plugins: Vec<Found>,
    pub listed: Vec<Listed>,
}

/// A model that goes to make room, and what of it has to be closed.
pub(super) type Evicted = (Arc<Entry>, Vec<Arc<Backend>>);

/// A thread needs room for a model; it closes what it is given.
#[derive(Message)]
#[rtype(result = "Result<Vec<Evicted>>")]
pub(super) struct MakeRoom {
    pub serial: u64,
    pub entry: Arc<Entry>,
    pub bid: Bid,
}

/// A thread has opened a model, or not.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Loaded {
    pub serial: u64,
    pub entry: Arc<Entry>,
    /// What it was when the thread began.
    pub listed: Arc<Listed>,
    pub wish: Wish,
    pub memory: u64,
    pub result: Result<(Arc<Backend>, Arc<Plugin>)>,
}

/// A thread has closed a model.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Closed {
    pub entry: Arc<Entry>,
}

macro_rules! handle {
    ($message:ty, |$actor:ident, $m:ident, $context:ident| $work:expr) => {
        impl Handler<$message> for CatalogActor {
            type Result = ();

            fn handle(&mut self, $m: $message, context: &mut Self::Context) {
                let _ = self.guarded(context, |$actor, $context| $work);
            }
        }
    };
}

handle!(OpenModel, |actor, message, context| actor.open(&message.entry, message.wish, context));
handle!(Loaded, |actor, message, context| actor.loaded(message, context));
handle!(Closed, |actor, message, context| actor.closed(&message.entry, context));
handle!(CloseModel, |actor, message, context| {
    if let Some(entry) = actor.shelf.get(&message.name) {
        actor.close(&entry, context);
    }
});
handle!(Relist, |actor, message, context| {
    actor.shelf.shared.open_limit.set(message.options.load_timeout);
    actor.options = message.options;
    actor.shelf.set_plugins(message.plugins);
    actor.list(message.listed, context);
});
handle!(CloseAll, |actor, _message, context| {
    actor.stopping = true;
    let loads: Vec<_> = actor.loads.keys().cloned().collect();
    loads.iter().for_each(|name| actor.give_up(name, Error::shutting_down()));
    actor.shelf.entries().iter().for_each(|entry| actor.close(entry, context));
});

impl Handler<MakeRoom> for CatalogActor {
    type Result = Result<Vec<Evicted>>;

    fn handle(&mut self, message: MakeRoom, context: &mut Self::Context) -> Self::Result {
        self.guarded(context, |actor, _| actor.make_room(&message))
            .unwrap_or_else(|panicked| Err(Error::unavailable(panicked.to_string())))
    }
}

impl Handler<PlanModel> for CatalogActor {
    type Result = ResponseActFuture<Self, Result<LoadPlan>>;

    fn handle(&mut self, message: PlanModel, _: &mut Self::Context) -> Self::Result {
        let shelf = self.shelf.clone();
        let bid = blocking(NAME, move || {
            let entry = shelf.find(&message.name)?;
            let (_, bid) = shelf.bidder(&entry.listed(), Waits::Load)?;
            Ok::<_, Error>((entry, bid))
        });
        let failed = |panicked: Panicked| Error::unavailable(panicked.to_string());
        Box::pin(bid.into_actor(self).map(move |bid, actor, context| {
            let (entry, bid) = bid.map_err(failed)??;
            actor.guarded(context, |actor, _| actor.plan(&entry, &bid).0).map_err(failed)
        }))
    }
}

/// Panics: tests show that the actor comes back.
#[cfg(test)]
#[derive(Message)]
#[rtype(result = "()")]
pub struct Panic;

#[cfg(test)]
handle!(Panic, |_actor, _message, _context| panic!("asked to"));

/// Makes the actor of an open model panic.
#[cfg(test)]
#[derive(Message)]
#[rtype(result = "()")]
pub struct PanicBackend(pub Arc<str>);

#[cfg(test)]
handle!(PanicBackend, |actor, message, _context| {
    let watcher = &actor.watchers[&message.0];
    assert!(watcher.try_send(crate::backend::actor::Panic).is_ok());
});

/// Loads what is new in the plugin folders. Blocks.
pub fn find_plugins(shelf: &Shelf, options: &PluginOptions) -> Vec<Found> {
    discover(options, &shelf.plugins(), &shelf.shared)
}
