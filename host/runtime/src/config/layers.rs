//! The layers a value can come from, and their merge.

use super::raw::Raw;
use super::{ConfigError, LoadOptions, Problem, reference};
use config::{FileFormat, Source as _};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Nobody set it.
    Default,
    /// The file.
    File,
    /// `BACKPLANE__SECTION__KEY`.
    Environment,
    /// The command line, or an embedder.
    Flag,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Default => "default",
            Source::File => "file",
            Source::Environment => "environment",
            Source::Flag => "flag",
        })
    }
}

const PREFIX: &str = "BACKPLANE";
const SEPARATOR: &str = "__";

/// What was said, layer by layer, and all together.
pub(super) struct Layers {
    file_name: String,
    layers: Vec<(Source, Value)>,
    pub merged: Value,
}

/// Settings in the environment: key path to value.
pub(super) fn environment() -> BTreeMap<String, String> {
    let source = config::Environment::with_prefix(PREFIX).prefix_separator(SEPARATOR).separator(SEPARATOR);
    let values = source.collect().unwrap_or_default();
    values.into_iter().filter_map(|(key, value)| Some((key, value.into_string().ok()?))).collect()
}

/// Reads every layer.
pub(super) fn read(
    options: &LoadOptions,
    variables: &BTreeMap<String, String>,
) -> Result<Layers, ConfigError> {
    let mut problems = Vec::new();
    let mut layers = Vec::new();
    let file_name = match &options.file {
        None => String::new(),
        Some(path) => {
            let name = format!("`{}`", path.display());
            match read_file(path) {
                Ok(values) => layers.push((Source::File, values)),
                Err(message) => {
                    problems.push(Problem { key: String::new(), value: None, origin: name.clone(), message })
                }
            }
            name
        }
    };
    for (source, pairs) in
        [(Source::Environment, variables.iter().collect()), (Source::Flag, pairs(&options.overrides))]
    {
        match typed(&pairs) {
            Ok(values) => layers.push((source, values)),
            Err((key, message)) => {
                problems.push(Problem {
                    origin: origin(source, &key, &file_name),
                    value: None,
                    key,
                    message,
                });
            }
        }
    }
    if !problems.is_empty() {
        return Err(ConfigError { problems });
    }
    match merge(&layers) {
        Ok(merged) => Ok(Layers { file_name, layers, merged }),
        Err(error) => Err(ConfigError {
            problems: vec![Problem {
                key: String::new(),
                value: None,
                origin: file_name,
                message: error.to_string(),
            }],
        }),
    }
}

fn pairs(overrides: &[(String, String)]) -> Vec<(&String, &String)> {
    overrides.iter().map(|(key, value)| (key, value)).collect()
}

fn read_file(path: &std::path::Path) -> Result<Value, String> {
    let text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        _ => format!("cannot be read: {error}"),
    })?;
    // `toml` says line and column; the `config` crate would not.
    toml::from_str(&text).map_err(|error| format!("is not TOML: {}", error.to_string().trim_end()))
}

/// Settings as they are typed: a value is text where the key takes text, else TOML, else text after all.
fn typed(pairs: &[(&String, &String)]) -> Result<Value, (String, String)> {
    let mut values = Value::Object(Map::new());
    for (key, text) in pairs {
        let path = parse_path(key).ok_or_else(|| {
            ((*key).clone(), "is not the path of a key; write it as in `server.address`".to_owned())
        })?;
        let value = match reference::kind_of(&path) {
            Some("string") => Value::String((*text).clone()),
            _ => parse_value(text).unwrap_or_else(|| Value::String((*text).clone())),
        };
        put(&mut values, &path, value);
    }
    Ok(values)
}

/// The keys on the way: `models.aliases."gpt-4.1"` is three.
fn parse_path(text: &str) -> Option<Vec<String>> {
    let mut at = &toml::from_str::<toml::Table>(&format!("{text} = true")).ok()?;
    let mut path = Vec::new();
    loop {
        let (key, value) = at.iter().next()?;
        path.push(key.clone());
        match value {
            toml::Value::Table(inner) => at = inner,
            _ => return Some(path),
        }
    }
}

fn parse_value(text: &str) -> Option<Value> {
    toml::from_str::<Map<String, Value>>(&format!("value = {text}")).ok()?.remove("value")
}

fn put(values: &mut Value, path: &[String], value: Value) {
    let mut at = values;
    for key in path {
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        at = &mut at[key.as_str()];
    }
    *at = value;
}

fn merge(layers: &[(Source, Value)]) -> Result<Value, config::ConfigError> {
    let mut builder = config::Config::builder();
    for (_, values) in layers {
        // As text, since a layer made from a value would take the dots of `"gpt-4.1"` for a path.
        let text = toml::to_string(values).map_err(|error| config::ConfigError::Foreign(Box::new(error)))?;
        builder = builder.add_source(config::File::from_str(&text, FileFormat::Toml));
    }
    builder.build()?.try_deserialize()
}

impl Layers {
    /// The layer that decides about a key.
    pub(super) fn source(&self, path: &[String]) -> Source {
        let says = |values: &Value| path.iter().try_fold(values, |at, key| at.get(key)).is_some();
        self.layers
            .iter()
            .rev()
            .find(|(_, values)| says(values))
            .map_or(Source::Default, |(source, _)| *source)
    }

    /// Where a value was said, in words.
    pub(super) fn origin(&self, path: &[String]) -> String {
        origin(self.source(path), &join(path), &self.file_name)
    }

    /// Where every value of `raw` comes from.
    pub(super) fn sources(&self, raw: &Raw) -> BTreeMap<String, Source> {
        leaves(raw).into_iter().map(|(path, _)| (join(&path), self.source(&path))).collect()
    }
}

fn origin(source: Source, key: &str, file_name: &str) -> String {
    match source {
        Source::Default => String::new(),
        Source::File => file_name.to_owned(),
        Source::Environment => {
            format!(
                "the environment variable `{PREFIX}{SEPARATOR}{}`",
                key.to_uppercase().replace('.', SEPARATOR)
            )
        }
        Source::Flag => "the command line".to_owned(),
    }
}

/// Every value with the keys that lead to it.
pub(super) fn leaves(raw: &Raw) -> Vec<(Vec<String>, Value)> {
    fn walk(value: Value, path: &mut Vec<String>, out: &mut Vec<(Vec<String>, Value)>) {
        match value {
            Value::Object(members) => {
                for (key, value) in members {
                    path.push(key);
                    walk(value, path, out);
                    path.pop();
                }
            }
            value => out.push((path.clone(), value)),
        }
    }
    let mut out = Vec::new();
    walk(serde_json::to_value(raw).unwrap_or_default(), &mut Vec::new(), &mut out);
    out
}

/// A key path as TOML writes it.
pub(super) fn join<S: AsRef<str>>(path: &[S]) -> String {
    let bare =
        |key: &str| !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
    let quoted = |key: &str| if bare(key) { key.to_owned() } else { Value::from(key).to_string() };
    path.iter().map(|key| quoted(key.as_ref())).collect::<Vec<_>>().join(".")
}
