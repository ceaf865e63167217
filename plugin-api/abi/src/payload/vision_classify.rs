//! `vision.classify/1`: a picture in, labels with scores out.

use super::Extra;
use super::classify::Label;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Name of the capability.
pub const CAPABILITY: &str = "vision.classify";

/// Parameters of a classification. The picture is given as for `vision.detect/1`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// The bytes of a file in base64, or a `data:` URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Only the best so many labels. Absent: as the model's card says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// What we do not know: model-specific.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The result, in one chunk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Chunk {
    /// The labels, likeliest first.
    pub labels: Vec<Label>,
    /// What we do not know.
    #[serde(flatten)]
    pub extra: Extra,
}
