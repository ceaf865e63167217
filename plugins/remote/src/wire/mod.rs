//! Between our payloads and the upstream's API, OpenAI's or the Open Inference Protocol: pure, one file for each
//! capability.
//!
//! What an upstream's flavour has no word for is refused by the name of the parameter before anything is sent. What it
//! sends beside what we know is kept and passed on.

pub mod chat;
pub mod complete;
pub mod embed;
pub mod tensor;

use crate::settings::Flavour;
use backplane_plugin::payload::{FinishReason, ResponseFormat, Sampling, TokenLogprob, TopLogprob, Usage};
use backplane_plugin::prelude::*;
use serde::Deserialize;
use serde_json::{Map, Value};

/// A request's JSON on its way to the upstream.
pub type Body = Map<String, Value>;

fn put(body: &mut Body, name: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        body.insert(name.to_owned(), value.into());
    }
}

fn no_word_for(name: &str, flavour: Flavour) -> Error {
    let flavour = flavour.name();
    Error::new(
        Code::Unimplemented,
        format!(
            "`{name}` is not part of the API of this model's upstream (flavour `{flavour}`): leave it out"
        ),
    )
    .with_param(name)
}

/// How tokens are chosen, in the upstream's words. A value that means "off" needs none.
fn sampling(sampling: &Sampling, flavour: Flavour, body: &mut Body) -> Result<()> {
    let Sampling { temperature, top_k, top_p, min_p, frequency_penalty, presence_penalty, .. } = *sampling;
    put(body, "temperature", temperature);
    put(body, "top_p", top_p);
    put(body, "frequency_penalty", frequency_penalty);
    put(body, "presence_penalty", presence_penalty);
    put(body, "seed", sampling.seed);
    if !sampling.logit_bias.is_empty() {
        if flavour == Flavour::Ollama {
            return Err(no_word_for("logit_bias", flavour));
        }
        let bias = sampling.logit_bias.iter().map(|(token, bias)| (token.clone(), Value::from(*bias)));
        body.insert("logit_bias".to_owned(), Value::Object(bias.collect()));
    }
    let repetition = match flavour {
        Flavour::Vllm => "repetition_penalty",
        _ => "repeat_penalty",
    };
    let own: [(&str, &str, Option<Value>); 4] = [
        ("top_k", "top_k", top_k.filter(|k| *k != 0).map(Value::from)),
        ("min_p", "min_p", min_p.filter(|p| *p != 0.0).map(Value::from)),
        ("repeat_penalty", repetition, sampling.repeat_penalty.filter(|by| *by != 1.0).map(Value::from)),
        ("ignore_eos", "ignore_eos", sampling.ignore_eos.then_some(Value::Bool(true))),
    ];
    for (ours, theirs, value) in own {
        match value {
            Some(_) if matches!(flavour, Flavour::Openai | Flavour::Ollama) => {
                return Err(no_word_for(ours, flavour));
            }
            value => put(body, theirs, value),
        }
    }
    if !sampling.stop_token_ids.is_empty() {
        match flavour {
            Flavour::Vllm | Flavour::Backplane => {
                body.insert("stop_token_ids".to_owned(), sampling.stop_token_ids.clone().into());
            }
            Flavour::Openai | Flavour::LlamaCpp | Flavour::Ollama => {
                return Err(no_word_for("stop_token_ids", flavour));
            }
        }
    }
    Ok(())
}

/// How many answers there are to be; one needs no word.
fn choices(n: Option<u32>, flavour: Flavour, body: &mut Body) -> Result<()> {
    match n.filter(|n| *n != 1) {
        Some(_) if flavour == Flavour::Ollama => Err(no_word_for("n", flavour)),
        n => {
            put(body, "n", n);
            Ok(())
        }
    }
}

/// What the answer must look like.
fn response_format(format: &ResponseFormat, flavour: Flavour, body: &mut Body) -> Result<()> {
    let format = match format {
        ResponseFormat::Text => return Ok(()),
        ResponseFormat::JsonObject => json!({"type": "json_object"}),
        ResponseFormat::JsonSchema { schema } => json!({"type": "json_schema", "json_schema": {
            "name": "answer",
            "schema": schema,
            // OpenAI holds an answer to its schema only if the schema names all that may be there.
            "strict": flavour != Flavour::Openai || is_closed(schema),
        }}),
        ResponseFormat::Grammar { grammar } => {
            match flavour {
                Flavour::Openai | Flavour::Ollama => return Err(no_word_for("response_format", flavour)),
                Flavour::Vllm => put(body, "structured_outputs", Some(json!({"grammar": grammar}))),
                Flavour::LlamaCpp => put(body, "grammar", Some(grammar.as_str())),
                Flavour::Backplane => {
                    put(body, "response_format", Some(json!({"type": "grammar", "grammar": grammar})));
                }
            }
            return Ok(());
        }
    };
    body.insert("response_format".to_owned(), format);
    Ok(())
}

/// Whether every object of a schema requires all its properties and allows no others: what OpenAI's `strict` asks for.
fn is_closed(schema: &Value) -> bool {
    match schema {
        Value::Array(items) => items.iter().all(is_closed),
        Value::Object(members) => {
            let closed = match members.get("properties") {
                None => members.get("type").is_none_or(|kind| kind != "object"),
                Some(Value::Object(properties)) => {
                    let required = members.get("required").and_then(Value::as_array);
                    let requires =
                        |name: &String| required.is_some_and(|names| names.iter().any(|other| other == name));
                    members.get("additionalProperties") == Some(&Value::Bool(false))
                        && properties.keys().all(requires)
                }
                Some(_) => false,
            };
            closed && members.values().all(is_closed)
        }
        _ => true,
    }
}

/// Why a choice ended. An upstream may have reasons of its own: `extra` then says what it said.
fn finish_reason(theirs: Option<String>, extra: &mut Map<String, Value>) -> Option<FinishReason> {
    let theirs = theirs?;
    Some(match theirs.as_str() {
        "stop" | "eos" | "end_turn" => FinishReason::Stop,
        "length" | "max_tokens" => FinishReason::Length,
        "tool_calls" | "function_call" => FinishReason::ToolCalls,
        _ => {
            extra.insert("upstream_finish_reason".to_owned(), theirs.into());
            FinishReason::Stop
        }
    })
}

/// A piece of an answer of chats and completions, or all of it. An error may come in its place.
#[derive(Debug, Default, Deserialize)]
#[serde(default, bound = "C: Default + Deserialize<'de>")]
pub struct Answer<C> {
    pub choices: Vec<C>,
    pub usage: Option<TheirUsage>,
    pub error: Option<crate::fault::Said>,
}

/// What a request consumed, as the upstream counts.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct TheirUsage {
    prompt_tokens: u64,
    completion_tokens: u64,
    prompt_tokens_details: Option<Details>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Details {
    cached_tokens: Option<u64>,
}

impl From<TheirUsage> for Usage {
    fn from(theirs: TheirUsage) -> Self {
        let cached = theirs.prompt_tokens_details.and_then(|details| details.cached_tokens);
        Self {
            prompt_tokens: theirs.prompt_tokens,
            completion_tokens: theirs.completion_tokens,
            cached_tokens: cached.unwrap_or_default(),
            ..Self::default()
        }
    }
}

/// A token with its probability, as chats tell it.
#[derive(Debug, Deserialize)]
struct Token {
    token: String,
    logprob: f64,
    #[serde(default)]
    bytes: Option<Vec<u8>>,
    #[serde(default)]
    top_logprobs: Vec<Token>,
}

impl Token {
    fn bytes(&mut self) -> Vec<u8> {
        self.bytes.take().unwrap_or_else(|| self.token.clone().into_bytes())
    }
}

impl From<Token> for TokenLogprob {
    fn from(mut token: Token) -> Self {
        let bytes = token.bytes();
        let top = token.top_logprobs.into_iter().map(|mut top| {
            let bytes = top.bytes();
            TopLogprob { token: top.token, bytes, logprob: top.logprob as f32 }
        });
        Self { top: top.collect(), token: token.token, bytes, logprob: token.logprob as f32 }
    }
}

/// Mean of the log-probabilities of an answer, from which the host makes a confidence.
#[derive(Debug, Default)]
pub struct Mean {
    sum: f64,
    count: u64,
}

impl Mean {
    pub fn add(&mut self, tokens: &[TokenLogprob]) {
        self.sum += tokens.iter().map(|token| f64::from(token.logprob)).sum::<f64>();
        self.count += tokens.len() as u64;
    }

    pub fn get(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backplane_plugin::payload;

    #[test]
    fn what_a_server_has_no_word_for_is_refused_by_name() {
        let ask = |flavour, sampled: Value| {
            let mut body = Body::new();
            sampling(&serde_json::from_value(sampled).unwrap(), flavour, &mut body)
                .map(|()| Value::Object(body))
        };
        let own = json!({"temperature": 0.5, "top_k": 3, "repeat_penalty": 1.5});
        assert_eq!(ask(Flavour::Openai, own.clone()).unwrap_err().details["param"], "top_k");
        let off = json!({"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0});
        assert_eq!(ask(Flavour::Openai, off).unwrap(), json!({}));
        let vllm = ask(Flavour::Vllm, own.clone()).unwrap();
        assert_eq!(vllm, json!({"temperature": 0.5, "top_k": 3, "repetition_penalty": 1.5}));
        assert_eq!(ask(Flavour::Backplane, own.clone()).unwrap(), own);
        let tokens = json!({"stop_token_ids": [2, 7]});
        assert_eq!(ask(Flavour::Vllm, tokens.clone()).unwrap(), tokens);
        for flavour in [Flavour::LlamaCpp, Flavour::Ollama] {
            assert_eq!(ask(flavour, tokens.clone()).unwrap_err().details["param"], "stop_token_ids");
        }
        assert_eq!(ask(Flavour::Ollama, own).unwrap_err().details["param"], "top_k");
        let bias = json!({"logit_bias": {"7": -100.0}});
        assert_eq!(ask(Flavour::Ollama, bias).unwrap_err().details["param"], "logit_bias");
    }

    #[test]
    fn probabilities_are_asked_for_by_who_wants_them() {
        for flavour in
            [Flavour::Openai, Flavour::Vllm, Flavour::LlamaCpp, Flavour::Ollama, Flavour::Backplane]
        {
            let chat = |logprobs, confidence| {
                let params = payload::chat::Params { logprobs, ..Default::default() };
                let limit = crate::settings::TokenLimit::MaxTokens;
                let body = chat::request(params, "m", flavour, limit, confidence, &[]).unwrap();
                (body.get("logprobs").cloned(), body.get("top_logprobs").cloned())
            };
            assert_eq!(chat(None, false), (None, None));
            assert_eq!(chat(None, true), (Some(json!(true)), None));
            assert_eq!(chat(Some(0), false), (Some(json!(true)), None));
            assert_eq!(chat(Some(2), false), (Some(json!(true)), Some(json!(2))));
            let complete = |logprobs, confidence| {
                let params = payload::complete::Params { logprobs, ..Default::default() };
                complete::request(params, "m", flavour, confidence).unwrap().get("logprobs").cloned()
            };
            // The token's own alone, which is 0 to most, and nothing at all to Ollama.
            let own = Some(json!(u8::from(flavour == Flavour::Ollama)));
            assert_eq!(complete(None, false), None);
            assert_eq!((complete(None, true), complete(Some(0), false)), (own.clone(), own));
        }
    }

    #[test]
    fn strict_is_asked_of_openai_only_where_it_would_be_granted() {
        let closed = json!({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"],
            "additionalProperties": false});
        assert!(is_closed(&closed));
        for (member, value) in [("required", json!([])), ("additionalProperties", json!(true))] {
            let mut open = closed.clone();
            open[member] = value;
            assert!(!is_closed(&open), "{open}");
        }
        assert!(!is_closed(&json!({"anyOf": [closed, {"type": "object"}]})));
    }

    #[test]
    fn a_reason_that_we_have_not_is_told() {
        let mut extra = Map::new();
        assert_eq!(finish_reason(Some("content_filter".into()), &mut extra), Some(FinishReason::Stop));
        assert_eq!(extra["upstream_finish_reason"], "content_filter");
        assert_eq!(finish_reason(None, &mut extra), None);
    }
}
