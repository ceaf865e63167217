//! The plugins of this host: which files there are, which are loaded, and what is wrong with the others.

use crate::info::PluginInfo;
use crate::loader::{BidQuery, Plugin, Shared, load};
use backplane_registry::plugin::{Manifest, inspect};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Where plugins are looked for, and what they are told.
#[derive(Clone, Debug, Default)]
pub struct PluginOptions {
    /// Folders, in order: the first file with an id wins.
    pub dirs: Vec<PathBuf>,
    /// Files, before all folders.
    pub files: Vec<PathBuf>,
    /// Ids that are not loaded.
    pub disabled: Vec<String>,
    /// The section of each plugin's own, as JSON.
    pub settings: HashMap<String, String>,
    /// The section of plugins that have none.
    pub default_settings: String,
    /// How long a plugin may take to load.
    pub load_timeout: Duration,
}

/// A file that is, or should have been, a plugin.
#[derive(Clone)]
pub struct Found {
    pub path: PathBuf,
    pub manifest: Option<Manifest>,
    pub sha256: String,
    pub plugin: Option<Arc<Plugin>>,
    pub problem: Option<String>,
}

impl Found {
    pub fn info(&self) -> PluginInfo {
        let file = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // A plugin that lacks a runtime says so in its bid for any model.
        let hint = self.plugin.as_ref().and_then(|plugin| {
            let formats = self.manifest.as_ref().map(|manifest| manifest.formats.clone()).unwrap_or_default();
            let format = formats.first().map(String::as_str).unwrap_or_default();
            plugin.bid(BidQuery { format, model_json: "{}", ..BidQuery::default() })
        });
        let hint = hint.filter(|bid| bid.score == 0 && !bid.text.is_empty()).map(|bid| bid.text);
        let manifest = self.manifest.as_ref();
        PluginInfo {
            id: manifest.map_or_else(|| file.clone(), |manifest| manifest.id.clone()),
            version: manifest.map(|manifest| manifest.version.clone()).unwrap_or_default(),
            abi: manifest.map(|manifest| manifest.abi.to_string()).unwrap_or_default(),
            sha256: self.sha256.clone(),
            capabilities: manifest
                .map(|manifest| {
                    manifest.capabilities.iter().map(|c| format!("{}/{}", c.name, c.version)).collect()
                })
                .unwrap_or_default(),
            formats: manifest.map(|manifest| manifest.formats.clone()).unwrap_or_default(),
            isolation: "in-process",
            ready: self.plugin.is_some(),
            problem: self.problem.clone().or(hint),
            file,
        }
    }

    pub fn id(&self) -> Option<&str> {
        self.manifest.as_ref().map(|manifest| manifest.id.as_str())
    }
}

/// Loads what is new among the files of `options`; what is loaded already stays as it is. Blocks.
pub fn discover(options: &PluginOptions, known: &[Found], shared: &Arc<Shared>) -> Vec<Found> {
    let mut files = options.files.clone();
    for dir in &options.dirs {
        files.extend(libraries(dir));
    }
    let mut all: Vec<Found> = Vec::new();
    for path in files {
        if all.iter().any(|other| other.path == path) {
            continue;
        }
        if let Some(same) = known.iter().find(|other| other.path == path && other.plugin.is_some()) {
            all.push(same.clone());
            continue;
        }
        all.push(open(&path, options, &all, shared));
    }
    // A loaded plugin whose file was removed serves on until the host restarts.
    for other in known {
        if other.plugin.is_some() && !all.iter().any(|found| found.path == other.path) {
            all.push(other.clone());
        }
    }
    all
}

fn open(path: &Path, options: &PluginOptions, before: &[Found], shared: &Arc<Shared>) -> Found {
    let mut found =
        Found { path: path.to_owned(), manifest: None, sha256: String::new(), plugin: None, problem: None };
    let file = match inspect(path) {
        Ok(file) => file,
        Err(error) => {
            tracing::warn!(file = %path.display(), %error, "a file in a plugin folder is not a plugin");
            found.problem = Some(error.to_string());
            return found;
        }
    };
    let manifest = found.manifest.insert(file.manifest.clone()).clone();
    found.sha256.clone_from(&file.sha256);
    if options.disabled.contains(&manifest.id) {
        found.problem = Some("disabled by `plugins.disabled`".to_owned());
        return found;
    }
    if let Some(other) =
        before.iter().find(|other| other.plugin.is_some() && other.id() == Some(&manifest.id))
    {
        let first = other.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        found.problem =
            Some(format!("`{}` was loaded from `{first}` already; this file is not used", manifest.id));
        return found;
    }
    let settings =
        options.settings.get(&manifest.id).cloned().unwrap_or_else(|| options.default_settings.clone());
    match load(&file, settings, shared.clone(), options.load_timeout) {
        Ok(plugin) => {
            tracing::info!(plugin = manifest.id, version = manifest.version, "plugin loaded");
            found.plugin = Some(plugin);
        }
        Err(error) => {
            tracing::error!(plugin = manifest.id, %error, "plugin not loaded");
            found.problem = Some(error.to_string());
        }
    }
    found
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
