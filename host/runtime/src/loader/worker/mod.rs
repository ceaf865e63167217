//! A plugin in a process of its own.
//!
//! The seam is the C ABI: a proxy here plays the plugin, so that everything above the loader sees the tables it always
//! sees, and `backplane-worker` plays the host to the real one. What the two say is `backplane_abi::worker`.
//!
//! - `process`: starts a worker, and says how it ended.
//! - `host`: calls of the host's table, with what a worker said.
//! - `link`: one worker that runs: its connections, and the requests it has.
//! - `watch`: whether it has more memory or threads than it was granted.
//! - `proxy`: the tables. A worker that died is started again when it is next needed.

pub use proxy::end;

mod crashes;
mod host;
mod link;
mod process;
mod proxy;
mod watch;

use backplane_registry::package::SealedFile;
use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

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
    /// How long it may take to start.
    pub limit: Duration,
    /// Who counts its crashes.
    pub on_crash: OnCrash,
    /// The file whose presence says that it crashed again and again, and is not to be started.
    pub quarantine: Option<PathBuf>,
}

/// Is told of each crash: the plugin, and how its worker ended, in a word of few.
#[derive(Clone, Default)]
pub struct OnCrash(Option<Arc<Count>>);

type Count = dyn Fn(&str, &str) + Send + Sync;

impl OnCrash {
    /// Tells this function.
    pub fn new(count: impl Fn(&str, &str) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(count)))
    }

    fn tell(&self, plugin: &str, how: &str) {
        if let Some(count) = &self.0 {
            count(plugin, how);
        }
    }
}

impl std::fmt::Debug for OnCrash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnCrash")
    }
}

impl Launch {
    /// Whether it is in quarantine: what to do about it.
    fn quarantined(&self) -> Option<String> {
        let note = self.quarantine.as_ref().filter(|note| note.exists())?;
        Some(format!(
            "it crashed again and again and is in quarantine; install another version, or remove `{}` to try it again",
            note.display()
        ))
    }

    /// Puts it there. Whether that is noted down.
    fn put_in_quarantine(&self, how: &str) -> bool {
        let Some(note) = &self.quarantine else { return false };
        let text = format!(
            "plugin `{}` {} crashed again and again; the last time its worker {how}\n",
            self.id, self.version
        );
        let written =
            note.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(note, text));
        match &written {
            Ok(()) => {
                tracing::error!(plugin = self.id, note = %note.display(), "a plugin is put in quarantine")
            }
            Err(error) => {
                tracing::error!(plugin = self.id, %error, "the quarantine of a plugin cannot be noted down")
            }
        }
        written.is_ok()
    }
}

/// The reason of an error that says that a plugin is in quarantine.
pub const QUARANTINED: &str = "plugin_quarantined";

/// What to say of it to who asks for one of its models.
pub fn in_quarantine(id: &str) -> String {
    format!(
        "plugin `{id}` crashed again and again and is in quarantine; install another version of it, or remove its note \
         in `<state>/quarantine` to try it again"
    )
}

/// How a worker is confined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Confinement {
    /// Not at all: a crash stays within it, and nothing else does.
    #[default]
    Nothing,
    /// For plugins that need the processor only: no network, no files but these and the system's libraries, no other
    /// processes.
    Cpu {
        /// Files and folders it may read.
        read: Vec<PathBuf>,
        /// Bytes that it may have of its own; 0 for no limit.
        memory: u64,
        /// Threads that it may have.
        threads: u32,
    },
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
