//! From the pieces of `complete/1` to OpenAI's answer: piece by piece for a stream, or whole.

use super::wire::Telling;
use crate::fault::{self, unfinished};
use crate::openai::wire::{Usage, finite, unix_now};
use crate::sse;
use crate::stream::Encoder;
use backplane::payload::complete as payload;
use backplane::payload::{FinishReason, TokenLogprob};
use backplane::{Answer, Chunk, Done, Result, Route};
use bytes::BytesMut;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// An answer, or a piece of one: they have one shape.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Completion")]
pub(crate) struct Completion {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    choices: Vec<Choice>,
    /// Of a stream, only when `stream_options.include_usage` asks for it: null, but in the last piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

/// One of the answers.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "CompletionChoice")]
struct Choice {
    index: u32,
    text: String,
    logprobs: Option<Logprobs>,
    #[schemars(with = "Option<String>")]
    finish_reason: Option<FinishReason>,
}

/// The tokens behind a text, as four lists of one length.
#[derive(Debug, Default, Serialize, JsonSchema)]
#[schemars(rename = "CompletionLogprobs")]
struct Logprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    /// For each token, text of the alternatives to their log-probability. Alternatives with one text are one entry.
    top_logprobs: Vec<Map<String, Value>>,
    /// Where each token begins in the text, in characters.
    text_offset: Vec<usize>,
}

impl Logprobs {
    /// Tokens that begin `offset` characters into the text; returns where the next begins.
    fn of(tokens: Vec<TokenLogprob>, mut offset: usize) -> (Self, usize) {
        let mut lists = Logprobs::default();
        for token in tokens {
            lists.text_offset.push(offset);
            offset += token.token.chars().count();
            lists.token_logprobs.push(finite(token.logprob));
            let mut top = Map::new();
            for alternative in token.top {
                top.entry(alternative.token).or_insert_with(|| finite(alternative.logprob).into());
            }
            lists.top_logprobs.push(top);
            lists.tokens.push(token.token);
        }
        (lists, offset)
    }
}

/// The whole answer to all prompts, whose answers come in their order.
///
/// # Errors
/// When the plugin does not keep to `complete/1`.
pub(crate) fn whole(id: &str, answers: &[Answer], telling: Telling) -> Result<Completion> {
    let (mut choices, mut usage) = (Vec::new(), Usage::default());
    for (index, answer) in (0u32..).zip(answers) {
        let mut growing: BTreeMap<u32, Growing> = BTreeMap::new();
        for chunk in answer.json::<payload::Chunk>()? {
            growing.entry(chunk.index).or_default().add(chunk);
        }
        let plugin = &answer.route.plugin;
        if growing.is_empty() {
            return Err(unfinished(plugin));
        }
        for (choice, grown) in growing {
            choices.push(grown.finish(index * telling.n + choice, telling, plugin)?);
        }
        usage.add(&answer.done.usage);
    }
    Ok(Completion {
        id: format!("cmpl-{id}"),
        object: "text_completion",
        created: unix_now(),
        model: answers.first().map(|answer| answer.route.model.to_string()).unwrap_or_default(),
        choices,
        usage: Some(Some(usage)),
    })
}

/// A choice whose pieces are coming in.
#[derive(Default)]
struct Growing {
    text: String,
    logprobs: Vec<TokenLogprob>,
    finish_reason: Option<FinishReason>,
}

impl Growing {
    fn add(&mut self, chunk: payload::Chunk) {
        self.text.push_str(&chunk.text);
        self.logprobs.extend(chunk.logprobs);
        self.finish_reason = chunk.finish_reason.or(self.finish_reason);
    }

    fn finish(self, index: u32, telling: Telling, plugin: &str) -> Result<Choice> {
        Ok(Choice {
            index,
            text: self.text,
            logprobs: telling.logprobs.then(|| Logprobs::of(self.logprobs, 0).0),
            finish_reason: Some(self.finish_reason.ok_or_else(|| unfinished(plugin))?),
        })
    }
}

/// Writes the pieces of the answers to all prompts as events.
pub(crate) struct Stream {
    id: String,
    created: u64,
    model: String,
    plugins: Vec<String>,
    telling: Telling,
    /// For each choice that has begun: where its next token begins, and whether it has ended.
    choices: BTreeMap<u32, (usize, bool)>,
    usage: Usage,
}

impl Stream {
    pub(crate) fn new(id: &str, telling: Telling, prompts: usize) -> Self {
        Self {
            id: format!("cmpl-{id}"),
            created: unix_now(),
            model: String::new(),
            plugins: vec![String::new(); prompts],
            telling,
            choices: BTreeMap::new(),
            usage: Usage::default(),
        }
    }

    fn write(&self, choices: Vec<Choice>, usage: Option<Usage>, out: &mut BytesMut) -> Result<()> {
        let piece = Completion {
            id: self.id.clone(),
            object: "text_completion",
            created: self.created,
            model: self.model.clone(),
            choices,
            usage: self.telling.include_usage.then_some(usage),
        };
        sse::event(&piece, out).map_err(|error| fault::unwritable(&error))
    }

    fn choice(&self, source: usize, index: u32) -> u32 {
        u32::try_from(source).unwrap_or(u32::MAX).saturating_mul(self.telling.n).saturating_add(index)
    }
}

impl Encoder for Stream {
    const INPUT: Option<&'static str> = Some("prompt");

    fn route(&mut self, source: usize, route: &Route) {
        self.model = route.model.to_string();
        self.plugins[source] = route.plugin.to_string();
    }

    fn chunk(&mut self, source: usize, chunk: Chunk, out: &mut BytesMut) -> Result<()> {
        if chunk.json.is_empty() {
            return Ok(());
        }
        let chunk: payload::Chunk = serde_json::from_slice(&chunk.json)
            .map_err(|error| fault::schema(&self.plugins[source], &error))?;
        let index = self.choice(source, chunk.index);
        let (offset, ended) = self.choices.entry(index).or_default();
        *ended |= chunk.finish_reason.is_some();
        let logprobs = (self.telling.logprobs && !chunk.logprobs.is_empty()).then(|| {
            let (lists, next) = Logprobs::of(chunk.logprobs, *offset);
            *offset = next;
            lists
        });
        self.write(
            vec![Choice { index, text: chunk.text, logprobs, finish_reason: chunk.finish_reason }],
            None,
            out,
        )
    }

    fn done(&mut self, source: usize, done: Done, _out: &mut BytesMut) -> Result<()> {
        let own = self.choice(source, 0)..self.choice(source, self.telling.n);
        let mut own = self.choices.range(own).peekable();
        if own.peek().is_none() || own.any(|(_, (_, ended))| !ended) {
            return Err(unfinished(&self.plugins[source]));
        }
        self.usage.add(&done.usage);
        Ok(())
    }

    fn end(&mut self, out: &mut BytesMut) -> Result<()> {
        if self.telling.include_usage {
            let usage = std::mem::take(&mut self.usage);
            self.write(Vec::new(), Some(usage), out)?;
        }
        out.extend_from_slice(sse::DONE);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backplane::payload::TopLogprob;

    #[test]
    fn offsets_count_characters() {
        let token = |text: &str| TokenLogprob {
            token: text.to_owned(),
            bytes: text.as_bytes().to_vec(),
            logprob: -0.5,
            top: vec![TopLogprob { token: text.to_owned(), bytes: Vec::new(), logprob: -0.5 }],
        };
        let (lists, next) = Logprobs::of(vec![token("né"), token("e"), token("!")], 10);
        assert_eq!(lists.text_offset, [10, 12, 13]);
        assert_eq!(next, 14);
        assert_eq!(lists.tokens, ["né", "e", "!"]);
        assert_eq!(lists.top_logprobs[0]["né"], -0.5);
    }
}
