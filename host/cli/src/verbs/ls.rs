//! `ls`: what is installed, or what can be pulled by name.

use crate::args::Ls;
use crate::client::Client;
use crate::context::Context;
use crate::exit::Result;
use crate::output::Table;
use crate::text;
use backplane_registry::{Card, Catalogue, Kind, Set};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where a server lists what it has.
const MODELS: &str = "/admin/v1/models";

pub fn run(context: &Context, args: &Ls) -> Result<()> {
    if args.available {
        return available(context);
    }
    let elsewhere = context.is_elsewhere()?;
    // What lies here is listed whether a server runs or not; what is wrong with it, only a server can tell.
    let models = match elsewhere {
        true => context.client()?.get(MODELS)?,
        false => context
            .client()
            .ok()
            .filter(Client::is_up)
            .and_then(|client| client.get(MODELS).ok())
            .unwrap_or_default(),
    };
    let mut rows = if elsewhere { remote(&models) } else { local(context)? };
    for row in &mut rows {
        row["problem"] = problem(&models, &row["name"]);
    }
    let out = &context.out;
    if out.json {
        out.value(&rows);
        return Ok(());
    }
    let text = |row: &Value, member: &str| row[member].as_str().unwrap_or_default().to_owned();
    if context.global.quiet {
        rows.iter().for_each(|row| out.line(text(row, "name")));
        return Ok(());
    }
    if rows.is_empty() {
        out.note("nothing is installed; fetch something: `backplane pull smollm2`, or see `backplane ls --available`");
        return Ok(());
    }
    let mut table = Table::new(&["NAME", "ID", "SIZE", "MODIFIED"]);
    let now = SystemTime::now();
    for row in &rows {
        let modified = UNIX_EPOCH + Duration::from_secs(row["modified"].as_u64().unwrap_or_default());
        let size = text::bytes(row["size"].as_u64().unwrap_or_default());
        table.row([text(row, "name"), text(row, "id"), size, text::ago(modified, now)]);
    }
    out.table(&table);
    for row in &rows {
        if let Some(problem) = row["problem"].as_str() {
            out.complain(format!("warning: `{}`: {}", text(row, "name"), crate::output::printable(problem)));
        }
    }
    Ok(())
}

/// Why a server cannot open a model of this name, as far as it has found out.
fn problem(models: &Value, name: &Value) -> Value {
    let mut models = models["data"].as_array().into_iter().flatten();
    models.find(|model| model["name"] == *name).map_or(Value::Null, |model| model["problem"].clone())
}

fn local(context: &Context) -> Result<Vec<Value>> {
    let listing = context.models()?.list()?;
    for broken in &listing.broken {
        context.out.complain(format!("warning: {broken}"));
    }
    let row = |model: &backplane_registry::Installed| {
        let modified = model.modified.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        json!({
            "name": model.name, "id": model.id, "size": model.size, "modified": modified, "kind": model.card.kind,
            "format": model.card.format, "licence": model.card.licence,
        })
    };
    Ok(listing.models.iter().chain(&listing.runtimes).map(row).collect())
}

fn remote(models: &Value) -> Vec<Value> {
    let row = |model: &Value| {
        json!({
            "name": model["name"], "id": model["id"], "size": model["size"], "modified": model["installed"],
            "kind": "model", "format": model["format"], "licence": model["card"]["licence"],
        })
    };
    // What is built into a plugin was not installed.
    let installed = models["data"].as_array().into_iter().flatten().filter(|model| model["id"] != "");
    installed.map(row).collect()
}

fn available(context: &Context) -> Result<()> {
    let catalogue = Catalogue::embedded();
    let cards = catalogue.cards();
    let out = &context.out;
    let size_of = |set: &Set| catalogue.cards_of(set).map(Card::size).sum::<Option<u64>>();
    if out.json {
        let row = |card: &Card| {
            json!({
                "name": card.name, "aliases": card.aliases, "size": card.size(), "licence": card.licence,
                "kind": card.kind, "description": card.description,
            })
        };
        let set_row = |set: &Set| {
            json!({
                "name": set.name, "size": size_of(set), "kind": "set", "description": set.description,
                "models": set.models,
            })
        };
        let sets = catalogue.sets().iter().map(set_row);
        out.value(&cards.iter().map(row).chain(sets).collect::<Vec<_>>());
        return Ok(());
    }
    let mut table = Table::new(&["NAME", "SIZE", "LICENCE", "WHAT"]);
    for card in cards {
        let what = card.description.clone().unwrap_or_default();
        let what = if card.kind == Kind::Runtime { format!("{what} (runtime)") } else { what };
        table.row([
            card.name.to_string(),
            card.size().map_or_else(|| "-".to_owned(), text::bytes),
            card.licence.clone().unwrap_or_default(),
            what,
        ]);
    }
    for set in catalogue.sets() {
        let models: Vec<String> = set.models.iter().map(ToString::to_string).collect();
        table.row([
            set.name.to_string(),
            size_of(set).map_or_else(|| "-".to_owned(), text::bytes),
            "each its own".to_owned(),
            format!("{} (set: {})", set.description, models.join(", ")),
        ]);
    }
    out.table(&table);
    Ok(())
}
