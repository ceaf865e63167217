//! What the host says of itself. Looking never acts: none of this loads a model or touches a timer.

use crate::license::LicenseInfo;
use backplane_abi::payload::schemas::Standard;
use backplane_registry::Capability;
use serde::Serialize;
use serde_json::Value;
use std::sync::Arc;

/// A model the host knows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelInfo {
    /// Its name.
    pub name: Arc<str>,
    /// Names that mean it too.
    pub aliases: Vec<String>,
    /// Those of them that are installed as models of their own, by `cp`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<String>,
    /// First 12 hex digits of its content's digest; empty for a model built into a plugin.
    pub id: String,
    /// Id of the plugin that serves it; empty when none that is loaded can.
    pub plugin: String,
    /// `"gguf"`, `"onnx"`; empty for a model built into a plugin.
    pub format: String,
    /// What it serves.
    pub capabilities: Vec<String>,
    /// Bytes of its files.
    pub size: u64,
    /// When it was installed, seconds since 1970; 0 when it was not.
    pub installed: u64,
    /// Licence, description, labels and the rest of its card.
    pub card: Value,
    /// Where it is in its life.
    pub state: ModelState,
    /// What it said of itself when it was opened: inputs, outputs, context. Null before.
    pub description: Value,
    /// Figures of the open model; `None` when it is not open.
    pub running: Option<Running>,
    /// Why it failed, in state `failed`; or why no plugin can serve it.
    pub problem: Option<String>,
}

/// Where a model is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelState {
    /// Not open; the first request opens it.
    Idle,
    /// Being opened.
    Loading,
    /// Serving.
    Ready,
    /// Finishing what it has; then idle.
    Closing,
    /// The last attempt to open it failed; the next request tries again after a pause.
    Failed,
}

/// Figures of an open model.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Running {
    /// Memory, measured when it was opened, in bytes; the plugin's estimate where that is larger.
    pub memory_bytes: u64,
    /// `"cpu"`.
    pub device: String,
    /// Requests inside instances now.
    pub busy: u32,
    /// Requests waiting.
    pub queued: u32,
    /// Requests that can be inside instances at once.
    pub slots: u32,
    /// Instances alive.
    pub instances: u32,
    /// Instances that were replaced since it was opened.
    pub replaced: u64,
    /// Seconds until it closes by itself; `None`: never.
    pub expires_in: Option<f64>,
    /// Whether it is pinned: never closed by idleness or eviction.
    pub pinned: bool,
    /// Requests answered since it was opened, and those that failed.
    pub answered: u64,
    /// See `answered`.
    pub failed: u64,
    /// Nanoseconds spent queueing and running, all requests together.
    pub queue_ns: u64,
    /// See `queue_ns`.
    pub run_ns: u64,
    /// Batches executed, and rows in them.
    pub batches: u64,
    /// See `batches`.
    pub rows: u64,
    /// The engine's own figures (`bp.stats/1`).
    pub engine: Vec<(String, f64)>,
}

/// What opening a model would take.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LoadPlan {
    /// The model.
    pub model: Arc<str>,
    /// Bytes it will take, as its plugin claims: weights, caches and scratch.
    pub needs_bytes: u64,
    /// Bytes the machine has free now.
    pub free_bytes: u64,
    /// Bytes the configuration lets all models take together.
    pub budget_bytes: u64,
    /// Bytes the open models take now.
    pub used_bytes: u64,
    /// Models that would be closed to make room, least recently used first.
    pub evicts: Vec<Arc<str>>,
    /// Whether it can be opened.
    pub fits: bool,
    /// Threads it may hope for, of how many.
    pub threads: (u32, u32),
    /// What the plugin said with its bid.
    pub text: String,
}

/// A plugin file the host found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PluginInfo {
    /// Reverse DNS; the file's name when it could not be read.
    pub id: String,
    /// Its version.
    pub version: String,
    /// ABI it was built with: `"1.0"`.
    pub abi: String,
    /// Name of its file, without the folder.
    pub file: String,
    /// sha256 of the file.
    pub sha256: String,
    /// What it serves, with schema versions: `"chat/1"`.
    pub capabilities: Vec<String>,
    /// Model formats it opens.
    pub formats: Vec<String>,
    /// `"in-process"`.
    pub isolation: &'static str,
    /// How much is known of where it comes from: `"dev"`, `"org"`, `"verified"`, `"core"`.
    pub level: &'static str,
    /// Whose key signed its package; none where it is no package.
    pub signer: Option<String>,
    /// Whether it is loaded and was initialised, and is not in quarantine.
    pub ready: bool,
    /// Whether it crashed again and again, and is not started until somebody lets it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub quarantined: bool,
    /// Whether it was revoked since it was loaded: it serves until the host restarts, or another version takes over.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub revoked: bool,
    /// While two versions of it are loaded: which part of the new requests goes to this one, 0..=1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// Why not, or what its bid says stands in its way (a missing runtime).
    pub problem: Option<String>,
    /// How it stands with its licence; none where it needs none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub license: Option<LicenseInfo>,
    /// The file with the same id that is used in its place, and comes before it: an installed package before what came with
    /// the program. Nothing is wrong with that.
    pub shadowed_by: Option<String>,
    /// The last time since the host started that its worker broke down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_crash: Option<CrashInfo>,
}

/// How a plugin's worker broke down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CrashInfo {
    /// When, seconds since 1970.
    pub at: u64,
    /// In a word: the signal (`"SIGSEGV"`), `"exit"`, or why the host ended it (`"memory"`).
    pub kind: &'static str,
    /// For people: `"was killed by SIGSEGV"`.
    pub how: String,
    /// The plugin's version.
    pub version: String,
    /// Ids of requests that it had, some of them if there were many.
    pub requests: Vec<String>,
}

/// What a look at the plugin folders found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PluginChanges {
    /// Ids of plugins that were loaded now.
    pub loaded: Vec<String>,
    /// Files that should be plugins and cannot be used, at every look.
    pub refused: Vec<RefusedPlugin>,
    /// Ids of loaded plugins whose file is another now: it is used from the next start on.
    pub replaced: Vec<String>,
}

/// A model that is not described as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChangedModel {
    /// Its name.
    pub model: Arc<str>,
    /// Members of its card that are others now (`limits.output_tokens`, `parameters.threads`, `files`), or `added`, or
    /// `removed`.
    pub changed: Vec<String>,
}

/// A file that should be a plugin and cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RefusedPlugin {
    /// Its name, without the folder.
    pub file: String,
    /// Why.
    pub problem: String,
}

/// A capability that can be asked for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CapabilityInfo {
    /// Its name.
    pub name: String,
    /// Versions of its schema that are served.
    pub versions: Vec<u32>,
    /// Models that serve it.
    pub models: Vec<Arc<str>>,
    /// Plugins that serve it.
    pub plugins: Vec<String>,
    /// Its payload: Backplane's own schema of a standard capability, and what these plugins say of it, those that say anything.
    pub schemas: Vec<CapabilitySchema>,
}

/// What is said of the payload of a capability.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CapabilitySchema {
    /// The plugin whose manifest says it; absent where it is Backplane's own schema, which every plugin keeps to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plugin: Option<String>,
    /// Version of the payload schema.
    pub version: u32,
    /// One line for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// JSON Schema of the parameters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_schema: Option<Value>,
    /// JSON Schema of each piece of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_schema: Option<Value>,
}

impl CapabilitySchema {
    /// What `plugin` says of a capability that it offers; `None` when that is only its name. What is no schema (a
    /// schema is an object) is left out.
    pub(crate) fn of(plugin: &str, offer: &Capability) -> Option<Self> {
        let schema = |schema: &Option<Value>| schema.clone().filter(Value::is_object);
        let said = Self {
            plugin: Some(plugin.to_owned()),
            version: offer.version,
            description: offer.description.clone(),
            input_schema: schema(&offer.input_schema),
            output_schema: schema(&offer.output_schema),
        };
        let silent =
            said.description.is_none() && said.input_schema.is_none() && said.output_schema.is_none();
        (!silent).then_some(said)
    }
}

impl From<&Standard> for CapabilitySchema {
    fn from(standard: &Standard) -> Self {
        Self {
            plugin: None,
            version: standard.version,
            description: Some(standard.description.to_owned()),
            input_schema: Some(standard.input_schema()),
            output_schema: standard.output_schema(),
        }
    }
}

/// How the host is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Health {
    /// Whether it takes requests.
    pub ready: bool,
    /// The parts, each with a reason when it is not well.
    pub parts: Vec<PartHealth>,
}

/// How one part is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PartHealth {
    /// `"store"`, `"disk"`, `"plugins"`, `"models"`, `"gpu"`, or an actor.
    pub part: &'static str,
    /// Whether it is well.
    pub state: PartState,
    /// What is wrong, or a figure worth knowing.
    pub detail: String,
    /// How often it was restarted.
    pub restarts: u64,
}

/// Whether a part is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PartState {
    /// Well.
    Ok,
    /// Serving, with something wrong.
    Degraded,
    /// Not serving; the host is not ready.
    Down,
    /// Not there, and not needed.
    Absent,
}
