//! The JSON Schema of the file and the commented file itself, both from the types in `raw.rs`.

use super::raw::Raw;
use schemars::generate::SchemaSettings;
use serde_json::Value;
use std::fmt::Write;
use std::sync::LazyLock;

/// Without references: a key path is a path through `properties`.
static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<Raw>().to_value();
    schema["title"] = "Backplane configuration".into();
    schema
});

pub(super) fn schema() -> Value {
    SCHEMA.clone()
}

/// What the file may hold below these keys: `None` when there is no such key, `true` when anything goes.
pub(super) fn below<'a>(schema: &'a Value, key: &str) -> Option<&'a Value> {
    match schema["properties"].get(key) {
        Some(found) => Some(found),
        None => schema.get("additionalProperties").filter(|inner| **inner != Value::Bool(false)),
    }
}

/// The whole schema, to walk along.
pub(super) fn root() -> &'static Value {
    &SCHEMA
}

/// The type of value that a key takes, when it takes only one.
pub(super) fn kind_of(path: &[String]) -> Option<&'static str> {
    let found = path.iter().try_fold(root(), |at, key| below(at, key))?;
    found["type"].as_str().or_else(|| found["oneOf"].is_array().then_some("string"))
}

/// The commented file.
pub(super) fn render() -> String {
    let defaults = serde_json::to_value(Raw::default()).unwrap_or_default();
    let mut out = String::from(
        "# Backplane's configuration: every key with its default. Copy what you change; the rest may be left out.\n\
         # A flag beats the environment (BACKPLANE__SERVER__ADDRESS), which beats this file. `backplane config check`\n\
         # reads a file without using it, `backplane config show` prints what is in force and where it comes from.\n",
    );
    let members = |schema: &'static Value| schema["properties"].as_object().into_iter().flatten();
    for (section, schema) in members(root()) {
        let _ = write!(out, "\n\n{}[{section}]\n", comment(schema));
        for (key, schema) in members(schema) {
            let default = &defaults[section][key];
            let _ = match schema["x-example"].as_str() {
                Some(example) => write!(out, "\n{}{}", comment(schema), commented_out(example)),
                None if schema["properties"].is_object() => {
                    let _ = write!(out, "\n{}[{section}.{key}]\n", comment(schema));
                    members(schema).try_for_each(|(key, schema)| value(&mut out, key, schema, &default[key]))
                }
                None => value(&mut out, key, schema, default),
            };
        }
    }
    out
}

fn value(out: &mut String, key: &str, schema: &Value, default: &Value) -> std::fmt::Result {
    write!(out, "\n{}{key} = {}\n", comment(schema), toml_value(default))
}

fn comment(schema: &Value) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    text.lines().map(|line| format!("# {line}\n")).collect()
}

/// Without a space after `#`, which tells an example from a comment.
fn commented_out(example: &str) -> String {
    example.lines().map(|line| format!("#{line}\n")).collect()
}

/// A value as TOML writes it, on one line.
pub(super) fn toml_value(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(toml_value).collect::<Vec<_>>().join(", ")),
        Value::Object(members) => {
            let members: Vec<_> = members
                .iter()
                .map(|(key, value)| format!("{} = {}", super::layers::join(&[key]), toml_value(value)))
                .collect();
            format!("{{ {} }}", members.join(", "))
        }
        scalar => scalar.to_string(),
    }
}
