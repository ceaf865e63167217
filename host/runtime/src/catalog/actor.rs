//! The actor that opens and closes models: the only writer of every [`Entry`].
//!
//! Opening and closing block, so each runs on a thread of its own and reports back by message. What a plugin's thread
//! or the request path may read is in the entries and in [`super::Shelf`].

use super::entry::{Entry, Listed, Stage};
use super::plan::{self, Decision, Open};
use super::plugins::{Found, discover};
use super::{ModelOptions, Options, Shelf};
use crate::actor::guarded;
use crate::backend::actor::BackendActor;
use crate::backend::{Backend, Settings};
use crate::error::{Error, ErrorCode, Result};
use crate::info::LoadPlan;
use crate::job::KeepAlive;
use crate::loader::{Bid, BidQuery, Plugin, trim_memory};
use crate::metrics::memory;
use actix::{Actor, ActorContext, Addr, AsyncContext, Context, Handler, Message, Supervised, Supervisor};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often idle models are looked for.
const TICK: Duration = Duration::from_millis(100);
/// How long a failed model is not tried again.
const RETRY: Duration = Duration::from_secs(3);

/// Opens, closes, evicts and lists models.
pub struct CatalogActor {
    shelf: Arc<Shelf>,
    options: Options,
    restarts: Arc<AtomicU64>,
    /// Actors of open backends, by model.
    watchers: HashMap<Arc<str>, Addr<BackendActor>>,
    /// Bytes that models being opened have been promised.
    promised: HashMap<Arc<str>, u64>,
    /// Asked for while it was being closed.
    reopen: HashMap<Arc<str>, Option<KeepAlive>>,
}

impl CatalogActor {
    pub fn new(shelf: Arc<Shelf>, options: Options, restarts: Arc<AtomicU64>) -> Self {
        Self {
            shelf,
            options,
            restarts,
            watchers: HashMap::new(),
            promised: HashMap::new(),
            reopen: HashMap::new(),
        }
    }

    fn options_of(&self, model: &str) -> ModelOptions {
        self.options.of(model)
    }

    fn open(&mut self, name: &Arc<str>, keep_alive: Option<KeepAlive>, context: &mut Context<Self>) {
        let Some(entry) = self.shelf.get(name) else { return };
        match entry.stage() {
            Stage::Loading | Stage::Ready => return,
            Stage::Closing => {
                self.reopen.insert(name.clone(), keep_alive);
                return;
            }
            Stage::Failed(since, error) if since.elapsed() < RETRY => {
                entry.set_stage(Stage::Failed(since, error));
                return;
            }
            Stage::Idle | Stage::Failed(..) => {}
        }
        entry.set_stage(Stage::Loading);
        let fail = |error: Error| entry.set_stage(Stage::Failed(Instant::now(), error));
        let (plugin, bid) = match self.shelf.bidder(&entry.listed()) {
            Ok(found) => found,
            Err(error) => return fail(error),
        };
        let (plan, decision) = self.plan(&entry, &bid);
        if !decision.fits {
            return fail(no_memory(&plan));
        }
        let evicted: Vec<Arc<Backend>> =
            decision.evicts.iter().filter_map(|name| self.begin_close(name)).collect();
        self.promised.insert(name.clone(), bid.host_bytes);
        let options = self.options_of(name);
        let load = Load {
            entry: entry.clone(),
            plugin,
            estimate: bid.host_bytes,
            settings: options.settings(&self.options),
            pool: self.shelf.pool.clone(),
            evicted: evicted.into_iter().zip(decision.evicts).collect(),
            address: context.address(),
            keep_alive,
        };
        let limit = self.options.load_timeout;
        let spawned = std::thread::Builder::new().name(format!("open {name}")).spawn(move || load.run());
        if let Err(error) = spawned {
            self.promised.remove(name);
            return fail(Error::unavailable(format!("no thread to open model `{name}`: {error}")));
        }
        let watched = name.clone();
        context.run_later(limit, move |actor, _| actor.time_out(&watched, limit));
    }

    fn time_out(&mut self, name: &Arc<str>, limit: Duration) {
        let Some(entry) = self.shelf.get(name) else { return };
        if let Stage::Loading = entry.stage()
            && self.promised.contains_key(name)
        {
            self.promised.remove(name);
            let error = Error::unavailable(format!(
                "model `{name}` was not open after {limit:?}; see the log, or raise `models.load_timeout`"
            ));
            entry.set_stage(Stage::Failed(Instant::now(), error.with_reason("load_failed")));
        }
    }

    fn plan(&self, entry: &Entry, bid: &Bid) -> (LoadPlan, Decision) {
        let open: Vec<Open> = self
            .shelf
            .entries()
            .iter()
            .filter_map(|other| {
                let backend = other.backend()?;
                Some(Open {
                    name: other.name(),
                    bytes: other.memory(),
                    last_used: other.last_used(),
                    evictable: !other.is_pinned() && backend.is_idle(),
                })
            })
            .collect();
        let promised: u64 = self.promised.values().sum();
        let needs = bid.host_bytes;
        let budget = self.options.memory_budget;
        let free = memory::available_bytes();
        let decision =
            plan::decide(needs, free.saturating_sub(promised), budget.saturating_sub(promised), &open);
        let name = entry.name();
        let threads = self.shelf.pool.threads();
        let plan = LoadPlan {
            needs_bytes: needs,
            free_bytes: free,
            budget_bytes: budget,
            used_bytes: open.iter().map(|model| model.bytes).sum::<u64>() + promised,
            evicts: decision.evicts.clone(),
            fits: decision.fits,
            threads: (self.options_of(&name).threads.min(threads), threads),
            text: bid.text.clone(),
            model: name,
        };
        (plan, decision)
    }

    /// Takes a model from the request path; somebody has to close what is returned on a thread and report `Closed`.
    fn begin_close(&mut self, name: &Arc<str>) -> Option<Arc<Backend>> {
        let entry = self.shelf.get(name)?;
        let backend = entry.take_backend()?;
        entry.set_stage(Stage::Closing);
        self.watchers.remove(name);
        Some(backend)
    }

    fn close(&mut self, name: &Arc<str>, context: &Context<Self>) {
        let Some(backend) = self.begin_close(name) else { return };
        let (address, closing) = (context.address(), name.clone());
        let spawned = std::thread::Builder::new().name(format!("close {name}")).spawn(move || {
            close_and_wait(backend);
            tell(&address, Closed { name: closing });
        });
        if let Err(error) = spawned {
            // The backend was dropped with the closure: it is closed all the same, on this thread.
            tracing::error!(model = &**name, %error, "no thread to close a model");
            self.closed(name, None);
        }
    }

    fn closed(&mut self, name: &Arc<str>, context: Option<&mut Context<Self>>) {
        let Some(entry) = self.shelf.get(name) else { return };
        entry.set_memory(0);
        entry.set_stage(Stage::Idle);
        tracing::info!(model = &**name, "model closed");
        if let (Some(keep_alive), Some(context)) = (self.reopen.remove(name), context) {
            self.open(name, keep_alive, context);
        }
    }

    fn loaded(&mut self, loaded: Loaded, context: &mut Context<Self>) {
        let Loaded { name, keep_alive, memory, result } = loaded;
        let Some(entry) = self.shelf.get(&name) else { return };
        if self.promised.remove(&name).is_none() {
            // Given up on meanwhile: close what came too late.
            if let Ok((backend, _)) = result {
                std::thread::spawn(move || close_and_wait(backend));
            }
            return;
        }
        match result {
            Ok((backend, plugin)) => {
                tracing::info!(model = &*name, memory, plugin = &**plugin.id(), "model open");
                self.shelf.count_load(true);
                entry.set_memory(memory);
                entry.set_plugin(Some(plugin));
                let (watched, restarts) = (backend.clone(), self.shelf.backend_restarts.clone());
                let watcher = Supervisor::start(move |_| BackendActor::new(watched, restarts));
                self.watchers.insert(name.clone(), watcher);
                entry.opened(backend);
                entry.touch(keep_alive);
            }
            Err(error) => {
                tracing::error!(model = &*name, %error, "model not opened");
                self.shelf.count_load(false);
                let error = if error.reason.is_empty() { error.with_reason("load_failed") } else { error };
                entry.set_stage(Stage::Failed(Instant::now(), error));
            }
        }
        let _ = context;
    }

    fn look(&mut self, context: &mut Context<Self>) {
        let restarts = self.restarts.clone();
        // A panic has been logged and stops the actor; the supervisor starts it again.
        let _ = guarded(self, context, "catalog", &restarts, |actor| {
            actor
                .shelf
                .entries()
                .iter()
                .filter(|entry| {
                    entry.backend().is_some_and(|backend| backend.is_idle())
                        && entry.expires_in().is_some_and(|left| left.is_zero())
                })
                .map(|entry| entry.name())
                .collect::<Vec<_>>()
        })
        .map(|expired| {
            for name in expired {
                tracing::info!(model = &*name, "idle: closing");
                self.close(&name, context);
            }
        });
    }

    /// Puts a listing into force: new models appear, gone ones are closed, changed ones are closed and reopened on use.
    fn list(&mut self, listed: Vec<Listed>, context: &Context<Self>) {
        let gone: Vec<Arc<str>> = self
            .shelf
            .entries()
            .iter()
            .map(|entry| entry.name())
            .filter(|name| !listed.iter().any(|model| model.name == *name))
            .collect();
        for name in gone {
            self.close(&name, context);
            self.shelf.remove(&name);
        }
        for model in listed {
            let options = self.options_of(&model.name);
            let keep_alive = options.keep_alive.unwrap_or(self.options.keep_alive);
            match self.shelf.get(&model.name) {
                None => self.shelf.insert(Arc::new(Entry::new(model, keep_alive, options.pin))),
                Some(entry) => {
                    let changed = entry.listed().model_json != model.model_json;
                    let name = model.name.clone();
                    entry.set_listed(model, keep_alive, options.pin);
                    if changed {
                        self.close(&name, context);
                    }
                }
            }
        }
        self.shelf.changed();
    }
}

fn no_memory(plan: &LoadPlan) -> Error {
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64);
    Error::new(
        ErrorCode::ResourceExhausted,
        format!(
            "model `{}` needs {} of memory; {} are free, and open models take {} of the {} they may; close a model, \
             choose a smaller one, or raise `models.memory_budget`",
            plan.model,
            mib(plan.needs_bytes),
            mib(plan.free_bytes),
            mib(plan.used_bytes),
            mib(plan.budget_bytes),
        ),
    )
    .with_reason("no_memory")
    .with_detail("needs_bytes", plan.needs_bytes)
    .with_detail("free_bytes", plan.free_bytes)
    .with_detail("used_bytes", plan.used_bytes)
    .with_detail("budget_bytes", plan.budget_bytes)
}

/// Closes a backend and waits until nobody holds it, so that its memory is back when this returns.
fn close_and_wait(backend: Arc<Backend>) {
    backend.close();
    let deadline = Instant::now() + Duration::from_secs(5);
    while Arc::strong_count(&backend) > 1 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(backend);
    trim_memory();
}

/// Sends a message from a thread, waiting while the mailbox is full. A stopped host needs no message.
fn tell<M>(address: &Addr<CatalogActor>, message: M)
where
    M: Message<Result = ()> + Send + 'static,
    CatalogActor: Handler<M>,
{
    futures::executor::block_on(address.send(message)).ok();
}

/// A model being opened, on a thread of its own.
struct Load {
    entry: Arc<Entry>,
    plugin: Arc<Plugin>,
    estimate: u64,
    settings: Settings,
    pool: crate::compute::Pool,
    evicted: Vec<(Arc<Backend>, Arc<str>)>,
    address: Addr<CatalogActor>,
    keep_alive: Option<KeepAlive>,
}

impl Load {
    fn run(self) {
        for (backend, name) in self.evicted {
            tracing::info!(model = &*name, "evicted to make room");
            close_and_wait(backend);
            tell(&self.address, Closed { name });
        }
        let listed = self.entry.listed();
        let before = memory::resident_bytes();
        let (name, settings, pool, plugin) = (listed.name.clone(), self.settings, self.pool, self.plugin);
        // A panic here would leave the model loading for ever.
        let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let model = plugin.open(&listed.model_json)?;
            Backend::start(name.clone(), model, settings, pool)
        }))
        .unwrap_or_else(|_| Err(Error::internal(format!("opening model `{name}` panicked; see the log"))));
        let memory = memory::resident_bytes().saturating_sub(before).max(self.estimate);
        let result = opened.map(|backend| (backend, plugin));
        tell(&self.address, Loaded { name, keep_alive: self.keep_alive, memory, result });
    }
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
        // Entries and backends live on the shelf. Loads under way report to this same address; what they were promised
        // is still in `promised`, since the actor's own value survives a restart.
        tracing::warn!(restarts = self.restarts.load(Ordering::Relaxed), "catalog actor is back");
    }
}

/// Opens a model, if it is not open. What comes of it shows in the entry's stage.
#[derive(Message)]
#[rtype(result = "()")]
pub struct OpenModel {
    pub name: Arc<str>,
    pub keep_alive: Option<KeepAlive>,
}

/// Closes a model, if it is open.
#[derive(Message)]
#[rtype(result = "()")]
pub struct CloseModel {
    pub name: Arc<str>,
}

/// Closes every model.
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

/// A thread has opened a model, or not.
#[derive(Message)]
#[rtype(result = "()")]
struct Loaded {
    name: Arc<str>,
    keep_alive: Option<KeepAlive>,
    memory: u64,
    result: Result<(Arc<Backend>, Arc<Plugin>)>,
}

/// A thread has closed a model.
#[derive(Message)]
#[rtype(result = "()")]
struct Closed {
    name: Arc<str>,
}

macro_rules! handle {
    ($message:ty, |$actor:ident, $m:ident, $context:ident| $work:expr) => {
        impl Handler<$message> for CatalogActor {
            type Result = ();

            fn handle(&mut self, $m: $message, $context: &mut Self::Context) {
                let restarts = self.restarts.clone();
                let mut inner: Option<$message> = Some($m);
                // The context is needed inside and by the guard, so the guard gets it afterwards.
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    let ($actor, Some($m)) = (&mut *self, inner.take()) else { return };
                    $work
                }));
                if outcome.is_err() {
                    restarts.fetch_add(1, Ordering::Relaxed);
                    $context.stop();
                }
            }
        }
    };
}

handle!(OpenModel, |actor, message, context| actor.open(&message.name, message.keep_alive, context));
handle!(CloseModel, |actor, message, context| actor.close(&message.name, context));
handle!(Loaded, |actor, message, context| actor.loaded(message, context));
handle!(Closed, |actor, message, context| actor.closed(&message.name, Some(context)));
handle!(Relist, |actor, message, context| {
    actor.options = message.options;
    actor.shelf.set_plugins(message.plugins);
    actor.list(message.listed, context);
});
handle!(CloseAll, |actor, _message, context| {
    let names: Vec<_> = actor.shelf.entries().iter().map(|entry| entry.name()).collect();
    names.iter().for_each(|name| actor.close(name, context));
});

impl Handler<PlanModel> for CatalogActor {
    type Result = Result<LoadPlan>;

    fn handle(&mut self, message: PlanModel, _: &mut Self::Context) -> Self::Result {
        let entry = self.shelf.find(&message.name)?;
        let (_, bid) = self.shelf.bidder(&entry.listed())?;
        Ok(self.plan(&entry, &bid).0)
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

/// The best bid for a model among the plugins that may open it.
pub fn best_bid(plugins: &[Arc<Plugin>], listed: &Listed) -> Option<(Arc<Plugin>, Bid)> {
    let query = BidQuery { format: &listed.format, model_json: &listed.model_json, ..BidQuery::default() };
    plugins
        .iter()
        .filter_map(|plugin| Some((plugin.clone(), plugin.bid(query)?)))
        .max_by(|(a, x), (b, y)| x.score.cmp(&y.score).then_with(|| b.id().cmp(a.id())))
}

/// Loads what is new in the plugin folders. Blocks.
pub fn find_plugins(shelf: &Shelf, options: &super::PluginOptions) -> Vec<Found> {
    discover(options, &shelf.plugins(), &shelf.shared)
}
