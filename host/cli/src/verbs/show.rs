//! `show`: what a model is, and with `--plan` what opening it would take.

use crate::args::Show;
use crate::client::segment;
use crate::context::Context;
use crate::exit::{Exit, Failure, Result};
use crate::output::Output;
use crate::text;
use serde_json::{Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub fn run(context: &Context, args: &Show) -> Result<()> {
    let model = look_up(context, &args.model)?;
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
        let mut model = model;
        if let Some(plan) = plan {
            model["plan"] = plan;
        }
        out.value(&model);
        return fits;
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
        out.line(format!("{name:<14}{shown}"));
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

/// The installed model; else what the server has of this name: an alias, a model built into a plugin.
fn look_up(context: &Context, name: &str) -> Result<Value> {
    if !context.is_remote()? {
        match context.models()?.resolve(name) {
            Ok(installed) => {
                let mut card = json!(installed.card);
                let files: Vec<Value> = installed
                    .files
                    .iter()
                    .map(|file| json!({ "role": file.role, "size": file.size, "sha256": file.sha256, "path": file.path }))
                    .collect();
                card["id"] = installed.id.into();
                card["size"] = installed.size.into();
                card["files"] = files.into();
                return Ok(card);
            }
            Err(error @ backplane_registry::RegistryError::NotInstalled { .. }) => {
                let client = context.client()?;
                // The registry knows the names that are near.
                return client.get(&format!("/admin/v1/models/{}", segment(name))).map_err(|_| error.into());
            }
            Err(error) => return Err(error.into()),
        }
    }
    context.client()?.get(&format!("/admin/v1/models/{}", segment(name)))
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
