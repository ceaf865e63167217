//! How large a schema may be, and how much work may be done for it. Pure.
//!
//! A schema of a megabyte is quickly sent, and what is joined and compared multiplies: everything that is more than one
//! walk through the schema is counted, and beyond a bound the schema is refused.

use super::schema::Wrong;
use serde_json::Value;

/// Values in one schema, schemas and texts included.
const MOST_PARTS: usize = 20_000;
/// Bytes of all its texts.
const MOST_BYTES: usize = 512 * 1024;
/// Values of one `enum`: a grammar follows all of them at once.
const MOST_VALUES: usize = 2000;
/// Bytes of a property's name: llama.cpp names rules by the names on the way to them.
const MOST_NAME: usize = 256;
/// Parts that may be copied and compared: a few dozen milliseconds.
pub const MOST_WORK: usize = 500_000;

/// How much of a copy a value makes: its parts, and its texts by the length.
pub fn size(value: &Value) -> usize {
    1 + match value {
        Value::Object(members) => members.iter().map(|(key, value)| key.len() / 64 + size(value)).sum(),
        Value::Array(items) => items.iter().map(size).sum(),
        Value::String(text) => text.len() / 64,
        _ => 0,
    }
}

/// Refuses what is too large to begin with, in one walk.
///
/// # Errors
/// What is too large, and its place.
pub fn check(schema: &Value) -> Result<(), Wrong> {
    let mut seen = Seen { parts: 0, bytes: 0 };
    seen.walk(schema).map_err(|wrong| Wrong { path: format!("#{}", wrong.path), ..wrong })
}

struct Seen {
    parts: usize,
    bytes: usize,
}

impl Seen {
    fn walk(&mut self, value: &Value) -> Result<(), Wrong> {
        self.parts += 1;
        if self.parts > MOST_PARTS {
            return wrong(format!("is where the schema has more than {MOST_PARTS} parts: it is too large"));
        }
        match value {
            Value::Object(members) => {
                for (key, value) in members {
                    self.text(key)?;
                    members_of(key, value)
                        .and_then(|()| self.walk(value))
                        .map_err(|wrong| Wrong { path: format!("/{key}{}", wrong.path), ..wrong })?;
                }
                Ok(())
            }
            Value::Array(items) => items.iter().enumerate().try_for_each(|(i, item)| {
                self.walk(item).map_err(|wrong| Wrong { path: format!("/{i}{}", wrong.path), ..wrong })
            }),
            Value::String(text) => self.text(text),
            _ => Ok(()),
        }
    }

    fn text(&mut self, text: &str) -> Result<(), Wrong> {
        self.bytes += text.len();
        match self.bytes > MOST_BYTES {
            true => wrong(format!("is where the schema has more than {MOST_BYTES} bytes: it is too large")),
            false => Ok(()),
        }
    }
}

/// What a keyword may have of its own.
fn members_of(key: &str, value: &Value) -> Result<(), Wrong> {
    match (key, value) {
        ("enum", Value::Array(values)) if values.len() > MOST_VALUES => {
            wrong(format!("has too many values: {}; at most {MOST_VALUES} can be held to", values.len()))
        }
        ("properties", Value::Object(members)) if members.keys().any(|name| name.len() > MOST_NAME) => {
            wrong(format!("has a name of more than {MOST_NAME} bytes"))
        }
        _ => Ok(()),
    }
}

fn wrong<T>(what: String) -> Result<T, Wrong> {
    Err(Wrong { path: String::new(), what })
}
