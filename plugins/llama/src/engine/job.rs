//! A request, checked and tokenised: what the scheduler works on.

use super::grammar::{self, Grammar};
use super::loaded::Loaded;
use super::sampling::Sampling;
use super::tools;
use backplane_plugin::payload::chat::{self, ToolCallDelta, ToolChoice};
use backplane_plugin::payload::{FinishReason, TokenLogprob, Usage, complete};
use backplane_plugin::{Error, Result};
use llama_cpp_2::model::LlamaModel;
use std::time::Instant;

/// A piece of one choice's answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delta {
    /// Which choice.
    pub index: u32,
    /// Text to append.
    pub text: String,
    /// Calls to begin or add to.
    pub tool_calls: Vec<ToolCallDelta>,
    /// The tokens behind it, when asked for.
    pub logprobs: Vec<TokenLogprob>,
    /// In the choice's last piece.
    pub finish: Option<FinishReason>,
    /// In the last piece: messages that were dropped.
    pub dropped: u32,
}

/// What became of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Push {
    /// It is on its way.
    Taken,
    /// The reader is behind: the choice waits, and the piece is offered again.
    Full,
    /// Nobody reads any more.
    Gone,
}

/// Where an answer goes. Called by the engine's thread only; must not block.
pub trait Sink: Send {
    /// Takes a piece.
    fn push(&mut self, delta: &Delta) -> Push;
    /// Whether nobody reads any more; asked before every step.
    fn is_gone(&self) -> bool;
    /// The end, exactly once.
    fn finish(self: Box<Self>, result: Result<Usage>);
}

/// What the caller says beside the parameters.
#[derive(Clone, Copy, Debug, Default)]
pub struct Terms {
    /// When the answer is of no use any more.
    pub deadline: Option<Instant>,
    /// Whether [`Usage::mean_logprob`] is wanted.
    pub confidence: bool,
}

/// A checked request.
#[derive(Debug)]
pub struct Job {
    pub prompt: Vec<i32>,
    pub sampling: Sampling,
    /// Tokens for each choice.
    pub max_tokens: u32,
    pub choices: u32,
    pub stops: Vec<String>,
    /// How many alternatives to report for each token.
    pub logprobs: Option<usize>,
    pub grammar: Option<Grammar>,
    pub tools: Option<ToolUse>,
    /// Text to give in front of the answer.
    pub echo: String,
    pub dropped: u32,
    pub terms: Terms,
    pub arrived: Instant,
}

/// That the answer may call tools.
#[derive(Debug)]
pub struct ToolUse {
    /// The grammar of calls, to be held to once the model begins one; `None` where one holds from the start.
    pub once_called: Option<String>,
}

const MOST_CHOICES: u32 = 32;
const MOST_STOPS: usize = 16;
const MOST_LOGPROBS: u8 = 20;

impl Job {
    /// A chat.
    ///
    /// # Errors
    /// For the first parameter that cannot be honoured, by name.
    pub fn chat(loaded: &Loaded, params: &chat::Params, terms: Terms) -> Result<Self> {
        let form = grammar::of_format(&params.response_format)?;
        let offers = !params.tools.is_empty() && params.tool_choice != ToolChoice::None;
        let demands = matches!(params.tool_choice, ToolChoice::Required | ToolChoice::Named(_));
        if demands && form.is_some() {
            return Err(Error::invalid(
                "`response_format` and a `tool_choice` that demands a call exclude each other",
            )
            .with_param("tool_choice"));
        }
        if demands && params.tools.is_empty() {
            return Err(Error::invalid("`tool_choice` demands a call and `tools` offers none")
                .with_param("tool_choice"));
        }
        let calls = (offers && form.is_none())
            .then(|| {
                let parallel = params.parallel_tool_calls.unwrap_or(true);
                grammar::of_tools(&params.tools, &params.tool_choice, parallel)
            })
            .transpose()?;
        let (form, once_called) = if demands { (calls, None) } else { (form, calls) };
        let tools = (offers && (demands || once_called.is_some())).then_some(ToolUse { once_called });
        let chat = loaded.prompter.chat(params, params.max_tokens.unwrap_or(256))?;
        let common = Common {
            sampling: &params.sampling,
            stop: &params.stop,
            max_tokens: params.max_tokens,
            n: params.n,
            logprobs: params.logprobs,
        };
        let mut job = common.job(loaded, chat.tokens, form, terms)?;
        job.tools = tools;
        job.dropped = chat.dropped;
        Ok(job)
    }

    /// A completion.
    ///
    /// # Errors
    /// For the first parameter that cannot be honoured, by name.
    pub fn complete(loaded: &Loaded, params: &complete::Params, terms: Terms) -> Result<Self> {
        let form = grammar::of_format(&params.response_format)?;
        if params.echo && params.logprobs.is_some() {
            return Err(Error::invalid(
                "`echo` with `logprobs` is not served: the prompt's probabilities are not kept",
            )
            .with_param("echo"));
        }
        let tokens = loaded.prompter.complete(params)?;
        let common = Common {
            sampling: &params.sampling,
            stop: &params.stop,
            max_tokens: params.max_tokens,
            n: params.n,
            logprobs: params.logprobs,
        };
        let mut job = common.job(loaded, tokens, form, terms)?;
        if params.echo {
            job.echo = match &params.prompt {
                complete::Prompt::Text(text) => text.clone(),
                complete::Prompt::Tokens(_) => {
                    let pieces = job.prompt.iter().flat_map(|&token| piece(&loaded.model, token, false));
                    String::from_utf8_lossy(&pieces.collect::<Vec<u8>>()).into_owned()
                }
            };
        }
        Ok(job)
    }
}

/// What chats and completions share.
struct Common<'a> {
    sampling: &'a backplane_plugin::payload::Sampling,
    stop: &'a [String],
    max_tokens: Option<u32>,
    n: Option<u32>,
    logprobs: Option<u8>,
}

impl Common<'_> {
    fn job(&self, loaded: &Loaded, prompt: Vec<i32>, form: Option<String>, terms: Terms) -> Result<Job> {
        let sampling = Sampling::new(self.sampling, &loaded.config.sampling, loaded.prompter.vocabulary)?;
        let refuse =
            |param: &str, what: String| Err(Error::invalid(format!("`{param}` {what}")).with_param(param));
        let choices = self.n.unwrap_or(1);
        if !(1..=MOST_CHOICES).contains(&choices) {
            return refuse("n", format!("is {choices}; it goes from 1 to {MOST_CHOICES}"));
        }
        if self.stop.len() > MOST_STOPS {
            return refuse(
                "stop",
                format!("has {} strings; at most {MOST_STOPS} are looked for", self.stop.len()),
            );
        }
        if let Some(n) = self.logprobs.filter(|&n| n > MOST_LOGPROBS) {
            return refuse(
                "logprobs",
                format!("asks for {n} alternatives; it goes from 0 to {MOST_LOGPROBS}"),
            );
        }
        if form.is_some() && sampling.ignore_eos {
            return refuse("ignore_eos", "cannot go with a `response_format`: the form ends".into());
        }
        Ok(Job {
            sampling,
            max_tokens: self.max_tokens.or(loaded.config.max_tokens).unwrap_or(u32::MAX),
            choices,
            stops: self.stop.to_vec(),
            logprobs: self.logprobs.map(usize::from),
            grammar: form.map(|text| Grammar::new(&loaded.model, &text)).transpose()?,
            tools: None,
            echo: String::new(),
            dropped: 0,
            terms,
            arrived: Instant::now(),
            prompt,
        })
    }
}

/// A token's bytes. `special`: those of control tokens too.
pub fn piece(model: &LlamaModel, token: i32, special: bool) -> Vec<u8> {
    model.vocab().token_to_piece(llama_cpp_2::token::LlamaToken(token), special, None)
}

/// What opens a call, as bytes: looked for in what the model writes.
pub const CALL: &[u8] = tools::OPEN.as_bytes();
