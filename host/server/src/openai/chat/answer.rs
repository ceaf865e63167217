//! From the pieces of `chat/1` to OpenAI's answer: piece by piece for a stream, or whole.

use super::wire::Telling;
use crate::fault::unfinished;
use crate::openai::wire::{Logprob, Usage, unix_now};
use crate::stream::Encoder;
use crate::{fault, sse};
use backplane::payload::FinishReason;
use backplane::payload::chat as payload;
use backplane::{Answer, Chunk, Done, Result, Route};
use bytes::BytesMut;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// An answer.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ChatCompletion")]
pub(crate) struct Completion {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    choices: Vec<Choice>,
    usage: Usage,
}

/// One of the answers.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ChatChoice")]
struct Choice {
    index: u32,
    message: Message,
    logprobs: Option<Logprobs>,
    #[schemars(with = "String")]
    finish_reason: FinishReason,
}

/// What the assistant says.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AssistantMessage")]
struct Message {
    role: &'static str,
    /// Null when it only calls tools.
    content: Option<String>,
    refusal: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
    /// What the plugin adds.
    #[serde(flatten)]
    extra: Map<String, Value>,
}

/// A call.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AssistantToolCall")]
struct ToolCall {
    id: String,
    r#type: &'static str,
    function: Function,
}

/// Which function, with what.
#[derive(Debug, Default, Serialize, JsonSchema)]
#[schemars(rename = "AssistantFunction")]
struct Function {
    name: String,
    arguments: String,
}

/// The tokens behind a text.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ChatLogprobs")]
struct Logprobs {
    content: Vec<Logprob>,
    refusal: Option<Vec<Logprob>>,
}

/// A piece of a streamed answer.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ChatCompletionChunk")]
pub(crate) struct Piece<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<PieceOfChoice>,
    /// Only when `stream_options.include_usage` asks for it: null, but in the last piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

/// A piece of one of the answers.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ChatChunkChoice")]
struct PieceOfChoice {
    index: u32,
    delta: Delta,
    logprobs: Option<Logprobs>,
    #[schemars(with = "Option<String>")]
    finish_reason: Option<FinishReason>,
}

/// What is to be appended.
#[derive(Debug, Default, Serialize, JsonSchema)]
#[schemars(rename = "ChatDelta")]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCallDelta>,
    /// What the plugin adds.
    #[serde(flatten)]
    extra: Map<String, Value>,
}

/// A piece of a call.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ChatToolCallDelta")]
struct ToolCallDelta {
    index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    function: FunctionDelta,
}

/// A piece of its function.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ChatFunctionDelta")]
struct FunctionDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

fn logprobs(tokens: Vec<backplane::payload::TokenLogprob>) -> Logprobs {
    Logprobs { content: tokens.into_iter().map(Logprob::from).collect(), refusal: None }
}

/// The whole answer.
///
/// # Errors
/// When the plugin does not keep to `chat/1`.
pub(crate) fn whole(id: &str, answer: &Answer, telling: Telling) -> Result<Completion> {
    let mut choices: BTreeMap<u32, Growing> = BTreeMap::new();
    for chunk in answer.json::<payload::Chunk>()? {
        choices.entry(chunk.index).or_default().add(chunk);
    }
    let mut usage = Usage::default();
    usage.add(&answer.done.usage);
    Ok(Completion {
        id: format!("chatcmpl-{id}"),
        object: "chat.completion",
        created: unix_now(),
        model: answer.route.model.to_string(),
        choices: choices
            .into_iter()
            .map(|(index, choice)| choice.finish(index, telling, &answer.route.plugin))
            .collect::<Result<Vec<_>>>()
            .and_then(
                |choices| {
                    if choices.is_empty() { Err(unfinished(&answer.route.plugin)) } else { Ok(choices) }
                },
            )?,
        usage,
    })
}

/// A choice whose pieces are coming in.
#[derive(Default)]
struct Growing {
    content: String,
    tool_calls: BTreeMap<u32, ToolCall>,
    logprobs: Vec<backplane::payload::TokenLogprob>,
    finish_reason: Option<FinishReason>,
    extra: Map<String, Value>,
}

impl Growing {
    fn add(&mut self, chunk: payload::Chunk) {
        self.content.push_str(&chunk.content);
        self.logprobs.extend(chunk.logprobs);
        self.finish_reason = chunk.finish_reason.or(self.finish_reason);
        for delta in chunk.tool_calls {
            let call = self.tool_calls.entry(delta.index).or_insert_with(|| ToolCall {
                id: String::new(),
                r#type: "function",
                function: Function::default(),
            });
            call.id.push_str(delta.id.as_deref().unwrap_or_default());
            call.function.name.push_str(delta.name.as_deref().unwrap_or_default());
            call.function.arguments.push_str(&delta.arguments);
        }
        let truncated = chunk.truncated.map(|messages| ("truncated".to_owned(), Value::from(messages)));
        for (name, value) in chunk.extra.into_iter().chain(truncated) {
            // Text of a member we do not know grows, as `content` does; of anything else the last stands.
            match (self.extra.get_mut(&name), value) {
                (Some(Value::String(text)), Value::String(more)) => text.push_str(&more),
                (_, value) => {
                    self.extra.insert(name, value);
                }
            }
        }
    }

    fn finish(self, index: u32, telling: Telling, plugin: &str) -> Result<Choice> {
        let only_calls = self.content.is_empty() && !self.tool_calls.is_empty();
        Ok(Choice {
            index,
            message: Message {
                role: "assistant",
                content: (!only_calls).then_some(self.content),
                refusal: None,
                tool_calls: self.tool_calls.into_values().collect(),
                extra: self.extra,
            },
            logprobs: telling.logprobs.then(|| logprobs(self.logprobs)),
            finish_reason: self.finish_reason.ok_or_else(|| unfinished(plugin))?,
        })
    }
}

/// Writes the pieces of one answer as events.
pub(crate) struct Stream {
    id: String,
    created: u64,
    model: String,
    plugin: String,
    telling: Telling,
    /// For each choice that has begun, whether it has ended.
    ended: BTreeMap<u32, bool>,
    usage: Usage,
}

impl Stream {
    pub(crate) fn new(id: &str, telling: Telling) -> Self {
        Self {
            id: format!("chatcmpl-{id}"),
            created: unix_now(),
            model: String::new(),
            plugin: String::new(),
            telling,
            ended: BTreeMap::new(),
            usage: Usage::default(),
        }
    }

    fn write(&self, choices: Vec<PieceOfChoice>, usage: Option<Usage>, out: &mut BytesMut) -> Result<()> {
        let piece = Piece {
            id: &self.id,
            object: "chat.completion.chunk",
            created: self.created,
            model: &self.model,
            choices,
            usage: self.telling.include_usage.then_some(usage),
        };
        sse::event(&piece, out).map_err(|error| fault::unwritable(&error))
    }

    /// The role comes first, in a piece of its own, as clients expect.
    fn begin(&mut self, index: u32, out: &mut BytesMut) -> Result<()> {
        if self.ended.contains_key(&index) {
            return Ok(());
        }
        self.ended.insert(index, false);
        let delta = Delta { role: Some("assistant"), content: Some(String::new()), ..Delta::default() };
        self.write(vec![PieceOfChoice { index, delta, logprobs: None, finish_reason: None }], None, out)
    }
}

impl Encoder for Stream {
    const INPUT: Option<&'static str> = Some("messages");

    fn route(&mut self, _source: usize, route: &Route) {
        self.model = route.model.to_string();
        self.plugin = route.plugin.to_string();
    }

    fn chunk(&mut self, _source: usize, chunk: Chunk, out: &mut BytesMut) -> Result<()> {
        if chunk.json.is_empty() {
            return Ok(());
        }
        let chunk: payload::Chunk =
            serde_json::from_slice(&chunk.json).map_err(|error| fault::schema(&self.plugin, &error))?;
        self.begin(chunk.index, out)?;
        let mut extra = chunk.extra;
        extra.extend(chunk.truncated.map(|messages| ("truncated".to_owned(), Value::from(messages))));
        let delta = Delta {
            role: None,
            content: (!chunk.content.is_empty()).then_some(chunk.content),
            tool_calls: chunk.tool_calls.into_iter().map(ToolCallDelta::from).collect(),
            extra,
        };
        let logprobs =
            (self.telling.logprobs && !chunk.logprobs.is_empty()).then(|| logprobs(chunk.logprobs));
        if chunk.finish_reason.is_some() {
            self.ended.insert(chunk.index, true);
        }
        let choice =
            PieceOfChoice { index: chunk.index, delta, logprobs, finish_reason: chunk.finish_reason };
        self.write(vec![choice], None, out)
    }

    fn done(&mut self, _source: usize, done: Done, _out: &mut BytesMut) -> Result<()> {
        if self.ended.is_empty() || self.ended.values().any(|ended| !ended) {
            return Err(unfinished(&self.plugin));
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

impl From<payload::ToolCallDelta> for ToolCallDelta {
    fn from(delta: payload::ToolCallDelta) -> Self {
        Self {
            index: delta.index,
            r#type: delta.id.is_some().then_some("function"),
            id: delta.id,
            function: FunctionDelta { name: delta.name, arguments: delta.arguments },
        }
    }
}
