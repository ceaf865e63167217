//! What the chat and completion requests share, as they travel.

use backplane::payload::{Sampling, TokenLogprob, Usage as Counted};
use backplane::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Most stop strings: OpenAI takes 4, vLLM and llama.cpp any number; 16 covers what agents send.
pub(crate) const MAX_STOP: usize = 16;
/// Most tokens that end an answer.
pub(crate) const MAX_STOP_TOKENS: usize = 64;
/// Most choices of one prompt.
pub(crate) const MAX_CHOICES: u32 = 8;
/// Most alternatives of a token.
pub(crate) const MAX_TOP_LOGPROBS: u8 = 20;
/// Most biased tokens.
pub(crate) const MAX_LOGIT_BIAS: usize = 1024;

/// One string or several.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or an array of strings")]
pub(crate) enum OneOrMany {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// How a stream is told.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
pub(crate) struct StreamOptions {
    /// One more chunk at the end, with the usage and no choices.
    #[serde(default)]
    pub include_usage: Option<bool>,
    /// Random padding against an observer of packet sizes. Accepted; nothing is padded.
    #[serde(default)]
    #[expect(dead_code, reason = "read so that the SDKs' default is not listed as ignored")]
    pub include_obfuscation: Option<bool>,
}

/// The members that choose tokens, as both requests have them.
#[derive(Debug, Default)]
pub(crate) struct SamplingFields {
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<u32>,
    pub min_p: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub repeat_penalty: Option<f32>,
    pub seed: Option<i64>,
    pub logit_bias: Option<BTreeMap<String, f32>>,
    pub ignore_eos: Option<bool>,
    pub stop_token_ids: Option<Vec<u32>>,
}

/// Takes the members that choose tokens out of a request. A macro, since a flattened struct would keep serde from
/// telling which members were not read.
macro_rules! sampling_fields {
    ($request:expr) => {
        $crate::openai::wire::SamplingFields {
            temperature: $request.temperature,
            top_p: $request.top_p,
            top_k: $request.top_k,
            min_p: $request.min_p,
            frequency_penalty: $request.frequency_penalty,
            presence_penalty: $request.presence_penalty,
            repeat_penalty: $request.repeat_penalty,
            seed: $request.seed,
            logit_bias: $request.logit_bias.take(),
            ignore_eos: $request.ignore_eos,
            stop_token_ids: $request.stop_token_ids.take(),
        }
    };
}
pub(crate) use sampling_fields;

impl SamplingFields {
    /// Refuses what is out of range.
    pub(crate) fn check(self) -> Result<Sampling> {
        let stop_token_ids = self.stop_token_ids.unwrap_or_default();
        at_most("stop_token_ids", stop_token_ids.len(), MAX_STOP_TOKENS)?;
        Ok(Sampling {
            temperature: within("temperature", self.temperature, 0.0, 2.0)?,
            top_k: self.top_k,
            top_p: within("top_p", self.top_p, 0.0, 1.0)?,
            min_p: within("min_p", self.min_p, 0.0, 1.0)?,
            frequency_penalty: within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?,
            presence_penalty: within("presence_penalty", self.presence_penalty, -2.0, 2.0)?,
            repeat_penalty: within("repeat_penalty", self.repeat_penalty, 0.1, 10.0)?,
            seed: self.seed.map(fold_seed),
            logit_bias: logit_bias(self.logit_bias.unwrap_or_default())?,
            ignore_eos: self.ignore_eos.unwrap_or_default(),
            stop_token_ids,
        })
    }
}

/// OpenAI's seeds have 64 bits, engines take 32: those that fit stay what they are.
fn fold_seed(seed: i64) -> u32 {
    let seed = seed.cast_unsigned();
    (seed ^ (seed >> 32)) as u32
}

fn logit_bias(mut bias: BTreeMap<String, f32>) -> Result<BTreeMap<String, f32>> {
    // Nothing is what a bias of 0 does, whatever its key.
    bias.retain(|_, value| *value != 0.0);
    at_most("logit_bias", bias.len(), MAX_LOGIT_BIAS)?;
    for (token, value) in &bias {
        let param = format!("logit_bias.{token}");
        if token.parse::<u32>().is_err() {
            let message = format!("`{param}`: `{token}` is not the number of a token");
            return Err(invalid(param, message));
        }
        within(&param, Some(*value), -100.0, 100.0)?;
    }
    Ok(bias)
}

/// Refuses a number that is out of range, by name.
pub(crate) fn within(param: &str, value: Option<f32>, least: f32, most: f32) -> Result<Option<f32>> {
    match value {
        Some(number) if !(least..=most).contains(&number) => {
            Err(invalid(param, format!("`{param}` is {number}; it must be from {least} to {most}")))
        }
        value => Ok(value),
    }
}

/// Refuses a list that is too long, by name.
pub(crate) fn at_most(param: &str, len: usize, most: usize) -> Result<()> {
    if most < len {
        return Err(invalid(param, format!("`{param}` has {len} entries; at most {most} are taken")));
    }
    Ok(())
}

/// The stop strings.
pub(crate) fn stop(stop: Option<OneOrMany>) -> Result<Vec<String>> {
    let stop = match stop {
        None => Vec::new(),
        Some(OneOrMany::One(text)) => vec![text],
        Some(OneOrMany::Many(texts)) => texts,
    };
    at_most("stop", stop.len(), MAX_STOP)?;
    if stop.iter().any(String::is_empty) {
        return Err(invalid("stop", "`stop` has an empty string, which is everywhere in every text"));
    }
    Ok(stop)
}

/// The number of choices.
pub(crate) fn choices(n: Option<u32>) -> Result<u32> {
    match n.unwrap_or(1) {
        n @ 1..=MAX_CHOICES => Ok(n),
        n => Err(invalid("n", format!("`n` is {n}; it must be from 1 to {MAX_CHOICES}"))),
    }
}

/// A refusal that names the member.
pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Error {
    Error::invalid(message).with_param(param)
}

/// A refusal of something that exists in OpenAI's API and not here.
pub(crate) fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Error {
    invalid(param, message).with_reason(crate::error::reason::UNSUPPORTED_PARAM)
}

/// What an answer consumed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    prompt_tokens_details: PromptTokensDetails,
}

/// More about the tokens of the input.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct PromptTokensDetails {
    /// Those whose computation was reused.
    cached_tokens: u64,
}

impl Usage {
    /// One prompt's share of an answer to several.
    pub(crate) fn add(&mut self, counted: &Counted) {
        self.prompt_tokens += counted.prompt_tokens;
        self.completion_tokens += counted.completion_tokens;
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
        self.prompt_tokens_details.cached_tokens += counted.cached_tokens;
    }
}

/// OpenAI's figure for "so unlikely that there is no number": JSON has no -∞.
const IMPOSSIBLE: f32 = -9999.0;

/// A log-probability that JSON can carry.
pub(crate) fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob.max(IMPOSSIBLE) } else { IMPOSSIBLE }
}

/// A token with its probability, as chat tells it.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Logprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
    top_logprobs: Vec<TopLogprob>,
}

/// A token that could have come.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct TopLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl From<TokenLogprob> for Logprob {
    fn from(token: TokenLogprob) -> Self {
        Self {
            token: token.token,
            logprob: finite(token.logprob),
            bytes: token.bytes,
            top_logprobs: token
                .top
                .into_iter()
                .map(|top| TopLogprob { token: top.token, logprob: finite(top.logprob), bytes: top.bytes })
                .collect(),
        }
    }
}

/// Seconds since 1970.
pub(crate) fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn seeds_that_fit_stay(seed in any::<u32>()) {
            prop_assert_eq!(fold_seed(i64::from(seed)), seed);
        }
    }

    #[test]
    fn a_bias_of_zero_does_nothing_and_any_other_needs_a_token() {
        let bias = |entries: &[(&str, f32)]| {
            logit_bias(entries.iter().map(|(token, value)| ((*token).to_owned(), *value)).collect())
        };
        assert!(bias(&[("foo", 0.0)]).unwrap().is_empty());
        assert_eq!(bias(&[("foo", 1.0)]).unwrap_err().param.as_deref(), Some("logit_bias.foo"));
        assert_eq!(bias(&[("7", 101.0)]).unwrap_err().param.as_deref(), Some("logit_bias.7"));
        assert_eq!(bias(&[("7", -100.0)]).unwrap().len(), 1);
        let many: BTreeMap<String, f32> =
            (0..=MAX_LOGIT_BIAS).map(|token| (token.to_string(), 1.0)).collect();
        assert_eq!(logit_bias(many).unwrap_err().param.as_deref(), Some("logit_bias"));
    }

    #[test]
    fn what_is_out_of_range_is_named() {
        let refused = |fields: SamplingFields| fields.check().unwrap_err().param.unwrap();
        let fields = SamplingFields::default;
        assert_eq!(refused(SamplingFields { temperature: Some(2.1), ..fields() }), "temperature");
        assert_eq!(refused(SamplingFields { temperature: Some(f32::NAN), ..fields() }), "temperature");
        assert_eq!(refused(SamplingFields { top_p: Some(-0.1), ..fields() }), "top_p");
        assert_eq!(refused(SamplingFields { min_p: Some(1.1), ..fields() }), "min_p");
        assert_eq!(refused(SamplingFields { frequency_penalty: Some(3.0), ..fields() }), "frequency_penalty");
        assert_eq!(refused(SamplingFields { presence_penalty: Some(-3.0), ..fields() }), "presence_penalty");
        assert_eq!(refused(SamplingFields { repeat_penalty: Some(0.0), ..fields() }), "repeat_penalty");
        let tokens = Some(vec![7; MAX_STOP_TOKENS + 1]);
        assert_eq!(refused(SamplingFields { stop_token_ids: tokens, ..fields() }), "stop_token_ids");
        assert_eq!(choices(Some(0)).unwrap_err().param.as_deref(), Some("n"));
        assert_eq!(choices(Some(MAX_CHOICES + 1)).unwrap_err().param.as_deref(), Some("n"));
        assert!(stop(Some(OneOrMany::One(String::new()))).is_err());
        assert!(stop(Some(OneOrMany::Many(vec!["a".to_owned(); MAX_STOP + 1]))).is_err());
    }

    #[test]
    fn logprobs_are_numbers_json_knows() {
        assert_eq!(finite(f32::NEG_INFINITY), -9999.0);
        assert_eq!(finite(f32::NAN), -9999.0);
        assert_eq!(finite(-0.5), -0.5);
    }
}
