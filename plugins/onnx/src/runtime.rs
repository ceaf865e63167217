//! Finding ONNX Runtime, and starting it once in this process.
//!
//! The plugin is built without it and opens `libonnxruntime` when the first model is opened: a host without ONNX models
//! pays nothing for it, and one without the library starts all the same. `ort` panics when it is used before it has the
//! library, so everything that uses it is given an [`Environment`], and only [`Runtime::start`] has one to give.

use backplane_plugin::prelude::*;
use ort::environment::Environment;
use ort::logging::LogLevel;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// The least version that this build of `ort` takes: 1.24 (its feature `api-24`).
const LEAST_MINOR: u32 = ort::MINOR_VERSION;

/// What a person does about a missing runtime.
const ADVICE: &str = "`backplane pull onnxruntime` installs one";

/// The plugin's section of the host's configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `libonnxruntime`, or a folder that it lies in. Nothing else is looked at then.
    runtime: Option<PathBuf>,
    /// Where pulled runtimes lie, `<name>/<version>/<library>`; the host says it.
    runtimes: Option<PathBuf>,
}

/// ONNX Runtime as one host sees it.
pub struct Runtime {
    search: Search,
    host: Host,
}

/// Where the library is, and what is known of it without loading it.
struct Search {
    settings: Settings,
    /// `ORT_DYLIB_PATH`.
    named: Option<PathBuf>,
    /// The attempt that failed last. A bid does not repeat it; it is forgotten when the file changes.
    failed: Mutex<Option<(File, String)>>,
}

/// A library at one moment: another file in its place is another attempt.
#[derive(Clone, Debug, PartialEq)]
struct File {
    path: PathBuf,
    size: u64,
    modified: Option<SystemTime>,
}

/// `ort` allows one environment per process, for ever; it is shared by all hosts in it.
static ENVIRONMENT: Mutex<Option<Environment>> = Mutex::new(None);

/// The hosts that use this library, oldest first: what ONNX Runtime says outside of any model goes to the first.
static HOSTS: Mutex<Vec<(usize, Host)>> = Mutex::new(Vec::new());

impl Runtime {
    /// Loads nothing.
    pub fn new(settings: Settings, host: Host) -> Arc<Self> {
        let named = std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()).map(PathBuf::from);
        let search = Search { settings, named, failed: Mutex::new(None) };
        let runtime = Arc::new(Self { search, host });
        lock(&HOSTS).push((Arc::as_ptr(&runtime) as usize, host));
        runtime
    }

    /// Whether a model could be opened, as far as can be told without loading anything.
    ///
    /// # Errors
    /// Why not, and what to do about it.
    pub fn check(&self) -> Result<()> {
        // A start that is under way holds the lock; a bid does not wait for it.
        match ENVIRONMENT.try_lock() {
            Ok(environment) if environment.is_some() => Ok(()),
            _ => self.search.check().map(drop).map_err(missing),
        }
    }

    /// The environment in which sessions are made; starts it when nobody has yet.
    ///
    /// # Errors
    /// As [`Runtime::check`], and when the library cannot be used.
    pub fn start(&self) -> Result<Environment> {
        let mut environment = lock(&ENVIRONMENT);
        if let Some(environment) = &*environment {
            return Ok(environment.clone());
        }
        let file = self.search.find().map_err(missing)?;
        match load(&file.path) {
            Ok(started) => {
                self.host.log(Level::Info, format!("ONNX Runtime from {}", file.path.display()));
                Ok(environment.insert(started).clone())
            }
            Err(why) => {
                // A caller is shown the file's name, the operator where it lies.
                self.host.log(Level::Warn, format!("ONNX Runtime at {}: {why}", file.path.display()));
                *lock(&self.search.failed) = Some((file, why.clone()));
                Err(missing(why))
            }
        }
    }
}

impl Search {
    fn check(&self) -> Result<File, String> {
        let file = self.find()?;
        if let Some((failed, why)) = &*lock(&self.failed)
            && *failed == file
        {
            return Err(why.clone());
        }
        match version_in(&file.path) {
            Some((1, minor)) if minor < LEAST_MINOR => Err(too_old(&file.path, &format!("1.{minor}"))),
            _ => Ok(file),
        }
    }

    /// The library to load: the configured one, or the first there is among what the environment names, what was
    /// pulled, and what lies beside this plugin.
    fn find(&self) -> Result<File, String> {
        let pointed =
            |path: &Path, by: &str| library(path).ok_or_else(|| format!("there is none where {by} points"));
        if let Some(path) = &self.settings.runtime {
            return pointed(path, "the plugin's setting `runtime`");
        }
        if let Some(path) = &self.named {
            return pointed(path, "ORT_DYLIB_PATH");
        }
        let pulled =
            self.settings.runtimes.iter().flat_map(|runtimes| versions(&runtimes.join("onnxruntime")));
        let folders = pulled.chain(beside_plugin());
        folders
            .into_iter()
            .find_map(|folder| library(&folder))
            .ok_or_else(|| "it is not installed".to_owned())
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        let id = std::ptr::from_ref(self) as usize;
        lock(&HOSTS).retain(|(other, _)| *other != id);
    }
}

fn missing(why: impl AsRef<str>) -> Error {
    let why = why.as_ref();
    Error::new(Code::FailedPrecondition, format!("ONNX Runtime cannot be used: {why}; {ADVICE}"))
        .with_reason("runtime_missing")
}

fn too_old(path: &Path, version: &str) -> String {
    format!("`{}` is version {version}, and at least 1.{LEAST_MINOR} is needed", name(path))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Loads the library and starts it. `ort` checks its version.
fn load(path: &Path) -> Result<Environment, String> {
    let builder = ort::init_from(path).map_err(|error| match error {
        ort::LoadDynamicError::BadVersion { version_str, path } => too_old(&path, &version_str),
        ort::LoadDynamicError::Dlopen { error, path } => {
            // The interesting half of a loader's error is its cause.
            let cause =
                std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            let cause = cause.replace(&*path.to_string_lossy(), "it");
            format!("`{}` cannot be loaded: {cause}", name(&path))
        }
        ort::LoadDynamicError::MissingApi { path } => format!("`{}` is not ONNX Runtime", name(&path)),
        other => other.to_string(),
    })?;
    let environment = builder
        .with_name("backplane")
        .with_logger(Arc::new(|level, _, _, at, message| {
            if let Some((_, host)) = lock(&HOSTS).first() {
                log(*host, level, at, message);
            }
        }))
        .build()
        .map_err(|error| format!("`{}` does not start: {error}", name(path)))?;
    environment.set_log_level(LogLevel::Warning);
    Ok(environment)
}

/// Writes a line of ONNX Runtime's to the host's log.
pub fn log(host: Host, level: LogLevel, at: &str, message: &str) {
    let level = match level {
        LogLevel::Fatal | LogLevel::Error => Level::Error,
        LogLevel::Warning => Level::Warn,
        LogLevel::Info => Level::Debug,
        LogLevel::Verbose => Level::Trace,
    };
    host.log(level, format!("{} ({at})", message.trim_end()));
}

/// The library at `path`: the file itself, or the one in a folder.
fn library(path: &Path) -> Option<File> {
    let file = |path: PathBuf| {
        let about = std::fs::metadata(&path).ok().filter(std::fs::Metadata::is_file)?;
        Some(File { size: about.len(), modified: about.modified().ok(), path })
    };
    if !path.is_dir() {
        return file(path.to_owned());
    }
    let mut names: Vec<PathBuf> = std::fs::read_dir(path)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name == "libonnxruntime.so" || name.starts_with("libonnxruntime.so.")
        })
        .collect();
    names.sort();
    names.into_iter().rev().find_map(file)
}

/// The folders in `folder`, the newest version first. Numbers compare as numbers: 1.9 is older than 1.31.
fn versions(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<(Vec<u64>, PathBuf)> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let name = path.file_name()?.to_string_lossy().into_owned();
            Some((name.split('.').map(|part| part.parse().unwrap_or(0)).collect(), path))
        })
        .collect();
    found.sort();
    found.into_iter().rev().map(|(_, path)| path).collect()
}

/// Major and minor in a file's name, such as `libonnxruntime.so.1.31.1`, links followed.
fn version_in(path: &Path) -> Option<(u32, u32)> {
    let path = std::fs::canonicalize(path).ok()?;
    let (_, version) = path.file_name()?.to_str()?.split_once(".so.")?;
    let mut parts = version.split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

/// The folder of the library that this code is in.
fn beside_plugin() -> Option<PathBuf> {
    let here = beside_plugin as *const () as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| {
        let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
        let range = range.and_then(|(from, to)| {
            Some(usize::from_str_radix(from, 16).ok()?..usize::from_str_radix(to, 16).ok()?)
        });
        range.is_some_and(|range| range.contains(&here))
    })?;
    Some(Path::new(&line[line.find('/')?..]).parent()?.to_owned())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_pulled_version_comes_first() {
        let folder = tempfile::tempdir().unwrap();
        for version in ["1.9.0", "1.31.1", "1.24.0"] {
            std::fs::create_dir(folder.path().join(version)).unwrap();
        }
        let names: Vec<_> = versions(folder.path())
            .iter()
            .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(names, ["1.31.1", "1.24.0", "1.9.0"]);
        assert!(versions(&folder.path().join("nothing")).is_empty());
    }

    #[test]
    fn a_library_is_a_file_or_lies_in_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(library(folder.path()), None);
        let path = folder.path().join("libonnxruntime.so.1.22.1");
        std::fs::write(&path, "x").unwrap();
        assert_eq!(library(folder.path()).unwrap().path, path);
        assert_eq!(library(&path).unwrap().size, 1);
        assert_eq!(version_in(&path), Some((1, 22)));
        let link = folder.path().join("libonnxruntime.so");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(version_in(&link), Some((1, 22)), "links are followed");
        assert_eq!(version_in(&folder.path().join("gone.so.1.2")), None);
    }

    #[test]
    fn a_library_is_found_when_it_appears_and_tried_again_when_it_changes() {
        let runtimes = tempfile::tempdir().unwrap();
        let settings = Settings { runtimes: Some(runtimes.path().to_owned()), runtime: None };
        let search = Search { settings, named: None, failed: Mutex::new(None) };
        assert_eq!(search.check().unwrap_err(), "it is not installed");

        let folder = runtimes.path().join("onnxruntime/1.31.1");
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("libonnxruntime.so.1.31.1");
        std::fs::write(&path, "x").unwrap();
        let file = search.check().unwrap();
        assert_eq!(file.path, path);

        *lock(&search.failed) = Some((file, "it is broken".to_owned()));
        assert_eq!(search.check().unwrap_err(), "it is broken", "not tried again");
        std::fs::write(&path, "longer").unwrap();
        assert!(search.check().is_ok(), "another file is another attempt");
    }

    #[test]
    fn an_old_library_is_known_by_its_name_and_a_named_one_is_the_only_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("libonnxruntime.so.1.22.1");
        std::fs::write(&path, "x").unwrap();
        let named = |runtime: &Path| Search {
            settings: Settings { runtime: Some(runtime.to_owned()), runtimes: None },
            named: Some(PathBuf::from("elsewhere")),
            failed: Mutex::new(None),
        };
        let old = named(folder.path()).check().unwrap_err();
        assert_eq!(old, "`libonnxruntime.so.1.22.1` is version 1.22, and at least 1.24 is needed");
        let gone = named(&folder.path().join("gone.so")).check().unwrap_err();
        assert!(gone.contains("the plugin's setting `runtime`"), "{gone}");
    }

    #[test]
    fn this_code_lies_beside_itself() {
        let beside = beside_plugin().unwrap();
        assert_eq!(beside, std::env::current_exe().unwrap().parent().unwrap());
    }
}
