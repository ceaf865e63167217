//! One model the host knows, open or not: what the request path reads.

use crate::backend::Backend;
use crate::error::Error;
use crate::info::{ModelInfo, ModelState, Running};
use crate::job::KeepAlive;
use crate::loader::Plugin;
use crate::upgrade::trial::Trial;
use arc_swap::{ArcSwap, ArcSwapOption};
use backplane_registry::{Limits, Modality};
use parking_lot::Mutex;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// What a model is, before it is opened.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    /// Its name.
    pub name: Arc<str>,
    /// First 12 hex digits of its content's digest; empty for a built-in one.
    pub id: String,
    /// `"gguf"`; empty for a built-in one.
    pub format: String,
    /// What it serves.
    pub capabilities: Vec<String>,
    /// What a message to it may be made of; empty means text.
    pub modalities: Vec<Modality>,
    /// Bytes of its files.
    pub size: u64,
    /// Seconds since 1970.
    pub installed: u64,
    /// Second names that were installed and mean the same: `cp` made them.
    pub copies: Vec<String>,
    /// For people.
    pub card: Value,
    /// As in `model_open`.
    pub model_json: String,
    /// Plugins that may open it: the one its card names, or those that know its format.
    pub plugins: Vec<Arc<str>>,
    /// Which of them exactly: ids, versions and checksums.
    pub made_by: Arc<str>,
    /// Whether it is a graph of another model: it is asked by its name alone.
    pub part: bool,
    /// What its card allows a request.
    pub limits: Limits,
    /// Which files exactly lie where it says: empty for a built-in one.
    pub files: Arc<str>,
    /// Why none can.
    pub problem: Option<String>,
}

impl Listed {
    /// Whether it takes pictures in a message.
    pub fn sees(&self) -> bool {
        self.modalities.contains(&Modality::Image)
    }

    /// Whether who opened `other` has opened this.
    pub fn opens_like(&self, other: &Self) -> bool {
        self.model_json == other.model_json && self.files == other.files
    }
}

/// Where it is in its life, with what waiters need to know.
#[derive(Clone, Debug)]
pub enum Stage {
    Idle,
    Loading,
    Ready,
    Closing,
    /// Since when, and why.
    Failed(Instant, Error),
}

/// A model the host knows.
pub struct Entry {
    listed: ArcSwap<Listed>,
    backend: ArcSwapOption<Backend>,
    canary: ArcSwapOption<Canary>,
    stage: watch::Sender<Stage>,
    /// The plugin that serves it, or would.
    plugin: Mutex<Option<Arc<Plugin>>>,
    origin: Instant,
    last_used_ms: AtomicU64,
    /// Milliseconds; `u64::MAX` is for ever.
    keep_alive_ms: AtomicU64,
    pinned: AtomicBool,
    memory: AtomicU64,
    /// What the model said of itself when it was last open; null before, and when it is another model.
    described: Mutex<Arc<Value>>,
    default_keep_alive: AtomicU64,
    /// Requests between asking for the model and their place in its queue.
    held: AtomicUsize,
}

/// Keeps a model from being closed for idleness or for room, while a request is on its way to it.
pub struct Hold(Arc<Entry>);

impl Hold {
    pub fn entry(&self) -> &Entry {
        &self.0
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Release);
    }
}

/// The same model, opened beside it by the new version of its plugin, while that is on trial.
pub struct Canary {
    pub backend: Arc<Backend>,
    pub plugin: Arc<Plugin>,
    /// What the model is with the new version.
    pub listed: Listed,
    pub memory: u64,
    pub trial: Arc<Trial>,
}

const FOREVER: u64 = u64::MAX;

fn millis(keep_alive: KeepAlive) -> u64 {
    match keep_alive {
        KeepAlive::For(time) => u64::try_from(time.as_millis()).unwrap_or(FOREVER).min(FOREVER - 1),
        KeepAlive::Forever => FOREVER,
    }
}

impl Entry {
    pub fn new(listed: Listed, keep_alive: KeepAlive, pinned: bool) -> Self {
        Self {
            listed: ArcSwap::from_pointee(listed),
            backend: ArcSwapOption::empty(),
            canary: ArcSwapOption::empty(),
            stage: watch::channel(Stage::Idle).0,
            plugin: Mutex::new(None),
            origin: Instant::now(),
            last_used_ms: AtomicU64::new(0),
            keep_alive_ms: AtomicU64::new(millis(keep_alive)),
            pinned: AtomicBool::new(pinned),
            memory: AtomicU64::new(0),
            described: Mutex::default(),
            default_keep_alive: AtomicU64::new(millis(keep_alive)),
            held: AtomicUsize::new(0),
        }
    }

    /// Says that a request is on its way to it.
    pub fn hold(self: &Arc<Self>) -> Hold {
        self.held.fetch_add(1, Ordering::Acquire);
        Hold(self.clone())
    }

    /// Whether nothing needs it now: no request is in it, or on its way to it.
    pub fn is_idle(&self) -> bool {
        self.held.load(Ordering::Acquire) == 0
            && self.backend().is_some_and(|backend| backend.is_idle())
            && self.canary().is_none_or(|canary| canary.backend.is_idle())
    }

    pub fn listed(&self) -> Arc<Listed> {
        self.listed.load_full()
    }

    pub fn name(&self) -> Arc<str> {
        self.listed.load().name.clone()
    }

    /// Which plugin its answers are from: the one that has it open, else those that might open it.
    pub fn made_by(&self, listed: &Listed) -> Arc<str> {
        // Mostly there is one; then nothing has to be looked up.
        if 1 < listed.plugins.len()
            && self.backend.load().is_some()
            && let Some(plugin) = self.plugin()
        {
            return plugin.identity().clone();
        }
        listed.made_by.clone()
    }

    /// The open backend, if it is open. Touches nothing.
    pub fn backend(&self) -> Option<Arc<Backend>> {
        self.backend.load_full()
    }

    /// What the new version of its plugin has open, during an upgrade.
    pub fn canary(&self) -> Option<Arc<Canary>> {
        self.canary.load_full()
    }

    /// Says that it was used just now.
    pub fn touch(&self, keep_alive: Option<KeepAlive>) {
        if let Some(keep_alive) = keep_alive {
            self.keep_alive_ms.store(millis(keep_alive), Ordering::Relaxed);
        }
        self.last_used_ms.store(self.origin.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    pub fn stage(&self) -> Stage {
        self.stage.borrow().clone()
    }

    /// Tells of every change of its stage.
    pub fn watch(&self) -> watch::Receiver<Stage> {
        self.stage.subscribe()
    }

    /// When it was last used, for comparing with other models.
    pub fn last_used(&self) -> u64 {
        let used = self.origin + Duration::from_millis(self.last_used_ms.load(Ordering::Relaxed));
        u64::MAX - used.elapsed().as_millis() as u64
    }

    pub fn is_pinned(&self) -> bool {
        self.pinned.load(Ordering::Relaxed)
    }

    pub fn memory(&self) -> u64 {
        self.memory.load(Ordering::Relaxed) + self.canary.load().as_ref().map_or(0, |canary| canary.memory)
    }

    /// How long until it closes by itself; `None`: never.
    pub fn expires_in(&self) -> Option<Duration> {
        let keep = self.keep_alive_ms.load(Ordering::Relaxed);
        if keep == FOREVER || self.is_pinned() {
            return None;
        }
        let used = Duration::from_millis(self.last_used_ms.load(Ordering::Relaxed));
        Some((used + Duration::from_millis(keep)).saturating_sub(self.origin.elapsed()))
    }

    // ---- only the catalog's actor calls what follows

    pub fn set_listed(&self, listed: Listed, keep_alive: KeepAlive, pinned: bool) {
        let before = self.listed.load();
        if !before.opens_like(&listed) {
            *self.described.lock() = Arc::default();
        }
        drop(before);
        self.listed.store(Arc::new(listed));
        let keep_alive = millis(keep_alive);
        if self.default_keep_alive.swap(keep_alive, Ordering::Relaxed) != keep_alive {
            self.keep_alive_ms.store(keep_alive, Ordering::Relaxed);
        }
        self.pinned.store(pinned, Ordering::Relaxed);
    }

    pub fn set_stage(&self, stage: Stage) {
        self.stage.send_replace(stage);
    }

    pub fn set_plugin(&self, plugin: Option<Arc<Plugin>>) {
        *self.plugin.lock() = plugin;
    }

    pub fn plugin(&self) -> Option<Arc<Plugin>> {
        self.plugin.lock().clone()
    }

    pub fn set_memory(&self, bytes: u64) {
        self.memory.store(bytes, Ordering::Relaxed);
    }

    pub fn opened(&self, backend: Arc<Backend>) {
        self.touch(None);
        self.describe(&backend);
        self.backend.store(Some(backend));
        self.set_stage(Stage::Ready);
    }

    fn describe(&self, backend: &Backend) {
        *self.described.lock() =
            Arc::new(serde_json::to_value(backend.model().description()).unwrap_or_default());
    }

    /// Lets the new version take its share of the requests, as its trial has it.
    pub fn set_canary(&self, canary: Canary) {
        self.canary.store(Some(Arc::new(canary)));
    }

    /// Takes what the new version has open from the request path.
    pub fn take_canary(&self) -> Option<Arc<Canary>> {
        self.canary.swap(None)
    }

    /// Lets the new version serve alone. Returns what the old one has open, which gets no more requests.
    pub fn promote(&self, canary: &Canary) -> Option<Arc<Backend>> {
        self.listed.store(Arc::new(canary.listed.clone()));
        self.set_plugin(Some(canary.plugin.clone()));
        self.set_memory(canary.memory);
        self.describe(&canary.backend);
        let old = self.backend.swap(Some(canary.backend.clone()));
        self.canary.store(None);
        old
    }

    /// Takes the backend away from the request path.
    pub fn take_backend(&self) -> Option<Arc<Backend>> {
        // What a request asked for by keep_alive ends with the model it was asked of.
        self.keep_alive_ms.store(self.default_keep_alive.load(Ordering::Relaxed), Ordering::Relaxed);
        self.backend.swap(None)
    }

    /// What the host says of it.
    pub fn info(&self, aliases: Vec<String>) -> ModelInfo {
        let listed = self.listed();
        let backend = self.backend();
        let stage = self.stage();
        let plugin = self.plugin().map(|plugin| plugin.id().to_string());
        ModelInfo {
            name: listed.name.clone(),
            aliases,
            copies: listed.copies.clone(),
            id: listed.id.clone(),
            plugin: plugin.or_else(|| listed.plugins.first().map(ToString::to_string)).unwrap_or_default(),
            format: listed.format.clone(),
            capabilities: listed.capabilities.clone(),
            size: listed.size,
            installed: listed.installed,
            card: listed.card.clone(),
            state: match stage {
                Stage::Idle => ModelState::Idle,
                Stage::Loading => ModelState::Loading,
                Stage::Ready => ModelState::Ready,
                Stage::Closing => ModelState::Closing,
                Stage::Failed(..) => ModelState::Failed,
            },
            description: Value::clone(&self.described.lock()),
            running: backend.map(|backend| Running {
                memory_bytes: self.memory(),
                expires_in: self.expires_in().map(|left| left.as_secs_f64()),
                pinned: self.is_pinned(),
                ..backend.running()
            }),
            problem: match stage {
                Stage::Failed(_, error) => Some(error.message),
                _ => listed.problem.clone(),
            },
        }
    }
}
