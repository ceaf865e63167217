//! The configuration the host relies on.
//!
//! Values come from a flag, else the environment (`BACKPLANE__SECTION__KEY`), else the file, else the default. What
//! comes out of [`Config::load`] has been checked, so nothing downstream checks again; whatever is wrong is reported
//! in one go.

mod check;
mod layers;
pub(crate) mod nobody;
mod raw;
mod reference;
pub mod reload;
mod shown;
mod site;
mod units;

pub use layers::Source;
pub use raw::{Isolation, LogFormat};
pub use site::Site;
pub use units::MemoryBudget;

use crate::job::KeepAlive;
use crate::limiter::Period;
use backplane_registry::package::Level;
use ipnet::IpNet;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Checked settings. Made by [`Config::load`] and [`Config::for_tests`] only.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The HTTP server.
    pub server: ServerConfig,
    /// Pictures that requests name by their address.
    pub fetch: FetchConfig,
    /// Whether a request needs a key.
    pub auth: AuthConfig,
    /// What a key may use when nothing was set for it.
    pub limits: LimitsConfig,
    /// Where plugins come from, and their own settings.
    pub plugins: PluginsConfig,
    /// When models are opened and closed, and what they are called.
    pub models: ModelsConfig,
    /// The exact cache.
    pub cache: CacheConfig,
    /// The pool of CPU threads.
    pub compute: ComputeConfig,
    /// Log lines.
    pub log: LogConfig,
    raw: raw::Raw,
    sources: BTreeMap<String, Source>,
    options: LoadOptions,
}

/// See `[server]` in `configs/backplane.toml`.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "every key is documented in raw.rs, once")]
pub struct ServerConfig {
    pub address: SocketAddr,
    pub workers: usize,
    pub body_limit: usize,
    pub uri_limit: usize,
    pub header_limit: usize,
    pub max_headers: usize,
    pub json_depth: usize,
    pub first_byte_timeout: Duration,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    pub body_total_timeout: Duration,
    pub body_rate: u64,
    pub send_timeout: Duration,
    pub keep_alive: Duration,
    pub max_connections: usize,
    pub drain: Duration,
    pub cors_origins: Vec<String>,
}

/// See `[fetch]` in `configs/backplane.toml`.
#[derive(Clone, Debug, PartialEq)]
pub struct FetchConfig {
    /// Who may be asked; nobody: nothing is fetched.
    pub hosts: Vec<Site>,
    /// Networks that may be reached besides the public internet.
    pub networks: Vec<IpNet>,
    /// The most that the pictures of a request may have together.
    pub max_bytes: usize,
    /// How long fetching them may take.
    pub timeout: Duration,
}

/// See `[auth]` in `configs/backplane.toml`.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthConfig {
    /// Whether a request needs a key.
    pub enabled: bool,
}

/// See `[limits]` in `configs/backplane.toml`.
#[derive(Clone, Debug, PartialEq)]
pub struct LimitsConfig {
    /// Requests a minute; `None`: no limit.
    pub requests_per_minute: Option<u32>,
    /// Tokens within `window`; `None`: no limit.
    pub tokens: Option<u64>,
    /// What `tokens` counts for.
    pub window: Period,
}

/// See `[plugins]` in `configs/backplane.toml`.
#[derive(Clone, Debug, PartialEq)]
pub struct PluginsConfig {
    /// Folders to look for plugins in, besides the state directory's own.
    pub dirs: Vec<PathBuf>,
    /// Single files to load.
    pub load: Vec<PathBuf>,
    /// Plugins below this level are not loaded.
    pub trust: Level,
    /// Ids of plugins that are not to be loaded.
    pub disabled: Vec<String>,
    /// How the new version of a plugin takes over.
    pub upgrade: UpgradeConfig,
    /// Plugin id to where it runs, `"*"` for the others; `auto` unless it is said.
    pub isolation: BTreeMap<String, Isolation>,
    /// Plugin id to what its worker is granted, `"*"` for the others.
    pub workers: BTreeMap<String, WorkerConfig>,
    /// Plugin id to its settings, unread.
    pub settings: BTreeMap<String, Map<String, Value>>,
}

/// See `plugins.upgrade` in `configs/backplane.toml`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UpgradeConfig {
    /// Part of the requests that the new version answers while it is on trial, 0..=1.
    pub share: f64,
    /// Requests that it has to answer.
    pub requests: u64,
    /// How long it is on trial when there are fewer.
    pub hold: Duration,
    /// Part of its requests that may fail, 0..=1, beyond what fails in the version before.
    pub failures: f64,
    /// How long answers of the version before may take once the new one serves.
    pub drain: Duration,
}

/// See `[plugins.workers]` in `configs/backplane.toml`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerConfig {
    /// Bytes that it may have of its own; `None`: what its manifest says that it needs, or no limit.
    pub memory: Option<u64>,
    /// Threads that it may have; `None`: as many as its manifest says that it needs, or a number that harms nobody.
    pub threads: Option<u32>,
    /// Processors that it may take beyond the threads that it has of the compute pool.
    pub cores: u32,
    /// Whether it, and who waits for it, polls for a moment before it sleeps.
    pub polling: bool,
    /// How long a request may be open without a piece of its answer; `None`: no limit.
    pub progress: Option<Duration>,
    /// Files and folders that it may read besides models and runtimes.
    pub read: Vec<PathBuf>,
    /// Files and folders that it may read and write.
    pub write: Vec<PathBuf>,
    /// TCP ports of others that it may connect to.
    pub ports: Vec<u16>,
    /// Whether it may reach others by the network; `None`: if it is a package that asks for it.
    pub network: Option<bool>,
    /// Whether it may use GPUs; `None`: as `network`.
    pub gpu: Option<bool>,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            memory: None,
            threads: None,
            cores: 1,
            polling: true,
            progress: None,
            read: Vec::new(),
            write: Vec::new(),
            ports: Vec::new(),
            network: None,
            gpu: None,
        }
    }
}

/// See `[models]` in `configs/backplane.toml`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelsConfig {
    /// How long a model stays open after its last request.
    pub keep_alive: KeepAlive,
    /// Memory that all open models may take together.
    pub memory_budget: MemoryBudget,
    /// Requests that may wait for one model.
    pub max_queue: usize,
    /// How long a request may take that does not say so itself.
    pub default_deadline: Duration,
    /// How long opening a model may take.
    pub load_timeout: Duration,
    /// Model cards besides the installed models.
    pub cards: Vec<PathBuf>,
    /// Other name to a model or route. `"*"` is for every name that is not known.
    pub aliases: BTreeMap<String, String>,
    /// What differs for one model.
    pub overrides: BTreeMap<String, Override>,
    /// Names that stand for several models.
    pub routes: BTreeMap<String, RouteConfig>,
}

/// What differs for one model. `None`: as the plugin and the other settings have it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Override {
    /// Copies of the model.
    pub instances: Option<u32>,
    /// Requests that may wait.
    pub max_queue: Option<usize>,
    /// How long a batch that is not full waits for more.
    pub batch_window: Option<Duration>,
    /// Requests of one batch.
    pub max_batch: Option<usize>,
    /// How long it stays open after its last request.
    pub keep_alive: Option<KeepAlive>,
    /// Never closed by idleness or to make room.
    pub pin: bool,
    /// Its part of the CPU threads.
    pub weight: Option<f64>,
    /// For the plugin, instead of what the model card says.
    pub parameters: Map<String, Value>,
}

/// A name that stands for several models.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteConfig {
    /// Models in the order they are asked; at least one.
    pub models: Vec<String>,
    /// Confidence, 0..=1, below which the next is asked.
    pub escalate_below: f64,
}

/// See `[cache]` in `configs/backplane.toml`.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheConfig {
    /// Whether answers are kept at all.
    pub enabled: bool,
    /// Memory for answers.
    pub max_bytes: u64,
    /// The largest answer that is kept.
    pub max_entry: u64,
    /// How long an answer is given again.
    pub ttl: Duration,
    /// Capabilities whose answers are kept.
    pub capabilities: Vec<String>,
}

/// See `[compute]` in `configs/backplane.toml`.
#[derive(Clone, Debug, PartialEq)]
pub struct ComputeConfig {
    /// Threads that all plugins together may keep busy; 0: one per core.
    pub threads: u32,
    /// Whether threads are granted by weight.
    pub permits: bool,
}

/// See `[log]` in `configs/backplane.toml`.
#[derive(Clone, Debug, PartialEq)]
pub struct LogConfig {
    /// How lines look.
    pub format: LogFormat,
    /// Directives as `tracing_subscriber::EnvFilter` reads them.
    pub level: String,
}

/// Where settings come from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadOptions {
    /// A TOML file; it must be there. `None`: no file.
    pub file: Option<PathBuf>,
    /// Flags: key path and value as typed, such as `("server.address", "0.0.0.0:8484")`. The last one counts.
    pub overrides: Vec<(String, String)>,
    /// Whether `BACKPLANE__SECTION__KEY` in the environment counts.
    pub env: bool,
}

/// Everything that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub struct ConfigError {
    /// At least one.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// Path of the key, `server.address`; empty when it is not about one key.
    pub key: String,
    /// What it is set to, as TOML.
    pub value: Option<String>,
    /// Where that was said: `backplane.toml`, ``the environment variable `BACKPLANE__…` ``; empty for a default.
    pub origin: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(f, "`{}`", self.key)?;
            if let Some(value) = &self.value {
                write!(f, " = {value}")?;
            }
        }
        if !self.origin.is_empty() {
            write!(f, "{}{}", if self.key.is_empty() { "" } else { " in " }, self.origin)?;
        }
        if !self.key.is_empty() || !self.origin.is_empty() {
            f.write_str(": ")?;
        }
        f.write_str(&self.message)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.as_slice() {
            [one] => write!(f, "configuration: {one}"),
            many => {
                write!(f, "the configuration has {} problems", many.len())?;
                many.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

impl Config {
    /// Reads and checks.
    ///
    /// # Errors
    /// With every problem there is: a file that cannot be read, keys that do not exist, values that do not fit.
    pub fn load(options: LoadOptions) -> Result<Self, ConfigError> {
        let variables = if options.env { layers::environment() } else { BTreeMap::new() };
        Self::load_with(options, &variables)
    }

    fn load_with(options: LoadOptions, variables: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let layers = layers::read(&options, variables)?;
        let (raw, mut problems) = check::shape(&layers);
        let sources = layers.sources(&raw);
        let config = check::meaning(raw, sources, options, &layers, &mut problems);
        match config {
            Some(config) if problems.is_empty() => Ok(config),
            _ => {
                // The layers are kept in hash maps: two runs would tell them in two orders.
                problems.sort_by(|left, right| left.key.cmp(&right.key));
                Err(ConfigError { problems })
            }
        }
    }

    /// Reads the same file, environment and flags again.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn read_again(&self) -> Result<Self, ConfigError> {
        Self::load(self.options.clone())
    }

    /// As [`Config::read_again`], with this file in the place of the one there was.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn read_from(&self, file: Option<std::path::PathBuf>) -> Result<Self, ConfigError> {
        Self::load(LoadOptions { file, ..self.options.clone() })
    }

    /// The defaults, on port 0, with small limits and no patience.
    pub fn for_tests() -> Self {
        let set = [
            ("server.address", "127.0.0.1:0"),
            ("server.workers", "2"),
            ("server.drain", "2s"),
            // Tests load what they built from wherever it lies, and few of them are about workers.
            ("plugins.isolation.\"*\"", "in-process"),
            ("models.max_queue", "8"),
            ("models.default_deadline", "30s"),
            ("models.load_timeout", "30s"),
            ("cache.max_bytes", "1MiB"),
            ("cache.max_entry", "64KiB"),
        ];
        let overrides = set.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
        Self::fixed(LoadOptions { overrides, ..LoadOptions::default() })
    }

    fn fixed(options: LoadOptions) -> Self {
        match Self::load(options) {
            Ok(config) => config,
            Err(error) => unreachable!("tests load these settings: {error}"),
        }
    }

    /// The JSON Schema of the file.
    pub fn schema() -> Value {
        reference::schema()
    }

    /// `configs/backplane.toml`: every key with its default and what it means.
    pub fn reference() -> String {
        reference::render()
    }

    /// The values in force, as a file that would give the same.
    pub fn to_toml(&self) -> String {
        toml::to_string(&self.raw).unwrap_or_else(|error| format!("# {error}\n"))
    }

    /// The same for people to see: what may be a secret of a plugin's is hidden.
    pub fn to_shown_toml(&self) -> String {
        let mut shown = self.raw.clone();
        shown::hide_secrets(&mut shown);
        toml::to_string(&shown).unwrap_or_else(|error| format!("# {error}\n"))
    }

    /// Where each value that is in force comes from, by key path.
    pub fn sources(&self) -> &BTreeMap<String, Source> {
        &self.sources
    }

    /// The file it was read from.
    pub fn file(&self) -> Option<&Path> {
        self.options.file.as_deref()
    }
}

impl Default for Config {
    /// Every key at its default; reads neither a file nor the environment.
    fn default() -> Self {
        Self::fixed(LoadOptions::default())
    }
}

#[cfg(test)]
mod tests;
