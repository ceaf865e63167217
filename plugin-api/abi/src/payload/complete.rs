//! `complete/1`: text in, its continuation out.

use super::{Extra, FinishReason, ResponseFormat, Sampling, TokenLogprob};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Name of the capability.
pub const CAPABILITY: &str = "complete";

/// Parameters of a completion.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// What to continue.
    pub prompt: Prompt,
    /// What comes after the gap, for models that can fill one in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suffix: Option<String>,
    /// Give the prompt back in front of the answer.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub echo: bool,
    /// What the answer must look like.
    pub response_format: ResponseFormat,
    /// How tokens are chosen.
    #[serde(flatten)]
    pub sampling: Sampling,
    /// The answer ends before any of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// At most this many generated tokens for each choice; absent: until the context is full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// How many choices; absent: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n: Option<u32>,
    /// Report each token's log-probability and this many alternatives (0..=20).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<u8>,
    /// What we do not know: model-specific.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What to continue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Prompt {
    /// Text; special tokens in it are plain text.
    Text(String),
    /// Tokens of this model.
    Tokens(Vec<u32>),
}

impl Default for Prompt {
    fn default() -> Self {
        Prompt::Text(String::new())
    }
}

/// A piece of the answer. Each choice ends with one chunk that has a `finish_reason`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Chunk {
    /// Which choice, from 0.
    #[serde(skip_serializing_if = "is_first")]
    pub index: u32,
    /// Text to append; whole characters only.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub text: String,
    /// The tokens behind this piece, when asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprob>,
    /// Only in the last chunk of a choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<FinishReason>,
    /// What we do not know.
    #[serde(flatten)]
    pub extra: Extra,
}

fn is_first(index: &u32) -> bool {
    *index == 0
}
