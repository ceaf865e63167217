//! `plugin ls`: every plugin file that was found, loaded or not, and why not.

use crate::context::Context;
use crate::exit::Result;
use crate::output::{Table, printable};
use backplane::PluginInfo;
use backplane_registry::package::{Level, Plugins, Trust};
use backplane_registry::plugin::{Manifest, Scanned, inspect, scan};
use backplane_registry::trust::Timestamp;
use serde_json::{Value, json};

/// A plugin as it is shown.
#[derive(Debug)]
pub struct Row {
    id: String,
    version: String,
    serves: String,
    isolation: String,
    level: String,
    state: String,
}

impl From<&PluginInfo> for Row {
    fn from(plugin: &PluginInfo) -> Self {
        Self::of(&json!(plugin))
    }
}

impl Row {
    fn of(plugin: &Value) -> Self {
        let text = |member: &str| plugin[member].as_str().unwrap_or_default().to_owned();
        let serves: Vec<_> =
            plugin["capabilities"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let shadowed = plugin["shadowed_by"].as_str().map(|by| format!("shadowed by {by}"));
        let licence = licence(&plugin["license"]);
        let problem = plugin["problem"].as_str().or(shadowed.as_deref()).or(licence.as_deref());
        let state = match (problem, plugin["ready"].as_bool()) {
            _ if plugin["share"].is_number() => {
                let percent = plugin["share"].as_f64().unwrap_or_default() * 100.0;
                format!("ready; upgrade under way: it answers {percent:.0}% of the requests")
            }
            (Some(problem), Some(true)) if plugin["license"]["serves"] == false => {
                format!("loaded, and serves nobody; {problem}")
            }
            (Some(problem), Some(true)) => format!("ready; {problem}"),
            (Some(problem), _) => problem.to_owned(),
            (None, Some(true)) => "ready".to_owned(),
            (None, _) => "not loaded".to_owned(),
        };
        Self {
            id: text("id"),
            version: text("version"),
            serves: serves.join(", "),
            isolation: text("isolation"),
            level: match plugin["signer"].as_str() {
                Some(signer) => format!("{} ({signer})", text("level")),
                None => text("level"),
            },
            state,
        }
    }
}

/// What is to be known of the licence of a plugin, when it is not simply in order.
fn licence(licence: &Value) -> Option<String> {
    let state = licence["state"].as_str()?;
    let more = match (licence["problem"].as_str(), licence["ends"].as_str()) {
        (Some(problem), _) => format!(": {problem}"),
        (None, Some(ends)) => format!(", it ends {ends}"),
        (None, None) => "; `backplane license install FILE`".to_owned(),
    };
    let in_order = matches!(state, "valid" | "trial") || state == "missing" && licence["serves"] == true;
    (!in_order).then(|| format!("licence {state}{more}"))
}

/// The plugins as a table.
pub fn table(rows: &[Row]) -> Table {
    let mut table = Table::new(&["PLUGIN", "VERSION", "SERVES", "ISOLATION", "LEVEL", "STATE"]);
    for row in rows {
        table.row(
            [&row.id, &row.version, &row.serves, &row.isolation, &row.level, &row.state].map(Clone::clone),
        );
    }
    table
}

pub fn run(context: &Context) -> Result<()> {
    let client = context.client()?;
    let mut plugins = if context.is_remote()? || client.is_up() {
        client.get("/admin/v1/plugins")?["data"].take().as_array().cloned().unwrap_or_default()
    } else {
        let found = found(context)?;
        if !found.is_empty() {
            context.out.note("no server runs; these files lie where it would look");
        }
        found
    };
    in_order(&mut plugins);
    if context.out.json {
        context.out.value(&plugins);
        return Ok(());
    }
    if context.global.quiet {
        let mut ids: Vec<&str> = plugins.iter().filter_map(|plugin| plugin["id"].as_str()).collect();
        ids.dedup();
        ids.into_iter().filter(|id| !id.is_empty()).for_each(|id| context.out.line(printable(id)));
        return Ok(());
    }
    if plugins.is_empty() {
        context.out.note(format!(
            "no plugins: put shared libraries into {}, or name a folder with `serve --plugin-dir`",
            context.state()?.join("plugins").display()
        ));
        return Ok(());
    }
    context.out.table(&table(&plugins.iter().map(Row::of).collect::<Vec<_>>()));
    Ok(())
}

/// Versions of one plugin stand together, and what serves before what is only there.
fn in_order(plugins: &mut [Value]) {
    let ids: Vec<Value> = plugins.iter().map(|plugin| plugin["id"].clone()).collect();
    plugins.sort_by_cached_key(|plugin| {
        (ids.iter().position(|id| *id == plugin["id"]), plugin["ready"] != Value::Bool(true))
    });
}

/// The version of this plugin that came with the program, if one did.
pub fn bundled(context: &Context, id: &str) -> Result<Option<String>> {
    let core = |(scanned, level): (Scanned, Level)| {
        let manifest = scanned.result.ok().filter(|_| level == Level::Core)?.manifest;
        (manifest.id == id).then_some(manifest.version)
    };
    Ok(files(context)?.into_iter().find_map(core))
}

/// The manifests of the plugins where a server would look: of packages that it would believe, then of files.
/// Beside each what its package says of when it was built, in seconds since 1970.
pub fn manifests(context: &Context) -> Result<Vec<(Manifest, Option<u64>)>> {
    let state = context.state()?;
    let least = context.load_config(Vec::new())?.plugins.trust;
    let (plugins, trust) = (Plugins::at(&state), Trust::load(&state, least, Timestamp::now())?);
    let mut manifests = Vec::new();
    for version in plugins.active()? {
        if let Ok(package) = plugins.check_files(&version, &trust) {
            manifests.push((Manifest::clone(&package.manifest.plugin), package.manifest.built));
        }
    }
    manifests.extend(
        files(context)?.into_iter().filter_map(|(scanned, _)| Some((scanned.result.ok()?.manifest, None))),
    );
    Ok(manifests)
}

/// The plugin files where a server would look.
fn files(context: &Context) -> Result<Vec<(Scanned, Level)>> {
    let config = context.load_config(Vec::new())?.plugins.clone();
    let mut folders = config.dirs;
    folders.push(context.state()?.join("plugins"));
    let own = folders.len();
    if let Some(beside) = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_owned())) {
        folders.push(beside.join("plugins"));
        folders.push(beside.join("../lib/backplane/plugins"));
    }
    // Single files come first, as they do in the host; a file that is named twice is one.
    let named = config.load.into_iter().map(|path| (Scanned { result: inspect(&path), path }, Level::Dev));
    let lying = folders.iter().enumerate().flat_map(|(place, folder)| {
        let level = if place < own { Level::Dev } else { Level::Core };
        scan(folder).into_iter().map(move |scanned| (scanned, level))
    });
    let mut all: Vec<(Scanned, Level)> = Vec::new();
    for (scanned, level) in named.chain(lying) {
        if !all.iter().any(|(other, _)| other.path == scanned.path) {
            all.push((scanned, level));
        }
    }
    Ok(all)
}

/// Plugins where a server would look, checked as it would, and read without running them.
pub fn found(context: &Context) -> Result<Vec<Value>> {
    let config = context.load_config(Vec::new())?.plugins.clone();
    let problem_of = |id: &String, level: Level| {
        if level < config.trust {
            let least = config.trust;
            Some(format!(
                "nobody signed it: it is of the level `{level}`, and `plugins.trust` asks for `{least}`"
            ))
        } else {
            config.disabled.contains(id).then(|| "disabled by `plugins.disabled`".to_owned())
        }
    };
    let file_name =
        |path: &std::path::Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let describe = |scanned: Scanned, level: Level| match scanned.result {
        Ok(file) => {
            let problem = problem_of(&file.manifest.id, level);
            let offer = |offer: &backplane_registry::Capability| format!("{}/{}", offer.name, offer.version);
            json!({
                "id": file.manifest.id, "version": file.manifest.version, "file": file_name(&file.path),
                "capabilities": file.manifest.capabilities.iter().map(offer).collect::<Vec<_>>(),
                "formats": file.manifest.formats, "isolation": file.manifest.isolation.name(), "level": level,
                "signer": null, "ready": false, "problem": problem,
            })
        }
        Err(error) => {
            let name = file_name(&scanned.path);
            json!({ "id": name, "file": name, "level": level, "ready": false, "problem": error.to_string() })
        }
    };
    let mut found = packages(&context.state()?, &super::install::trust(context)?)?;
    found.extend(files(context)?.into_iter().map(|(scanned, level)| describe(scanned, level)));
    Ok(found)
}

/// The installed packages that are in use.
fn packages(state: &std::path::Path, trust: &Trust) -> Result<Vec<Value>> {
    let plugins = Plugins::at(state);
    let mut all = Vec::new();
    for version in plugins.active()? {
        let file = version.folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        all.push(match plugins.check_files(&version, trust) {
            Ok(package) => {
                let plugin = &package.manifest.plugin;
                let offers =
                    plugin.capabilities.iter().map(|offer| format!("{}/{}", offer.name, offer.version));
                json!({
                    "id": plugin.id, "version": plugin.version, "file": file,
                    "capabilities": offers.collect::<Vec<_>>(), "formats": plugin.formats,
                    "isolation": plugin.isolation.name(), "level": package.level, "signer": package.signer.owner,
                    "ready": false, "problem": null,
                })
            }
            Err(error) => json!({
                "id": version.id, "version": version.version, "file": file, "ready": false,
                "problem": error.to_string(),
            }),
        });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use backplane::config;
    use backplane_registry::plugin::Isolation;

    #[test]
    fn where_a_plugin_runs_is_said_as_the_configuration_says_it() {
        assert_eq!(Isolation::InProcess.name(), config::Isolation::InProcess.name());
        assert_eq!(Isolation::Worker.name(), config::Isolation::Worker.name());
    }

    #[test]
    fn how_it_stands_with_its_licence_is_part_of_its_state() {
        let state =
            |license: Value| Row::of(&json!({ "ready": true, "problem": null, "license": license })).state;
        assert_eq!(state(Value::Null), "ready");
        assert_eq!(state(json!({ "state": "valid", "serves": true, "ends": "2028" })), "ready");
        assert_eq!(state(json!({ "state": "missing", "serves": true })), "ready", "it needs none");
        assert_eq!(
            state(json!({ "state": "grace", "serves": true, "ends": "2026-01-01T00:00:00Z" })),
            "ready; licence grace, it ends 2026-01-01T00:00:00Z"
        );
        assert_eq!(
            state(json!({ "state": "missing", "serves": false })),
            "loaded, and serves nobody; licence missing; `backplane license install FILE`"
        );
        let revoked = json!({ "state": "revoked", "serves": false, "problem": "`id`: `acme` took it back" });
        assert_eq!(state(revoked), "loaded, and serves nobody; licence revoked: `id`: `acme` took it back");
    }
}
