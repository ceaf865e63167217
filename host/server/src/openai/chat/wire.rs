//! A chat request as OpenAI's clients send it, and its way to `chat/1`.

use super::content::Content;
use crate::openai::wire::{
    MAX_TOP_LOGPROBS, OneOrMany, StreamOptions, at_most, choices, invalid, sampling_fields, stop, unsupported,
};
use crate::options::KeepAliveField;
use backplane::payload::ResponseFormat as Format;
use backplane::payload::chat as payload;
use backplane::{Result, Tensor};
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};

/// Most messages of a conversation: far above what any context holds, far below what costs us anything to refuse.
pub(crate) const MAX_MESSAGES: usize = 10_000;
/// Most tools, as OpenAI's.
pub(crate) const MAX_TOOLS: usize = 128;

/// A conversation to be answered. What is not listed here is not read, and named in `x-ignored-params`.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "ChatRequest")]
pub(crate) struct Request {
    /// A model, an alias or a route. Without it the router chooses.
    #[serde(default)]
    pub model: Option<String>,
    /// The conversation, oldest first.
    pub messages: Vec<Message>,
    /// What the model may call.
    #[serde(default)]
    tools: Option<Vec<Tool>>,
    /// Whether it must: `none`, `auto`, `required`, or one of them by name.
    #[serde(default)]
    tool_choice: Option<ToolChoice>,
    /// Whether several calls may come in one answer.
    #[serde(default)]
    parallel_tool_calls: Option<bool>,
    /// What the answer must look like.
    #[serde(default)]
    response_format: Option<ResponseFormat>,
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
    /// Most tokens generated for each choice.
    #[serde(default)]
    max_completion_tokens: Option<u32>,
    /// The older name of `max_completion_tokens`.
    #[serde(default)]
    max_tokens: Option<u32>,
    /// How many choices, 1..=8.
    #[serde(default)]
    n: Option<u32>,
    /// Whether to tell each token's log-probability.
    #[serde(default)]
    logprobs: Option<bool>,
    /// How many alternatives of each token, 0..=20; needs `logprobs`.
    #[serde(default)]
    top_logprobs: Option<u8>,
    /// Whether the answer comes piece by piece, as server-sent events.
    #[serde(default)]
    pub stream: Option<bool>,
    /// How a stream is told.
    #[serde(default)]
    pub stream_options: Option<StreamOptions>,
    /// `["text"]`; no model here answers with sound.
    #[serde(default)]
    modalities: Option<Vec<String>>,
    /// What `tools` was called before; refused unless `tools` stands beside it.
    #[serde(default)]
    #[schemars(with = "Option<Vec<Value>>")]
    functions: Option<IgnoredAny>,
    /// What may be done with a conversation that does not fit; nothing, unless this allows it. Not OpenAI's.
    #[serde(default)]
    truncate: Option<payload::Truncate>,
    /// How long the model stays open afterwards: `"5m"`, seconds, `0`, or `-1` for ever. Not OpenAI's.
    #[serde(default)]
    pub keep_alive: Option<KeepAliveField>,
}

/// One message.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct Message {
    /// `system` (or `developer`), `user`, `assistant` or `tool`.
    role: String,
    /// Text, or parts.
    #[serde(default)]
    content: Content,
    /// Who speaks.
    #[serde(default)]
    name: Option<String>,
    /// Calls the assistant made.
    #[serde(default)]
    tool_calls: Option<Vec<ToolCall>>,
    /// The call that a `tool` message answers.
    #[serde(default)]
    tool_call_id: Option<String>,
}

/// A call the assistant made.
#[derive(Debug, Deserialize, JsonSchema)]
struct ToolCall {
    id: String,
    #[serde(default)]
    r#type: Option<String>,
    #[serde(default)]
    function: Option<CalledFunction>,
}

/// Which function, with what.
#[derive(Debug, Deserialize, JsonSchema)]
struct CalledFunction {
    name: String,
    /// JSON text.
    #[serde(default)]
    arguments: String,
}

/// A tool.
#[derive(Debug, Deserialize, JsonSchema)]
struct Tool {
    /// `function`.
    r#type: String,
    #[serde(default)]
    function: Option<Function>,
}

/// A function the model may call.
#[derive(Debug, Deserialize, JsonSchema)]
struct Function {
    name: String,
    #[serde(default)]
    description: Option<String>,
    /// JSON Schema of its arguments.
    #[serde(default)]
    parameters: Option<Value>,
    /// Whether the arguments must keep to the schema. They always do.
    #[serde(default)]
    strict: Option<bool>,
}

/// Whether tools are called.
#[derive(Debug, JsonSchema)]
#[serde(untagged)]
enum ToolChoice {
    /// `none`, `auto` or `required`.
    Mode(String),
    /// One by name.
    Named(NamedTool),
}

/// One tool by name.
#[derive(Debug, Deserialize, JsonSchema)]
struct NamedTool {
    /// `function`.
    r#type: String,
    #[serde(default)]
    function: Option<FunctionName>,
}

/// The name of a function.
#[derive(Debug, Deserialize, JsonSchema)]
struct FunctionName {
    name: String,
}

/// By hand, since an untagged enum would keep serde from telling which members were not read.
impl<'de> Deserialize<'de> for ToolChoice {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = ToolChoice;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("`none`, `auto`, `required` or a tool by name")
            }

            fn visit_str<E: serde::de::Error>(self, mode: &str) -> Result<ToolChoice, E> {
                Ok(ToolChoice::Mode(mode.to_owned()))
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<ToolChoice, A::Error> {
                NamedTool::deserialize(serde::de::value::MapAccessDeserializer::new(map))
                    .map(ToolChoice::Named)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// What the answer must look like.
#[derive(Debug, Deserialize, JsonSchema)]
struct ResponseFormat {
    /// `text`, `json_object`, `json_schema`, or `grammar` (not OpenAI's).
    r#type: String,
    /// With `json_schema`.
    #[serde(default)]
    json_schema: Option<NamedSchema>,
    /// With `grammar`: GBNF with the start rule `root`.
    #[serde(default)]
    grammar: Option<String>,
}

/// A JSON Schema with a name.
#[derive(Debug, Deserialize, JsonSchema)]
struct NamedSchema {
    /// For people.
    #[serde(default)]
    #[expect(
        dead_code,
        reason = "required by OpenAI and of no effect, so it is not worth a line in x-ignored-params"
    )]
    name: Option<String>,
    /// The schema.
    #[serde(default)]
    schema: Option<Value>,
    /// Whether the answer must keep to it. It always does.
    #[serde(default)]
    #[expect(dead_code, reason = "the answer always keeps to the schema")]
    strict: Option<bool>,
}

/// What the rest of a request needs to know about how its answer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Telling {
    pub stream: bool,
    pub include_usage: bool,
    pub logprobs: bool,
}

impl Request {
    /// How the answer is told.
    pub(crate) fn telling(&self) -> Telling {
        Telling {
            stream: self.stream.unwrap_or_default(),
            include_usage: self.stream_options.and_then(|options| options.include_usage).unwrap_or_default(),
            logprobs: self.logprobs.unwrap_or_default(),
        }
    }

    /// Where the first picture of the conversation stands.
    pub(crate) fn first_picture(&self) -> Option<String> {
        self.messages.iter().enumerate().find_map(|(at, message)| {
            Some(format!("messages[{at}].content[{}]", message.content.first_picture()?))
        })
    }

    /// The URL of each picture in the conversation, with where it stands.
    pub(crate) fn pictures(&mut self) -> impl Iterator<Item = (String, &mut String)> {
        let messages = self.messages.iter_mut().enumerate();
        messages.flat_map(|(at, message)| message.content.pictures(&format!("messages[{at}].content")))
    }

    /// The parameters of `chat/1` and the pictures in it; adds to `ignored` what is of no effect here.
    ///
    /// # Errors
    /// Whatever is out of range or not supported, by name.
    pub(crate) fn into_params(mut self, ignored: &mut Vec<String>) -> Result<(payload::Params, Vec<Tensor>)> {
        self.check_modalities()?;
        self.check_functions(ignored)?;
        let max_tokens = self.max_tokens()?;
        let logprobs = self.top_logprobs()?;
        let sampling = sampling_fields!(self).check()?;
        let stop = stop(self.stop.take())?;
        let n = choices(self.n)?;
        let tools = tools(self.tools.take().unwrap_or_default())?;
        let tool_choice = tool_choice(self.tool_choice.take(), &tools)?;
        let response_format =
            self.response_format.take().map_or(Ok(Format::Text), ResponseFormat::into_payload)?;
        let (messages, pictures) = messages(self.messages)?;
        let params = payload::Params {
            messages,
            tools,
            tool_choice,
            parallel_tool_calls: self.parallel_tool_calls,
            response_format,
            sampling,
            stop,
            max_tokens,
            n: (n != 1).then_some(n),
            logprobs,
            truncate: self.truncate,
            extra: serde_json::Map::new(),
        };
        Ok((params, pictures))
    }

    fn check_modalities(&self) -> Result<()> {
        match self.modalities.iter().flatten().find(|modality| *modality != "text") {
            Some(other) => Err(unsupported(
                "modalities",
                format!("`modalities`: `{other}` is not supported, only `text`"),
            )),
            None => Ok(()),
        }
    }

    fn check_functions(&self, ignored: &mut Vec<String>) -> Result<()> {
        match (&self.functions, &self.tools) {
            (None, _) => Ok(()),
            (Some(_), Some(_)) => {
                ignored.push("functions".to_owned());
                Ok(())
            }
            (Some(_), None) => {
                Err(unsupported("functions", "`functions` is not supported: use `tools`, which replaced it"))
            }
        }
    }

    fn max_tokens(&self) -> Result<Option<u32>> {
        match (self.max_completion_tokens, self.max_tokens) {
            (Some(new), Some(old)) if new != old => Err(invalid(
                "max_tokens",
                format!(
                    "`max_tokens` is {old} and `max_completion_tokens` is {new}; they mean the same, send one"
                ),
            )),
            (new, old) => Ok(new.or(old)),
        }
    }

    fn top_logprobs(&self) -> Result<Option<u8>> {
        match (self.logprobs.unwrap_or_default(), self.top_logprobs) {
            (_, Some(top)) if MAX_TOP_LOGPROBS < top => Err(invalid(
                "top_logprobs",
                format!("`top_logprobs` is {top}; it must be from 0 to {MAX_TOP_LOGPROBS}"),
            )),
            (false, Some(1..)) => Err(invalid("top_logprobs", "`top_logprobs` needs `logprobs` to be true")),
            (false, _) => Ok(None),
            (true, top) => Ok(Some(top.unwrap_or_default())),
        }
    }
}

fn messages(messages: Vec<Message>) -> Result<(Vec<payload::Message>, Vec<Tensor>)> {
    if messages.is_empty() {
        return Err(invalid("messages", "`messages` is empty; at least one is needed"));
    }
    at_most("messages", messages.len(), MAX_MESSAGES)?;
    let mut pictures = Vec::new();
    let messages = messages
        .into_iter()
        .enumerate()
        .map(|(at, message)| message.into_payload(&format!("messages[{at}]"), &mut pictures))
        .collect::<Result<_>>()?;
    Ok((messages, pictures))
}

impl Message {
    fn into_payload(self, at: &str, pictures: &mut Vec<Tensor>) -> Result<payload::Message> {
        let role = match self.role.as_str() {
            "system" | "user" | "assistant" | "tool" => self.role,
            // What OpenAI calls `system` since its reasoning models; templates know the old word.
            "developer" => "system".to_owned(),
            other => {
                let message = format!(
                    "`{at}.role` is `{other}`; it must be `system`, `developer`, `user`, `assistant` or `tool`"
                );
                return Err(invalid(format!("{at}.role"), message));
            }
        };
        let tool_calls = self
            .tool_calls
            .unwrap_or_default()
            .into_iter()
            .enumerate()
            .map(|(index, call)| call.into_payload(&format!("{at}.tool_calls[{index}]")))
            .collect::<Result<Vec<_>>>()?;
        if !tool_calls.is_empty() && role != "assistant" {
            let message =
                format!("`{at}.tool_calls`: only an `assistant` message has calls, this is `{role}`");
            return Err(invalid(format!("{at}.tool_calls"), message));
        }
        let content = self.content.into_payload(&format!("{at}.content"), pictures)?;
        if content == payload::Content::Absent && tool_calls.is_empty() {
            return Err(invalid(format!("{at}.content"), format!("`{at}.content` is missing")));
        }
        Ok(payload::Message {
            role,
            content,
            name: self.name,
            tool_calls,
            tool_call_id: self.tool_call_id,
            extra: serde_json::Map::new(),
        })
    }
}

impl ToolCall {
    fn into_payload(self, at: &str) -> Result<payload::ToolCall> {
        match (self.r#type.as_deref().unwrap_or("function"), self.function) {
            ("function", Some(function)) => {
                Ok(payload::ToolCall { id: self.id, name: function.name, arguments: function.arguments })
            }
            ("function", None) => {
                Err(invalid(format!("{at}.function"), format!("`{at}.function` is missing")))
            }
            (other, _) => Err(unsupported(
                format!("{at}.type"),
                format!("`{at}.type` is `{other}`; only `function` is supported"),
            )),
        }
    }
}

fn tools(tools: Vec<Tool>) -> Result<Vec<payload::Tool>> {
    at_most("tools", tools.len(), MAX_TOOLS)?;
    let tools = tools
        .into_iter()
        .enumerate()
        .map(|(index, tool)| tool.into_payload(&format!("tools[{index}]")))
        .collect::<Result<Vec<_>>>()?;
    let mut names = HashSet::new();
    if let Some((index, tool)) = tools.iter().enumerate().find(|(_, tool)| !names.insert(&tool.name)) {
        let message = format!("`tools[{index}].function.name`: there already is a tool `{}`", tool.name);
        return Err(invalid(format!("tools[{index}].function.name"), message));
    }
    Ok(tools)
}

impl Tool {
    fn into_payload(self, at: &str) -> Result<payload::Tool> {
        let function = match (self.r#type.as_str(), self.function) {
            ("function", Some(function)) => function,
            ("function", None) => {
                return Err(invalid(format!("{at}.function"), format!("`{at}.function` is missing")));
            }
            (other, _) => {
                let message = format!("`{at}.type` is `{other}`; only `function` is supported");
                return Err(unsupported(format!("{at}.type"), message));
            }
        };
        if function.name.is_empty() {
            let at = format!("{at}.function.name");
            return Err(invalid(at.clone(), format!("`{at}` is empty")));
        }
        if function.parameters.as_ref().is_some_and(|schema| !schema.is_object()) {
            let at = format!("{at}.function.parameters");
            return Err(invalid(at.clone(), format!("`{at}` must be a JSON Schema, which is an object")));
        }
        let extra = function.strict.map(|strict| ("strict".to_owned(), Value::Bool(strict)));
        Ok(payload::Tool {
            name: function.name,
            description: function.description,
            parameters: function.parameters,
            extra: extra.into_iter().collect(),
        })
    }
}

fn tool_choice(choice: Option<ToolChoice>, tools: &[payload::Tool]) -> Result<payload::ToolChoice> {
    let choice = match choice {
        None => return Ok(payload::ToolChoice::Auto),
        Some(ToolChoice::Mode(mode)) => match mode.as_str() {
            "none" => payload::ToolChoice::None,
            "auto" => payload::ToolChoice::Auto,
            "required" => payload::ToolChoice::Required,
            other => {
                let message = format!(
                    "`tool_choice` is `{other}`; it must be `none`, `auto`, `required` or a tool by name"
                );
                return Err(invalid("tool_choice", message));
            }
        },
        Some(ToolChoice::Named(named)) => match (named.r#type.as_str(), named.function) {
            ("function", Some(function)) => payload::ToolChoice::Named(function.name),
            ("function", None) => {
                return Err(invalid("tool_choice.function", "`tool_choice.function` is missing"));
            }
            (other, _) => {
                let message = format!("`tool_choice.type` is `{other}`; only `function` is supported");
                return Err(unsupported("tool_choice.type", message));
            }
        },
    };
    match &choice {
        payload::ToolChoice::Required if tools.is_empty() => {
            Err(invalid("tool_choice", "`tool_choice` is `required`, and there are no `tools`"))
        }
        payload::ToolChoice::Named(name) if !tools.iter().any(|tool| tool.name == *name) => Err(invalid(
            "tool_choice.function.name",
            format!("`tool_choice` names `{name}`, which is not in `tools`"),
        )),
        _ => Ok(choice),
    }
}

impl ResponseFormat {
    fn into_payload(self) -> Result<Format> {
        match self.r#type.as_str() {
            "text" => Ok(Format::Text),
            "json_object" => Ok(Format::JsonObject),
            "json_schema" => {
                let schema = self.json_schema.and_then(|named| named.schema);
                match schema {
                    Some(schema) if schema.is_object() || schema.is_boolean() => {
                        Ok(Format::JsonSchema { schema })
                    }
                    Some(_) => Err(invalid(
                        "response_format.json_schema.schema",
                        "`response_format.json_schema.schema` must be a JSON Schema",
                    )),
                    None => Err(invalid(
                        "response_format.json_schema.schema",
                        "`response_format.json_schema.schema` is missing",
                    )),
                }
            }
            "grammar" => match self.grammar {
                Some(grammar) => Ok(Format::Grammar { grammar }),
                None => Err(invalid("response_format.grammar", "`response_format.grammar` is missing")),
            },
            other => Err(invalid(
                "response_format.type",
                format!(
                    "`response_format.type` is `{other}`; it must be `text`, `json_object`, `json_schema` or `grammar`"
                ),
            )),
        }
    }
}
