//! From a request to tokens: chat template, tokenizer, and what happens when it does not fit.

use super::far::{self, Least};
use super::template::{ChatTemplate, Conversation};
use super::tools;
use backplane_plugin::Code;
use backplane_plugin::payload::chat::{self, Content, Message, Part, Tool, ToolChoice, Truncate};
use backplane_plugin::payload::complete;
use backplane_plugin::{Error, Result};
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;
use serde_json::Value;
use std::ops::Range;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// A parameter of a completion beside those of `complete/1`: whether control tokens that are written out in the prompt are
/// read as such. Name and meaning are those of llama.cpp's server.
pub const PARSE_SPECIAL: &str = "parse_special";

/// Makes prompts for one model. From any thread.
pub struct Prompter {
    model: Arc<LlamaModel>,
    template: Option<ChatTemplate>,
    bos: String,
    /// Texts of the control tokens: in a caller's text they must not control anything.
    controls: Vec<String>,
    /// Tokens one request may take in all.
    pub context: u32,
    /// Size of the vocabulary.
    pub vocabulary: i32,
}

/// A conversation as tokens.
#[derive(Debug)]
pub struct ChatPrompt {
    pub tokens: Vec<i32>,
    /// Messages dropped because the caller allowed it.
    pub dropped: u32,
}

/// A text to continue, as tokens.
#[derive(Debug)]
pub struct Continued {
    pub tokens: Vec<i32>,
    /// Those of them that `echo` gives back.
    pub echoed: Range<usize>,
}

/// Stands for a control token's text in a caller's text while the template is rendered: private-use characters
/// around its number.
const MARK: [char; 2] = ['\u{F0E00}', '\u{F0E01}'];

impl Prompter {
    /// Reads what is needed from a loaded model.
    ///
    /// # Errors
    /// `model_invalid` when its chat template is no template.
    pub fn new(model: Arc<LlamaModel>, context: u32) -> Result<Self> {
        let vocab = model.vocab();
        let vocabulary = vocab.n_tokens();
        let text = |token: LlamaToken| -> String {
            if !(0..vocabulary).contains(&token.0) {
                return String::new();
            }
            String::from_utf8_lossy(&vocab.token_to_piece(token, true, None)).into_owned()
        };
        let (bos, eos) = (text(vocab.bos()), text(vocab.eos()));
        let controls = (0..vocabulary)
            .map(LlamaToken)
            .filter(|&token| vocab.is_control(token))
            .map(text)
            .filter(|text| !text.is_empty())
            .collect();
        // Not `chat_template(Some(name))`: llama-cpp-2 0.1.160 passes a freed name to C.
        let source = model.meta_val_str("tokenizer.chat_template").ok();
        let template = source.map(|source| ChatTemplate::new(source, bos.clone(), eos)).transpose()?;
        Ok(Self { template, bos, controls, context, vocabulary, model })
    }

    /// Whether the model can chat.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// A conversation's tokens; `room` tokens are left for the answer where messages may be dropped.
    ///
    /// # Errors
    /// `OutOfRange` with the counts when it does not fit; `InvalidArgument` for what the template refuses.
    pub fn chat(&self, params: &chat::Params, room: u32) -> Result<ChatPrompt> {
        let first = params.messages.iter().take_while(|message| message.role == "system").count();
        let hopeless = self.hopeless(params, first)?;
        let may_drop = params.truncate == Some(Truncate::OldestMessages);
        if hopeless == 0 {
            let tokens = self.render(params, &params.messages)?;
            if tokens.len() < self.context as usize || !may_drop {
                self.fits(tokens.len())?;
                return Ok(ChatPrompt { tokens, dropped: 0 });
            }
        }
        let most = params.messages.len().saturating_sub(first + 1);
        let room = room.min(self.context / 2) as usize;
        let without = |dropped: usize| -> Result<Vec<i32>> {
            let (system, rest) = params.messages.split_at(first);
            self.render(params, &[system, &rest[dropped..]].concat())
        };
        let (mut fits, mut too_long) = (most, hopeless.saturating_sub(1));
        while fits > too_long + 1 {
            let middle = (fits + too_long) / 2;
            if without(middle)?.len() + room <= self.context as usize {
                fits = middle
            } else {
                too_long = middle
            }
        }
        // An answer without its question, or a tool's result without its call, would confuse the model.
        while fits < most && params.messages[first + fits].role != "user" {
            fits += 1;
        }
        let tokens = without(fits)?;
        self.fits(tokens.len())?;
        Ok(ChatPrompt { tokens, dropped: fits as u32 })
    }

    /// A conversation's tokens, whether it fits or not; without the messages that are far too many, where they may be
    /// dropped.
    ///
    /// # Errors
    /// As [`Prompter::chat`]; for the length only if it is far too long.
    pub fn chat_any_length(&self, params: &chat::Params) -> Result<Vec<i32>> {
        let first = params.messages.iter().take_while(|message| message.role == "system").count();
        match self.hopeless(params, first)? {
            0 => self.render(params, &params.messages),
            dropped => {
                let (system, rest) = params.messages.split_at(first);
                self.render(params, &[system, &rest[dropped..]].concat())
            }
        }
    }

    /// See [`far::hopeless`]; more than none only where messages may be dropped.
    fn hopeless(&self, params: &chat::Params, first: usize) -> Result<usize> {
        let tools = |tool: &Tool| {
            let texts = tool.name.len() + tool.description.as_ref().map_or(0, String::len);
            texts + tool.parameters.as_ref().map_or(0, text_bytes)
        };
        let (system, rest) = params.messages.split_at(first);
        let hopeless = far::hopeless(self, system, rest, params.tools.iter().map(tools).sum())?;
        if hopeless > 0 && params.truncate != Some(Truncate::OldestMessages) {
            return Err(far::far_too_long(self.context as usize, self.context));
        }
        Ok(hopeless)
    }

    /// The tokens to continue.
    ///
    /// # Errors
    /// `OutOfRange` with the counts when they do not fit; `InvalidArgument` for tokens that are none, an empty
    /// prompt, or a suffix for a model that cannot fill in.
    pub fn complete(&self, params: &complete::Params) -> Result<Continued> {
        let continued = self.complete_any_length(params)?;
        self.fits(continued.tokens.len())?;
        Ok(continued)
    }

    /// As [`Prompter::complete`], whether they fit or not.
    ///
    /// # Errors
    /// As [`Prompter::complete`], but for the length.
    pub fn complete_any_length(&self, params: &complete::Params) -> Result<Continued> {
        let special = params.extra.get(PARSE_SPECIAL).and_then(Value::as_bool).unwrap_or(false);
        let mut least = Least::new(self);
        for text in prompt_text(params).into_iter().chain(params.suffix.as_deref()) {
            if far::PIECE < text.len() {
                least.add(text);
                least.check()?;
            }
        }
        let tokens = match (&params.prompt, &params.suffix) {
            (complete::Prompt::Text(text), None) => self.tokenize(text, true, special),
            (complete::Prompt::Tokens(tokens), None) => self.check_tokens(tokens, "prompt")?,
            (complete::Prompt::Text(text), Some(suffix)) => return self.fill_in(text, suffix),
            (complete::Prompt::Tokens(_), Some(_)) => {
                return Err(Error::invalid("`suffix` goes with a prompt that is text, not tokens")
                    .with_param("suffix"));
            }
        };
        if tokens.is_empty() {
            return Err(
                Error::invalid("`prompt` is empty, and this model begins with nothing").with_param("prompt")
            );
        }
        Ok(Continued { echoed: 0..tokens.len(), tokens })
    }

    /// Tokens of a text to embed. Of one that is far too long, those of its beginning, which are more than fit.
    pub fn text(&self, text: &str) -> Vec<i32> {
        let text = match text.len() {
            ..=far::PIECE => text,
            _ => &text[..Least::new(self).add(text)],
        };
        self.tokenize(text, true, false)
    }

    /// How many tokens a text has by itself.
    pub fn count_plain(&self, text: &str) -> usize {
        self.model.vocab().tokenize(text.as_bytes(), false, false).len()
    }

    /// Checks token numbers from a caller.
    ///
    /// # Errors
    /// `InvalidArgument` that names the place.
    pub fn check_tokens(&self, tokens: &[u32], param: &str) -> Result<Vec<i32>> {
        tokens
            .iter()
            .enumerate()
            .map(|(i, &token)| {
                i32::try_from(token).ok().filter(|&token| token < self.vocabulary).ok_or_else(|| {
                    let last = self.vocabulary - 1;
                    Error::invalid(format!(
                        "`{param}[{i}]` is {token}; this model's tokens go from 0 to {last}"
                    ))
                    .with_param(param)
                })
            })
            .collect()
    }

    /// Refuses a prompt that leaves no room for an answer.
    fn fits(&self, tokens: usize) -> Result<()> {
        let most = self.context as usize - 1;
        if tokens <= most {
            return Ok(());
        }
        let over = tokens - most;
        Err(Error::new(
            Code::OutOfRange,
            format!(
                "the prompt has {tokens} tokens and the context {}, of which one is for the answer: {over} too many; \
                 shorten it, or open the model with a larger `context`",
                self.context
            ),
        )
        .with_reason("context_length_exceeded")
        .with_detail("n_prompt", tokens)
        .with_detail("n_ctx", self.context)
        .with_detail("n_over", over))
    }

    fn render(&self, params: &chat::Params, messages: &[Message]) -> Result<Vec<i32>> {
        let template = self.template.as_ref().ok_or_else(|| {
            Error::new(
                Code::Unimplemented,
                "this model has no chat template, so it cannot `chat`; use `complete`, or an instruction-tuned model",
            )
        })?;
        if messages.is_empty() {
            return Err(Error::invalid("`messages` is empty").with_param("messages"));
        }
        let mut marked = Vec::new();
        let (mut messages, mut tools) = (messages.to_vec(), params.tools.clone());
        let mut tool_choice = params.tool_choice.clone();
        let mut mark = |text: &mut String| self.mark_controls(text, &mut marked);
        messages.iter_mut().for_each(|message| each_text_of_message(message, &mut mark));
        tools.iter_mut().for_each(|tool| each_text_of_tool(tool, &mut mark));
        if let ToolChoice::Named(name) = &mut tool_choice {
            mark(name);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let conversation =
            Conversation { messages: &messages, tools: &tools, tool_choice: &tool_choice, now };
        let text = template.render(&conversation)?;
        // The tokenizer adds this token itself, and twice is not what the model saw in training.
        let text = match self.model.vocab().should_add_bos() && !self.bos.is_empty() {
            true => text.strip_prefix(&self.bos).unwrap_or(&text),
            false => &text,
        };
        let mut tokens = Vec::with_capacity(text.len() / 3);
        let mut rest = text;
        while let Some((before, after)) = rest.split_once(MARK[0]) {
            let Some((number, after)) = after.split_once(MARK[1]) else { break };
            let plain = number.parse().ok().and_then(|i: usize| marked.get(i)).map_or("", String::as_str);
            tokens.extend(self.tokenize(before, tokens.is_empty(), true));
            tokens.extend(self.tokenize(plain, false, false));
            rest = after;
        }
        tokens.extend(self.tokenize(rest, tokens.is_empty(), true));
        Ok(tokens)
    }

    /// Replaces control tokens' texts in what a caller wrote, such as `<|im_end|>`, so that they stay plain text.
    fn mark_controls(&self, text: &mut String, marked: &mut Vec<String>) {
        if text.contains(MARK) {
            *text = text.replace(MARK, "\u{FFFD}");
        }
        for control in &self.controls {
            if text.contains(control.as_str()) {
                *text = text.replace(control.as_str(), &format!("{}{}{}", MARK[0], marked.len(), MARK[1]));
                marked.push(control.clone());
            }
        }
    }

    /// The prompt and what comes after the gap, between the tokens that a model was trained to fill gaps with.
    fn fill_in(&self, prefix: &str, suffix: &str) -> Result<Continued> {
        let vocab = self.model.vocab();
        let (before, after, middle) = (vocab.fim_pre().0, vocab.fim_suf().0, vocab.fim_mid().0);
        if [before, after, middle].iter().any(|token| !(0..self.vocabulary).contains(token)) {
            return Err(Error::invalid(
                "`suffix` needs a model that fills in the middle, and this one was not trained to: leave `suffix` out, \
                 or use such a model, as `qwen2.5-coder:0.5b` is",
            )
            .with_param("suffix"));
        }
        let mut tokens = vec![before];
        tokens.extend(self.tokenize(prefix, false, false));
        let echoed = 1..tokens.len();
        tokens.push(after);
        tokens.extend(self.tokenize(suffix, false, false));
        tokens.push(middle);
        Ok(Continued { tokens, echoed })
    }

    fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Vec<i32> {
        let tokens = self.model.vocab().tokenize(text.as_bytes(), add_special, parse_special);
        tokens.into_iter().map(|token| token.0).collect()
    }
}

fn prompt_text(params: &complete::Params) -> Option<&str> {
    match &params.prompt {
        complete::Prompt::Text(text) => Some(text),
        complete::Prompt::Tokens(_) => None,
    }
}

/// Bytes of all texts in a value, names of members too.
fn text_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(text_bytes).sum(),
        Value::Object(members) => members.iter().map(|(name, member)| name.len() + text_bytes(member)).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    }
}

/// All that a template may write of a message.
fn each_text_of_message(message: &mut Message, visit: &mut impl FnMut(&mut String)) {
    visit(&mut message.role);
    message.name.iter_mut().for_each(&mut *visit);
    message.tool_call_id.iter_mut().for_each(&mut *visit);
    match &mut message.content {
        Content::Text(text) => visit(text),
        Content::Parts(parts) => parts.iter_mut().for_each(|part| {
            if let Part::Text { text } = part {
                visit(text);
            }
        }),
        Content::Absent => {}
    }
    for call in &mut message.tool_calls {
        visit(&mut call.id);
        visit(&mut call.name);
        // As a value, which is what templates are given: the text may hide a `<` in an escape.
        let mut arguments = tools::arguments(call);
        each_text(&mut arguments, visit);
        call.arguments = arguments.to_string();
    }
}

/// All that a template may write of a tool.
fn each_text_of_tool(tool: &mut Tool, visit: &mut impl FnMut(&mut String)) {
    visit(&mut tool.name);
    tool.description.iter_mut().for_each(&mut *visit);
    tool.parameters.iter_mut().for_each(|parameters| each_text(parameters, visit));
}

/// All texts of a value, names of members too.
fn each_text(value: &mut Value, visit: &mut impl FnMut(&mut String)) {
    match value {
        Value::String(text) => visit(text),
        Value::Array(items) => items.iter_mut().for_each(|item| each_text(item, visit)),
        Value::Object(members) => {
            let visited = std::mem::take(members).into_iter().map(|(mut name, mut member)| {
                visit(&mut name);
                each_text(&mut member, visit);
                (name, member)
            });
            *members = visited.collect();
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

impl std::fmt::Debug for Prompter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prompter").field("context", &self.context).finish_non_exhaustive()
    }
}
