//! `language.detect/1`: texts in, the languages they may be in out.

use super::Extra;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Name of the capability.
pub const CAPABILITY: &str = "language.detect";

/// Parameters of a detection.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// At least one.
    pub text: Vec<String>,
    /// At most so many languages for each text; absent: 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top: Option<u32>,
    /// What we do not know: model-specific.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The result, in one chunk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Chunk {
    /// One for each text, in their order.
    pub results: Vec<Detected>,
    /// What we do not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The languages of a text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Detected {
    /// Likeliest first. Empty where there is nothing to tell by: no letters.
    pub languages: Vec<Candidate>,
}

/// A language that a text may be in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Candidate {
    /// Its code: ISO 639-1 where there is one, else ISO 639-3.
    pub language: String,
    /// Probability that it is this one, 0..=1.
    pub confidence: f64,
}
