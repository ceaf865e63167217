//! Starts a host and stops it: all wiring is here.

use crate::auth::{self, AuthHandle};
use crate::cache::{self, CacheHandle};
use crate::catalog::actor::{CatalogActor, find_plugins};
use crate::catalog::{CatalogHandle, Found, PluginOptions, Shelf, changes, differences, listing};
use crate::compute::Pool;
use crate::config::{Config, nobody};
use crate::error::{Error, Result};
use crate::health::{
    actor_part, disk_part, gpu_part, limiter_part, models_part, plugins_part, store_part, watched,
};
use crate::host::{ConfigSource, FirstKey, HostBuilder};
use crate::info::{ChangedModel, PluginChanges};
use crate::license::actor::LicenseActor;
use crate::license::{self, LicenceBook};
use crate::limiter::{self, LimiterHandle};
use crate::loader::{PluginCall, Shared, trim_memory};
use crate::metrics::Metrics;
use crate::router::actor::RouterActor;
use crate::router::{self, RouterHandle};
use crate::serve::{Counting, Parts, serve};
use crate::store;
use crate::supervisor::actor::{Look, SupervisorActor};
use crate::supervisor::{Restarts, Snapshot};
use crate::timer::Timer;
use actix::{Addr, Supervisor};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long writing down when keys were used may hold up the end.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Why a host did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no place for its state.
    #[error("no state directory: neither `--state`, `BACKPLANE_STATE`, `XDG_STATE_HOME` nor `HOME` is set")]
    NoStateDir,
    /// The state directory cannot be used.
    #[error(
        "the state directory {dir} cannot be used: {why}; choose another with `--state`, or make it writable"
    )]
    StateDir { dir: PathBuf, why: String },
    /// Another host uses the state directory.
    #[error(transparent)]
    Locked(#[from] store::LockError),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] store::StoreError),
    /// A part did not start.
    #[error("the {part} did not start: {why}")]
    Part { part: &'static str, why: String },
}

/// A host that was started.
pub(crate) struct Running {
    pub parts: Arc<Parts>,
    pub started: Started,
    pub stop: Stop,
}

/// What outlives the start.
pub(crate) struct Started {
    pub auth: AuthHandle,
    pub health: Snapshot,
    pub source: Option<ConfigSource>,
    pub state_dir: PathBuf,
    pub first_key: Option<FirstKey>,
    /// The configuration it was started with.
    pub config: Arc<Config>,
    plugin_dirs: Vec<PathBuf>,
    /// Held while models and plugins are looked for: two at a time would load a plugin twice, and the slower of two
    /// listings would win over the newer.
    pub changing: futures::lock::Mutex<()>,
    supervisor: Addr<SupervisorActor>,
    _lock: store::StateLock,
}

/// Ends the host's thread, and waits for it.
pub(crate) struct Stop(Mutex<Option<(oneshot::Sender<()>, JoinHandle<()>)>>);

impl Stop {
    pub fn stop(&self) {
        let Some((signal, thread)) = self.0.lock().take() else { return };
        signal.send(()).ok();
        // A future of the host's own thread may hold the last clone; it cannot wait for itself.
        if thread.thread().id() != std::thread::current().id() {
            thread.join().ok();
        }
    }
}

/// The folder for the host's state when none was named.
pub fn default_state_dir() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("BACKPLANE_STATE")
        .or_else(|| set("XDG_STATE_HOME").map(|home| home.join("backplane")))
        .or_else(|| set("HOME").map(|home| home.join(".local/state/backplane")))
}

pub(crate) fn start(builder: HostBuilder) -> Result<Running, StartError> {
    let HostBuilder { config, source, state_dir, plugin_dirs, unlimited_compute, another_admin } = builder;
    let state_dir = state_dir.or_else(default_state_dir).ok_or(StartError::NoStateDir)?;
    let state_dir = std::path::absolute(&state_dir).unwrap_or(state_dir);
    store::prepare_dir(&state_dir)
        .map_err(|error| StartError::StateDir { dir: state_dir.clone(), why: error.to_string() })?;
    let lock = store::StateLock::acquire(&state_dir)?;
    let store = store::SqliteStore::open(&state_dir)?;

    let (stop_signal, stopped) = oneshot::channel();
    let (sender, receiver) = mpsc::channel();
    let thread_dir = state_dir.clone();
    let thread = std::thread::Builder::new()
        .name("backplane".to_owned())
        .spawn(move || {
            let system = actix::System::new();
            let shelf = system.block_on(async move {
                let built = build(config, store, &thread_dir, unlimited_compute, another_admin);
                let kept = built.as_ref().ok();
                let kept = kept.map(|built| (built.parts.catalog.shelf().clone(), built.auth.clone()));
                sender.send(built).ok();
                let (shelf, auth) = kept?;
                // Either somebody says stop, or everybody who could is gone.
                stopped.await.ok();
                // It has said so itself if it could not.
                tokio::time::timeout(LAST_WORDS, auth.write_use()).await.ok();
                Some(shelf)
            });
            // What is still open ends with the host: its threads, and its memory.
            shelf.inspect(|shelf| shelf.close_now());
        })
        .map_err(|error| StartError::Part { part: "host thread", why: error.to_string() })?;
    let built = receiver
        .recv()
        .map_err(|_| StartError::Part { part: "host thread", why: "it died; see the log".to_owned() })??;
    let Built { parts, auth, health, supervisor, first_key } = built;
    let config = parts.config.load_full();
    let started = Started {
        auth,
        health,
        source,
        state_dir,
        first_key,
        config: config.clone(),
        plugin_dirs,
        changing: futures::lock::Mutex::default(),
        supervisor,
        _lock: lock,
    };
    let running = Running { parts, started, stop: Stop(Mutex::new(Some((stop_signal, thread)))) };

    futures::executor::block_on(running.started.relist(&running.parts, &config))
        .map_err(|error| StartError::Part { part: "catalog", why: error.message })?;
    futures::executor::block_on(running.started.look());
    Ok(running)
}

struct Built {
    parts: Arc<Parts>,
    auth: AuthHandle,
    health: Snapshot,
    supervisor: Addr<SupervisorActor>,
    first_key: Option<FirstKey>,
}

/// Starts every actor, in the order of who needs whom. Runs on the host's thread.
fn build(
    config: Config,
    store: store::SqliteStore,
    dir: &Path,
    unlimited: bool,
    another_admin: bool,
) -> Result<Built, StartError> {
    let store = Arc::new(store);
    let part = |part: &'static str| {
        move |error: &dyn std::fmt::Display| StartError::Part { part, why: error.to_string() }
    };
    let metrics = Metrics::new();

    let auth_restarts = Restarts::default();
    let (auth, first) = auth::start(store.clone(), dir, &config.auth, another_admin, auth_restarts.counter())
        .map_err(|e| part("auth")(&e))?;
    let first_key = first.map(|first| FirstKey { secret: first.secret, path: first.path });

    let limiter_restarts = Restarts::default();
    let limiter: LimiterHandle =
        limiter::start(store.clone(), dir, &config.limits, limiter_restarts.counter())
            .map_err(|e| part("limiter")(&e))?;

    let cache_restarts = Restarts::default();
    let cache: CacheHandle = cache::start(&config.cache, cache_restarts.counter());

    let metrics_restarts = Restarts::default();
    metrics.start_sampling(metrics_restarts.counter());

    let unlimited = unlimited || !config.compute.permits;
    let pool =
        if unlimited { Pool::unlimited(config.compute.threads) } else { Pool::new(config.compute.threads) };
    let shared = Arc::new(Shared::default());
    let licences = LicenceBook::open(dir);
    // Set once per host, right here.
    shared.licences.set(licences.clone()).ok();
    let license_restarts = Restarts::default();
    let (book, counter) = (licences.clone(), license_restarts.counter());
    let license = Supervisor::start(move |_| LicenseActor::new(book, counter));
    let counter = metrics.clone();
    let _set = shared.breakdowns.count.set(Box::new(move |plugin, how| counter.count_fault(plugin, how)));
    let counted = shared.clone();
    metrics.on_render(Box::new(move |out| counted.copies.render(out)));
    let shelf = Arc::new(Shelf::new(pool.clone(), shared.clone(), metrics.clone()));

    let router_restarts = Restarts::default();
    let published = Arc::new(router::Shared::new(shelf.clone()));
    let (inner, counter) = (published.clone(), router_restarts.counter());
    let router = RouterHandle::new(published, Supervisor::start(move |_| RouterActor::new(inner, counter)));

    let catalog_restarts = Restarts::default();
    let options = listing::options(&config, pool.threads());
    let (inner, counter) = (shelf.clone(), catalog_restarts.counter());
    let catalog = CatalogHandle::new(
        shelf.clone(),
        Supervisor::start(move |_| CatalogActor::new(inner, options, counter)),
    );

    let timer = Timer::new(tokio::runtime::Handle::current());
    let parts = Arc::new(Parts {
        config: ArcSwap::from_pointee(config),
        limiter: limiter.clone(),
        cache: cache.clone(),
        router: router.clone(),
        catalog: catalog.clone(),
        metrics: metrics.clone(),
        timer,
        counting: Counting::default(),
        open: Arc::new(AtomicUsize::new(0)),
        stopping: AtomicBool::new(false),
    });
    serve_plugins(&shared, &parts);
    crate::gauges::register(&metrics, &parts, &pool);

    let health = Snapshot::default();
    let restarts = Restarts::default();
    let watched = vec![
        actor_part("auth", auth_restarts, {
            let auth = auth.clone();
            move || auth.is_alive()
        }),
        watched(false, {
            let (limiter, restarts) = (limiter.clone(), limiter_restarts);
            move || limiter_part(&limiter, &restarts)
        }),
        actor_part("cache", cache_restarts, {
            let cache = cache.clone();
            move || cache.is_alive()
        }),
        actor_part("router", router_restarts, {
            let router = router.clone();
            move || router.is_alive()
        }),
        actor_part("metrics", metrics_restarts, {
            let metrics = metrics.clone();
            move || metrics.is_alive()
        }),
        actor_part("catalog", catalog_restarts, {
            let catalog = catalog.clone();
            move || catalog.is_alive()
        }),
        watched(false, {
            let shelf = shelf.clone();
            move || plugins_part(&shelf)
        }),
        watched(false, {
            let catalog = catalog.clone();
            move || models_part(&catalog)
        }),
        watched(true, move || license::part(&licences, &license_restarts, license.connected())),
        watched(false, gpu_part),
        watched(true, {
            let store = store.clone();
            move || store_part(&store)
        }),
        watched(true, {
            let dir = dir.to_owned();
            move || disk_part(&dir)
        }),
    ];
    let (snapshot, own) = (health.clone(), restarts);
    let supervisor = Supervisor::start(move |_| SupervisorActor::new(watched, snapshot, own));
    Ok(Built { parts, auth, health, supervisor, first_key })
}

/// Lets plugins call capabilities through the request function, on the host's thread.
fn serve_plugins(shared: &Shared, parts: &Arc<Parts>) {
    // Weak: a plugin's table lives for ever, the host does not.
    let (parts, runtime) = (Arc::downgrade(parts), tokio::runtime::Handle::current());
    let hook = Box::new(move |mut call: PluginCall| {
        // Dropping the call ends it with `shutting_down`.
        let Some(parts) = parts.upgrade() else { return };
        runtime.spawn(async move {
            let request = call.take_request();
            let reply = async {
                serve(&parts, request.ok_or_else(|| Error::internal("the call has no request"))?).await
            };
            call.answer(reply).await;
        });
    });
    // Set once per host, right here.
    shared.calls.set(hook).ok();
}

impl Started {
    /// Looks at every part now, so that the health report is true.
    pub async fn look(&self) {
        self.supervisor.send(Look).await.ok();
    }

    #[cfg(test)]
    pub async fn panic_supervisor(&self) {
        self.supervisor.send(crate::supervisor::actor::Panic).await.ok();
    }

    /// Where plugins are looked for.
    pub fn plugin_options(&self, config: &Config) -> PluginOptions {
        let mut options = listing::plugin_options(config, &self.state_dir, &self.plugin_dirs);
        // What is loaded at all was settled at the start: a host that runs is not talked into less.
        options.least = self.config.plugins.trust;
        options
    }

    /// Finds plugins and installed models, and puts the listing into force.
    pub async fn relist(
        &self,
        parts: &Arc<Parts>,
        config: &Config,
    ) -> Result<(Vec<ChangedModel>, PluginChanges, Vec<String>)> {
        let shelf = parts.catalog.shelf().clone();
        let options = self.plugin_options(config);
        let models = listing::options(config, shelf.pool.threads());
        let (dir, checked) = (self.state_dir.clone(), config.clone());
        // Plugins may block while they start, so they do it on a thread of their own.
        let (sender, receiver) = oneshot::channel();
        std::thread::Builder::new()
            .name("list".to_owned())
            .spawn(move || {
                if let Some(licences) = shelf.shared.licences.get() {
                    licences.look();
                }
                let plugins = find_plugins(&shelf, &options);
                let listed = listing::models(&dir, &plugins, &checked);
                sender.send((plugins, listed)).ok();
                // Every library was read whole.
                trim_memory();
            })
            .map_err(|error| {
                Error::unavailable(format!("no thread to look at what is installed: {error}"))
            })?;
        let (plugins, listed) = receiver
            .await
            .map_err(|_| Error::internal("looking at what is installed failed; see the log"))?;
        let listed = listed?;
        let names = listing::names(config, &listed);
        let before: Vec<_> = parts.catalog.shelf().entries().iter().map(|entry| entry.listed()).collect();
        let changed = differences(&before, &listed);
        let changes = changes(&parts.catalog.shelf().plugins(), &plugins);
        let (known, ids): (Vec<&str>, Vec<&str>) = (
            listed.iter().map(|model| &*model.name).collect(),
            plugins.iter().filter_map(Found::id).collect(),
        );
        let warnings = nobody::told(config, &known, &ids);
        warnings.iter().for_each(|warning| tracing::warn!("configuration: {warning}"));
        parts.catalog.relist(models, plugins, listed).await?;
        parts.router.rebuild(names).await?;
        Ok((changed, changes, warnings))
    }

    /// Hands the parts what the configuration says of them.
    pub async fn apply(&self, parts: &Parts, config: &Config) -> Result<()> {
        parts.limiter.configure(&config.limits).await?;
        parts.cache.configure(&config.cache).await?;
        self.auth.configure(&config.auth).await?;
        Ok(())
    }
}
