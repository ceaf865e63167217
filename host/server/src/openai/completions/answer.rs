//! From the pieces of `complete/1` to OpenAI's answer: piece by piece for a stream, or whole.

use super::wire::Telling;
use crate::fault::{self, unfinished};
use crate::openai::wire::{Usage, finite, unix_now};
use crate::sse;
use crate::stream::Encoder;
use backplane::payload::complete::{self as payload, PromptLogprob};
use backplane::payload::{FinishReason, TokenLogprob, TopLogprob};
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

/// The tokens behind a text, of the prompt too where it is given back, as four lists of one length.
#[derive(Debug, Default, Serialize, JsonSchema)]
#[schemars(rename = "CompletionLogprobs")]
struct Logprobs {
    tokens: Vec<String>,
    /// Null where nothing is before a token.
    token_logprobs: Vec<Option<f32>>,
    /// For each token, text of the likeliest tokens, and of this one, to their log-probability. Tokens with one text are
    /// one entry.
    top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Where each token begins in the text, in characters.
    text_offset: Vec<usize>,
}

impl Logprobs {
    /// Writes the tokens of a piece, the prompt's first, that begin where `place` is.
    fn of(prompt: Vec<PromptLogprob>, answer: Vec<TokenLogprob>, place: &mut Place) -> Self {
        let mut lists = Logprobs::default();
        for token in prompt {
            lists.add(token.token, token.logprob, token.top, place.pass(&token.bytes));
        }
        for token in answer {
            lists.add(token.token, Some(token.logprob), token.top, place.pass(&token.bytes));
        }
        lists
    }

    fn add(&mut self, token: String, logprob: Option<f32>, top: Vec<TopLogprob>, offset: usize) {
        let logprob = logprob.map(finite);
        self.top_logprobs.push(logprob.map(|logprob| {
            let mut alternatives = Map::new();
            for alternative in top {
                alternatives.entry(alternative.token).or_insert_with(|| finite(alternative.logprob).into());
            }
            // OpenAI promises the chosen token's own, which makes one more than were asked for.
            alternatives.entry(token.clone()).or_insert_with(|| logprob.into());
            alternatives
        }));
        self.token_logprobs.push(logprob);
        self.tokens.push(token);
        self.text_offset.push(offset);
    }
}

/// A place in a text whose tokens are passed one by one.
#[derive(Debug, Default)]
struct Place {
    /// Whole characters before it.
    characters: usize,
    /// The bytes of a character that is not whole yet.
    begun: Vec<u8>,
}

impl Place {
    /// Passes a token; returns the character it begins at, or in.
    fn pass(&mut self, bytes: &[u8]) -> usize {
        let at = self.characters;
        self.begun.extend_from_slice(bytes);
        let mut whole = 0;
        for chunk in self.begun.utf8_chunks() {
            self.characters += chunk.valid().chars().count();
            whole += chunk.valid().len();
            let unfinished = whole + chunk.invalid().len() == self.begun.len()
                && std::str::from_utf8(chunk.invalid()).is_err_and(|error| error.error_len().is_none());
            if !chunk.invalid().is_empty() && !unfinished {
                // Stands in the text as U+FFFD.
                self.characters += 1;
                whole += chunk.invalid().len();
            }
        }
        self.begun.drain(..whole);
        at
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
    prompt_logprobs: Vec<PromptLogprob>,
    logprobs: Vec<TokenLogprob>,
    finish_reason: Option<FinishReason>,
}

impl Growing {
    fn add(&mut self, chunk: payload::Chunk) {
        self.text.push_str(&chunk.text);
        self.prompt_logprobs.extend(chunk.prompt_logprobs);
        self.logprobs.extend(chunk.logprobs);
        self.finish_reason = chunk.finish_reason.or(self.finish_reason);
    }

    fn finish(self, index: u32, telling: Telling, plugin: &str) -> Result<Choice> {
        Ok(Choice {
            index,
            text: self.text,
            logprobs: telling
                .logprobs
                .then(|| Logprobs::of(self.prompt_logprobs, self.logprobs, &mut Place::default())),
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
    choices: BTreeMap<u32, (Place, bool)>,
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
        let (place, ended) = self.choices.entry(index).or_default();
        *ended |= chunk.finish_reason.is_some();
        let tells = self.telling.logprobs && !(chunk.prompt_logprobs.is_empty() && chunk.logprobs.is_empty());
        let logprobs = tells.then(|| Logprobs::of(chunk.prompt_logprobs, chunk.logprobs, place));
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

    fn token(text: &str, bytes: &[u8]) -> TokenLogprob {
        let top = vec![TopLogprob { token: "other".to_owned(), bytes: Vec::new(), logprob: -0.25 }];
        TokenLogprob { token: text.to_owned(), bytes: bytes.to_vec(), logprob: -0.5, top }
    }

    #[test]
    fn offsets_count_characters() {
        let mut place = Place { characters: 10, begun: Vec::new() };
        let tokens = ["né", "e", "!"].map(|text| token(text, text.as_bytes()));
        let lists = Logprobs::of(Vec::new(), tokens.to_vec(), &mut place);
        assert_eq!(lists.text_offset, [10, 12, 13]);
        assert_eq!(place.characters, 14);
        assert_eq!(lists.tokens, ["né", "e", "!"]);
        let top = lists.top_logprobs[0].as_ref().unwrap();
        assert_eq!((&top["other"], &top["né"]), (&(-0.25).into(), &(-0.5).into()));
    }

    #[test]
    fn tokens_within_a_character_begin_where_it_does() {
        // 😀 in three tokens, a byte that is no character, a token without text, €.
        let pieces: [&[u8]; 7] = [b"a", b"\xF0\x9F", b"\x98", b"\x80b", b"\xFF", b"", "€".as_bytes()];
        let mut place = Place::default();
        let offsets: Vec<usize> = pieces.iter().map(|piece| place.pass(piece)).collect();
        assert_eq!(offsets, [0, 1, 1, 1, 3, 4, 4]);
        let text = String::from_utf8_lossy(&pieces.concat()).into_owned();
        assert_eq!(place.characters, text.chars().count());
    }

    #[test]
    fn a_prompt_that_is_given_back_comes_first_and_its_first_token_has_no_probability() {
        let prompt = [("A", None), (" b", Some(-2.0))].map(|(text, logprob)| PromptLogprob {
            token: text.to_owned(),
            bytes: text.as_bytes().to_vec(),
            logprob,
            top: Vec::new(),
        });
        let lists = Logprobs::of(prompt.to_vec(), vec![token(" c", b" c")], &mut Place::default());
        assert_eq!(lists.tokens, ["A", " b", " c"]);
        assert_eq!(lists.token_logprobs, [None, Some(-2.0), Some(-0.5)]);
        assert_eq!(lists.text_offset, [0, 1, 3]);
        assert!(lists.top_logprobs[0].is_none());
        assert_eq!(lists.top_logprobs[1].as_ref().unwrap()[" b"], -2.0);
    }
}
