//! A capability as cards and manifests name it: `chat`, `chat/1`, or a table that describes it.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What can be asked for, with the version of its payload schema.
#[derive(Debug, Clone, PartialEq)]
pub struct Capability {
    pub name: String,
    /// Version of the payload schema; 1 where none is named.
    pub version: u32,
    /// One line for people. Only manifests carry it.
    pub description: Option<String>,
    /// JSON Schema of the parameters, for a capability that the host does not know.
    pub input_schema: Option<serde_json::Value>,
    /// JSON Schema of the result.
    pub output_schema: Option<serde_json::Value>,
}

impl Capability {
    pub fn new(name: &str, version: u32) -> Self {
        Self { name: name.to_owned(), version, description: None, input_schema: None, output_schema: None }
    }

    /// Reads `name` or `name/version`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, version) = match text.split_once('/') {
            Some((name, version)) => {
                let version = version.parse().ok().filter(|v| *v > 0);
                (
                    name,
                    version.ok_or_else(|| {
                        format!("`{text}`: the version of a capability is a whole number from 1")
                    })?,
                )
            }
            None => (text, 1),
        };
        check_name(name)?;
        Ok(Self::new(name, version))
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_lowercase())
            && part.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
    };
    if name.len() <= 100 && name.split('.').all(part) {
        Ok(())
    } else {
        Err(format!(
            "`{name}` is not a capability: expected a dotted name in lower case such as `vision.detect`"
        ))
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.name, self.version)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    name: String,
    #[serde(default = "one")]
    version: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input_schema: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_schema: Option<serde_json::Value>,
}

fn one() -> u32 {
    1
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected a capability: `\"chat\"`, `\"chat/1\"` or `{ name = \"chat\", version = 1 }`"
)]
enum Form {
    Text(String),
    Table(Table),
}

impl<'de> Deserialize<'de> for Capability {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Form::deserialize(deserializer)? {
            Form::Text(text) => Self::parse(&text).map_err(serde::de::Error::custom),
            Form::Table(Table { name, version, description, input_schema, output_schema }) => {
                check_name(&name).map_err(serde::de::Error::custom)?;
                Ok(Self { name, version, description, input_schema, output_schema })
            }
        }
    }
}

impl Serialize for Capability {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { name, version, description, input_schema, output_schema } = self.clone();
        if description.is_none() && input_schema.is_none() && output_schema.is_none() {
            return if version == 1 { serializer.serialize_str(&name) } else { serializer.collect_str(self) };
        }
        Table { name, version, description, input_schema, output_schema }.serialize(serializer)
    }
}
