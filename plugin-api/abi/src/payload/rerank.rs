//! `rerank/1`: a query and documents in, a relevance for each document out.

use super::Extra;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Name of the capability.
pub const CAPABILITY: &str = "rerank";

/// Parameters of a reranking.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// What is looked for.
    pub query: String,
    /// Where. At least one.
    pub documents: Vec<String>,
    /// Only the best so many; absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_n: Option<u32>,
    /// What we do not know: model-specific.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The result, in one chunk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Chunk {
    /// Best first.
    pub results: Vec<Ranked>,
    /// What we do not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A document with its relevance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Ranked {
    /// Which document, from 0.
    pub index: u32,
    /// How relevant, higher is better; comparable only within one request.
    pub score: f32,
}
