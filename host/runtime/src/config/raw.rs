//! The configuration file, key by key. The doc comments here are the comments of `configs/backplane.toml` and the
//! descriptions of the JSON Schema: both are generated from this file.

use super::units::{Keep, MemoryBudget, Size, Span, Window};
use crate::job::KeepAlive;
use crate::limiter::Period;
use backplane_registry::package::Level;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

fn seconds(n: u64) -> Span {
    Span(Duration::from_secs(n))
}

fn kibibytes(n: u64) -> Size {
    Size(n << 10)
}

fn mebibytes(n: u64) -> Size {
    Size(n << 20)
}

/// What a file may say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Raw {
    /// The HTTP server.
    pub server: Server,
    /// Pictures that requests name by their address. Nothing is fetched unless `hosts` names somebody.
    pub fetch: Fetch,
    /// Who may ask.
    pub auth: Auth,
    /// What a key may use when nothing was set for it.
    pub limits: Limits,
    /// Plugins: the shared libraries that serve models.
    pub plugins: Plugins,
    /// Models: when they are opened and closed, what they are called.
    pub models: Models,
    /// Answers that are given again.
    pub cache: Cache,
    /// CPU threads, one pool for all plugins.
    pub compute: Compute,
    /// The log, on standard error.
    pub log: Log,
}

/// `[server]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Where to listen. Port 0 takes any free one.
    pub address: String,
    /// Threads that serve HTTP; 0: one per core.
    pub workers: usize,
    /// The largest body of a request.
    pub body_limit: Size,
    /// The longest target of a request: its path and query.
    pub uri_limit: Size,
    /// The most that all header fields of a request may take together.
    pub header_limit: Size,
    /// How many header fields a request may have, 1 to 96.
    pub max_headers: usize,
    /// How deep the JSON of a request may nest, 1 to 128.
    pub json_depth: usize,
    /// How long a new connection may take to send its first byte.
    pub first_byte_timeout: Span,
    /// How long a client may take to send a request's header.
    pub header_timeout: Span,
    /// How long a client may pause while it sends a request's body.
    pub body_timeout: Span,
    /// How long a client may take to send a request's body.
    pub body_total_timeout: Span,
    /// The least that must come of a body per second on average, after `body_timeout`; 0B: any.
    pub body_rate: Size,
    /// How long a client may leave an answer unread that waits to be sent.
    pub send_timeout: Span,
    /// How long an idle connection stays open.
    pub keep_alive: Span,
    /// Connections at once, all threads together.
    pub max_connections: usize,
    /// How long open requests may take to finish when the host stops.
    pub drain: Span,
    /// Web pages that may call the API: origins such as "https://app.example.com", or "*" for any.
    pub cors_origins: Vec<String>,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            address: "127.0.0.1:8484".to_owned(),
            workers: 0,
            body_limit: mebibytes(32),
            uri_limit: kibibytes(8),
            header_limit: kibibytes(32),
            max_headers: 96,
            json_depth: 64,
            first_byte_timeout: seconds(5),
            header_timeout: seconds(5),
            body_timeout: seconds(15),
            body_total_timeout: seconds(600),
            body_rate: kibibytes(1),
            send_timeout: seconds(60),
            keep_alive: seconds(75),
            max_connections: 10_000,
            drain: seconds(30),
            cors_origins: Vec::new(),
        }
    }
}

/// `[fetch]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Fetch {
    /// Who may be asked: "images.example.com"; "*.example.com", every name below it; "*", anybody. On the port of
    /// `http:` or `https:`, unless another stands behind: "localhost:9000".
    pub hosts: Vec<String>,
    /// Networks that may be reached although they are not the public internet's: "10.1.2.0/24". Those of this machine,
    /// of the house and of the cloud's metadata are refused otherwise, whatever name leads there.
    pub networks: Vec<String>,
    /// The most that the pictures of a request may have together.
    pub max_bytes: Size,
    /// How long fetching the pictures of a request may take.
    pub timeout: Span,
}

impl Default for Fetch {
    fn default() -> Self {
        Self { hosts: Vec::new(), networks: Vec::new(), max_bytes: mebibytes(16), timeout: seconds(10) }
    }
}

/// `[auth]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// Whether a request needs a key. Without, anybody who reaches the address is an admin: loopback only.
    pub enabled: bool,
}

impl Default for Auth {
    fn default() -> Self {
        Self { enabled: true }
    }
}

/// `[limits]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Requests a minute; 0: no limit.
    pub requests_per_minute: u32,
    /// Tokens, prompt and answer together, within `window`; 0: no limit.
    pub tokens: u64,
    /// What `tokens` counts for: "minute", "hour", "day", "month", "total", or a time such as "15m".
    pub window: Window,
}

impl Default for Limits {
    fn default() -> Self {
        Self { requests_per_minute: 0, tokens: 0, window: Window(Period::DAY) }
    }
}

/// `[plugins]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Plugins {
    /// Folders to look for plugins in, besides the state directory's own.
    pub dirs: Vec<PathBuf>,
    /// Single files to load: shared libraries, wherever they lie.
    pub load: Vec<PathBuf>,
    /// The least that must be known of where a plugin comes from: "dev", any library; "org", a package signed with a
    /// key that `backplane plugin trust` added; "verified", with a vendor's key that the project vouches for;
    /// "core", the project's own.
    pub trust: Trust,
    /// Ids of plugins that are not to be loaded.
    pub disabled: Vec<String>,
    /// How the new version of a plugin takes over while the server runs.
    pub upgrade: Upgrade,
    /// Where a plugin runs, by its id, `"*"` for those that are not named: "in-process"; "worker", a sandboxed process
    /// of its own that has no network and reads no files but models; "worker-per-instance", one for each instance of its
    /// models; or "auto" (the default), which is in-process for plugins that came with the program and do not ask for a
    /// worker, and a worker for all others.
    #[schemars(extend("x-example" = "[plugins.isolation]\n\"*\" = \"auto\"\n\"com.example.mine\" = \"in-process\""))]
    pub isolation: BTreeMap<String, Isolation>,
    /// What the worker of a plugin is granted, by the plugin's id, `"*"` for those that are not named.
    #[schemars(extend("x-example" = WORKER_EXAMPLE))]
    pub workers: BTreeMap<String, Worker>,
    /// Settings of a plugin, by its id. The host does not read them; the plugin's own documentation says what
    /// there is.
    #[schemars(extend("x-example" = "[plugins.settings.\"dev.backplane.onnx\"]\nruntime = \"/opt/onnxruntime/lib/libonnxruntime.so\""))]
    pub settings: BTreeMap<String, Map<String, Value>>,
}

/// `plugins.upgrade`
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Upgrade {
    /// Part of the requests that the new version answers while it is on trial, 0 to 1.
    pub share: f64,
    /// The trial is over when it has answered so many.
    pub requests: u64,
    /// It is over after this time at the latest.
    pub hold: Span,
    /// Part of its requests that may fail by its own doing, beyond what fails in the version before, 0 to 1. When more
    /// do, the version before goes on.
    pub failures: f64,
    /// How long answers that the version before has begun may take once the new one serves. As long as there is one,
    /// both versions are in memory.
    pub drain: Span,
}

impl Default for Upgrade {
    fn default() -> Self {
        Self { share: 0.1, requests: 100, hold: seconds(30), failures: 0.02, drain: seconds(3600) }
    }
}

const WORKER_EXAMPLE: &str = r#"[plugins.workers."com.example.stranger"]
memory = "2GiB"
threads = 256
cores = 1
polling = true
progress = "5m"
read = ["/srv/dictionaries"]
write = ["/var/lib/stranger"]
ports = [443]
network = false
gpu = false"#;

/// `[plugins.workers."id"]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Worker {
    /// Memory that it may have of its own; model files that it maps are not counted. If it is not said: what its manifest
    /// says that it needs, and 128 MiB for the worker itself; without that no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Size>,
    /// Threads that it may have, beside those in which the worker calls it. If it is not said: as many as its manifest says
    /// that it needs, or 1024.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    /// Processors that it may take beyond the threads that the compute pool grants it, 1 if it is not said. One that takes
    /// more for five seconds has what others leave from then on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cores: Option<u32>,
    /// Whether who waits for it, and its own threads between two requests, look for up to 50 µs before they sleep, where that
    /// has been worth it lately. True if it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub polling: Option<bool>,
    /// How long a request may be open without a piece of its answer, while its reader takes what comes: then it fails, and the
    /// worker is ended with the others that it has. No limit if it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<Span>,
    /// Files and folders that it may read besides models and runtimes, and what it asks for as an installed package.
    pub read: Vec<PathBuf>,
    /// Files and folders that it may read and write, besides what it asks for as an installed package.
    pub write: Vec<PathBuf>,
    /// TCP ports of others that it may connect to, besides those of the servers that it asks for as an installed package.
    pub ports: Vec<u16>,
    /// Whether it may reach others by the network, whatever their ports, this machine's own services among them; if not, none
    /// of the servers that it asks for either. If it is not said: if it is an installed package that asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<bool>,
    /// Whether it may use GPUs. If it is not said: as `network`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<bool>,
}

/// Where a plugin runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// In the host.
    InProcess,
    /// In a process of its own.
    Worker,
    /// Each instance of its models in a process of its own.
    WorkerPerInstance,
    /// In the host if it came with the program and does not ask for a worker, and in a worker otherwise.
    #[default]
    Auto,
}

impl Isolation {
    /// Whether it is outside of the host.
    pub fn has_worker(self) -> bool {
        matches!(self, Isolation::Worker | Isolation::WorkerPerInstance)
    }

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Isolation::InProcess => "in-process",
            Isolation::Worker => "worker",
            Isolation::WorkerPerInstance => "worker-per-instance",
            Isolation::Auto => "auto",
        }
    }
}

/// `[models]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Models {
    /// How long a model stays open after its last request: "5m", "0s" to close at once, "forever".
    pub keep_alive: Keep,
    /// Memory that all open models may take together: "8GiB", or a part of what the machine has. The least recently
    /// used model is closed to make room.
    pub memory_budget: MemoryBudget,
    /// Requests that may wait for one model. One more is refused with 503 and a time to come back.
    pub max_queue: usize,
    /// How long a request may take that does not say so itself.
    pub default_deadline: Span,
    /// How long opening a model may take.
    pub load_timeout: Span,
    /// Cards (`model.toml`) of models to serve besides the installed ones.
    pub cards: Vec<PathBuf>,
    /// Other names for models. "*" stands for every name that is not known.
    #[schemars(extend("x-example" = "[models.aliases]\n\"gpt-4o\" = \"smollm2\"\n\"*\" = \"smollm2\""))]
    pub aliases: BTreeMap<String, String>,
    /// What differs for one model. Every key may be left out.
    #[serde(rename = "override")]
    #[schemars(extend("x-example" = OVERRIDE_EXAMPLE))]
    pub overrides: BTreeMap<String, Override>,
    /// Names that stand for several models, the cheapest first: an answer whose confidence is below `escalate_below`
    /// is asked of the next. Streams do not escalate.
    #[schemars(extend("x-example" = "[models.routes.\"cascade\"]\nmodels = [\"smollm2\", \"qwen2.5-coder:0.5b\"]\nescalate_below = 0.6"))]
    pub routes: BTreeMap<String, Route>,
}

/// Every key that may differ for one model.
const OVERRIDE_EXAMPLE: &str = r#"[models.override."smollm2"]
instances = 1           # copies of the model, each with its own thread
max_queue = 64          # as above, for this model
batch_window = "2ms"    # how long a batch that is not full waits for more
max_batch = 32          # requests of one batch
keep_alive = "forever"  # as above, for this model
pin = true              # never closed by idleness or to make room
weight = 2.0            # its part of the CPU threads, against 1.0 of every other model
parameters = { context = 4096 }  # for the plugin, instead of what the model card says"#;

impl Default for Models {
    fn default() -> Self {
        Self {
            keep_alive: Keep(KeepAlive::For(Duration::from_secs(300))),
            memory_budget: MemoryBudget::Percent(80.0),
            max_queue: 64,
            default_deadline: seconds(600),
            load_timeout: seconds(300),
            cards: Vec::new(),
            aliases: BTreeMap::new(),
            overrides: BTreeMap::new(),
            routes: BTreeMap::new(),
        }
    }
}

/// `[models.override."name"]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Override {
    /// Copies of the model, each with a thread of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instances: Option<u32>,
    /// Requests that may wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_queue: Option<usize>,
    /// How long a batch that is not full waits for more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_window: Option<Span>,
    /// Requests of one batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_batch: Option<usize>,
    /// How long it stays open after its last request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_alive: Option<Keep>,
    /// Whether it is never closed by idleness or to make room.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pin: Option<bool>,
    /// Its part of the CPU threads, against 1.0 of every other model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// For the plugin, instead of what the model card says.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub parameters: Map<String, Value>,
}

/// `[models.routes."name"]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Models in the order they are asked.
    pub models: Vec<String>,
    /// Confidence, 0 to 1, below which the next model is asked.
    #[serde(default = "half")]
    pub escalate_below: f64,
}

fn half() -> f64 {
    0.5
}

/// `[cache]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Cache {
    /// Whether answers are kept at all.
    pub enabled: bool,
    /// Memory for answers.
    pub max_bytes: Size,
    /// The largest answer that is kept.
    pub max_entry: Size,
    /// How long an answer is given again.
    pub ttl: Span,
    /// Capabilities whose answers are kept. Of "chat" and "complete" only those that would come out the same again:
    /// with `temperature` 0, or with a `seed`.
    pub capabilities: Vec<String>,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            enabled: true,
            max_bytes: mebibytes(64),
            max_entry: mebibytes(1),
            ttl: seconds(600),
            capabilities: ["chat", "complete", "embed", "rerank", "classify"].map(str::to_owned).to_vec(),
        }
    }
}

/// `[compute]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Compute {
    /// Threads that all plugins together may keep busy; 0: one per core.
    pub threads: u32,
    /// Whether threads are granted by weight. Without, every plugin takes what it likes.
    pub permits: bool,
}

impl Default for Compute {
    fn default() -> Self {
        Self { threads: 0, permits: true }
    }
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// "text", "json", or "auto": text on a terminal, JSON otherwise.
    pub format: LogFormat,
    /// "error", "warn", "info", "debug" or "trace"; for one part "info,backplane::router=debug".
    pub level: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Auto, level: "info".to_owned() }
    }
}

/// How much must be known of where a plugin comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Trust {
    /// Nothing.
    #[default]
    Dev,
    /// Somebody whose key the operator added signed it.
    Org,
    /// A vendor that the project vouches for signed it.
    Verified,
    /// The project signed it, or it is part of the program.
    Core,
}

impl From<Trust> for Level {
    fn from(trust: Trust) -> Self {
        match trust {
            Trust::Dev => Self::Dev,
            Trust::Org => Self::Org,
            Trust::Verified => Self::Verified,
            Trust::Core => Self::Core,
        }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}
