//! `language.list/1`: which languages can be translated into which.

use super::Extra;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Name of the capability.
pub const CAPABILITY: &str = "language.list";

/// Parameters.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// Targets are wanted of this language only, by its code; absent: of all.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// What we do not know: model-specific.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The result, in one chunk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Chunk {
    /// All languages that are known, by their code.
    pub languages: Vec<Language>,
    /// Whether a chat model is asked for the pairs that no other engine serves. What one knows its card says: its `languages`.
    pub chat: bool,
    /// Which chat models, in the order in which they are asked; none where the host chooses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub chat_models: Vec<String>,
    /// What we do not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A language.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Language {
    /// ISO 639-1 where there is one, else ISO 639-3.
    pub code: String,
    /// In English.
    pub name: String,
    /// The scripts it is written in (ISO 15924), the commonest first.
    pub scripts: Vec<String>,
    /// Languages that engines made for the pair translate it into.
    pub targets: Vec<String>,
}
