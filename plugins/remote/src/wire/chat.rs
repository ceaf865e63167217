//! `chat/1` as `/chat/completions`.

use super::{Body, Token, choices, finish_reason, no_word_for, put, response_format, sampling};
use crate::settings::{Flavour, TokenLimit};
use backplane_plugin::payload::TokenLogprob;
use backplane_plugin::payload::chat::{Chunk, Content, Message, Params, Part, ToolCallDelta, ToolChoice};
use backplane_plugin::prelude::*;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value};

/// What is sent. `confidence`: log-probabilities are needed although the caller did not ask.
///
/// # Errors
/// What the upstream has no word for, by name; a picture that is not an encoded file.
pub fn request(
    params: Params,
    model: &str,
    flavour: Flavour,
    token_limit: TokenLimit,
    confidence: bool,
    tensors: &[TensorView<'_>],
) -> Result<Body> {
    let mut body = Body::new();
    body.insert("model".to_owned(), model.into());
    let messages = params.messages.into_iter().map(|said| message(said, tensors));
    body.insert("messages".to_owned(), Value::Array(messages.collect::<Result<_>>()?));
    // Ollama has no word for who is to choose. Without tools nobody does.
    let chooses = flavour != Flavour::Ollama;
    if !params.tools.is_empty() && (chooses || params.tool_choice != ToolChoice::None) {
        if !chooses && params.tool_choice != ToolChoice::Auto {
            return Err(no_word_for("tool_choice", flavour));
        }
        if !chooses && params.parallel_tool_calls == Some(false) {
            return Err(no_word_for("parallel_tool_calls", flavour));
        }
        let tools = params.tools.into_iter().map(|tool| {
            let mut function = tool.extra;
            function.insert("name".to_owned(), tool.name.into());
            put(&mut function, "description", tool.description);
            put(&mut function, "parameters", tool.parameters);
            json!({"type": "function", "function": function})
        });
        body.insert("tools".to_owned(), tools.collect());
        let choice = match params.tool_choice {
            ToolChoice::Auto => json!("auto"),
            ToolChoice::None => json!("none"),
            ToolChoice::Required => json!("required"),
            ToolChoice::Named(name) => json!({"type": "function", "function": {"name": name}}),
        };
        body.insert("tool_choice".to_owned(), choice);
        put(&mut body, "parallel_tool_calls", params.parallel_tool_calls);
    }
    response_format(&params.response_format, flavour, &mut body)?;
    sampling(&params.sampling, flavour, &mut body)?;
    if !params.stop.is_empty() {
        body.insert("stop".to_owned(), params.stop.into());
    }
    put(&mut body, token_limit.name(), params.max_tokens);
    choices(params.n, flavour, &mut body)?;
    if params.logprobs.is_some() || confidence {
        body.insert("logprobs".to_owned(), true.into());
        put(&mut body, "top_logprobs", params.logprobs.filter(|count| *count > 0));
    }
    if let Some(truncate) = params.truncate {
        if flavour != Flavour::Backplane {
            return Err(no_word_for("truncate", flavour));
        }
        put(&mut body, "truncate", serde_json::to_value(truncate).ok());
    }
    body.extend(params.extra);
    Ok(body)
}

fn message(said: Message, tensors: &[TensorView<'_>]) -> Result<Value> {
    let mut message = said.extra;
    message.insert("role".to_owned(), said.role.into());
    let content = match said.content {
        Content::Absent => Value::Null,
        Content::Text(text) => text.into(),
        Content::Parts(parts) => {
            let part = |part| match part {
                Part::Text { text } => Ok(json!({"type": "text", "text": text})),
                Part::Image { tensor } => {
                    Ok(json!({"type": "image_url", "image_url": {"url": picture(&tensor, tensors)?}}))
                }
            };
            Value::Array(parts.into_iter().map(part).collect::<Result<_>>()?)
        }
    };
    message.insert("content".to_owned(), content);
    put(&mut message, "name", said.name);
    put(&mut message, "tool_call_id", said.tool_call_id);
    if !said.tool_calls.is_empty() {
        let calls = said.tool_calls.into_iter().map(|call| {
            json!({"id": call.id, "type": "function",
                "function": {"name": call.name, "arguments": call.arguments}})
        });
        message.insert("tool_calls".to_owned(), calls.collect());
    }
    Ok(Value::Object(message))
}

/// A picture as a data URL.
fn picture(name: &str, tensors: &[TensorView<'_>]) -> Result<String> {
    let wrong = |what: &str| Error::invalid(format!("picture `{name}` {what}")).with_param(name);
    let tensor = tensors.iter().find(|tensor| tensor.name() == name).ok_or_else(|| wrong("is missing"))?;
    if tensor.dtype() != DType::Uint8 || tensor.shape().len() != 1 {
        return Err(wrong(
            "is to be an encoded file, a UINT8 tensor of one dimension: pixels are not encoded here",
        ));
    }
    let bytes = tensor.bytes();
    // The first bytes of each format (PNG, JPEG, GIF, WebP); servers look at them, too, but want a type.
    let kind = match bytes {
        [0x89, b'P', b'N', b'G', ..] => "image/png",
        [0xFF, 0xD8, 0xFF, ..] => "image/jpeg",
        [b'G', b'I', b'F', b'8', ..] => "image/gif",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "image/webp",
        _ => return Err(wrong("is neither PNG, JPEG, GIF nor WebP")),
    };
    Ok(format!("data:{kind};base64,{}", BASE64_STANDARD.encode(bytes)))
}

/// Members of a piece of `chat/1` that an upstream has elsewhere, and must not say twice.
const OURS: [&str; 4] = ["index", "logprobs", "finish_reason", "truncated"];

/// A whole answer has `message` where a piece has `delta`.
pub type Answer = super::Answer<Choice>;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Choice {
    index: u32,
    #[serde(alias = "message")]
    delta: Delta,
    logprobs: Option<Logprobs>,
    finish_reason: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Delta {
    #[serde(rename = "role")]
    _role: Option<Value>,
    content: Option<String>,
    refusal: Option<String>,
    tool_calls: Option<Vec<Call>>,
    /// `reasoning_content` and whatever else there is.
    #[serde(flatten)]
    extra: Map<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Call {
    index: Option<u32>,
    id: Option<String>,
    function: Function,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Function {
    name: Option<String>,
    arguments: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Logprobs {
    content: Option<Vec<Token>>,
}

impl Choice {
    /// As a piece of `chat/1`, with all the log-probabilities there are.
    pub fn chunk(self) -> Chunk {
        let mut extra = self.delta.extra;
        extra.retain(|name, value| !value.is_null() && !OURS.contains(&name.as_str()));
        let finish_reason = finish_reason(self.finish_reason, &mut extra);
        let calls = self.delta.tool_calls.unwrap_or_default().into_iter().enumerate();
        let tokens = self.logprobs.and_then(|logprobs| logprobs.content).unwrap_or_default();
        let mut content = self.delta.content.unwrap_or_default();
        // `chat/1` has one place for what the assistant says.
        content.push_str(&self.delta.refusal.unwrap_or_default());
        Chunk {
            index: self.index,
            content,
            tool_calls: calls.map(|(place, call)| call.delta(place)).collect(),
            logprobs: tokens.into_iter().map(TokenLogprob::from).collect(),
            finish_reason,
            truncated: None,
            extra,
        }
    }
}

impl Call {
    fn delta(self, place: usize) -> ToolCallDelta {
        ToolCallDelta {
            index: self.index.unwrap_or(place as u32),
            id: self.id.filter(|id| !id.is_empty()),
            name: self.function.name.filter(|name| !name.is_empty()),
            arguments: self.function.arguments.unwrap_or_default(),
        }
    }
}
