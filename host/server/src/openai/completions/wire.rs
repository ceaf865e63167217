//! A completion request as OpenAI's clients send it, and its way to `complete/1`.

use crate::openai::wire::{
    MAX_TOP_LOGPROBS, OneOrMany, StreamOptions, at_most, choices, invalid, sampling_fields, stop, unsupported,
};
use crate::options::KeepAliveField;
use backplane::Result;
use backplane::payload::ResponseFormat;
use backplane::payload::complete as payload;
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Most prompts of a request: each is a request of its own to the model.
pub(crate) const MAX_PROMPTS: usize = 64;

/// Text to be continued. What is not listed here is not read, and named in `x-ignored-params`.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "CompletionRequest")]
pub(crate) struct Request {
    /// A model, an alias or a route. Without it the router chooses.
    #[serde(default)]
    pub model: Option<String>,
    /// Text, tokens, or several of either.
    prompt: Prompts,
    /// What comes after the gap, for models that can fill one in.
    #[serde(default)]
    suffix: Option<String>,
    /// Give the prompt back in front of the answer.
    #[serde(default)]
    echo: Option<bool>,
    /// 0 is greedy; 0..=2.
    #[serde(default)]
    temperature: Option<f32>,
    /// 0..=1.
    #[serde(default)]
    top_p: Option<f32>,
    /// Keep the `k` likeliest tokens; 0 keeps all. Not OpenAI's.
    #[serde(default)]
    top_k: Option<u32>,
    /// Keep tokens at least this fraction as likely as the likeliest. Not OpenAI's.
    #[serde(default)]
    min_p: Option<f32>,
    /// -2..=2.
    #[serde(default)]
    frequency_penalty: Option<f32>,
    /// -2..=2.
    #[serde(default)]
    presence_penalty: Option<f32>,
    /// Divides the logit of tokens that occurred; 1 is off. Not OpenAI's.
    #[serde(default)]
    repeat_penalty: Option<f32>,
    /// Same seed, same request, same model: same answer.
    #[serde(default)]
    seed: Option<i64>,
    /// Number of a token to a value added to its logit, -100..=100.
    #[serde(default)]
    logit_bias: Option<BTreeMap<String, f32>>,
    /// Do not stop where the model would. For benchmarks; not OpenAI's.
    #[serde(default)]
    ignore_eos: Option<bool>,
    /// The answer ends before any of these; at most 16.
    #[serde(default)]
    stop: Option<OneOrMany>,
    /// It ends before any of these tokens, too, by their numbers; at most 64. Not OpenAI's.
    #[serde(default)]
    stop_token_ids: Option<Vec<u32>>,
    /// Most tokens generated for each choice; 16 if absent, as OpenAI's, or fewer where the model gives no more. 0 with `echo` and `logprobs` rates a text.
    #[serde(default)]
    max_tokens: Option<u32>,
    /// How many choices for each prompt, 1..=8.
    #[serde(default)]
    n: Option<u32>,
    /// Only `n`: choosing the best of more is not supported.
    #[serde(default)]
    best_of: Option<u32>,
    /// Tell each token's log-probability and this many alternatives, 0..=20; with `echo` of the prompt's tokens too.
    #[serde(default)]
    #[schemars(with = "Option<u8>", range(max = 20))]
    logprobs: Option<Alternatives>,
    /// Whether the answer comes piece by piece, as server-sent events.
    #[serde(default)]
    pub stream: Option<bool>,
    /// How a stream is told.
    #[serde(default)]
    pub stream_options: Option<StreamOptions>,
    /// How long the model stays open afterwards: `"5m"`, seconds, `0`, or `-1` for ever. Not OpenAI's.
    #[serde(default)]
    pub keep_alive: Option<KeepAliveField>,
}

/// OpenAI's default for `max_tokens` of a completion; a chat has none.
pub(crate) const DEFAULT_MAX_TOKENS: u32 = 16;

/// How many alternatives of each token are told.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a whole number from 0 to 20; `true` and `false` are for a chat, which has the number in `top_logprobs`"
)]
enum Alternatives {
    Number(u8),
}

/// Text, tokens, or several of either.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "expected a string, an array of strings, an array of tokens, or an array of such arrays"
)]
pub(crate) enum Prompts {
    /// Text.
    Text(String),
    /// Several texts.
    Texts(Vec<String>),
    /// Tokens of this model.
    Tokens(Vec<u32>),
    /// Several prompts of tokens.
    TokenLists(Vec<Vec<u32>>),
}

/// What the rest of a request needs to know about how its answer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Telling {
    pub stream: bool,
    pub include_usage: bool,
    pub logprobs: bool,
    /// Choices of each prompt.
    pub n: u32,
}

impl Request {
    /// The parameters of `complete/1`, one for each prompt.
    ///
    /// # Errors
    /// Whatever is out of range or not supported, by name.
    pub(crate) fn into_params(mut self) -> Result<(Vec<payload::Params>, Telling)> {
        let n = choices(self.n)?;
        // 0 is what OpenAI's own clients send for "not set".
        if self.best_of.is_some_and(|best_of| best_of != 0 && best_of != n) {
            return Err(unsupported(
                "best_of",
                "`best_of` is not supported unless it equals `n`; ask for `n` choices",
            ));
        }
        let logprobs = self.logprobs.map(|Alternatives::Number(top)| top);
        if logprobs.is_some_and(|top| MAX_TOP_LOGPROBS < top) {
            return Err(invalid("logprobs", format!("`logprobs` must be from 0 to {MAX_TOP_LOGPROBS}")));
        }
        let sampling = sampling_fields!(self).check()?;
        let telling = Telling {
            stream: self.stream.unwrap_or_default(),
            include_usage: self.stream_options.and_then(|options| options.include_usage).unwrap_or_default(),
            logprobs: logprobs.is_some(),
            n,
        };
        let common = payload::Params {
            prompt: payload::Prompt::default(),
            suffix: self.suffix.filter(|suffix| !suffix.is_empty()),
            echo: self.echo.unwrap_or_default(),
            response_format: ResponseFormat::Text,
            sampling,
            stop: stop(self.stop)?,
            max_tokens: self.max_tokens,
            n: (n != 1).then_some(n),
            logprobs,
            extra: serde_json::Map::new(),
        };
        let prompts = self.prompt.into_list();
        at_most("prompt", prompts.len(), MAX_PROMPTS)?;
        if prompts.is_empty() {
            return Err(invalid("prompt", "`prompt` is an empty array; at least one is needed"));
        }
        let params = prompts.into_iter().map(|prompt| payload::Params { prompt, ..common.clone() }).collect();
        Ok((params, telling))
    }
}

impl Prompts {
    fn into_list(self) -> Vec<payload::Prompt> {
        use payload::Prompt;
        match self {
            Prompts::Text(text) => vec![Prompt::Text(text)],
            Prompts::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
            Prompts::Tokens(tokens) => vec![Prompt::Tokens(tokens)],
            Prompts::TokenLists(lists) => lists.into_iter().map(Prompt::Tokens).collect(),
        }
    }
}
