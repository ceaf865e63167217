//! What travels as JSON: parameters and result chunks of the standard capabilities, version 1 of each.
//!
//! A request's parameters are one JSON object (the `Params` of a module); results are chunks, each a JSON object
//! (`Chunk`) and named tensors; the end carries [`Usage`]. Members we do not know are kept in `extra` and passed on.
//! The JSON Schemas in `docs/capabilities/` are generated from these types.

pub mod chat;
pub mod classify;
pub mod complete;
pub mod detect;
pub mod embed;
pub mod image_prepare;
pub mod languages;
pub mod ocr;
pub mod rerank;
pub mod schemas;
pub mod tensor;
pub mod translate;
pub mod vector;
pub mod vision_classify;
pub mod vision_detect;
pub mod vision_embed;
pub mod vision_faces;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Members that this version does not know.
pub type Extra = serde_json::Map<String, serde_json::Value>;

/// What a request consumed, reported once at its end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Usage {
    /// Tokens of the input, all of them, cached or not.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub completion_tokens: u64,
    /// Tokens of the input whose computation was reused.
    #[serde(skip_serializing_if = "is_zero")]
    pub cached_tokens: u64,
    /// Mean natural-log probability of the generated tokens, when the host asked for a confidence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_logprob: Option<f64>,
    /// Seconds the engine spent on the input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefill_seconds: Option<f64>,
    /// Seconds the engine spent generating.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decode_seconds: Option<f64>,
    /// What we do not know.
    #[serde(flatten)]
    pub extra: Extra,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// How the next token is chosen. Absent members mean the model's default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Sampling {
    /// 0 is greedy; 0..=2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Keep the `k` likeliest tokens; 0 keeps all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// Keep the likeliest tokens that together have this probability, 0..=1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Keep tokens at least this fraction as likely as the likeliest, 0..=1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// Subtracted once per earlier occurrence, -2..=2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f32>,
    /// Subtracted once if the token occurred, -2..=2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f32>,
    /// Divides the logit of tokens that occurred; 1 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeat_penalty: Option<f32>,
    /// Same seed, same prompt, same model: same answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u32>,
    /// Token id (as text, since JSON keys are) to a value added to its logit, -100..=100.
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub logit_bias: std::collections::BTreeMap<String, f32>,
    /// Do not stop at the model's end-of-generation token. For benchmarks.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ignore_eos: bool,
    /// Tokens before any of which the answer ends, by their numbers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop_token_ids: Vec<u32>,
}

/// What the answer must look like.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ResponseFormat {
    /// Anything.
    #[default]
    Text,
    /// Any JSON object.
    JsonObject,
    /// JSON that this JSON Schema accepts.
    JsonSchema {
        /// The schema.
        schema: serde_json::Value,
    },
    /// Text that this GBNF grammar accepts.
    Grammar {
        /// The grammar, with the start rule `root`.
        grammar: String,
    },
}

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended, or a stop string came.
    Stop,
    /// `max_tokens`, or the context is full.
    Length,
    /// The model called tools.
    ToolCalls,
}

/// A generated token with its probability.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TokenLogprob {
    /// Its text, with what is not UTF-8 replaced.
    pub token: String,
    /// Its bytes: several tokens may share a character.
    pub bytes: Vec<u8>,
    /// Natural log of its probability, before temperature and the other samplers.
    pub logprob: f32,
    /// The likeliest tokens at this place, likeliest first, as many as were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<TopLogprob>,
}

/// A token that could have come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TopLogprob {
    /// Its text, with what is not UTF-8 replaced.
    pub token: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Natural log of its probability.
    pub logprob: f32,
}
