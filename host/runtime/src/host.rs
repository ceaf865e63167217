//! [`Host`]: what embedders, the server and the command line hold.

use crate::auth::{AuthHandle, Caller, CreatedKey, KeyInfo, LimitsChange, NewKey};
use crate::catalog::{CatalogHandle, Entry};
use crate::config::{Config, ConfigError, reload};
use crate::error::{Error, ErrorCode, Result};
use crate::info::{CapabilityInfo, CapabilitySchema, Health, LoadPlan, ModelInfo, PluginInfo};
use crate::job::{KeepAlive, Reply, Request};
use crate::limiter::{BudgetStatus, LimitStatus};
use crate::loader::Quarantine;
use crate::metrics::Metrics;
use crate::router::Target;
use crate::serve::{Parts, serve};
use crate::start::{Running, Started};
use crate::stop::Wish;
use crate::supervisor::Snapshot;
use crate::upgrade::PluginUpgrade;
use backplane_abi::payload::schemas::{STANDARD, Standard};
use backplane_registry::Capability;
use backplane_registry::plugin::Manifest;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

pub use crate::config::reload::ReloadReport;
pub use crate::start::StartError;

/// Reads the configuration anew, for [`Host::reload`].
pub(crate) type ConfigSource = Box<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>;

/// Puts a [`Host`] together.
#[derive(Default)]
pub struct HostBuilder {
    pub(crate) config: Config,
    pub(crate) source: Option<ConfigSource>,
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) plugin_dirs: Vec<PathBuf>,
    pub(crate) unlimited_compute: bool,
    pub(crate) another_admin: bool,
}

impl HostBuilder {
    /// Runs with this configuration.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Where [`Host::reload`] gets its configuration from. Without it a reload re-reads models and plugins only.
    pub fn config_source(
        mut self,
        source: impl Fn() -> Result<Config, ConfigError> + Send + Sync + 'static,
    ) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    /// Keeps its state in this folder, which is made if need be. Without it: `$BACKPLANE_STATE`, else
    /// `$XDG_STATE_HOME/backplane`, else `~/.local/state/backplane`.
    pub fn state_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.state_dir = Some(dir.into());
        self
    }

    /// Makes an admin key though one works, and writes it in the place of the one that was lost.
    pub fn new_admin_key(mut self, wanted: bool) -> Self {
        self.another_admin = wanted;
        self
    }

    /// Looks for plugins here too, before the folders of the configuration.
    pub fn plugin_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.plugin_dirs.push(dir.into());
        self
    }

    /// Grants every plugin the CPU threads it asks for. To measure what permits are worth.
    pub fn without_compute_permits(mut self) -> Self {
        self.unlimited_compute = true;
        self
    }

    /// Starts the host: its thread, its actors, its plugins. Blocks until it takes requests; opens no model.
    ///
    /// # Errors
    /// A state directory that cannot be used, or that another host uses; a store that is damaged.
    pub fn start(self) -> Result<Host, StartError> {
        let Running { parts, started, stop } = crate::start::start(self)?;
        let host =
            Host(Arc::new(Inner { parts, started, stop, since: Instant::now(), wish: Wish::default() }));
        if let Some(licences) = host.catalog().shelf().shared.licences.get() {
            // Weak: what the host owns must not own the host.
            let inner = Arc::downgrade(&host.0);
            licences.on_new(move || {
                let Some(inner) = inner.upgrade() else { return };
                actix_rt::spawn(async move {
                    if let Err(error) = Host(inner).refresh().await {
                        tracing::error!(%error, "a plugin that has a licence now is not loaded");
                    }
                });
            });
        }
        Ok(host)
    }
}

/// A running host. Clones are the same host; it stops when the last is dropped.
#[derive(Clone)]
pub struct Host(Arc<Inner>);

struct Inner {
    parts: Arc<Parts>,
    started: Started,
    stop: crate::start::Stop,
    since: Instant,
    wish: Wish,
}

/// A key as it is listed.
#[derive(Clone, Debug)]
pub struct ListedKey {
    /// What is known of it.
    pub info: KeyInfo,
    /// How its token budget stands; `None` where neither the key nor the configuration sets one.
    pub budget: Option<BudgetStatus>,
}

/// The admin key that the first start on a state directory makes.
#[derive(Clone)]
pub struct FirstKey {
    /// The key. Shown to the operator once.
    pub secret: String,
    /// Where it is kept, readable by the owner only.
    pub path: PathBuf,
}

impl std::fmt::Debug for FirstKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FirstKey").field("path", &self.path).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Host")
    }
}

/// A host that does not run on for this.
#[derive(Clone)]
pub(crate) struct WeakHost(Weak<Inner>);

impl WeakHost {
    /// The host, if it still runs.
    ///
    /// # Errors
    /// That it does not.
    pub fn get(&self) -> Result<Host> {
        self.0.upgrade().map(Host).ok_or_else(Error::shutting_down)
    }
}

impl Host {
    /// A host with the default configuration, to be changed before it is started.
    pub fn builder() -> HostBuilder {
        HostBuilder::default()
    }

    fn auth(&self) -> &AuthHandle {
        &self.0.started.auth
    }

    fn catalog(&self) -> &CatalogHandle {
        &self.0.parts.catalog
    }

    pub(crate) fn parts(&self) -> &Arc<Parts> {
        &self.0.parts
    }

    pub(crate) fn started(&self) -> &Started {
        &self.0.started
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.0.parts.stopping.load(Ordering::Relaxed)
    }

    // ---- the request path

    /// Who a key belongs to. `credential` is the bare key. Where the configuration turns keys off, anybody is an
    /// administrator. Sends no message.
    ///
    /// # Errors
    /// `missing_api_key`, `invalid_api_key`.
    pub fn identify(&self, credential: Option<&str>) -> Result<Caller> {
        Ok(self.auth().identify(credential, std::time::SystemTime::now())?)
    }

    /// As [`identify`](Self::identify), for somebody at this address: of too many wrong keys from one the rest are refused
    /// with `too_many_invalid_keys`. Sends no message.
    ///
    /// # Errors
    /// `missing_api_key`, `invalid_api_key`, `too_many_invalid_keys`.
    pub fn identify_from(&self, credential: Option<&str>, from: std::net::IpAddr) -> Result<Caller> {
        Ok(self.auth().identify_from(credential, from, std::time::SystemTime::now())?)
    }

    /// Serves a request. The answer comes piece by piece; dropping it cancels the request.
    ///
    /// # Errors
    /// Everything that can be known before the first piece: an unknown model or capability, a limit, a full queue, a
    /// model that cannot be opened.
    pub async fn serve(&self, request: Request) -> Result<Reply> {
        serve(&self.0.parts, request).await
    }

    /// What is left of the caller's limits.
    pub fn limits(&self, caller: &Caller) -> Vec<LimitStatus> {
        self.0.parts.limiter.snapshot(caller)
    }

    // ---- looking: loads nothing, touches no timer

    /// Every model the host knows, by name.
    pub fn models(&self) -> Vec<ModelInfo> {
        let table = self.0.parts.router.table();
        self.catalog()
            .shelf()
            .entries()
            .iter()
            .map(|entry| entry.info(table.aliases_of(&entry.name())))
            .collect()
    }

    /// The model with this name or alias; not what `"*"` stands for.
    pub fn model(&self, name: &str) -> Option<ModelInfo> {
        let table = self.0.parts.router.table();
        let Target::Model(name) = table.named(name)? else { return None };
        let entry = self.catalog().shelf().get(&name)?;
        Some(entry.info(table.aliases_of(&name)))
    }

    /// As [`Host::model`].
    ///
    /// # Errors
    /// `model_not_found`, with names that are close.
    pub fn find(&self, name: &str) -> Result<ModelInfo> {
        self.model(name).ok_or_else(|| self.0.parts.router.table().not_found(name))
    }

    /// The model that a request for `asked` would go to first: by name, alias, route, or `"*"`.
    pub fn resolve(&self, asked: &str) -> Option<Arc<str>> {
        match self.0.parts.router.table().resolve(asked)? {
            Target::Model(name) => Some(name),
            Target::Route(_, cascade) => cascade.models.first().map(|name| name.as_str().into()),
        }
    }

    /// That a request with pictures in its messages finds a model that sees: it can be refused before the pictures are
    /// fetched.
    ///
    /// # Errors
    /// `pictures_not_supported`, with the models that see; `model_not_found`.
    pub fn check_sight(&self, asked: Option<&str>, capability: &str) -> Result<()> {
        self.0.parts.router.check_sight(asked, capability)
    }

    /// Every plugin file, loaded or not. During an upgrade a plugin is there twice.
    pub fn plugins(&self) -> Vec<PluginInfo> {
        let shelf = self.catalog().shelf();
        let mut plugins = shelf.plugins().iter().map(crate::catalog::Found::info).collect();
        shelf.upgrades.show(&mut plugins);
        shelf.shared.breakdowns.show(&mut plugins);
        plugins
    }

    /// Each plugin that has to do with a licence, and how it stands: `("com.acme.trt", "grace")`.
    pub fn license_states(&self) -> Vec<(String, &'static str)> {
        self.catalog().shelf().shared.licences.get().map(crate::license::states).unwrap_or_default()
    }

    /// Lets a plugin be started again that crashed again and again; whether it was in quarantine.
    ///
    /// # Errors
    /// `plugin_not_found`; when its note cannot be removed.
    pub async fn unquarantine(&self, id: &str) -> Result<bool> {
        let known = self.catalog().shelf().plugins().iter().any(|found| found.id() == Some(id));
        if !known {
            let error = Error::new(ErrorCode::NotFound, format!("there is no plugin `{id}` here"));
            return Err(error.with_reason("plugin_not_found"));
        }
        let lifted = Quarantine::lift(&self.0.started.state_dir, id).map_err(|error| {
            Error::internal(format!("the quarantine of `{id}` cannot be lifted: {error}"))
        })?;
        if 0 < lifted {
            tracing::info!(plugin = id, "a plugin is let out of quarantine");
            // One that was not loaded for it is now.
            self.refresh().await?;
        }
        Ok(0 < lifted)
    }

    /// The last upgrade of a plugin, under way or over.
    pub fn plugin_upgrade(&self, id: &str) -> Option<PluginUpgrade> {
        self.catalog().shelf().upgrades.of(id)
    }

    /// Every capability that a model here serves.
    pub fn capabilities(&self) -> Vec<CapabilityInfo> {
        let all = self.0.parts.router.table().all_capabilities().into_iter();
        all.map(|(name, models)| self.describe(name, models)).collect()
    }

    /// A capability, if a model here serves it.
    pub fn capability(&self, name: &str) -> Option<CapabilityInfo> {
        let mut all = self.0.parts.router.table().all_capabilities().into_iter();
        all.find(|(known, _)| known == name).map(|(name, models)| self.describe(name, models))
    }

    fn describe(&self, name: String, models: Vec<Arc<str>>) -> CapabilityInfo {
        let plugins = self.catalog().shelf().plugins();
        let offers: Vec<_> = plugins
            .iter()
            .filter(|found| found.plugin.is_some())
            .filter_map(|found| found.manifest.as_ref())
            .flat_map(|manifest| manifest.capabilities.iter().map(move |offer| (manifest, offer)))
            .filter(|(_, offer)| offer.name == name)
            .collect();
        let mut versions: Vec<u32> = offers.iter().map(|(_, offer)| offer.version).collect();
        versions.sort_unstable();
        versions.dedup();
        let plugins = offers.iter().map(|(manifest, _)| manifest.id.clone()).collect();
        let said = |(manifest, offer): &(&Manifest, &Capability)| CapabilitySchema::of(&manifest.id, offer);
        let standard = |standard: &&Standard| standard.name == name && versions.contains(&standard.version);
        let schemas = STANDARD.iter().filter(standard).map(CapabilitySchema::from);
        let schemas = schemas.chain(offers.iter().filter_map(said)).collect();
        CapabilityInfo { name, versions, models, plugins, schemas }
    }

    /// How the host is.
    pub fn health(&self) -> Health {
        let mut health = Snapshot::read(&self.0.started.health);
        health.ready &= !self.0.parts.stopping.load(Ordering::Relaxed);
        health
    }

    /// The models that a request for `asked` may go to, in their order: by name, alias, route, or `"*"`.
    pub fn models_of(&self, asked: &str) -> Vec<ModelInfo> {
        let table = self.0.parts.router.table();
        let names = match table.resolve(asked) {
            Some(Target::Model(name)) => vec![name.to_string()],
            Some(Target::Route(_, cascade)) => cascade.models.clone(),
            None => Vec::new(),
        };
        drop(table);
        names.iter().filter_map(|name| self.model(name)).collect()
    }

    /// The recorder; `render()` gives the Prometheus text.
    pub fn metrics(&self) -> &Metrics {
        &self.0.parts.metrics
    }

    /// The configuration that was read last. What takes effect at the next start only is in it too.
    pub fn config(&self) -> Arc<Config> {
        self.0.parts.config.load_full()
    }

    /// What opening a model would take. Opens nothing.
    ///
    /// # Errors
    /// `model_not_found`; that no plugin can open it, and why.
    pub async fn plan(&self, model: &str) -> Result<LoadPlan> {
        self.catalog().plan(self.entry(model)?.name()).await
    }

    /// Version of the host.
    pub fn version(&self) -> &'static str {
        env!("CARGO_PKG_VERSION")
    }

    /// Since when it runs.
    pub fn uptime(&self) -> Duration {
        self.0.since.elapsed()
    }

    /// The folder that holds its state.
    pub fn state_dir(&self) -> &std::path::Path {
        &self.0.started.state_dir
    }

    /// The admin key, if this start made one: the first on its state directory does.
    pub fn first_key(&self) -> Option<FirstKey> {
        self.0.started.first_key.clone()
    }

    // ---- acting

    /// The model of this name or alias, to act on; not what `"*"` stands for.
    fn entry(&self, name: &str) -> Result<Arc<Entry>> {
        let table = self.0.parts.router.table();
        match table.named(name) {
            Some(Target::Model(name)) => self.catalog().shelf().find(&name),
            _ => Err(table.not_found(name)),
        }
    }

    /// Opens a model and waits until it serves. Where a device or a runtime is missing here, its plugin is asked all the
    /// same: it may tell what is wrong with the model itself.
    ///
    /// # Errors
    /// Why it cannot be opened.
    pub async fn load(&self, model: &str, keep_alive: Option<KeepAlive>) -> Result<ModelInfo> {
        let entry = self.entry(model)?;
        self.catalog().load(&entry, keep_alive).await?;
        Ok(entry.info(self.0.parts.router.table().aliases_of(&entry.name())))
    }

    /// Lets a model finish what it has, closes it, and waits until its memory is back.
    ///
    /// # Errors
    /// `model_not_found`.
    pub async fn unload(&self, model: &str) -> Result<()> {
        let entry = self.entry(model)?;
        self.catalog().close(&entry).await
    }

    /// Looks again at what is installed: models that were pulled or removed, plugins that were dropped in.
    ///
    /// # Errors
    /// When the installed models cannot be read.
    pub async fn refresh(&self) -> Result<()> {
        let _alone = self.0.started.changing.lock().await;
        let config = self.config();
        self.0.started.relist(&self.0.parts, &config).await.map(drop)
    }

    /// Reads the configuration anew: checked whole, then applied whole, or refused with the old one in force. Also
    /// looks again at what is installed.
    ///
    /// # Errors
    /// Every problem of the new configuration.
    pub async fn reload(&self) -> Result<ReloadReport> {
        let _alone = self.0.started.changing.lock().await;
        let old = self.config();
        let new = match &self.0.started.source {
            Some(source) => source().map_err(|error| {
                Error::invalid(format!(
                    "the configuration was not reloaded; the old one is in force: {error}"
                ))
                .with_reason("config_invalid")
            })?,
            None => Config::clone(&old),
        };
        let ReloadReport { changed, .. } = reload::diff(&old, &new);
        let ReloadReport { needs_restart, .. } = reload::diff(&self.0.started.config, &new);
        let (models, plugins, warnings) = self.0.started.relist(&self.0.parts, &new).await?;
        let report = ReloadReport { changed, needs_restart, models, plugins, warnings };
        self.0.started.apply(&self.0.parts, &new).await?;
        self.0.parts.config.store(Arc::new(new));
        tracing::info!(
            changed = ?report.changed,
            needs_restart = ?report.needs_restart,
            models = ?report.models.iter().map(|changed| &changed.model).collect::<Vec<_>>(),
            plugins_loaded = ?report.plugins.loaded,
            "configuration reloaded"
        );
        Ok(report)
    }

    /// Begins to let the installed version of a plugin take over from the one that is loaded, which serves meanwhile;
    /// [`plugin_upgrade`](Self::plugin_upgrade) tells how it goes. The new version opens what the old one has open, is
    /// probed, answers a share of the requests (`plugins.upgrade`), then all of them. When it fails on the way, the old
    /// version goes on, on disk too.
    ///
    /// # Errors
    /// `plugin_not_found`; `nothing_to_upgrade`; `upgrade_refused`, when what is installed may not be loaded;
    /// `upgrade_under_way`, of whatever plugin.
    pub async fn begin_upgrade(&self, id: &str) -> Result<PluginUpgrade> {
        let (begun, _) = self.upgrade(id, true)?;
        begun.await.map_err(|_| Error::internal("the upgrade's thread died; see the log"))?
    }

    /// As [`begin_upgrade`](Self::begin_upgrade), without a share of the requests first: for a version that is known, as
    /// one that is gone back to. It is probed all the same.
    ///
    /// # Errors
    /// As [`begin_upgrade`](Self::begin_upgrade).
    pub async fn begin_upgrade_now(&self, id: &str) -> Result<PluginUpgrade> {
        let (begun, _) = self.upgrade(id, false)?;
        begun.await.map_err(|_| Error::internal("the upgrade's thread died; see the log"))?
    }

    /// As [`begin_upgrade`](Self::begin_upgrade), to its end: `done` or `rolled_back`.
    ///
    /// # Errors
    /// As [`begin_upgrade`](Self::begin_upgrade).
    pub async fn upgrade_plugin(&self, id: &str) -> Result<PluginUpgrade> {
        let (begun, over) = self.upgrade(id, true)?;
        let died = |_| Error::internal("the upgrade's thread died; see the log");
        begun.await.map_err(died)??;
        over.await.map_err(died)
    }

    fn upgrade(
        &self,
        id: &str,
        trial: bool,
    ) -> Result<(oneshot::Receiver<Result<PluginUpgrade>>, oneshot::Receiver<PluginUpgrade>)> {
        crate::upgrade::begin(WeakHost(Arc::downgrade(&self.0)), id.to_owned(), trial)
    }

    /// Makes a key. Its secret is in the answer and nowhere else.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn create_key(&self, new: NewKey) -> Result<CreatedKey> {
        Ok(self.auth().create(new).await?)
    }

    /// Every key, without its secret, and what it has left.
    ///
    /// # Errors
    /// When auth is gone.
    pub async fn keys(&self) -> Result<Vec<ListedKey>> {
        Ok(self.auth().list().await?.into_iter().map(|info| self.listed(info)).collect())
    }

    /// Changes the limits of a key; the next request with it has the new ones, and what it has spent stays spent.
    ///
    /// # Errors
    /// When there is no such key or it is revoked, what is asked for cannot be, or the store cannot be written.
    pub async fn change_key(&self, id: &str, change: LimitsChange) -> Result<ListedKey> {
        Ok(self.listed(self.auth().change(id, change).await?))
    }

    /// The caller's own key, and what it has left; `None` for callers without one.
    pub fn key_of(&self, caller: &Caller) -> Option<ListedKey> {
        let info = self.auth().info(caller.key.as_deref()?)?;
        Some(self.listed(info))
    }

    fn listed(&self, info: KeyInfo) -> ListedKey {
        let budget = self.0.parts.limiter.budget(&info.id, &info.limits);
        ListedKey { info, budget }
    }

    /// Revokes a key; the next request with it is refused.
    ///
    /// # Errors
    /// When there is no such key, or the store cannot be written.
    pub async fn revoke_key(&self, id: &str) -> Result<KeyInfo> {
        Ok(self.auth().revoke(id).await?)
    }

    /// Empties the cache; says how many answers were in it.
    ///
    /// # Errors
    /// When the cache is gone.
    pub async fn cache_flush(&self) -> Result<u64> {
        self.0.parts.cache.flush().await
    }

    /// Asks the program that runs this host to stop it, as a signal would. Returns at once; to ask again changes nothing.
    ///
    /// # Errors
    /// When that program does not wait for [`Host::stop_asked`].
    pub fn ask_to_stop(&self) -> Result<()> {
        self.0.wish.ask()
    }

    /// Ends when somebody asks for the host to be stopped. One waits at a time: who waits anew takes the place of who did
    /// before. It does not keep the host alive.
    pub fn stop_asked(&self) -> impl Future<Output = ()> + Send + use<> {
        self.0.wish.wait()
    }

    /// Takes no more requests, lets the open ones finish within `drain`, settles, closes every model and stops. Later
    /// requests are refused with `shutting_down`.
    pub async fn shutdown(&self, drain: Duration) {
        self.0.parts.stopping.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + drain;
        let idle = async {
            while self.0.parts.open.load(Ordering::Relaxed) != 0 {
                self.0.parts.timer.pause(Duration::from_millis(5)).await;
            }
            Ok(())
        };
        if self.0.parts.timer.by(Some(deadline), idle, || Error::deadline("draining")).await.is_err() {
            let left = self.0.parts.open.load(Ordering::Relaxed);
            tracing::warn!(left, "requests were still open at the end of the drain time");
        }
        self.catalog().close_all().await;
        self.0.stop.stop();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.parts.stopping.store(true, Ordering::Relaxed);
        self.stop.stop();
    }
}
