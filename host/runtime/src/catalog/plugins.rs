//! The plugins of this host: which files there are, which are loaded, and what is wrong with the others.

use super::stamp::Stamp;
use crate::config::{Isolation, WorkerConfig};
use crate::error::Error;
use crate::info::{PluginChanges, PluginInfo, RefusedPlugin};
use crate::license;
use crate::loader::{
    BidQuery, Confinement, Granted, Launch, LoadError, OnCrash, OpenLimit, Plugin, Quarantine, Shared, Waits,
    in_quarantine, load,
};
use backplane_registry::license::Gate;
use backplane_registry::package::{Level, Plugins, Trust, Version, seal};
use backplane_registry::plugin::{self, Manifest, PluginFile, inspect, inspect_sealed};
use backplane_registry::trust::Timestamp;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The largest library that is copied into memory.
const MAX_LIBRARY: u64 = 4 << 30;
/// What a worker needs itself, beside what its plugin says that it needs: the stacks of the threads that call it.
const WORKER_MEMORY: u64 = 128 << 20;
/// Plugins that are loaded side by side. Each that hangs keeps a thread, and a place here until its time is over.
const LOADING: usize = 16;

/// Where plugins are looked for, and what they are told.
#[derive(Clone, Debug, Default)]
pub struct PluginOptions {
    /// Folders, in order: the first file with an id wins.
    pub dirs: Vec<PathBuf>,
    /// The state directory: its `plugins` has installed packages, and is one of the folders.
    pub state: PathBuf,
    /// Folders that belong to the program: what lies there is as good as the program.
    pub own: Vec<PathBuf>,
    /// Plugins below this level are not loaded.
    pub least: Level,
    /// Files, before all folders.
    pub files: Vec<PathBuf>,
    /// Ids that are not loaded.
    pub disabled: Vec<String>,
    /// The section of each plugin's own.
    pub settings: HashMap<String, serde_json::Map<String, serde_json::Value>>,
    /// Where plugins run that do not run in-process.
    pub isolation: HashMap<String, Isolation>,
    /// How those are started.
    pub worker: Workers,
    /// How long a plugin may take to load.
    pub load_timeout: Duration,
}

impl PluginOptions {
    /// The section of a plugin's own, as JSON, with what it asks for by name in its `config_schema`: where the native
    /// runtimes lie that were pulled, and a folder of its own for what is to outlast the host.
    fn settings_of(&self, manifest: &Manifest) -> String {
        let mut settings = self.settings.get(&manifest.id).cloned().unwrap_or_default();
        let folders =
            [("runtimes", self.state.join("runtimes")), ("data", self.state.join("data").join(&manifest.id))];
        for (name, folder) in folders {
            let schema = manifest.config_schema.as_ref();
            if schema.is_some_and(|schema| schema["properties"].get(name).is_some()) {
                settings.entry(name).or_insert_with(|| serde_json::json!(folder));
            }
        }
        serde_json::Value::Object(settings).to_string()
    }

    /// Where a plugin runs: what the operator says of it, or of all; `auto` looks at who made it, and what it asks for.
    fn isolation_of(&self, manifest: &Manifest, level: Level) -> Isolation {
        let asks = manifest.isolation == plugin::Isolation::Worker || manifest.needs_worker();
        match named(&self.isolation, &manifest.id) {
            Isolation::Auto if level == Level::Core && !asks => Isolation::InProcess,
            Isolation::Auto => Isolation::Worker,
            said => said,
        }
    }
}

/// What is said of this plugin, or else of all that are not named.
fn named<T: Clone + Default>(all: &HashMap<String, T>, id: &str) -> T {
    all.get(id).or_else(|| all.get("*")).cloned().unwrap_or_default()
}

/// How plugins are started in processes of their own.
#[derive(Clone, Debug, Default)]
pub struct Workers {
    /// `backplane-worker`.
    pub program: PathBuf,
    /// What they may read: the files of models and runtimes. Not what lies beside them: who can open a file can lock it, and
    /// a `pull` would wait for ever.
    pub read: Vec<PathBuf>,
    /// The state directory, in which it is noted that a plugin crashed again and again.
    pub state: PathBuf,
    /// What each is granted.
    pub granted: HashMap<String, WorkerConfig>,
}

impl Workers {
    /// The program that was installed with this one.
    pub fn beside_the_program(state: &Path, files: Vec<PathBuf>) -> Self {
        let beside = std::env::current_exe().unwrap_or_default();
        // As installed, as packaged, and as cargo builds a test.
        let places = ["backplane-worker", "../lib/backplane/backplane-worker", "../backplane-worker"];
        let mut programs = places.map(|place| beside.with_file_name(place)).into_iter();
        let program =
            programs.find(|program| program.exists()).unwrap_or_else(|| beside.with_file_name(places[0]));
        let mut read: Vec<_> = ["models/blobs/sha256", "runtimes"].map(|folder| state.join(folder)).into();
        read.extend(files);
        Self { program, read, state: state.to_owned(), granted: HashMap::new() }
    }

    /// How this plugin is started.
    fn launch(&self, file: &PluginFile, isolation: Isolation, limit: Duration) -> Launch {
        let manifest = &file.manifest;
        Launch {
            program: self.program.clone(),
            library: std::path::absolute(&file.path).unwrap_or_else(|_| file.path.clone()),
            sealed: file.sealed.clone(),
            id: manifest.id.clone(),
            version: manifest.version.clone(),
            confinement: Confinement::Sandbox(self.granted_to(file)),
            per_instance: isolation == Isolation::WorkerPerInstance,
            polling: named(&self.granted, &manifest.id).polling,
            progress: named(&self.granted, &manifest.id).progress,
            on_crash: OnCrash::default(),
            // Before the loader gives up, so that no process is left.
            limit: limit.mul_f32(0.8),
            open_limit: OpenLimit::default(),
            quarantine: Some(self.quarantine_of(file)),
        }
    }

    fn granted_to(&self, file: &PluginFile) -> Granted {
        let (manifest, granted) = (&file.manifest, named(&self.granted, &file.manifest.id));
        // What is not there yet is made by the first pull, and read after a restart.
        let mut read: Vec<_> = self.read.iter().filter(|path| path.exists()).cloned().collect();
        read.extend(granted.read);
        let (mut write, mut ports) = (granted.write, granted.ports);
        // What an install shows that it asks for was agreed to; of a library that somebody put into a folder nobody was
        // shown anything.
        let agreed = file.packaged;
        let asked = &manifest.resources;
        if agreed {
            let granted = |path: &&PathBuf| !self.is_the_hosts(path);
            read.extend(asked.read.iter().filter(granted).cloned());
            write.extend(asked.write.iter().filter(granted).cloned());
        }
        if agreed && granted.network != Some(false) {
            ports.extend(asked.hosts.iter().map(|host| host.port));
        }
        Granted {
            read,
            write,
            // What it says that it needs it is held to, shown to somebody or not: that opens nothing.
            memory: granted
                .memory
                .or_else(|| asked.memory.map(|bytes| bytes.saturating_add(WORKER_MEMORY)))
                .unwrap_or(0),
            threads: granted.threads.or(asked.threads).unwrap_or(Granted::default().threads),
            cores: granted.cores,
            network: granted.network.unwrap_or(agreed && asked.network),
            ports,
            gpu: granted.gpu.unwrap_or(agreed && asked.gpu),
        }
    }

    /// Whether a path has to do with the state directory, where the server's keys are: no plugin's manifest opens that.
    fn is_the_hosts(&self, path: &Path) -> bool {
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let (path, state) = (real(path), real(&self.state));
        path.starts_with(&state) || state.starts_with(&path)
    }

    /// What this plugin asks for and does not have in its worker, for people.
    fn withheld_from(&self, file: &PluginFile) -> Option<String> {
        let (id, asked, granted) = (&file.manifest.id, &file.manifest.resources, self.granted_to(file));
        let mut lacks: Vec<(String, String)> = Vec::new();
        let mut add = |what: String, key: &str, value: &str| {
            lacks.push((what, format!("`plugins.workers.\"{id}\".{key} = {value}`")));
        };
        let hosts: Vec<_> = asked.hosts.iter().filter(|host| !granted.ports.contains(&host.port)).collect();
        if asked.network && !granted.network {
            add("the network".to_owned(), "network", "true");
        } else if !granted.network && !hosts.is_empty() {
            let names: Vec<String> = hosts.iter().map(ToString::to_string).collect();
            let mut ports: Vec<String> = hosts.iter().map(|host| host.port.to_string()).collect();
            ports.dedup();
            add(format!("connections to {}", names.join(", ")), "ports", &format!("[{}]", ports.join(", ")));
        }
        if asked.gpu && !granted.gpu {
            add("a GPU".to_owned(), "gpu", "true");
        }
        let readable = [&granted.read[..], &granted.write].concat();
        for (what, key, asked, granted) in
            [("reading", "read", &asked.read, &readable), ("writing", "write", &asked.write, &granted.write)]
        {
            let lacking = asked.iter().filter(|path| !granted.iter().any(|has| path.starts_with(has)));
            let paths: Vec<String> = lacking.map(|path| path.display().to_string()).collect();
            if !paths.is_empty() {
                add(
                    format!("{what} `{}`", paths.join("`, `")),
                    key,
                    &format!("[\"{}\"]", paths.join("\", \"")),
                );
            }
        }
        let (what, settings): (Vec<_>, Vec<_>) = lacks.into_iter().unzip();
        (!what.is_empty()).then(|| {
            format!(
                "it asks for {}, which its worker does not have; {} and a restart grant it",
                what.join(", and for "),
                settings.join(", ")
            )
        })
    }

    fn quarantine_of(&self, file: &PluginFile) -> Quarantine {
        Quarantine::of(&self.state, &file.manifest.id, &file.sha256)
    }
}

/// A file that is, or should have been, a plugin.
#[derive(Clone, Default)]
pub struct Found {
    /// The library, or the folder of a package.
    pub path: PathBuf,
    id: Option<String>,
    pub manifest: Option<Manifest>,
    pub sha256: String,
    pub level: Level,
    /// Whose key signed its package.
    pub signer: Option<String>,
    pub plugin: Option<Arc<Plugin>>,
    pub isolation: Isolation,
    pub problem: Option<String>,
    /// What its requests look at, if it has to do with licences.
    pub licence: Option<Arc<Gate>>,
    /// The file that is used in its place: of those with one id the first wins, as an installed package does over what
    /// came with the program.
    pub shadowed_by: Option<String>,
    /// It was to be loaded, and could not be.
    pub refused: bool,
    /// Where it would be noted, when it runs in a worker.
    quarantine: Option<Quarantine>,
    /// What it asks for and its worker does not have.
    withheld: Option<String>,
    /// It was let in, and could not be started.
    failed: bool,
    /// A thread is still inside it: it was given up, and must not be entered again.
    hangs: bool,
    /// Which file it was read from.
    stamp: Option<Stamp>,
    /// Another file has its path now.
    replaced: bool,
    /// It was removed from the disk.
    removed: bool,
    /// What says that it must not run any more.
    revoked: Option<String>,
}

impl Found {
    pub fn info(&self) -> PluginInfo {
        let file = self.file();
        // A plugin that lacks a runtime says so in its bid for any model.
        let hint = self.plugin.as_ref().and_then(|plugin| {
            let formats = self.manifest.as_ref().map(|manifest| manifest.formats.clone()).unwrap_or_default();
            let format = formats.first().map(String::as_str).unwrap_or_default();
            match plugin.bid(BidQuery { format, model_json: "{}", ..BidQuery::default() }, Waits::Request) {
                Ok(bid) => Some(bid.text).filter(|text| bid.score == 0 && !text.is_empty()),
                Err(late) => Some(late),
            }
        });
        let replaced = self.replaced.then(|| {
            format!(
                "its file `{file}` was replaced; `backplane plugin upgrade` or a restart lets it take over"
            )
        });
        let removed =
            self.removed.then(|| "it was removed, and is served until the server restarts".to_owned());
        let revoked = self.still_revoked();
        let quarantined = self.is_quarantined();
        let quarantine = quarantined.then(|| in_quarantine(self.id().unwrap_or_default()));
        let manifest = self.manifest.as_ref();
        PluginInfo {
            id: self.id.clone().unwrap_or_else(|| file.clone()),
            version: manifest.map(|manifest| manifest.version.clone()).unwrap_or_default(),
            abi: manifest.map(|manifest| manifest.abi.to_string()).unwrap_or_default(),
            sha256: self.sha256.clone(),
            capabilities: manifest
                .map(|manifest| {
                    manifest.capabilities.iter().map(|c| format!("{}/{}", c.name, c.version)).collect()
                })
                .unwrap_or_default(),
            formats: manifest.map(|manifest| manifest.formats.clone()).unwrap_or_default(),
            isolation: self.isolation.name(),
            level: self.level.as_str(),
            signer: self.signer.clone(),
            ready: self.plugin.is_some() && !quarantined,
            quarantined,
            revoked: self.revoked.is_some(),
            share: None,
            problem: self
                .problem
                .clone()
                .or(quarantine)
                .or(revoked)
                .or(removed)
                .or(replaced)
                .or(hint)
                .or(self.withheld.clone()),
            license: self.licence.as_deref().map(license::info),
            shadowed_by: self.shadowed_by.clone(),
            last_crash: None,
            file,
        }
    }

    /// Its models are there, loaded or not: it only has no licence.
    pub fn waits_for_licence(&self) -> bool {
        self.plugin.is_none() && self.licence.is_some() && !self.failed
    }

    /// That it was revoked and serves all the same.
    pub fn still_revoked(&self) -> Option<String> {
        let problem = self.revoked.as_ref()?;
        Some(format!("{problem}; this one serves until the server restarts, or another takes over"))
    }

    /// It crashed again and again, and is not started.
    pub fn is_quarantined(&self) -> bool {
        self.quarantine.as_ref().is_some_and(Quarantine::holds)
    }

    /// Whether its models are there: who asks for one is answered, or told why its plugin does not serve.
    pub fn has_models(&self) -> bool {
        self.plugin.is_some() || self.waits_for_licence() || self.is_quarantined()
    }

    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// Why its licence does not let it be loaded; nothing if it does, or if it needs none.
    pub fn unlicensed(&self) -> Option<Error> {
        let denial = self.licence.as_ref()?.loads().err()?;
        Some(license::refusal(self.id().unwrap_or_default(), denial))
    }

    /// Name of its file.
    pub fn file(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    pub fn version(&self) -> &str {
        self.manifest.as_ref().map(|manifest| manifest.version.as_str()).unwrap_or_default()
    }

    /// Tells it from every other plugin and from its other versions.
    pub fn identity(&self) -> String {
        format!("{} {} {}", self.id().unwrap_or_default(), self.version(), self.sha256)
    }

    /// Whether it stays as it is until the host restarts: a library is never unmapped.
    fn stays(&self) -> bool {
        self.plugin.is_some() || self.hangs
    }

    /// As it is, with a look at whether its file still is the one that is loaded, and may be.
    fn again(&self, source: &Source, options: &PluginOptions, trust: &Result<Trust, String>) -> Self {
        let mut found = self.clone();
        if let (Source::Package(version), Ok(trust)) = (source, trust) {
            let revoked = Plugins::at(&options.state).revoked(version, trust);
            found.revoked = revoked.map(|problem| problem.to_string());
        }
        if let (Some(problem), None) = (&found.revoked, &self.revoked) {
            tracing::error!(problem, "a plugin that serves was revoked; it serves until the server restarts");
        }
        let now = Stamp::of(&self.path);
        found.replaced = now.is_some() && now != self.stamp;
        found.removed = false;
        if found.replaced && !self.replaced {
            tracing::warn!(
                file = self.file(),
                "the file of a loaded plugin was replaced; `backplane plugin upgrade` or a restart lets it take over"
            );
        }
        found
    }
}

/// Loads what is new among the files of `options`; what is loaded already stays as it is. Blocks, but for no longer than
/// one plugin may take, as long as there are no more than [`LOADING`] that hang.
///
/// Files are read and plugins loaded side by side; what comes of it is the same as one after the other: of several files
/// with one id the first that loads is used.
pub fn discover(options: &PluginOptions, known: &[Found], shared: &Arc<Shared>) -> Vec<Found> {
    let trust = Trust::load(&options.state, options.least, Timestamp::now());
    let trust = trust.map_err(|error| error.to_string());
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let mut all: Vec<(Found, Option<PluginFile>)> =
        side_by_side(cores, sources(options), |source| {
            match known.iter().find(|other| other.path == source.path() && other.stays()) {
                Some(same) => (same.again(&source, options, &trust), None),
                None => look(&source, options, &trust, shared),
            }
        });
    // A loaded plugin whose file was removed serves on until the host restarts.
    for other in known {
        if other.stays() && !all.iter().any(|(found, _)| found.path == other.path) {
            all.push((Found { removed: !other.path.exists(), ..other.clone() }, None));
        }
    }
    let mut ids: Vec<Vec<(usize, PluginFile)>> = Vec::new();
    for (place, (_, file)) in all.iter_mut().enumerate() {
        let Some(file) = file.take() else { continue };
        match ids.iter_mut().find(|same| same.iter().any(|(_, first)| first.manifest.id == file.manifest.id))
        {
            Some(same) => same.push((place, file)),
            None => ids.push(vec![(place, file)]),
        }
    }
    let mut all: Vec<Found> = all.into_iter().map(|(found, _)| found).collect();
    let loaded = side_by_side(LOADING, ids, |same| load_one(same, &all, options, shared));
    for (place, outcome) in loaded.into_iter().flatten() {
        let Some(found) = all.get_mut(place) else { continue };
        match outcome {
            Outcome::Loaded(plugin) => found.plugin = Some(plugin),
            Outcome::Unused { problem } => found.problem = Some(problem),
            Outcome::Shadowed { by, problem } => (found.shadowed_by, found.problem) = (Some(by), problem),
            Outcome::Refused { problem, hangs } => {
                (found.problem, found.refused) = (Some(problem), true);
                (found.failed, found.hangs) = (true, hangs);
            }
        }
    }
    all
}

/// What came of a file.
enum Outcome {
    Loaded(Arc<Plugin>),
    Unused { problem: String },
    Shadowed { by: String, problem: Option<String> },
    Refused { problem: String, hangs: bool },
}

/// Loads the first of the files with one id that can be loaded, and says what came of each.
fn load_one(
    same: Vec<(usize, PluginFile)>,
    all: &[Found],
    options: &PluginOptions,
    shared: &Arc<Shared>,
) -> Vec<(usize, Outcome)> {
    let loaded_before =
        |id: &str| all.iter().enumerate().find(|(_, found)| found.plugin.is_some() && found.id() == Some(id));
    let mut used: Option<&Found> = None;
    same.into_iter()
        .map(|(place, file)| {
            let id = &file.manifest.id;
            if used.is_none() {
                used = loaded_before(id).map(|(_, before)| before);
            }
            // What stands before it in the order is used after a restart too.
            let later = loaded_before(id).filter(|(at, _)| place < *at && file.packaged);
            if let Some((_, before)) = later {
                let version = before.manifest.as_ref().map(|manifest| manifest.version.as_str());
                let (new, old) = (&file.manifest.version, version.unwrap_or_default());
                let problem = format!(
                    "{new} is installed and {old} serves; `backplane plugin upgrade {id}` or a restart lets it take over"
                );
                return (place, Outcome::Unused { problem });
            }
            if let Some(first) = used {
                // Somebody installed it, and means it to be used.
                let problem = file.packaged.then(|| {
                    format!(
                        "{} is installed, and `{}` comes first: the server was started with it, or with its folder \
                         (`--plugin-dir`); start it without, and the package serves",
                        file.manifest.version,
                        first.path.display()
                    )
                });
                return (place, Outcome::Shadowed { by: first.file(), problem });
            }
            let isolation = all.get(place).map(|found| found.isolation).unwrap_or_default();
            match start(&file, isolation, options, shared) {
                Ok(plugin) => {
                    tracing::info!(plugin = id, version = file.manifest.version, "plugin loaded");
                    used = all.get(place);
                    (place, Outcome::Loaded(plugin))
                }
                Err(error) => {
                    tracing::error!(plugin = id, %error, "plugin not loaded");
                    let hangs = matches!(error, LoadError::Timeout { .. });
                    (place, Outcome::Refused { problem: error.to_string(), hangs })
                }
            }
        })
        .collect()
}

/// Loads a plugin as the configuration says. Blocks, for as long as one may take.
pub fn start(
    file: &PluginFile,
    isolation: Isolation,
    options: &PluginOptions,
    shared: &Arc<Shared>,
) -> Result<Arc<Plugin>, LoadError> {
    let settings = options.settings_of(&file.manifest);
    let launch = isolation.has_worker().then(|| options.worker.launch(file, isolation, options.load_timeout));
    load(file, settings, shared.clone(), options.load_timeout, launch)
}

/// What a restart would load in the place of `old`, read and not run: the version that was installed since, or the file
/// that has its path now. `None`: the same. Whether its licence lets it serve is asked by who lets it serve.
///
/// # Errors
/// Why it would not be loaded.
pub fn newer(
    options: &PluginOptions,
    old: &Found,
    shared: &Shared,
) -> Result<Option<(Found, PluginFile)>, String> {
    let trust = Trust::load(&options.state, options.least, Timestamp::now());
    let trust = trust.map_err(|error| error.to_string());
    for source in sources(options) {
        let (path, same) = (source.path().to_owned(), source.path() == old.path);
        match &source {
            Source::Package(version) if Some(version.id.as_str()) != old.id() => continue,
            _ if same && Stamp::of(&path) == old.stamp => return Ok(None),
            _ => {}
        }
        let mut found = Found { stamp: Stamp::of(&path), path, ..Found::default() };
        match check(&source, &mut found, options, &trust) {
            Ok(file) if found.id() == old.id() => {
                let file = copied(file)?;
                if file.sha256 != found.sha256 {
                    return Err("its file was replaced while it was read; try again".to_owned());
                }
                found.licence = shared.gate(&file);
                return Ok(Some((found, file)));
            }
            Err(problem) if same || found.id() == old.id() => return Err(problem),
            _ => {}
        }
    }
    Ok(None)
}

/// A library that was replaced, under a name of its own: the linker takes a path that it knows for the file that it
/// knows.
fn copied(file: PluginFile) -> Result<PluginFile, String> {
    if file.sealed.is_some() {
        return Ok(file);
    }
    let sealed = seal(&file.path, MAX_LIBRARY).map_err(|error| error.to_string())?;
    inspect_sealed(&file.path, sealed).map_err(|error| error.to_string())
}

/// Where a plugin was found.
enum Source {
    /// A library that lies in a folder.
    File(PathBuf, Level),
    /// An installed package.
    Package(Version),
}

impl Source {
    fn path(&self) -> &Path {
        match self {
            Self::File(path, _) => path,
            Self::Package(version) => &version.folder,
        }
    }
}

/// All that may be plugins, in order: the first with an id wins.
fn sources(options: &PluginOptions) -> Vec<Source> {
    let dev = |path| Source::File(path, Level::Dev);
    let mut all: Vec<Source> = options.files.iter().cloned().map(dev).collect();
    let own: Vec<PathBuf> = options.own.iter().filter_map(|dir| dir.canonicalize().ok()).collect();
    for dir in &options.dirs {
        // What is part of the program stays so when its folder is named.
        let is_own = dir.canonicalize().is_ok_and(|dir| own.contains(&dir));
        let level = if is_own { Level::Core } else { Level::Dev };
        all.extend(libraries(dir).into_iter().map(|path| Source::File(path, level)));
    }
    match Plugins::at(&options.state).active() {
        Ok(packages) => all.extend(packages.into_iter().map(Source::Package)),
        Err(error) => tracing::error!(%error, "the installed packages cannot be listed"),
    }
    all.extend(libraries(&options.state.join("plugins")).into_iter().map(dev));
    let own = options.own.iter().flat_map(|dir| libraries(dir));
    all.extend(own.map(|path| Source::File(path, Level::Core)));
    let mut seen = HashSet::new();
    all.retain(|source| seen.insert(source.path().to_owned()));
    all
}

/// Reads a plugin without running it. It comes back when it may be loaded.
fn look(
    source: &Source,
    options: &PluginOptions,
    trust: &Result<Trust, String>,
    shared: &Shared,
) -> (Found, Option<PluginFile>) {
    let path = source.path().to_owned();
    let mut found = Found { stamp: Stamp::of(&path), path, ..Found::default() };
    let file = match check(source, &mut found, options, trust) {
        Ok(file) => file,
        Err(problem) => {
            tracing::warn!(file = %found.path.display(), problem, "a plugin is not loaded");
            (found.problem, found.refused) = (Some(problem), true);
            return (found, None);
        }
    };
    if options.disabled.contains(&file.manifest.id) {
        found.problem = Some("disabled by `plugins.disabled`".to_owned());
        return (found, None);
    }
    found.licence = shared.gate(&file);
    if let Some(Error { message: problem, .. }) = found.unlicensed() {
        tracing::warn!(file = %found.path.display(), problem, "a plugin is not loaded");
        (found.problem, found.refused) = (Some(problem), true);
        return (found, None);
    }
    (found, Some(file))
}

/// What a source is, and whether it may be loaded: a package by its signature, now.
fn check(
    source: &Source,
    found: &mut Found,
    options: &PluginOptions,
    trust: &Result<Trust, String>,
) -> Result<PluginFile, String> {
    let file = match source {
        Source::File(path, level) => {
            found.level = *level;
            inspect(path).map_err(|error| error.to_string())?
        }
        Source::Package(version) => {
            found.id = Some(version.id.clone());
            let trust = trust.as_ref().map_err(String::clone)?;
            let plugins = Plugins::at(&options.state);
            let checked = plugins.check(version, trust).map_err(|error| error.to_string())?;
            found.level = checked.verified.level;
            found.signer = Some(checked.verified.signer.owner.clone());
            checked.into_plugin_file().map_err(|error| error.to_string())?
        }
    };
    found.id = Some(file.manifest.id.clone());
    found.manifest = Some(file.manifest.clone());
    found.sha256.clone_from(&file.sha256);
    found.isolation = options.isolation_of(&file.manifest, found.level);
    let worker = found.isolation.has_worker();
    if !worker && file.manifest.needs_worker() {
        tracing::warn!(
            plugin = file.manifest.id,
            "a plugin that cannot contain its own failures runs in-process, as `plugins.isolation` says: if it panics, or \
             its runtime fails, the server ends"
        );
    }
    found.withheld = worker.then(|| options.worker.withheld_from(&file)).flatten();
    found.quarantine = worker.then(|| options.worker.quarantine_of(&file));
    if found.level < options.least {
        return Err(format!(
            "nobody signed it: it is of the level `{}`, and `plugins.trust` asks for `{}`; install it as a package",
            found.level, options.least
        ));
    }
    Ok(file)
}

/// What a look at the plugin folders changed, and what is wrong there.
pub fn changes(before: &[Found], now: &[Found]) -> PluginChanges {
    let id = |found: &Found| found.id().map_or_else(|| found.file(), str::to_owned);
    let was_loaded = |found: &Found| before.iter().any(|b| b.path == found.path && b.plugin.is_some());
    PluginChanges {
        loaded: now.iter().filter(|f| f.plugin.is_some() && !was_loaded(f)).map(id).collect(),
        refused: now
            .iter()
            .filter(|found| found.refused)
            .map(|found| RefusedPlugin {
                file: found.file(),
                problem: found.problem.clone().unwrap_or_default(),
            })
            .collect(),
        replaced: now.iter().filter(|found| found.replaced).map(id).collect(),
    }
}

/// Does `work` to every item on up to `threads` threads, this one among them. The results are in the items' order.
fn side_by_side<T: Send, R: Send>(threads: usize, items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let threads = threads.min(items.len()).max(1);
    let results: Vec<Mutex<Option<R>>> = items.iter().map(|_| Mutex::new(None)).collect();
    let queue = Mutex::new(items.into_iter().zip(&results));
    let worker = || {
        loop {
            // The lock is held for this line only.
            let next = queue.lock().next();
            let Some((item, place)) = next else { return };
            *place.lock() = Some(work(item));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // Without it there is one thread less.
            let spawned = std::thread::Builder::new().name("list".to_owned()).spawn_scoped(scope, worker);
            if let Err(error) = spawned {
                tracing::warn!(%error, "no thread to look at plugins side by side");
            }
        }
        worker();
    });
    results.into_iter().filter_map(Mutex::into_inner).collect()
}

/// Shared libraries in a folder, by name. A folder that is not there has none.
fn libraries(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "so"))
        .collect();
    files.sort();
    files
}

#[cfg(test)]
#[path = "plugins_tests.rs"]
mod tests;
