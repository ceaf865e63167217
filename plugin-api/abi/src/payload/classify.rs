//! `classify/1`: texts in, labels with scores out.

use super::Extra;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Name of the capability.
pub const CAPABILITY: &str = "classify";

/// Parameters of a classification.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// What to classify. At least one.
    pub input: Vec<String>,
    /// Only the best so many labels for each; absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// What we do not know: model-specific.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The result, in one chunk: for each input its labels, likeliest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Chunk {
    /// In the order of the inputs.
    pub results: Vec<Vec<Label>>,
    /// What we do not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A label with its score.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Label {
    /// Its name.
    pub label: String,
    /// Probability, 0..=1.
    pub score: f32,
}
