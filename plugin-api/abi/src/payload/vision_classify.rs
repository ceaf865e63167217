//! `vision.classify/1`: pictures in, labels with scores for each out.

use super::Extra;
use super::classify::Label;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Name of the capability.
pub const CAPABILITY: &str = "vision.classify";

/// Parameters of a classification. The pictures are given as for `vision.detect/1`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// The bytes of a file in base64, or a `data:` URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Several files, each in base64 or as a `data:` URL, instead of `image`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
    /// Only the best so many labels. Absent: as the model's card says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// What we do not know: model-specific.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The result: one chunk for each picture, in their order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Chunk {
    /// Which file of the request it is in, from 0. Absent where the request has one picture, and not as `images`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<u32>,
    /// Which page of the file, from 1. Absent where the file has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page: Option<u32>,
    /// The labels, likeliest first.
    pub labels: Vec<Label>,
    /// What we do not know.
    #[serde(flatten)]
    pub extra: Extra,
}
