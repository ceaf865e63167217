//! `embed/1`: texts in, one vector each out.
//!
//! The result is one chunk with the tensor [`EMBEDDINGS`], `FP32 [inputs, dimensions]`, in the order of the inputs.

use super::Extra;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Name of the capability.
pub const CAPABILITY: &str = "embed";

/// Name of the result's tensor.
pub const EMBEDDINGS: &str = "embeddings";

/// Parameters of an embedding.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// What to embed. At least one.
    pub input: Vec<Input>,
    /// Cut each vector to this many dimensions and normalise again; for models trained for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<u32>,
    /// Cut inputs that are too long instead of refusing them.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub truncate: bool,
    /// What we do not know: model-specific.
    #[serde(flatten)]
    pub extra: Extra,
}

/// One thing to embed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Input {
    /// Text.
    Text(String),
    /// Tokens of this model.
    Tokens(Vec<u32>),
}
