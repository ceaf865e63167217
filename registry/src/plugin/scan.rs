//! A folder of plugins.

use std::path::{Path, PathBuf};

use super::inspect::{InspectError, PluginFile, inspect};
use crate::store::list;

/// One library of a folder: a plugin, or why it is none.
#[derive(Debug)]
pub struct Scanned {
    pub path: PathBuf,
    pub result: Result<PluginFile, InspectError>,
}

/// Inspects the libraries of a folder: those that lie in it, and those of packages (`<id>/<version>-<digest>/`), in
/// order of their paths. A library that a package merely brings along is passed over; every other file that cannot be
/// used is reported. A folder that is not there has none.
pub fn scan(folder: &Path) -> Vec<Scanned> {
    let mut found: Vec<Scanned> = libraries(folder).into_iter().map(look).collect();
    for package in folders(folder).iter().flat_map(|id| folders(id)) {
        let plugins = libraries(&package).into_iter().map(look);
        found.extend(plugins.filter(|one| !matches!(one.result, Err(InspectError::NotAPlugin { .. }))));
    }
    found
}

fn look(path: PathBuf) -> Scanned {
    Scanned { result: inspect(&path), path }
}

fn libraries(folder: &Path) -> Vec<PathBuf> {
    sorted(folder, |path| path.extension().is_some_and(|extension| extension == "so") && !path.is_dir())
}

fn folders(folder: &Path) -> Vec<PathBuf> {
    sorted(folder, |path| path.is_dir())
}

fn sorted(folder: &Path, wanted: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        list(folder).unwrap_or_default().into_iter().filter(|path| wanted(path)).collect();
    paths.sort();
    paths
}
