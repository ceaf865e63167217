//! `complete/1` as `/completions`.

use super::{Body, Token, choices, finish_reason, no_word_for, put, response_format, sampling};
use crate::settings::Flavour;
use backplane_plugin::payload::complete::{Chunk, Params, Prompt};
use backplane_plugin::payload::{ResponseFormat, TokenLogprob, TopLogprob};
use backplane_plugin::prelude::*;
use serde::Deserialize;
use serde_json::{Map, Value};

/// What is sent. `confidence` as for a chat.
///
/// # Errors
/// What the upstream has no word for, by name.
pub fn request(params: Params, model: &str, flavour: Flavour, confidence: bool) -> Result<Body> {
    if params.echo && (params.logprobs.is_some() || confidence) {
        // Where the prompt ends among the tokens is told by no server in the same way.
        let what = "`echo` together with `logprobs` is not passed on to an upstream: leave one of them out";
        return Err(Error::invalid(what).with_reason("unsupported_param").with_param("echo"));
    }
    if flavour == Flavour::Ollama {
        let unknown = [
            ("prompt", matches!(params.prompt, Prompt::Tokens(_))),
            ("echo", params.echo),
            ("response_format", params.response_format != ResponseFormat::Text),
        ];
        if let Some((name, _)) = unknown.into_iter().find(|(_, is_asked)| *is_asked) {
            return Err(no_word_for(name, flavour));
        }
    }
    let mut body = Body::new();
    body.insert("model".to_owned(), model.into());
    let prompt = match params.prompt {
        Prompt::Text(text) => text.into(),
        Prompt::Tokens(tokens) => tokens.into(),
    };
    body.insert("prompt".to_owned(), prompt);
    put(&mut body, "suffix", params.suffix);
    put(&mut body, "echo", params.echo.then_some(true));
    response_format(&params.response_format, flavour, &mut body)?;
    sampling(&params.sampling, flavour, &mut body)?;
    if !params.stop.is_empty() {
        body.insert("stop".to_owned(), params.stop.into());
    }
    put(&mut body, "max_tokens", params.max_tokens);
    choices(params.n, flavour, &mut body)?;
    // To Ollama 0 means none at all, and one alternative each is the least.
    let least = u8::from(flavour == Flavour::Ollama);
    let logprobs = params.logprobs.or(confidence.then_some(0));
    put(&mut body, "logprobs", logprobs.map(|count| count.max(least)));
    body.extend(params.extra);
    Ok(body)
}

/// About how many bytes of the prompt come back with each choice, as JSON.
pub fn repeated(params: &Params) -> usize {
    match &params.prompt {
        _ if !params.echo => 0,
        // At worst each byte is written as `\u0000`.
        Prompt::Text(text) => text.len().saturating_mul(6),
        Prompt::Tokens(tokens) => tokens.len().saturating_mul(256),
    }
}

/// A whole answer looks like a piece.
pub type Answer = super::Answer<Choice>;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Choice {
    index: u32,
    text: String,
    logprobs: Option<Logprobs>,
    finish_reason: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Logprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f64>>,
    /// A map for each token: likeliest first as the server wrote it.
    top_logprobs: Option<Vec<Option<Map<String, Value>>>>,
    /// Ollama's, which are as those of a chat.
    content: Vec<Token>,
}

impl Choice {
    /// As a piece of `complete/1`.
    pub fn chunk(self) -> Chunk {
        let mut extra = Map::new();
        let finish_reason = finish_reason(self.finish_reason, &mut extra);
        Chunk {
            index: self.index,
            text: self.text,
            prompt_logprobs: Vec::new(),
            logprobs: self.logprobs.map(Logprobs::tokens).unwrap_or_default(),
            finish_reason,
            extra,
        }
    }
}

impl Logprobs {
    fn tokens(self) -> Vec<TokenLogprob> {
        let mut top = self.top_logprobs.unwrap_or_default().into_iter();
        let likely = |(token, logprob): (String, Value)| {
            let bytes = token.clone().into_bytes();
            Some(TopLogprob { token, bytes, logprob: logprob.as_f64()? as f32 })
        };
        let tokens = self.tokens.into_iter().zip(self.token_logprobs).map(|(token, logprob)| {
            let mut top: Vec<_> =
                top.next().flatten().unwrap_or_default().into_iter().filter_map(likely).collect();
            top.sort_by(|a, b| b.logprob.total_cmp(&a.logprob));
            // The first token of all has no probability: nothing stood before it.
            logprob.map(|logprob| TokenLogprob {
                bytes: token.clone().into_bytes(),
                token,
                logprob: logprob as f32,
                top,
            })
        });
        self.content.into_iter().map(TokenLogprob::from).chain(tokens.flatten()).collect()
    }
}
