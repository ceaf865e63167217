//! From an inspected file to a [`Plugin`]: map, check layouts, enter, initialise.
#![expect(unsafe_code, reason = "maps a library and calls its entry")]

use super::plugin::Plugin;
use super::table::{PluginContext, Shared};
use super::worker::{Launch, OnCrash, WorkerEntry};
use backplane_abi::read::{self, Reader};
use backplane_abi::root;
use backplane_abi::table::*;
use backplane_abi::worker::NOT_CONFINED;
use backplane_abi::{ABI_MAJOR, ABI_MINOR, ENTRY_SYMBOL};
use backplane_registry::plugin::PluginFile;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// Why a library was not loaded. For the operator: it names the file.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The linker refused it.
    #[error(
        "plugin `{id}` ({file}): needs the symbol `{symbol}`, which no library on this machine has; install what provides it, or rebuild the plugin"
    )]
    UnresolvedSymbol { id: String, file: String, symbol: String },
    /// It was linked against a newer C library.
    #[error(
        "plugin `{id}` ({file}): needs {needs}, which this machine's C library does not have; rebuild the plugin on an older system"
    )]
    Libc { id: String, file: String, needs: String },
    /// The linker refused it for another reason.
    #[error("plugin `{id}` ({file}): cannot be mapped: {why}")]
    Map { id: String, file: String, why: String },
    /// Its Rust side was built with another layout of the SDK.
    #[error(
        "plugin `{id}` ({file}): was built with an SDK that this host does not fit: {why}; rebuild it with backplane-plugin 1.x"
    )]
    Layout { id: String, file: String, why: String },
    /// It refused the host.
    #[error(
        "plugin `{id}` {version} ({file}): refused this host (code {code}), which speaks ABI {ABI_MAJOR}.{ABI_MINOR}"
    )]
    Entry { id: String, version: String, file: String, code: i32 },
    /// It wants a newer host.
    #[error(
        "plugin `{id}` {version} ({file}): built for ABI 1.{built}, needs a host with ABI 1.{needs} or newer; this host speaks {ABI_MAJOR}.{ABI_MINOR}: upgrade the host, or use an older plugin"
    )]
    HostTooOld { id: String, version: String, file: String, built: u16, needs: u16 },
    /// Manifest and library disagree.
    #[error(
        "plugin `{id}` ({file}): its manifest says {manifest}, the library says {library}; rebuild it with a plugin.toml that matches"
    )]
    Mismatch { id: String, file: String, manifest: String, library: String },
    /// Its table lacks a function that must be there.
    #[error("plugin `{id}` ({file}): its table has no `{function}`")]
    Incomplete { id: String, file: String, function: &'static str },
    /// Its `init` failed.
    #[error("plugin `{id}` {version}: failed to start: {why}")]
    Init { id: String, version: String, why: String },
    /// It could not be started in a process of its own.
    #[error("plugin `{id}` ({file}): cannot be started in a worker: {why}")]
    Worker { id: String, file: String, why: String },
    /// It could not be confined, and so it was not loaded.
    #[error(
        "plugin `{id}` ({file}): cannot be confined, and is not run unconfined: {why}; to run it in the server at your own risk, set `plugins.isolation.\"{id}\" = \"in-process\"`"
    )]
    Sandbox { id: String, file: String, why: String },
    /// It hangs.
    #[error(
        "plugin `{id}` ({file}): did not finish {doing} within {limit:?}; it stays unused until the host restarts"
    )]
    Timeout { id: String, file: String, doing: &'static str, limit: Duration },
}

/// Loads a plugin that was inspected. Runs its constructors, entry and `init` on a thread of their own, so that one that hangs costs a
/// thread and nothing else. Blocks up to `limit`.
///
/// # Errors
/// Everything that can be wrong with a library, by name. The library stays mapped even then.
pub fn load(
    inspected: &PluginFile,
    config_json: String,
    shared: Arc<Shared>,
    limit: Duration,
    worker: Option<Launch>,
) -> Result<Arc<Plugin>, LoadError> {
    let PluginFile { path, manifest, sha256, .. } = inspected;
    let file = file_name(path);
    let inner = inspected.clone();
    let (sender, receiver) = channel();
    let identity = format!("{} {} {sha256}", manifest.id, manifest.version).into();
    let spawned = std::thread::Builder::new().name(format!("load {}", manifest.id)).spawn(move || {
        let loaded = match worker {
            None => map(&inner).and_then(|entry| enter(&entry, &inner, identity, &config_json, shared)),
            Some(mut launch) => {
                launch.open_limit = shared.open_limit.clone();
                let told = shared.clone();
                launch.on_crash = OnCrash::new(move |plugin, crash| told.breakdowns.add(plugin, crash));
                let entry = WorkerEntry::new(launch);
                let entered = enter(&entry, &inner, identity, &config_json, shared);
                // What kept it from being entered at all says more than the code.
                entered.map(Plugin::of_worker).map_err(|error| {
                    let (id, file) = (inner.manifest.id.clone(), file_name(&inner.path));
                    match entry.problem() {
                        Some(why) if why.contains(NOT_CONFINED) => LoadError::Sandbox { id, file, why },
                        Some(why) => LoadError::Worker { id, file, why },
                        None => error,
                    }
                })
            }
        };
        sender.send(loaded).ok();
    });
    let id = manifest.id.clone();
    if let Err(error) = spawned {
        return Err(LoadError::Map { id, file, why: error.to_string() });
    }
    match receiver.recv_timeout(limit) {
        Ok(loaded) => Ok(Arc::new(loaded?)),
        Err(RecvTimeoutError::Timeout) => Err(LoadError::Timeout { id, file, doing: "loading", limit }),
        // The thread is gone without an answer: a panic of ours, which its own hook has printed.
        Err(RecvTimeoutError::Disconnected) => {
            Err(LoadError::Map { id, file, why: "the loading thread died".to_owned() })
        }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Sealed copies that are mapped, by checksum: an upgrade that goes back enters what is here already, or each would leave
/// another library behind. By the rules of backplane.h an entry is called once per host; each call has its own.
static MAPPED: Mutex<BTreeMap<String, EntryV1>> = Mutex::new(BTreeMap::new());

/// Maps a library into this process: its entry.
fn map(inspected: &PluginFile) -> Result<EntryV1, LoadError> {
    if inspected.sealed.is_none() {
        return map_file(inspected);
    }
    if let Some(entry) = MAPPED.lock().get(&inspected.sha256) {
        return Ok(*entry);
    }
    // Not under the lock: its constructors may hang.
    let entry = map_file(inspected)?;
    MAPPED.lock().insert(inspected.sha256.clone(), entry);
    Ok(entry)
}

fn map_file(inspected: &PluginFile) -> Result<EntryV1, LoadError> {
    let path = inspected.mapped();
    let PluginFile { path: at, manifest, sealed, .. } = inspected;
    let file = file_name(at);
    let id = || manifest.id.clone();
    // SAFETY: runs the library's constructors, which is what loading a plugin means: the operator put it here.
    // RTLD_NOW, so that a missing symbol is an error here and not a crash later.
    let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) }
        .map_err(|error| map_error(&id(), &file, &error))?;
    // The linker knows a library by its path, and that of a sealed copy has the number of a descriptor: a number that was
    // used again would name the library that was mapped before. So it is never closed.
    std::mem::forget(sealed.clone());
    // SAFETY: the symbol has this type by the rules of backplane.h.
    let entry: EntryV1 =
        unsafe { library.get::<EntryV1>(ENTRY_SYMBOL.as_bytes()) }.map(|symbol| *symbol).map_err(|_| {
            LoadError::UnresolvedSymbol { id: id(), file: file.clone(), symbol: ENTRY_SYMBOL.to_owned() }
        })?;
    // SAFETY: only whether it is there is asked.
    let is_rust = unsafe { library.get::<*const ()>(root::SYMBOL.as_bytes()) }.is_ok();
    // Never unmapped: its threads, statics and functions may be in use until the process ends.
    std::mem::forget(library);
    if is_rust {
        root::check(&path).map_err(|report| {
            tracing::debug!("{report}");
            LoadError::Layout { id: id(), file: file.clone(), why: root::brief(&report) }
        })?;
    }
    Ok(entry)
}

fn enter(
    entry: &dyn Enter,
    inspected: &PluginFile,
    identity: Arc<str>,
    config_json: &str,
    shared: Arc<Shared>,
) -> Result<Plugin, LoadError> {
    let PluginFile { path, manifest, .. } = inspected;
    let file = file_name(path);
    let id = || manifest.id.clone();
    let context = PluginContext::leak(&manifest.id, shared.gate(inspected), shared);
    let mut table = std::ptr::null_mut();
    // SAFETY: the entry of backplane.h with a table that is never freed and a place to write to.
    let code = unsafe { entry.enter(context.table(), &raw mut table) };
    if code != BP_OK {
        return Err(LoadError::Entry { id: id(), version: manifest.version.clone(), file, code });
    }
    // SAFETY: the plugin says it wrote its table there.
    let known: bp_plugin = unsafe { read::known(table, Reader::Lenient) }.map_err(|_refused| {
        LoadError::Incomplete { id: id(), file: file.clone(), function: "struct_size" }
    })?;
    if ABI_MINOR < known.abi_minor_min {
        let (version, built, needs) = (manifest.version.clone(), known.abi_minor_built, known.abi_minor_min);
        return Err(LoadError::HostTooOld { id: id(), version, file, built, needs });
    }
    // SAFETY: strings of the table, valid until shutdown.
    let said = unsafe { (known.id.lossy(), known.version.lossy()) };
    if said.0 != manifest.id || said.1 != manifest.version {
        return Err(LoadError::Mismatch {
            id: id(),
            file,
            manifest: format!("`{}` {}", manifest.id, manifest.version),
            library: format!("`{}` {}", said.0, said.1),
        });
    }
    let missing = [
        ("init", known.init.is_none()),
        ("bid", known.bid.is_none()),
        ("model_open", known.model_open.is_none()),
        ("shutdown", known.shutdown.is_none()),
    ];
    if let Some((function, _)) = missing.into_iter().find(|(_, missing)| *missing) {
        return Err(LoadError::Incomplete { id: id(), file, function });
    }
    if let Some(init) = known.init {
        let (code, failure) = context.with_error(|err| {
            // SAFETY: the plugin's function with its own table.
            unsafe { init(table, bp_str::new(config_json), err) }
        });
        if code != BP_OK {
            let why = failure.map_or_else(|| format!("code {code}"), |failure| failure.error.message);
            return Err(LoadError::Init { id: id(), version: manifest.version.clone(), why });
        }
    }
    // SAFETY: from the entry of a library that stays mapped, initialised, with every function in its place.
    Ok(unsafe { Plugin::new(table, known, context, &manifest.id, identity) })
}

fn map_error(id: &str, file: &str, error: &libloading::Error) -> LoadError {
    // Its own text is only "dlopen failed"; the linker's is the source.
    let mut why = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        why = cause.to_string();
        source = cause.source();
    }
    let (id, file) = (id.to_owned(), file.to_owned());
    if let Some((_, symbol)) = why.split_once("undefined symbol: ") {
        let symbol = symbol.split([' ', ',']).next().unwrap_or_default().to_owned();
        return LoadError::UnresolvedSymbol { id, file, symbol };
    }
    if let Some(needs) =
        why.split('`').nth(1).map(|rest| rest.trim_end_matches('\'')).filter(|n| n.starts_with("GLIBC"))
    {
        let needs = needs.split('\'').next().unwrap_or_default().to_owned();
        return LoadError::Libc { id, file, needs };
    }
    LoadError::Map { id, file, why }
}
