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

/// Inspects the libraries that lie in a folder, in order of their names; a file that cannot be used is reported. A
/// folder that is not there has none. What lies in folders below belongs to packages, which are checked first
/// ([`package::Plugins`](crate::package::Plugins)).
pub fn scan(folder: &Path) -> Vec<Scanned> {
    let library = |path: &PathBuf| path.extension().is_some_and(|end| end == "so") && !path.is_dir();
    let mut paths: Vec<PathBuf> = list(folder).unwrap_or_default().into_iter().filter(library).collect();
    paths.sort();
    paths.into_iter().map(|path| Scanned { result: inspect(&path), path }).collect()
}
