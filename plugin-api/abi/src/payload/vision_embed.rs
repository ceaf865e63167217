//! `vision.embed/1`: pictures in, their features out, and how alike they are.

use super::Extra;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Name of the capability.
pub const CAPABILITY: &str = "vision.embed";

/// Parameters of an embedding. One picture is given as for `vision.detect/1`, several as `images`, or as
/// a tensor `image` of several files, BYTES [pictures]. Each page of a file with several is a picture.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// The bytes of a file in base64, or a `data:` URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Several files, each in base64 or as a `data:` URL, instead of `image`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
    /// What we do not know: model-specific.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The result, in one chunk, with the tensor `embeddings` beside it: FP32 [pictures, dimensions], each of length 1.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Chunk {
    /// How many numbers the features of a picture are.
    pub dimensions: u32,
    /// For each picture, how alike it is to each: the cosine of their features, -1..=1. Only with several pictures.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub similarity: Vec<Vec<f32>>,
    /// What we do not know.
    #[serde(flatten)]
    pub extra: Extra,
}
