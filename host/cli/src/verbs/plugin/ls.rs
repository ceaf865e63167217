//! `plugin ls`: every plugin file that was found, loaded or not, and why not.

use crate::context::Context;
use crate::exit::Result;
use crate::output::Table;
use backplane::PluginInfo;
use backplane_registry::plugin::{Scanned, inspect, scan};
use serde_json::{Value, json};

/// A plugin as it is shown.
#[derive(Debug)]
pub struct Row {
    id: String,
    version: String,
    serves: String,
    isolation: String,
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
        let state = match (plugin["problem"].as_str(), plugin["ready"].as_bool()) {
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
            state,
        }
    }
}

/// The plugins as a table.
pub fn table(rows: &[Row]) -> Table {
    let mut table = Table::new(&["PLUGIN", "VERSION", "SERVES", "ISOLATION", "STATE"]);
    for row in rows {
        table.row([&row.id, &row.version, &row.serves, &row.isolation, &row.state].map(Clone::clone));
    }
    table
}

pub fn run(context: &Context) -> Result<()> {
    let client = context.client()?;
    let plugins = if context.is_remote()? || client.is_up() {
        client.get("/admin/v1/plugins")?["data"].take().as_array().cloned().unwrap_or_default()
    } else {
        let found = found(context)?;
        if !found.is_empty() {
            context.out.note("no server runs; these files lie where it would look");
        }
        found
    };
    if context.out.json {
        context.out.value(&plugins);
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

/// Plugin files where a server would look, read without running them.
pub fn found(context: &Context) -> Result<Vec<Value>> {
    let config = context.load_config(Vec::new())?.plugins.clone();
    let mut folders = config.dirs;
    folders.push(context.state()?.join("plugins"));
    if let Some(beside) = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_owned())) {
        folders.push(beside.join("plugins"));
        folders.push(beside.join("../lib/backplane/plugins"));
    }
    let file_name =
        |path: &std::path::Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let describe = |scanned: Scanned| match scanned.result {
        Ok(file) => {
            let disabled = config.disabled.contains(&file.manifest.id);
            let problem = disabled.then_some("disabled by `plugins.disabled`");
            let offer = |offer: &backplane_registry::Capability| format!("{}/{}", offer.name, offer.version);
            json!({
                "id": file.manifest.id, "version": file.manifest.version, "file": file_name(&file.path),
                "capabilities": file.manifest.capabilities.iter().map(offer).collect::<Vec<_>>(),
                "formats": file.manifest.formats, "isolation": file.manifest.isolation, "ready": false, "problem": problem,
            })
        }
        Err(error) => {
            let name = file_name(&scanned.path);
            json!({ "id": name, "file": name, "ready": false, "problem": error.to_string() })
        }
    };
    // Single files come first, as they do in the host; a file that is named twice is one.
    let named = config.load.into_iter().map(|path| Scanned { result: inspect(&path), path });
    let mut all: Vec<Scanned> = Vec::new();
    for scanned in named.chain(folders.iter().flat_map(|folder| scan(folder))) {
        if !all.iter().any(|other| other.path == scanned.path) {
            all.push(scanned);
        }
    }
    Ok(all.into_iter().map(describe).collect())
}
