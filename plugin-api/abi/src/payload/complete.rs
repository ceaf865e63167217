//! `complete/1`: text in, its continuation out.

use super::{Extra, FinishReason, ResponseFormat, Sampling, TokenLogprob, TopLogprob};
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
    /// Report each token's log-probability and this many alternatives (0..=20); with `echo` those of the prompt too.
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
    /// The next tokens of the prompt that is given back, when `echo` and `logprobs` ask for them. All of them come
    /// before the first of the answer's, and together they make up the prompt's text.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prompt_logprobs: Vec<PromptLogprob>,
    /// The tokens behind this piece, when asked for. The token that ended an answer is the last of them; it has no
    /// bytes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprob>,
    /// Only in the last chunk of a choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<FinishReason>,
    /// What we do not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A token of the prompt, and how likely it was after those before it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PromptLogprob {
    /// Its text, with what is not UTF-8 replaced; of a control token its name.
    pub token: String,
    /// What it adds to the text: of a control token nothing.
    pub bytes: Vec<u8>,
    /// Natural log of its probability; absent where nothing is before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprob: Option<f32>,
    /// The likeliest tokens at this place, likeliest first, as many as were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<TopLogprob>,
}

fn is_first(index: &u32) -> bool {
    *index == 0
}
