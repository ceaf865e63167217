//! `chat/1`: a conversation in, the next message out, piece by piece.

use super::{Extra, FinishReason, ResponseFormat, Sampling, TokenLogprob};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Name of the capability.
pub const CAPABILITY: &str = "chat";

/// Parameters of a chat.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// The conversation, oldest first. At least one.
    pub messages: Vec<Message>,
    /// What the model may call.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<Tool>,
    /// Whether it must.
    pub tool_choice: ToolChoice,
    /// Whether several calls may come in one answer; absent means yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parallel_tool_calls: Option<bool>,
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
    /// Report each token's log-probability and this many alternatives (0..=20).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<u8>,
    /// What to do with a prompt that does not fit; never anything unasked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truncate: Option<Truncate>,
    /// What we do not know: model-specific.
    #[serde(flatten)]
    pub extra: Extra,
}

/// How a caller lets a long conversation be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Truncate {
    /// Drop whole messages after the system message, oldest first. The final chunk says how many (`truncated`).
    OldestMessages,
}

/// One message.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`; a template may know others.
    pub role: String,
    /// Text, or parts.
    pub content: Content,
    /// Who speaks, where a template shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Calls the assistant made.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The call this `tool` message answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// What we do not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What a message says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Content {
    /// Plain text.
    Text(String),
    /// Text and other media in order.
    Parts(Vec<Part>),
    /// None: an assistant message that only calls tools.
    #[default]
    Absent,
}

/// A part of a message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Part {
    /// Text.
    Text {
        /// The text.
        text: String,
    },
    /// A picture, as the tensor of this name in the request.
    Image {
        /// Name of a `UINT8` tensor: an encoded file (1-D) or pixels (`[height, width, 3]`, sRGB).
        tensor: String,
    },
}

/// A function the model may call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// When to call it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// JSON Schema of its arguments; absent: an object with anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters: Option<serde_json::Value>,
    /// What we do not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Whether tools are called.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// None is called.
    None,
    /// At least one is called.
    Required,
    /// This one is called.
    Named(String),
}

/// A call the model made, whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ToolCall {
    /// Names this call in the conversation.
    pub id: String,
    /// The tool.
    pub name: String,
    /// JSON text of the arguments.
    pub arguments: String,
}

/// A piece of a call: the first for an index has id and name, the others add to the arguments.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ToolCallDelta {
    /// Which call of the answer, from 0.
    pub index: u32,
    /// Only in the first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Only in the first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// To be appended.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub arguments: String,
}

/// A piece of the answer. Each choice ends with one chunk that has a `finish_reason`; usage comes with the end of
/// the request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Chunk {
    /// Which choice, from 0.
    #[serde(skip_serializing_if = "is_first")]
    pub index: u32,
    /// Text to append; whole characters only.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub content: String,
    /// Calls to begin or to add to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
    /// The tokens behind this piece, when asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprob>,
    /// Only in the last chunk of a choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<FinishReason>,
    /// How many messages were dropped, when the caller allowed it and it happened. In the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truncated: Option<u32>,
    /// What we do not know.
    #[serde(flatten)]
    pub extra: Extra,
}

fn is_first(index: &u32) -> bool {
    *index == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn params_keep_what_they_do_not_know() {
        let text =
            r#"{"messages":[{"role":"user","content":"hi","cache":1}],"temperature":0.5,"mood":"good"}"#;
        let params: Params = serde_json::from_str(text).unwrap();
        assert_eq!(params.messages[0].content, Content::Text("hi".into()));
        assert_eq!(params.sampling.temperature, Some(0.5));
        let back = serde_json::to_value(&params).unwrap();
        assert_eq!(back["mood"], "good");
        assert_eq!(back["messages"][0]["cache"], 1);
        assert_eq!(serde_json::from_value::<Params>(back).unwrap(), params);
    }

    #[test]
    fn an_assistant_that_only_calls_has_no_content() {
        let message: Message = serde_json::from_str(
            r#"{"role":"assistant","content":null,"tool_calls":[{"id":"a","name":"f"}]}"#,
        )
        .unwrap();
        assert_eq!(message.content, Content::Absent);
    }
}
