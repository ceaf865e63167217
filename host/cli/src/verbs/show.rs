//! `show`: what a model is, and with `--plan` what opening it would take.

use crate::args::Show;
use crate::client::{Client, segment};
use crate::context::Context;
use crate::exit::{Exit, Failure, Result};
use crate::output::Output;
use crate::text;
use backplane_registry::ModelName;
use serde_json::{Map, Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub fn run(context: &Context, args: &Show) -> Result<()> {
    let mut model = look_up(context, &args.model)?;
    let meant = by_another_name(&args.model, &model);
    if meant.is_some() {
        model["asked"] = args.model.clone().into();
    }
    let plan = if args.plan {
        let client = context.client()?;
        Some(client.get(&format!("/admin/v1/models/{}/plan", segment(&args.model)))?)
    } else {
        None
    };
    let fits = match &plan {
        Some(plan) if plan["fits"] == json!(false) => {
            Err(Failure::new(Exit::NoMemory, format!("`{}` does not fit now", args.model))
                .next("what is open: `backplane ps`; close one: `backplane stop NAME`")
                .code("no_memory"))
        }
        _ => Ok(()),
    };
    let out = &context.out;
    if out.json {
        if let Some(plan) = plan {
            model["plan"] = plan;
        }
        out.value(&model);
        return fits;
    }
    if let (Some(meant), Some(members)) = (meant, model.as_object_mut()) {
        members.shift_remove("asked");
        out.note(format!("`{}` is another name of `{}`", args.model, crate::output::printable(&meant)));
    }
    table(out, &model);
    if let Some(plan) = plan {
        out.line(format!("{:<14}{}", "plan", plan_line(&plan)));
    }
    fits
}

/// What is known of a model: a line for each member that says something, or JSON.
pub fn describe(out: &Output, model: &Value) {
    if out.json {
        out.value(model);
    } else {
        table(out, model);
    }
}

fn table(out: &Output, model: &Value) {
    for (name, value) in model.as_object().into_iter().flatten().filter(|(_, value)| is_something(value)) {
        if name == "files" {
            for file in value.as_array().into_iter().flatten() {
                out.line(format!(
                    "{:<14}{}  {}  sha256 {}",
                    "file",
                    file["role"].as_str().unwrap_or_default(),
                    text::bytes(file["size"].as_u64().unwrap_or_default()),
                    file["sha256"].as_str().map_or("not known", |sum| sum.get(..12).unwrap_or(sum)),
                ));
            }
            continue;
        }
        let shown = match value {
            Value::String(text) => crate::output::printable(text),
            Value::Number(time) if name == "created" => text::ago(
                UNIX_EPOCH + Duration::from_secs(time.as_u64().unwrap_or_default()),
                SystemTime::now(),
            ),
            Value::Number(size) if name == "size" => text::bytes(size.as_u64().unwrap_or_default()),
            Value::Array(items) if items.iter().all(Value::is_string) => {
                items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
            }
            value => value.to_string(),
        };
        out.line(format!("{name:<13} {shown}"));
    }
}

fn is_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(members) => !members.is_empty(),
        _ => true,
    }
}

/// The installed model; else what the server has of this name: an alias, a model built into a plugin; else what an alias
/// of the configuration means. All in the shape of a card.
fn look_up(context: &Context, name: &str) -> Result<Value> {
    let missing = if context.is_elsewhere()? {
        None
    } else {
        match installed(context, name) {
            Err(failure) if failure.exit == Exit::NotFound => Some(failure),
            Ok(mut card) => {
                card["problem"] = problem(context, &card["name"]);
                return Ok(card);
            }
            Err(failure) => return Err(failure),
        }
    };
    match (context.client()?.get(&format!("/admin/v1/models/{}", segment(name))), missing) {
        (Ok(model), _) => Ok(as_a_card(model)),
        (Err(failure), None) => route(context, name).ok_or(failure),
        // The registry knows the names that are near.
        (Err(_), Some(missing)) => match (route(context, name), alias(context, name)) {
            (Some(route), _) => Ok(route),
            (None, Some(target)) => installed(context, &target),
            (None, None) => Err(missing),
        },
    }
}

/// Why a server that runs here cannot open a model that is installed, as far as it has found out.
fn problem(context: &Context, name: &Value) -> Value {
    let client = context.client().ok().filter(Client::is_up);
    let path = format!("/admin/v1/models/{}", segment(name.as_str().unwrap_or_default()));
    client.and_then(|client| client.get(&path).ok()).map_or(Value::Null, |mut model| model["problem"].take())
}

fn installed(context: &Context, name: &str) -> Result<Value> {
    let installed = context.models()?.resolve(name)?;
    let files = installed.files.iter().map(
        |file| json!({ "role": file.role, "size": file.size, "sha256": file.sha256, "path": file.path }),
    );
    let mut card = json!(installed.card);
    card["files"] = files.collect();
    card["id"] = installed.id.into();
    card["size"] = installed.size.into();
    Ok(card)
}

/// What a route of the configuration is: models that are asked in turn. Of the server's configuration, where one runs.
fn route(context: &Context, name: &str) -> Option<Value> {
    let client = context.client().ok().filter(|client| client.is_up());
    let toml = match client {
        Some(client) => client.get("/admin/v1/config").ok()?["toml"].as_str()?.to_owned(),
        None => context.load_config(Vec::new()).ok()?.to_shown_toml(),
    };
    let config: toml::Table = toml.parse().ok()?;
    let route = config.get("models")?.get("routes")?.get(name)?;
    let models = json!(route.get("models")?);
    Some(json!({ "name": name, "route": models, "escalate_below": json!(route.get("escalate_below")?) }))
}

/// What an alias of the configuration means.
fn alias(context: &Context, name: &str) -> Option<String> {
    context.load_config(Vec::new()).ok()?.models.aliases.get(name).cloned()
}

/// What a server says of a model: its card first, as of one that is installed here, then how it is.
fn as_a_card(mut model: Value) -> Value {
    let mut shown = Map::new();
    let card = model["card"].take();
    // What it said of itself when it was opened; a card has a description of its own.
    let opened = model["description"].take();
    for name in ["name", "aliases", "copies"] {
        shown.insert(name.to_owned(), model[name].take());
    }
    shown.extend(
        card.as_object().cloned().unwrap_or_default().into_iter().filter(|(name, _)| name != "aliases"),
    );
    for name in ["plugin", "format", "capabilities", "id", "size", "state", "problem"] {
        shown.insert(name.to_owned(), model[name].take());
    }
    shown.insert("opened".to_owned(), opened);
    // Of a model that is built into a plugin nothing was installed.
    shown.retain(|name, value| is_something(value) && (name != "size" || *value != json!(0)));
    Value::Object(shown)
}

/// Whether a model was asked for by a name that is not its own.
fn by_another_name(asked: &str, model: &Value) -> Option<String> {
    let name = model["name"].as_str()?;
    let same = match (asked.parse::<ModelName>(), name.parse::<ModelName>()) {
        (Ok(asked), Ok(name)) => asked == name,
        _ => asked == name,
    };
    (!same).then(|| name.to_owned())
}

/// `needs 152 MB of 21 GB free · …`
fn plan_line(plan: &Value) -> String {
    let size = |member: &str| text::bytes(plan[member].as_u64().unwrap_or_default());
    let mut parts = vec![
        format!("needs {} of {} free", size("needs_bytes"), size("free_bytes")),
        format!("{} of {} for models in use", size("used_bytes"), size("budget_bytes")),
        format!("{} of {} threads", plan["threads"][0], plan["threads"][1]),
    ];
    let evicts: Vec<&str> =
        plan["evicts"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if !evicts.is_empty() {
        parts.push(format!("closes {}", evicts.join(", ")));
    }
    parts.push(if plan["fits"] == json!(true) { "fits".to_owned() } else { "does not fit".to_owned() });
    parts.extend(plan["text"].as_str().filter(|text| !text.is_empty()).map(str::to_owned));
    parts.join(" · ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_has_the_shape_of_a_card() {
        let built_in = json!({
            "name": "echo", "aliases": ["e"], "id": "", "plugin": "dev.backplane.echo", "format": "",
            "capabilities": ["echo"], "size": 0, "installed": 0, "card": { "description": "says it again" },
            "state": "idle", "description": null, "running": null, "problem": null,
        });
        let shown = as_a_card(built_in);
        let names: Vec<&String> = shown.as_object().unwrap().keys().collect();
        assert_eq!(names, ["name", "aliases", "description", "plugin", "capabilities", "state"]);
        assert_eq!(shown["description"], "says it again");
        assert_eq!(by_another_name("e", &shown).as_deref(), Some("echo"));
        assert_eq!(by_another_name("Echo:latest", &shown), None);
    }

    #[test]
    fn a_plan_is_one_line() {
        let plan = json!({
            "needs_bytes": 152_000_000, "free_bytes": 21_400_000_000_u64, "budget_bytes": 8_000_000_000_u64,
            "used_bytes": 0, "evicts": ["minilm"], "fits": true, "threads": [1, 2], "text": "ctx 4096",
        });
        assert_eq!(
            plan_line(&plan),
            "needs 152 MB of 21 GB free · 0 B of 8.0 GB for models in use · 1 of 2 threads · closes minilm · fits · ctx 4096"
        );
    }
}
