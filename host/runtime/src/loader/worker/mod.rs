//! A plugin in a process of its own.
//!
//! The seam is the C ABI: a proxy here plays the plugin, so that everything above the loader sees the tables it always
//! sees, and `backplane-worker` plays the host to the real one. What the two say is `backplane_abi::worker`.
//!
//! - `process`: starts a worker, and says how it ended.
//! - `host`: calls of the host's table, with what a worker said.
//! - `link`: one worker that runs: its connections, the requests and the threads it has.
//! - `turn`: who reads its main connection.
//! - `arenas`: memory that it is lent for large requests.
//! - `watch`: whether it has more memory or threads than it was granted.
//! - `burn`: whether it takes more processors than it was granted.
//! - `quiet`: whether the machine has cores to spare for threads that wait.
//! - `quarantine`: plugins that crashed again and again, over restarts.
//! - `proxy`: the tables. A worker that died is started again when it is next needed.

pub use proxy::end;
pub use quarantine::{QUARANTINED, Quarantine, in_quarantine};

mod arenas;
mod burn;
mod crashes;
mod host;
mod link;
mod process;
mod proxy;
mod quarantine;
mod quiet;
mod turn;
mod watch;

use crate::info::CrashInfo;
use backplane_registry::package::SealedFile;
use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// How a plugin is started in a worker.
#[derive(Clone, Debug)]
pub struct Launch {
    /// `backplane-worker`.
    pub program: PathBuf,
    /// The plugin.
    pub library: PathBuf,
    /// Its sealed copy, when what is mapped must be what was verified: the worker is given this, and not the file.
    pub sealed: Option<Arc<SealedFile>>,
    /// Its id, as it is called in the log.
    pub id: String,
    /// Its version.
    pub version: String,
    /// How the worker is confined.
    pub confinement: Confinement,
    /// Each instance has a worker of its own, and the plugin one more, which is asked what concerns no instance.
    pub per_instance: bool,
    /// How long it may take to start.
    pub limit: Duration,
    /// How long it may take to open a model.
    pub open_limit: OpenLimit,
    /// Whether who waits for an answer, and it for the next request, may look for a moment before they sleep.
    pub polling: bool,
    /// How long a request may be open without a piece of its answer.
    pub progress: Option<Duration>,
    /// Who counts its crashes.
    pub on_crash: OnCrash,
    /// Where it is noted that it crashed again and again, and is not to be started.
    pub quarantine: Option<Quarantine>,
}

/// How long a model, or a copy of it, may take to open, and as long to close: `models.load_timeout`, which may change while
/// the worker runs.
#[derive(Clone, Debug)]
pub struct OpenLimit(Arc<AtomicU64>);

impl OpenLimit {
    /// So long.
    pub fn new(limit: Duration) -> Self {
        let this = Self(Arc::default());
        this.set(limit);
        this
    }

    /// So long from now on.
    pub fn set(&self, limit: Duration) {
        self.0.store(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn get(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

impl Default for OpenLimit {
    fn default() -> Self {
        Self::new(Duration::from_secs(300))
    }
}

/// Is told of each crash: the plugin, and how its worker ended.
#[derive(Clone, Default)]
pub struct OnCrash(Option<Arc<Hear>>);

type Hear = dyn Fn(&str, CrashInfo) + Send + Sync;

impl OnCrash {
    /// Tells this function.
    pub fn new(hear: impl Fn(&str, CrashInfo) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(hear)))
    }
}

impl std::fmt::Debug for OnCrash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnCrash")
    }
}

impl Launch {
    fn is_quarantined(&self) -> bool {
        self.quarantine.as_ref().is_some_and(Quarantine::holds)
    }

    /// A worker broke down: says so in the log, and to who counts.
    fn crashed(&self, pid: u32, kind: &'static str, how: &str, requests: &[String]) {
        /// Of how many requests an id is kept: who looks for one finds it in the log.
        const KEPT: usize = 16;
        let Self { id, version, .. } = self;
        tracing::error!(plugin = id, version, pid, ?requests, "the worker {how}");
        if let Some(hear) = &self.on_crash.0 {
            let requests = requests.iter().take(KEPT).cloned().collect();
            let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            hear(id, CrashInfo { at, kind, how: how.to_owned(), version: version.clone(), requests });
        }
    }
}

/// How a worker is confined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Confinement {
    /// Not at all: a crash stays within it, and nothing else does.
    #[default]
    Nothing,
    /// To the processor, the system's libraries, and this.
    Sandbox(Granted),
}

/// What a worker is granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Files and folders it may read.
    pub read: Vec<PathBuf>,
    /// Files and folders it may read and write.
    pub write: Vec<PathBuf>,
    /// Bytes that it may have of its own; 0 for no limit.
    pub memory: u64,
    /// Threads that it may have, beside those in which it is called.
    pub threads: u32,
    /// Processors that it may take beyond the threads that it has of the compute pool, before it has what others leave.
    pub cores: u32,
    /// Whether it may reach others by the network: any of them.
    pub network: bool,
    /// The TCP ports of others that it may connect to, when that is not all of the network.
    pub ports: Vec<u16>,
    /// Whether it may use the machine's GPUs.
    pub gpu: bool,
}

impl Default for Granted {
    fn default() -> Self {
        Self {
            read: Vec::new(),
            write: Vec::new(),
            memory: 0,
            // More than any backend starts on a large machine, and far less than what a machine minds.
            threads: 1024,
            cores: 1,
            network: false,
            ports: Vec::new(),
            gpu: false,
        }
    }
}

/// What stands for `bp_entry_v1` of a plugin in a worker. Each host that enters gets a worker of its own.
pub struct WorkerEntry {
    launch: Arc<Launch>,
    problem: Mutex<Option<String>>,
}

impl WorkerEntry {
    /// Nothing is started before a host enters.
    pub fn new(launch: Launch) -> Self {
        Self { launch: Arc::new(launch), problem: Mutex::new(None) }
    }

    /// Why the last entry failed, when it was not the plugin that refused.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().clone()
    }
}
