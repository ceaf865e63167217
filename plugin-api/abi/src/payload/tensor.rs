//! `tensor.infer/1`: named tensors in, named tensors out.
//!
//! The tensors travel beside the JSON; what a model takes and gives stands in its [`Description`].

use super::Extra;
use crate::dtype::DType;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Name of the capability.
pub const CAPABILITY: &str = "tensor.infer";

/// Parameters of an inference.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// Which outputs are wanted; empty: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<String>,
    /// What we do not know: model-specific.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What a model says of itself once it is open: `bp_model.describe_json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Description {
    /// Kind of model, for people: `"llama"`, `"onnx"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Tokens a request may take in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<u32>,
    /// Length of its vectors, if it embeds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<u32>,
    /// Whether the first dimension of every tensor is a batch that the host may fill from several requests.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub batch: bool,
    /// Tensors it takes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<TensorSpec>,
    /// Tensors it gives.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<TensorSpec>,
    /// What we do not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Name, type and shape of a tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// Its element type, by the name of the Open Inference Protocol.
    #[schemars(with = "String")]
    pub datatype: DType,
    /// Its sides; -1 where any length goes.
    pub shape: Vec<i64>,
}
