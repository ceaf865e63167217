//! From what is installed and configured to what the catalog keeps.

use super::entry::Listed;
use super::plugins::{Found, PluginOptions, Workers};
use super::stamp::Stamp;
use super::{ModelOptions, Options};
use crate::config::{Config, MemoryBudget, Override, Source};
use crate::error::{Error, ErrorCode, Result};
use crate::metrics::memory;
use crate::router::{Cascade, Names};
use backplane_registry::{Installed, Limits, Models};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

/// How long a plugin may take to load.
const PLUGIN_LOAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Every model: installed ones, those the configuration names by their card, and those built into plugins. The first
/// with a name wins, in this order. A copy is no model of its own: it would be opened a second time for nothing.
///
/// # Errors
/// When the state directory cannot be read. A single broken model is logged and left out.
pub fn models(state: &Path, plugins: &[Found], config: &Config) -> Result<Vec<Listed>> {
    let listing = Models::at(state).list().map_err(|error| {
        tracing::error!(%error, "installed models cannot be read");
        Error::new(ErrorCode::Unavailable, "the installed models cannot be read; see the log")
    })?;
    for broken in &listing.broken {
        tracing::warn!(error = %broken, "an installed model cannot be used");
    }
    let mut all: Vec<Listed> = Vec::new();
    let mut add = |model: Listed| {
        if !all.iter().any(|other| other.name == model.name) {
            all.push(model);
        } else {
            tracing::warn!(model = &*model.name, plugins = ?model.plugins, "another model has this name already");
        }
    };
    let mut add_installed = |model: &Installed, copies: Vec<String>| {
        add(Listed { copies, ..installed(model, plugins, config) });
        let parts = model.graphs();
        parts.iter().for_each(|graph| add(Listed { part: true, ..installed(graph, plugins, config) }));
    };
    for (model, copies) in with_copies(&listing.models, config) {
        add_installed(model, copies);
    }
    for path in &config.models.cards {
        match Installed::local(path) {
            Ok(model) => add_installed(&model, Vec::new()),
            Err(error) => {
                tracing::error!(card = %path.display(), %error, "a model of the configuration cannot be used")
            }
        }
    }
    for (found, manifest) in plugins.iter().filter_map(|found| Some((found, found.manifest.as_ref()?))) {
        if !found.has_models() {
            continue;
        }
        for model in &manifest.models {
            let name: Arc<str> = model.name.to_string().into();
            let capabilities: Vec<String> = if model.capabilities.is_empty() {
                manifest.capabilities.iter().map(|capability| capability.name.clone()).collect()
            } else {
                model.capabilities.iter().map(|capability| capability.name.clone()).collect()
            };
            let parameters = parameters(&name, &model.parameters, config);
            add(Listed {
                model_json: json!({
                    "name": &*name, "format": "", "capabilities": capabilities, "modalities": model.modalities,
                    "files": [], "parameters": parameters,
                })
                .to_string(),
                copies: Vec::new(),
                part: false,
                card: json!({"description": model.description, "modalities": model.modalities}),
                modalities: model.modalities.clone(),
                id: String::new(),
                format: String::new(),
                size: 0,
                installed: 0,
                plugins: vec![manifest.id.as_str().into()],
                limits: Limits::default(),
                made_by: found.identity().into(),
                files: "".into(),
                problem: None,
                capabilities,
                name,
            });
        }
    }
    Ok(all)
}

/// The installed models, each with the copies of it that may stand for it. One that was changed since, or has settings of
/// its own in the configuration, is a model like any other; and where the original is gone, the first copy takes its place.
fn with_copies<'a>(models: &'a [Installed], config: &Config) -> Vec<(&'a Installed, Vec<String>)> {
    let root = |model: &'a Installed| model.card.copy_of.as_ref().unwrap_or(&model.name);
    let settings = |model: &Installed| config.models.overrides.get(&model.name.to_string());
    let (copies, originals): (Vec<_>, Vec<_>) = models.iter().partition(|model| model.card.copy_of.is_some());
    let mut all: Vec<(&Installed, Vec<String>)> = Vec::new();
    for model in originals.into_iter().chain(copies) {
        let same = |(other, _): &&mut (&'a Installed, _)| {
            model.card.copy_of.is_some()
                && root(other) == root(model)
                && other.id == model.id
                && settings(other) == settings(model)
        };
        match all.iter_mut().find(same) {
            Some((_, copies)) => copies.push(model.name.to_string()),
            None => all.push((model, Vec::new())),
        }
    }
    all
}

fn installed(model: &Installed, plugins: &[Found], config: &Config) -> Listed {
    let card = &model.card;
    let name: Arc<str> = model.name.to_string().into();
    let capabilities: Vec<String> =
        card.capabilities.iter().map(|capability| capability.name.clone()).collect();
    let files: Vec<Value> = model
        .files
        .iter()
        .map(|file| json!({"role": file.role, "name": file.name, "path": file.path, "size": file.size}))
        .collect();
    let loaded =
        || plugins.iter().filter(|found| found.has_models()).filter_map(|found| found.manifest.as_ref());
    let (able, problem): (Vec<Arc<str>>, _) = match &card.plugin {
        Some(id) if loaded().any(|manifest| manifest.id == *id) => (vec![id.as_str().into()], None),
        Some(id) => (Vec::new(), Some(format!("its card asks for plugin `{id}`, which is not loaded"))),
        None => {
            let able: Vec<Arc<str>> = loaded()
                .filter(|manifest| manifest.formats.contains(&card.format))
                .map(|manifest| manifest.id.as_str().into())
                .collect();
            let problem = able
                .is_empty()
                .then(|| format!("no plugin that is loaded opens the format `{}`", card.format));
            (able, problem)
        }
    };
    Listed {
        model_json: json!({
            "name": &*name,
            "format": card.format,
            "capabilities": capabilities,
            "modalities": card.modalities,
            "files": files,
            "parameters": parameters(&name, &card.parameters, config),
            "labels": card.labels,
            "languages": card.languages,
            "context": card.context,
        })
        .to_string(),
        id: model.id.clone(),
        format: card.format.clone(),
        size: model.size,
        installed: model.modified.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        copies: Vec::new(),
        part: false,
        card: json!({
            "description": card.description,
            "licence": card.licence,
            "homepage": card.homepage,
            "modalities": card.modalities,
            "languages": card.languages,
            "context": card.context,
            "aliases": card.aliases,
        }),
        made_by: made_by(plugins, &able),
        files: model
            .files
            .iter()
            .filter_map(|file| Stamp::of(&file.path))
            .map(|stamp| stamp.to_string())
            .collect::<Vec<_>>()
            .join(", ")
            .into(),
        plugins: able,
        limits: card.limits,
        modalities: card.modalities.clone(),
        problem,
        capabilities,
        name,
    }
}

/// Which of the loaded plugins have these ids.
fn made_by(plugins: &[Found], ids: &[Arc<str>]) -> Arc<str> {
    let able = plugins.iter().filter(|found| found.plugin.is_some());
    let able = able.filter(|found| found.id().is_some_and(|id| ids.iter().any(|other| **other == *id)));
    able.map(Found::identity).collect::<Vec<_>>().join(", ").into()
}

/// Parameters of a card with those of the configuration over them.
fn parameters(name: &str, card: &serde_json::Map<String, Value>, config: &Config) -> Value {
    let mut parameters = card.clone();
    if let Some(over) = config.models.overrides.get(name) {
        parameters.extend(over.parameters.clone());
    }
    Value::Object(parameters)
}

/// Aliases and routes of the configuration, and aliases of installed cards where those leave room.
pub fn names(config: &Config, listed: &[Listed]) -> Names {
    let mut aliases = config.models.aliases.clone();
    // A copy is installed, and what is installed goes before an alias of the configuration.
    let copies: BTreeMap<&str, &str> =
        listed.iter().flat_map(|model| model.copies.iter().map(|copy| (&**copy, &*model.name))).collect();
    aliases.extend(copies.iter().map(|(copy, model)| ((*copy).to_owned(), (*model).to_owned())));
    let meant =
        |name: &String| copies.get(name.as_str()).map_or_else(|| name.clone(), |name| (*name).to_owned());
    for model in listed {
        let Some(others) = model.card["aliases"].as_array() else { continue };
        for other in others.iter().filter_map(Value::as_str) {
            aliases.entry(other.to_owned()).or_insert_with(|| model.name.to_string());
        }
    }
    let routes = config
        .models
        .routes
        .iter()
        .map(|(name, route)| {
            let mut models: Vec<String> = route.models.iter().map(meant).collect();
            models.dedup();
            (name.clone(), Cascade { models, escalate_below: route.escalate_below })
        })
        .collect();
    Names { aliases, routes }
}

/// How models are kept.
pub fn options(config: &Config, threads: u32) -> Options {
    let models = &config.models;
    let default = ModelOptions {
        keep_alive: None,
        pin: false,
        instances: 1,
        // What was set for all models goes before a card; the default does not.
        max_queue: match config.sources().get("models.max_queue") {
            None | Some(Source::Default) => None,
            Some(_) => Some(models.max_queue),
        },
        max_batch: usize::MAX,
        batch_window: Duration::ZERO,
        weight: 1.0,
        threads,
    };
    let over = |over: &Override| ModelOptions {
        keep_alive: over.keep_alive,
        pin: over.pin,
        instances: over.instances.unwrap_or(default.instances),
        max_queue: over.max_queue.or(default.max_queue),
        max_batch: over.max_batch.unwrap_or(default.max_batch),
        batch_window: over.batch_window.unwrap_or(default.batch_window),
        weight: over.weight.unwrap_or(default.weight),
        threads,
    };
    Options {
        keep_alive: models.keep_alive,
        max_queue: models.max_queue,
        memory_budget: match models.memory_budget {
            MemoryBudget::Bytes(bytes) => bytes,
            MemoryBudget::Percent(percent) => (memory::total_bytes() as f64 * percent / 100.0) as u64,
        },
        load_timeout: models.load_timeout,
        drain: config.server.drain,
        models: models.overrides.iter().map(|(name, o)| (name.clone(), over(o))).collect(),
        default,
    }
}

/// Where plugins are looked for: what the caller named, the configuration's, `<state>/plugins`, and beside the program.
pub fn plugin_options(config: &Config, state: &Path, first: &[PathBuf]) -> PluginOptions {
    let mut dirs = first.to_vec();
    dirs.extend(config.plugins.dirs.iter().cloned());
    let mut own = Vec::new();
    if let Some(beside) = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_owned())) {
        own.push(beside.join("plugins"));
        own.push(beside.join("../lib/backplane/plugins"));
    }
    PluginOptions {
        dirs,
        state: state.to_owned(),
        own,
        least: config.plugins.trust,
        files: config.plugins.load.clone(),
        disabled: config.plugins.disabled.clone(),
        settings: config.plugins.settings.clone().into_iter().collect(),
        isolation: config.plugins.isolation.clone().into_iter().collect(),
        worker: Workers {
            granted: config.plugins.workers.clone().into_iter().collect(),
            ..Workers::beside_the_program(state, files_of(&config.models.cards))
        },
        load_timeout: PLUGIN_LOAD_TIMEOUT,
    }
}

/// The files of these cards: they may lie anywhere, and workers read them.
fn files_of(cards: &[PathBuf]) -> Vec<PathBuf> {
    let known = cards.iter().filter_map(|card| Installed::local(card).ok());
    known.flat_map(|model| model.files).filter_map(|file| std::path::absolute(file.path).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RouteConfig;

    #[test]
    fn a_copy_is_another_name_until_it_is_another_model() {
        let dir = tempfile::tempdir().unwrap();
        let (state, file) = (dir.path().join("state"), dir.path().join("first.gguf"));
        std::fs::write(&file, "GGUF, more or less").unwrap();
        let registry = Models::at(&state);
        registry.pull(file.to_str().unwrap(), &Default::default(), &mut |_| ()).unwrap();
        registry.copy("first", "a-copy").unwrap();
        registry.copy("a-copy", "copy-of-copy").unwrap();
        let mut config = Config::for_tests();
        let shown = |config: &Config| -> Vec<(String, Vec<String>)> {
            let listed = models(&state, &[], config).unwrap();
            listed.iter().map(|model| (model.name.to_string(), model.copies.clone())).collect()
        };
        let one = |name: &str, copies: &[&str]| {
            (name.to_owned(), copies.iter().map(|copy| (*copy).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(shown(&config), [one("first", &["a-copy", "copy-of-copy"])]);
        config.models.aliases.insert("a-copy".to_owned(), "elsewhere".to_owned());
        let route =
            RouteConfig { models: vec!["a-copy".into(), "first".into(), "x".into()], escalate_below: 0.5 };
        config.models.routes.insert("steps".to_owned(), route);
        let names = names(&config, &models(&state, &[], &config).unwrap());
        assert_eq!(names.aliases["a-copy"], "first", "what is installed goes before an alias");
        assert_eq!(names.routes["steps"].models, ["first", "x"]);
        config.models.overrides.insert("a-copy".to_owned(), Override { pin: true, ..Override::default() });
        assert_eq!(shown(&config), [one("first", &["copy-of-copy"]), one("a-copy", &[])]);
        config.models.overrides.clear();
        registry.remove("first").unwrap();
        assert_eq!(shown(&config), [one("a-copy", &["copy-of-copy"])]);
    }

    #[test]
    fn a_plugin_is_told_what_a_file_is_called() {
        let dir = tempfile::tempdir().unwrap();
        for (file, content) in [("model.onnx", "graph"), ("model.onnx_data", "weights")] {
            std::fs::write(dir.path().join(file), content).unwrap();
        }
        let card = "name = 'large'\nformat = 'onnx'\ncapabilities = ['tensor.infer']\n\
                    [[files]]\nrole = 'model'\npath = 'model.onnx'\n\
                    [[files]]\nrole = 'external'\nname = 'weights.bin'\npath = 'model.onnx_data'\n";
        let path = dir.path().join("model.toml");
        std::fs::write(&path, card).unwrap();
        let mut config = Config::for_tests();
        config.models.cards.push(path);
        let listed = models(&dir.path().join("state"), &[], &config).unwrap();
        let told: Value = serde_json::from_str(&listed[0].model_json).unwrap();
        let files: Vec<_> =
            told["files"].as_array().unwrap().iter().map(|file| (&file["role"], &file["name"])).collect();
        assert_eq!(
            files,
            [(&json!("model"), &json!("model.onnx")), (&json!("external"), &json!("weights.bin"))]
        );
    }
}
