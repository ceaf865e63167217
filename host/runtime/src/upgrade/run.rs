//! The steps of an upgrade, on a thread of its own.

use super::probe::probe;
use super::trial::{Trial, Verdict};
use super::watch::Watch;
use super::{PluginUpgrade, Record, UpgradeState, UpgradedModel};
use crate::backend::Backend;
use crate::catalog::{
    Beside, Canary, Entry, Found, Listed, PluginOptions, Promote, Room, Stage, Switched, Withdraw,
    close_and_wait, listing, newer, start,
};
use crate::config::UpgradeConfig;
use crate::error::{Error, ErrorCode, Result};
use crate::host::{Host, WeakHost};
use crate::loader::{BidQuery, Plugin, Waits, trim_memory};
use crate::metrics::memory;
use backplane_registry::license::Gate;
use backplane_registry::package::{Plugins, Version};
use backplane_registry::plugin::PluginFile;
use backplane_registry::trust::Timestamp;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How often a trial is judged.
const LOOK: Duration = Duration::from_millis(10);

/// Begins an upgrade, with a trial or without. The first result comes when it is known that there is something to do, the second at its end.
///
/// # Errors
/// That there is no thread for it.
pub(crate) fn begin(
    host: WeakHost,
    id: String,
    trial: bool,
) -> Result<(oneshot::Receiver<Result<PluginUpgrade>>, oneshot::Receiver<PluginUpgrade>)> {
    let ((begun, has_begun), (over, is_over)) = (oneshot::channel(), oneshot::channel());
    let work = move || {
        let run = match host.get().and_then(|strong| Run::prepare(&strong, host.clone(), &id, trial)) {
            Ok(run) => run,
            Err(error) => return drop(begun.send(Err(error))),
        };
        begun.send(run.record()).ok();
        if let Ok(record) = run.through(true) {
            over.send(record).ok();
        }
    };
    std::thread::Builder::new()
        .name("upgrade".to_owned())
        .spawn(work)
        .map_err(|error| Error::unavailable(format!("no thread for an upgrade: {error}")))?;
    Ok((has_begun, is_over))
}

/// Puts the version at `old` in use on disk in the place of `new`; where it is no package, none is.
pub(super) fn point_at(
    packages: &Plugins,
    id: &str,
    old: &Path,
    new: &Version,
) -> backplane_registry::package::Result<()> {
    let is_package = old.parent() == new.folder.parent();
    packages.point(id, is_package.then_some(old))
}

/// An upgrade under way.
pub(super) struct Run {
    host: WeakHost,
    id: String,
    old: Found,
    /// What of the old version is loaded.
    old_plugin: Arc<Plugin>,
    new: Found,
    file: PluginFile,
    options: PluginOptions,
    rules: UpgradeConfig,
    trial: Arc<Trial>,
    /// The installed package that is tried, when it is one that can be gone back from.
    package: Option<Version>,
    /// How it went, once nothing but answers of the old version are left.
    switched: OnceLock<PluginUpgrade>,
}

/// Why the old version goes on.
type Outcome<T> = std::result::Result<T, String>;

impl Run {
    /// Finds out what is to be done, and notes that it is being done.
    pub(super) fn prepare(host: &Host, weak: WeakHost, id: &str, on_trial: bool) -> Result<Self> {
        let (parts, started) = (host.parts(), host.started());
        let shelf = parts.catalog.shelf();
        let conflict =
            |code, message: String, reason: &'static str| Error::new(code, message).with_reason(reason);
        let loaded =
            shelf.plugins().iter().find(|found| found.plugin.is_some() && found.id() == Some(id)).cloned();
        let Some((old, old_plugin)) = loaded.and_then(|found| Some((found.clone(), found.plugin?))) else {
            let message = format!("no plugin `{id}` is loaded; `backplane plugin ls` lists what there is");
            return Err(conflict(ErrorCode::NotFound, message, "plugin_not_found"));
        };
        let busy = |other: String| {
            let message =
                format!("plugin `{other}` is being upgraded; one at a time, so retry when it is done");
            conflict(ErrorCode::Aborted, message, "upgrade_under_way")
        };
        if let Some(other) = shelf.upgrades.under_way() {
            return Err(busy(other));
        }
        let config = host.config();
        let options = started.plugin_options(&config);
        let found = newer(&options, &old, &shelf.shared).map_err(|why| {
            let message = format!("what is installed of `{id}` is not loaded: {why}");
            conflict(ErrorCode::FailedPrecondition, message, "upgrade_refused")
        })?;
        let Some((new, file)) = found else {
            let message = format!(
                "`{id}` {} serves, and no other version is installed; install one first",
                old.version()
            );
            return Err(conflict(ErrorCode::AlreadyExists, message, "nothing_to_upgrade"));
        };
        let mut rules = config.plugins.upgrade;
        if !on_trial {
            rules.hold = Duration::ZERO;
        }
        let trial = Arc::new(Trial::new(rules.share));
        shelf.upgrades.begin(id, old.version(), new.version(), trial.clone()).map_err(busy)?;
        let mut run = Self {
            host: weak,
            id: id.to_owned(),
            old,
            old_plugin,
            new,
            file,
            options,
            rules,
            trial,
            package: None,
            switched: OnceLock::new(),
        };
        run.package = run.point_back();
        tracing::info!(plugin = id, from = run.old.version(), to = run.new.version(), "upgrade begins");
        Ok(run)
    }

    /// Were the host to die of the new version, the next start has to find the old one: so that is what is in use on
    /// disk until the switch.
    fn point_back(&self) -> Option<Version> {
        let packages = Plugins::at(&self.options.state);
        let versions = packages.versions(&self.id).ok()?;
        let new = versions.iter().find(|version| version.folder == self.new.path)?.clone();
        match point_at(&packages, &self.id, &self.old.path, &new) {
            Ok(()) => Some(new),
            Err(error) => {
                tracing::warn!(plugin = self.id, %error, "the version that serves cannot be put back in use");
                None
            }
        }
    }

    fn record(&self) -> Result<PluginUpgrade> {
        let host = self.host.get()?;
        let upgrades = &host.parts().catalog.shelf().upgrades;
        let last = upgrades.of(&self.id).filter(|_| upgrades.is_last(&self.id, &self.trial));
        // Another has begun since: this one had only answers to finish.
        let switched = || self.switched.get().cloned();
        last.or_else(switched).ok_or_else(|| Error::internal("the upgrade has no record"))
    }

    fn change(&self, change: impl FnOnce(&mut Record)) {
        if let Ok(host) = self.host.get() {
            host.parts().catalog.shelf().upgrades.change(&self.id, &self.trial, change);
        }
    }

    fn enter(&self, state: UpgradeState) {
        tracing::info!(plugin = self.id, version = self.new.version(), ?state, "upgrade");
        self.change(|record| record.info.state = state);
    }

    /// The host, while it serves.
    fn host(&self) -> Outcome<Host> {
        let gone = || "the host was stopped meanwhile".to_owned();
        let host = self.host.get().map_err(|_| gone())?;
        if host.is_stopping() { Err(gone()) } else { Ok(host) }
    }

    /// All steps; whatever becomes of them, the record says it.
    /// `watched`: a version that ends in quarantine soon after gives way to the one before.
    fn through(mut self, watched: bool) -> Result<PluginUpgrade> {
        // A panic here would leave the upgrade under way for ever.
        let steps = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.steps(watched)));
        let outcome = steps.unwrap_or_else(|_| Err("the host failed inside; see the log".to_owned()));
        match outcome {
            Ok(note) => {
                self.retire();
                self.change(|record| {
                    record.info.problem = note;
                    record.beside = None;
                    record.info.state = UpgradeState::Done;
                });
            }
            Err(why) => self.back(&why),
        }
        let record = self.record();
        if let Ok(record) = &record {
            tracing::info!(plugin = self.id, state = ?record.state, problem = record.problem, "upgrade is over");
        }
        record
    }

    /// As [`through`](Self::through), for a version that takes over from one that failed: its record says why.
    pub(super) fn back_from(self, why: &str) {
        let (host, id, trial) = (self.host.clone(), self.id.clone(), self.trial.clone());
        let done = self.through(false).is_ok_and(|record| record.state == UpgradeState::Done);
        if let (true, Ok(host)) = (done, host.get()) {
            let upgrades = &host.parts().catalog.shelf().upgrades;
            upgrades.note(&id, &trial, why);
        }
    }

    fn steps(&mut self, watched: bool) -> Outcome<Option<String>> {
        self.licensed()?;
        self.check()?;
        let host = self.host()?;
        let plugin =
            start(&self.file, self.new.isolation, &self.options, &host.parts().catalog.shelf().shared);
        let plugin = plugin.map_err(|error| error.to_string())?;
        drop(host);
        self.new.plugin = Some(plugin.clone());
        let found = self.new.clone();
        self.change(|record| record.beside = Some(found));

        self.enter(UpgradeState::Opening);
        self.open_models(&plugin)?;
        self.enter(UpgradeState::Probing);
        self.probe_models()?;
        self.enter(UpgradeState::Trial);
        self.trial()?;
        // What was opened since by the old version.
        self.open_models(&plugin)?;
        self.probe_models()?;
        let note = self.switch(watched)?;
        Ok(note)
    }

    /// Whether the new version's licence lets it serve, which may cover the old version only.
    fn licensed(&self) -> Outcome<()> {
        self.new.unlicensed().map_or(Ok(()), |error| Err(error.message))
    }

    /// Whether the new version offers what open models need. Its ABI is checked when it is loaded.
    fn check(&self) -> Outcome<()> {
        let manifest = &self.file.manifest;
        for entry in self.open_entries(&self.host()?) {
            let listed = entry.listed();
            let offered = |name: &String| manifest.capabilities.iter().any(|offer| offer.name == *name);
            if let Some(missing) = listed.capabilities.iter().find(|name| !offered(name)) {
                return Err(format!(
                    "model `{}` is open and serves `{missing}`, which it does not offer",
                    listed.name
                ));
            }
            let known = if listed.format.is_empty() {
                manifest.models.iter().any(|model| *model.name.to_string() == *listed.name)
            } else {
                manifest.formats.contains(&listed.format)
            };
            if !known {
                return Err(format!("model `{}` is open, and it cannot open that any more", listed.name));
            }
        }
        Ok(())
    }

    /// The models that the old version has open.
    fn open_entries(&self, host: &Host) -> Vec<Arc<Entry>> {
        let ours = |entry: &Arc<Entry>| {
            entry.backend().is_some()
                && entry.plugin().is_some_and(|plugin| Arc::ptr_eq(&plugin, &self.old_plugin))
        };
        host.parts().catalog.shelf().entries().into_iter().filter(ours).collect()
    }

    /// The plugins as they are once the new version serves, and the models that there are then.
    fn listing(&self, host: &Host, old: &Found, new: &Found) -> Outcome<(Vec<Found>, Vec<Listed>)> {
        let shelf = host.parts().catalog.shelf();
        let plugins: Vec<Found> = shelf
            .plugins()
            .iter()
            // The row that says that it is installed and not used.
            .filter(|found| found.path != new.path || found.path == old.path)
            .map(|found| if found.path == old.path { new } else { found })
            .cloned()
            .collect();
        let listed =
            listing::models(host.state_dir(), &plugins, &host.config()).map_err(|error| error.message)?;
        Ok((plugins, listed))
    }

    /// Opens, with the new version, each model that only the old one has open. One that does not fit twice, or that the
    /// licence has too few instances for, is left for the switch.
    fn open_models(&self, plugin: &Arc<Plugin>) -> Outcome<()> {
        let (_, listed) = self.listing(&self.host()?, &self.old, &self.new)?;
        for entry in self.open_entries(&self.host()?) {
            if entry.canary().is_some() {
                continue;
            }
            let name = entry.name();
            let Some(listed) = listed.iter().find(|listed| listed.name == name) else {
                return Err(format!("model `{name}` is open, and it does not have that any more"));
            };
            let beside =
                self.open_beside(&entry, listed, plugin).map_err(|why| format!("model `{name}`: {why}"))?;
            self.change(|record| {
                record.info.models.retain(|model| model.name != name);
                record.info.models.push(UpgradedModel { name, beside });
            });
        }
        Ok(())
    }

    /// Whether there was room for it, in memory and in the licence.
    fn open_beside(&self, entry: &Arc<Entry>, listed: &Listed, plugin: &Arc<Plugin>) -> Outcome<bool> {
        let host = self.host()?;
        let parts = host.parts();
        let query =
            BidQuery { format: &listed.format, model_json: &listed.model_json, ..BidQuery::default() };
        let bid = plugin.bid(query, Waits::Load)?;
        if bid.score == 0 {
            return Err(format!("the new version cannot open it: {}", bid.text));
        }
        if !parts.catalog.ask(Room(bid.host_bytes)).map_err(|error| error.message)? {
            tracing::info!(
                model = &*entry.name(),
                "it does not fit twice: it is switched when its requests are done"
            );
            return Ok(false);
        }
        let options = listing::options(&host.config(), parts.catalog.shelf().pool.threads());
        let settings = options.of(&listed.name).settings(&options, &listed.limits);
        let seats = plugin.licence().map(|gate| gate.seats(u64::from(settings.instances.max(1))));
        let Ok(seats) = seats.transpose() else {
            self.licensed()?;
            tracing::info!(
                model = &*entry.name(),
                "its licence has no instances for it twice: it is switched when its requests are done"
            );
            return Ok(false);
        };
        let names = (listed.name.clone(), plugin.id().clone());
        let (pool, metrics) = (parts.catalog.shelf().pool.clone(), parts.metrics.clone());
        let (opener, model_json) = (plugin.clone(), listed.model_json.clone());
        let open = move || {
            let before = memory::resident_bytes();
            let model = opener.open(&model_json)?;
            let backend = Backend::start(names, model, settings, pool, metrics)?;
            seats.into_iter().for_each(|seats| backend.hold(seats));
            trim_memory();
            Ok((backend, memory::resident_bytes().saturating_sub(before).max(bid.host_bytes)))
        };
        let late = |result: Result<(Arc<Backend>, u64)>| {
            if let Ok((backend, _)) = result {
                close_and_wait(backend, Duration::ZERO);
            }
        };
        let opened = within(options.load_timeout, "opening it", open, late)?;
        let (backend, memory) = opened.map_err(|error| error.message)?;
        let canary = Canary {
            backend: backend.clone(),
            plugin: plugin.clone(),
            listed: listed.clone(),
            memory,
            trial: self.trial.clone(),
        };
        let beside = Beside { entry: entry.clone(), old: self.old_plugin.clone(), canary };
        if !parts.catalog.ask(beside).map_err(|error| error.message)? {
            // It was closed meanwhile, and is opened by the version that serves then.
            close_and_wait(backend, Duration::ZERO);
        }
        Ok(true)
    }

    fn canaries(&self, host: &Host) -> Vec<Arc<Canary>> {
        let entries = host.parts().catalog.shelf().entries();
        let ours = entries.iter().filter_map(|entry| entry.canary());
        ours.filter(|canary| Arc::ptr_eq(&canary.trial, &self.trial)).collect()
    }

    fn probe_models(&self) -> Outcome<()> {
        let host = self.host()?;
        let limit = host.config().models.load_timeout;
        for canary in self.canaries(&host) {
            let (backend, capabilities) = (canary.backend.clone(), canary.listed.capabilities.clone());
            let manifest = self.file.manifest.clone();
            let work = move || probe(&backend, &capabilities, &manifest, limit);
            within(limit * 2, "answering a first request", work, drop)?
                .map_err(|why| format!("model `{}`: {why}", canary.listed.name))?;
        }
        Ok(())
    }

    /// Lets the new version answer its share, until it is known to be good or not.
    fn trial(&self) -> Outcome<()> {
        if self.canaries(&self.host()?).is_empty() {
            // Nothing is open that both could serve.
            return Ok(());
        }
        self.trial.set_open(true);
        let since = Instant::now();
        loop {
            match self.trial.verdict(since, &self.rules) {
                Verdict::Pass => return Ok(()),
                Verdict::Fail(why) => {
                    return Err(format!("{why}; the first failure: {}", self.trial.first_failure()));
                }
                Verdict::Wait => std::thread::sleep(LOOK),
            }
            self.licensed()?;
            self.host()?;
        }
    }

    /// Lets the new version serve. What there is to be said though it went well.
    fn switch(&self, watched: bool) -> Outcome<Option<String>> {
        self.licensed()?;
        let host = self.host()?;
        let switched = self.put_in_force(&host, &self.old, &self.new)?;
        self.trial.set_open(false);
        self.enter(UpgradeState::Draining);
        if let Ok(record) = self.record() {
            self.switched.set(PluginUpgrade { state: UpgradeState::Done, ..record }).ok();
        }
        let until = Instant::now() + self.rules.drain;
        let leaving: Vec<_> =
            switched.old.into_iter().filter_map(|backend| leave(self.host.clone(), backend, until)).collect();
        let limit = host.config().server.drain + host.config().models.load_timeout;
        if let Err(why) = self.await_reopened(&switched.reopened, limit) {
            // Everything that serves now is closed once more: rare, and better than a model that cannot be opened.
            self.put_in_force(&host, &self.new, &self.old)?;
            return Err(why);
        }
        let note = self.use_on_disk();
        self.change(|record| record.settled = true);
        if let (true, Some(package)) = (watched, self.package.clone()) {
            let mut new = self.new.clone();
            new.plugin = None;
            let watch = Watch {
                host: self.host.clone(),
                id: self.id.clone(),
                new,
                package,
                before: self.old.version().to_owned(),
                path: self.old.path.clone(),
                packages: Plugins::at(&self.options.state),
                trial: self.trial.clone(),
            };
            watch.begin();
        }
        // The host may stop meanwhile.
        drop((switched.reopened, host));
        while leaving.iter().any(|backend| !backend.is_finished()) {
            std::thread::sleep(LOOK);
        }
        Ok(note)
    }

    /// From now on a start finds the new version. What is to be said of it.
    fn use_on_disk(&self) -> Option<String> {
        let package = self.package.as_ref()?;
        let packages = Plugins::at(&self.options.state);
        if packages.in_use(&self.id).is_ok_and(|now| now.folder != self.old.path) {
            return Some("another version was installed meanwhile; upgrade once more".to_owned());
        }
        packages.point(&self.id, Some(&package.folder)).err().map(|error| {
            tracing::error!(plugin = self.id, %error, "the new version serves, and cannot be put in use on disk");
            format!("it serves, but a restart takes the version before: {error}")
        })
    }

    fn put_in_force(&self, host: &Host, old: &Found, new: &Found) -> Outcome<Switched> {
        let (parts, started) = (host.parts(), host.started());
        // A look at the plugin folders meanwhile would put the old listing back.
        let _alone = futures::executor::block_on(started.changing.lock());
        let (plugins, listed) = self.listing(host, old, new)?;
        let names = listing::names(&host.config(), &listed);
        let promote = Promote { trial: self.trial.clone(), plugins, listed };
        let switched = parts.catalog.ask(promote).map_err(|error| error.message)?;
        let rebuilt = futures::executor::block_on(parts.router.rebuild(names));
        rebuilt.map_err(|error| error.message)?;
        Ok(switched)
    }

    /// Waits until the models that were closed for the switch are open again.
    fn await_reopened(&self, entries: &[Arc<Entry>], limit: Duration) -> Outcome<()> {
        let until = Instant::now() + limit;
        for entry in entries {
            loop {
                match entry.stage() {
                    Stage::Failed(_, error) => {
                        return Err(format!("model `{}`: {}", entry.name(), error.message));
                    }
                    Stage::Closing | Stage::Loading if Instant::now() < until => std::thread::sleep(LOOK),
                    // Open, or closed by somebody since.
                    _ => break,
                }
            }
        }
        Ok(())
    }

    /// The version before has nothing left to do: it is told so when nobody holds it any more.
    fn retire(&mut self) {
        self.forget(self.old.licence.clone());
        self.old.plugin = None;
        let until = Instant::now() + Duration::from_secs(2);
        while Arc::strong_count(&self.old_plugin) > 1 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        trim_memory();
    }

    /// A version that is over has no licence to be told of, unless it serves again.
    fn forget(&self, gone: Option<Arc<Gate>>) {
        let (Some(gate), Ok(host)) = (gone, self.host.get()) else { return };
        let shelf = host.parts().catalog.shelf();
        let same = |found: &Found| found.licence.as_ref().is_some_and(|other| Arc::ptr_eq(other, &gate));
        if let Some(book) = shelf.shared.licences.get()
            && !shelf.plugins().iter().any(same)
            && !shelf.upgrades.has(&gate)
        {
            book.forget(&gate);
        }
    }

    /// The old version serves all, as before.
    fn back(&mut self, why: &str) {
        self.trial.set_open(false);
        tracing::error!(plugin = self.id, version = self.new.version(), why, "the upgrade is rolled back");
        let stopped = self.host().is_err();
        if let Ok(host) = self.host.get() {
            let taken = host.parts().catalog.ask(Withdraw(self.trial.clone())).unwrap_or_default();
            std::thread::scope(|scope| {
                for backend in taken {
                    let drain = backend.settings().drain;
                    scope.spawn(move || {
                        backend.bounce();
                        close_and_wait(backend, drain);
                    });
                }
            });
        }
        self.new.plugin = None;
        self.forget(self.new.licence.clone());
        if let (Some(package), false) = (&self.package, stopped) {
            let noted = Plugins::at(&self.options.state).note_failed(
                package,
                self.old.version(),
                why,
                Timestamp::now(),
            );
            if let Err(error) = noted {
                tracing::error!(plugin = self.id, %error, "that a version failed cannot be noted");
            }
        }
        // What is installed is another version again.
        if let (Ok(host), false) = (self.host.get(), stopped)
            && let Err(error) = futures::executor::block_on(host.refresh())
        {
            tracing::error!(plugin = self.id, %error, "what is installed cannot be looked at");
        }
        self.change(|record| {
            record.beside = None;
            record.info.problem = Some(why.to_owned());
            record.info.state = UpgradeState::RolledBack;
        });
    }
}

/// Lets a backend finish what it has, until then at the latest, and closes it; on a thread. A host that stops gives it the
/// time that it gives every request.
fn leave(host: WeakHost, backend: Arc<Backend>, until: Instant) -> Option<JoinHandle<()>> {
    backend.refuse(until);
    let stays = backend.clone();
    let serves = move || host.get().is_ok_and(|host| !host.is_stopping());
    let work = move || {
        while !backend.is_idle() && Instant::now() < until && serves() {
            std::thread::sleep(LOOK);
        }
        let left = if serves() { Duration::ZERO } else { backend.settings().drain };
        close_and_wait(backend, left);
    };
    let spawned = std::thread::Builder::new().name("leaves".to_owned()).spawn(work);
    spawned
        .map_err(|error| {
            tracing::error!(model = stays.name(), %error, "no thread to finish requests on; it is closed");
            close_and_wait(stays, Duration::ZERO);
        })
        .ok()
}

/// Does `work` on a thread, which is left to itself when it takes longer than `limit`; `late` gets what comes then.
fn within<T: Send + 'static>(
    limit: Duration,
    doing: &str,
    work: impl FnOnce() -> T + Send + 'static,
    late: impl FnOnce(T) + Send + 'static,
) -> Outcome<T> {
    let (sender, receiver) = channel();
    let worker = move || {
        if let Err(unheard) = sender.send(work()) {
            late(unheard.0);
        }
    };
    let spawned = std::thread::Builder::new().name("upgrade step".to_owned()).spawn(worker);
    spawned.map_err(|error| format!("no thread for {doing}: {error}"))?;
    receiver.recv_timeout(limit).map_err(|error| match error {
        RecvTimeoutError::Timeout => format!("{doing} took longer than {limit:?}"),
        RecvTimeoutError::Disconnected => format!("{doing} panicked; see the log"),
    })
}
