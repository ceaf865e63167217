//! `language.list/1`: which languages can be translated into which.

use super::Extra;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Name of the capability.
pub const CAPABILITY: &str = "language.list";

/// Parameters: none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
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
    /// Whether a chat model is asked for the pairs that no other engine serves: where the host has one, any language can be
    /// asked to be translated into any other.
    pub chat: bool,
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
