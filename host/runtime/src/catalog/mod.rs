//! The catalog: every plugin and model of the host, and the life of each model.
//!
//! [`Shelf`] is what others read: entries by name in a sharded map, plugins behind an `ArcSwap`. The [`actor`] is its
//! only writer. [`CatalogHandle::ensure`] gives the request path an open backend: at once when it is open, else after
//! asking the actor and watching the entry.

pub mod actor;
mod beside;
mod closing;
mod differences;
mod entry;
pub mod listing;
pub mod missing;
mod opening;
mod plan;
mod plugins;
mod stamp;

pub use beside::{Beside, Promote, Room, Switched, Withdraw};
pub(crate) use closing::close_and_wait;
pub use differences::differences;
pub use entry::{Canary, Entry, Hold, Listed, Stage};
pub use plugins::{Found, PluginOptions, changes, newer, start};

use crate::backend::{Backend, Settings};
use crate::compute::Pool;
use crate::error::{Error, Result};
use crate::info::{LoadPlan, ModelState};
use crate::job::KeepAlive;
use crate::loader::{Plugin, Shared};
use crate::metrics::Metrics;
use crate::upgrade::Upgrades;
use actix::dev::ToEnvelope;
use actix::{Addr, Context, Handler, Message};
use actor::{CatalogActor, CloseAll, CloseModel, OpenModel, PlanModel, Relist};
use arc_swap::ArcSwap;
use backplane_registry::Limits;
use dashmap::DashMap;
use opening::{Occasion, Wish};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How models are kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long a model stays open after its last request.
    pub keep_alive: KeepAlive,
    /// Requests that may wait for a model of which neither the configuration nor its card says it.
    pub max_queue: usize,
    /// Bytes all open models may take together.
    pub memory_budget: u64,
    /// How long a model may take to open.
    pub load_timeout: Duration,
    /// How long open requests may take when a model is closed.
    pub drain: Duration,
    /// What holds for models without options of their own.
    pub default: ModelOptions,
    /// Options of single models.
    pub models: HashMap<String, ModelOptions>,
}

impl Options {
    pub(crate) fn of(&self, model: &str) -> ModelOptions {
        self.models.get(model).unwrap_or(&self.default).clone()
    }
}

/// How one model is kept.
#[derive(Clone, Debug)]
pub struct ModelOptions {
    /// Instead of the default.
    pub keep_alive: Option<KeepAlive>,
    /// Never closed by idleness or eviction.
    pub pin: bool,
    /// Copies.
    pub instances: u32,
    /// Requests that may wait, where that is said; else it is the card's to say.
    pub max_queue: Option<usize>,
    /// Rows of one call.
    pub max_batch: usize,
    /// How long a batch waits for more.
    pub batch_window: Duration,
    /// Share of the CPU threads.
    pub weight: f64,
    /// Threads an instance may hope for.
    pub threads: u32,
}

impl ModelOptions {
    pub(crate) fn settings(&self, options: &Options, limits: &Limits) -> Settings {
        Settings {
            instances: self.instances,
            concurrency: limits.concurrency.unwrap_or(u32::MAX),
            max_queue: self
                .max_queue
                .or(limits.queue.map(|queue| queue as usize))
                .unwrap_or(options.max_queue),
            max_batch: self.max_batch,
            batch_window: self.batch_window,
            weight: self.weight,
            threads: self.threads,
            drain: options.drain,
        }
    }
}

/// What the catalog publishes.
pub struct Shelf {
    entries: DashMap<Arc<str>, Arc<Entry>>,
    plugins: ArcSwap<Vec<Found>>,
    /// Grows with every change of the listing.
    version: AtomicU64,
    loads: [AtomicU64; 2],
    pub(crate) pool: Pool,
    pub(crate) shared: Arc<Shared>,
    metrics: Metrics,
    pub(crate) upgrades: Upgrades,
    /// Restarts of backend actors, all together.
    pub backend_restarts: Arc<AtomicU64>,
}

impl Shelf {
    pub(crate) fn new(pool: Pool, shared: Arc<Shared>, metrics: Metrics) -> Self {
        Self {
            entries: DashMap::new(),
            plugins: ArcSwap::from_pointee(Vec::new()),
            version: AtomicU64::new(0),
            loads: Default::default(),
            pool,
            shared,
            metrics,
            upgrades: Upgrades::default(),
            backend_restarts: Arc::default(),
        }
    }

    /// The model with exactly this name.
    pub fn get(&self, name: &str) -> Option<Arc<Entry>> {
        self.entries.get(name).map(|entry| entry.value().clone())
    }

    /// Whether this very model is listed.
    pub fn holds(&self, entry: &Arc<Entry>) -> bool {
        self.get(&entry.name()).is_some_and(|listed| Arc::ptr_eq(&listed, entry))
    }

    /// The model with exactly this name.
    ///
    /// # Errors
    /// `model_not_found`, with names that are close.
    pub fn find(&self, name: &str) -> Result<Arc<Entry>> {
        self.get(name).ok_or_else(|| self.not_found(name))
    }

    /// What to say of a model that is not there.
    pub fn not_found(&self, name: &str) -> Error {
        missing::model(name, self.entries.iter().map(|entry| entry.key().clone()))
    }

    /// Every model, by name.
    pub fn entries(&self) -> Vec<Arc<Entry>> {
        let mut entries: Vec<_> = self.entries.iter().map(|entry| entry.value().clone()).collect();
        entries.sort_by_key(|entry| entry.name());
        entries
    }

    /// Every plugin file.
    pub fn plugins(&self) -> Arc<Vec<Found>> {
        self.plugins.load_full()
    }

    /// Whether models are opened with this plugin: not with one that another version has replaced.
    pub fn lists(&self, plugin: &Arc<Plugin>) -> bool {
        self.plugins.load().iter().any(|found| found.plugin.as_ref().is_some_and(|p| Arc::ptr_eq(p, plugin)))
    }

    /// Grows with every change of the listing.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Models opened, and attempts that failed.
    pub fn loads(&self) -> (u64, u64) {
        (self.loads[1].load(Ordering::Relaxed), self.loads[0].load(Ordering::Relaxed))
    }

    /// Closes every model at once: open requests are ended. Blocks. For a host that has no actors any more.
    pub(crate) fn close_now(&self) {
        for entry in self.entries() {
            let canary = entry.take_canary().map(|canary| canary.backend.clone());
            for backend in entry.take_backend().into_iter().chain(canary) {
                backend.close(Duration::ZERO);
            }
        }
    }

    fn insert(&self, entry: Arc<Entry>) {
        self.entries.insert(entry.name(), entry);
    }

    fn remove(&self, name: &str) {
        self.entries.remove(name);
    }

    fn set_plugins(&self, plugins: Vec<Found>) {
        self.plugins.store(Arc::new(plugins));
    }

    fn changed(&self) {
        self.version.fetch_add(1, Ordering::Release);
    }

    fn count_load(&self, opened: bool) {
        self.loads[usize::from(opened)].fetch_add(1, Ordering::Relaxed);
    }
}

/// What callers hold.
#[derive(Clone)]
pub struct CatalogHandle {
    shelf: Arc<Shelf>,
    actor: Addr<CatalogActor>,
}

impl CatalogHandle {
    pub fn new(shelf: Arc<Shelf>, actor: Addr<CatalogActor>) -> Self {
        Self { shelf, actor }
    }

    /// What the catalog publishes.
    pub fn shelf(&self) -> &Arc<Shelf> {
        &self.shelf
    }

    /// Whether the actor takes messages.
    pub fn is_alive(&self) -> bool {
        self.actor.connected()
    }

    /// An open backend for a request: at once when the model is open, else after it was opened.
    ///
    /// # Errors
    /// Why it could not be opened; `model_not_found` when it went away meanwhile.
    pub async fn ensure(&self, entry: &Arc<Entry>, keep_alive: Option<KeepAlive>) -> Result<Arc<Backend>> {
        self.opened(entry, Wish { occasion: Occasion::Request, keep_alive }).await
    }

    /// As [`Self::ensure`], for who asks for the model to be opened and not for an answer.
    ///
    /// # Errors
    /// As [`Self::ensure`]; where a device or a runtime is missing, what is wrong with the model comes first.
    pub async fn load(&self, entry: &Arc<Entry>, keep_alive: Option<KeepAlive>) -> Result<Arc<Backend>> {
        self.opened(entry, Wish { occasion: Occasion::Load, keep_alive }).await
    }

    async fn opened(&self, entry: &Arc<Entry>, wish: Wish) -> Result<Arc<Backend>> {
        entry.touch(wish.keep_alive);
        if let Some(backend) = entry.backend() {
            return Ok(backend);
        }
        let mut stages = entry.watch();
        // Who comes while it is being opened waits with the others, and takes no place in the actor's mailbox.
        let mut ask = !matches!(*stages.borrow_and_update(), Stage::Loading);
        let mut asked = false;
        loop {
            if let Some(backend) = entry.backend() {
                return Ok(backend);
            }
            if ask {
                asked = true;
                self.actor.try_send(OpenModel { entry: entry.clone(), wish }).map_err(|_| {
                    Error::unavailable("the catalog is busy or shutting down; retry")
                        .with_reason("overloaded")
                })?;
            }
            if stages.changed().await.is_err() {
                return Err(self.shelf.not_found(&entry.name()));
            }
            // A stage may be missed, when the next follows at once; so an idle model is asked for again.
            ask = match stages.borrow_and_update().clone() {
                // What it waited for was a request's, and went by the bid.
                Stage::Failed(_, error) if !asked && wish.gets_past(&error.reason) => true,
                Stage::Failed(_, error) => return Err(error),
                Stage::Idle => true,
                Stage::Loading | Stage::Ready | Stage::Closing => false,
            };
        }
    }

    /// Closes a model and waits until its memory is back.
    ///
    /// # Errors
    /// When the catalog is gone.
    pub async fn close(&self, entry: &Arc<Entry>) -> Result<()> {
        let mut stages = entry.watch();
        self.actor.send(CloseModel { name: entry.name() }).await.map_err(|_| Error::shutting_down())?;
        loop {
            if !matches!(entry.stage(), Stage::Closing) {
                return Ok(());
            }
            if stages.changed().await.is_err() {
                return Ok(());
            }
        }
    }

    /// Closes every model and waits.
    pub async fn close_all(&self) {
        if self.actor.send(CloseAll).await.is_err() {
            return;
        }
        for entry in self.shelf.entries() {
            let mut stages = entry.watch();
            while matches!(entry.stage(), Stage::Closing) {
                if stages.changed().await.is_err() {
                    break;
                }
            }
        }
    }

    /// What opening a model would take. Opens nothing.
    ///
    /// # Errors
    /// When no plugin can open it.
    pub async fn plan(&self, name: Arc<str>) -> Result<LoadPlan> {
        self.actor.send(PlanModel { name }).await.map_err(|_| Error::shutting_down())?
    }

    /// Puts options and a listing into force.
    ///
    /// # Errors
    /// When the catalog is gone.
    pub async fn relist(&self, options: Options, plugins: Vec<Found>, listed: Vec<Listed>) -> Result<()> {
        self.actor.send(Relist { options, plugins, listed }).await.map_err(|_| Error::shutting_down())
    }

    /// Asks the actor from a thread.
    ///
    /// # Errors
    /// When the catalog is gone.
    pub fn ask<M>(&self, message: M) -> Result<M::Result>
    where
        M: Message + Send + 'static,
        M::Result: Send,
        CatalogActor: Handler<M>,
        Context<CatalogActor>: ToEnvelope<CatalogActor, M>,
    {
        actor::ask(&self.actor, message).ok_or_else(Error::shutting_down)
    }

    /// How many models are in each stage of their life.
    pub fn census(&self) -> HashMap<ModelState, usize> {
        let mut census = HashMap::new();
        for entry in self.shelf.entries() {
            let state = match entry.stage() {
                Stage::Idle => ModelState::Idle,
                Stage::Loading => ModelState::Loading,
                Stage::Ready => ModelState::Ready,
                Stage::Closing => ModelState::Closing,
                Stage::Failed(..) => ModelState::Failed,
            };
            *census.entry(state).or_default() += 1;
        }
        census
    }

    #[cfg(test)]
    pub fn actor(&self) -> &Addr<CatalogActor> {
        &self.actor
    }
}
