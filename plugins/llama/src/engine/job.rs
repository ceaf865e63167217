//! A request, checked and tokenised: what the scheduler works on.

use super::grammar::{self, Grammar};
use super::loaded::Loaded;
use super::prompt::Continued;
use super::rating::lossy;
use super::sampling::Sampling;
use super::tools;
use backplane_plugin::payload::chat::{self, ToolCallDelta, ToolChoice};
use backplane_plugin::payload::complete::{self, PromptLogprob};
use backplane_plugin::payload::{FinishReason, TokenLogprob, Usage};
use backplane_plugin::{Error, Result};
use llama_cpp_2::model::LlamaModel;
use std::ops::Range;
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
    /// The next tokens of a prompt that is given back with its probabilities.
    pub prompt_logprobs: Vec<PromptLogprob>,
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
    /// Whether the token that ends an answer is reported like the others.
    pub tells_end: bool,
    pub grammar: Option<Grammar>,
    pub tools: Option<ToolUse>,
    /// Text to give in front of the answer.
    pub echo: String,
    /// What to say about the tokens of that text.
    pub rated: Option<Rated>,
    pub dropped: u32,
    pub terms: Terms,
    pub arrived: Instant,
}

/// The part of a prompt that is given back with its probabilities.
#[derive(Debug)]
pub struct Rated {
    /// Its place among the prompt's tokens.
    pub range: Range<usize>,
    /// A token each, without what the model says.
    entries: Vec<PromptLogprob>,
}

impl Rated {
    /// Of the prompt's tokens those in `range`, which stand for `text`.
    fn new(model: &LlamaModel, prompt: &[i32], range: Range<usize>, text: &str) -> Self {
        let tokens = prompt.get(range.clone()).unwrap_or_default();
        let mut pieces: Vec<Vec<u8>> = tokens.iter().map(|&token| piece(model, token, false)).collect();
        drop_added_space(&mut pieces, text);
        let entries = tokens
            .iter()
            .zip(pieces)
            .map(|(&token, bytes)| {
                let name = if bytes.is_empty() { lossy(&piece(model, token, true)) } else { lossy(&bytes) };
                PromptLogprob { token: name, bytes, logprob: None, top: Vec::new() }
            })
            .collect();
        Self { range, entries }
    }

    /// The entry of the token at `place` of the prompt.
    pub fn entry(&self, place: usize) -> Option<PromptLogprob> {
        self.entries.get(place.checked_sub(self.range.start)?).cloned()
    }
}

/// Takes away the space that some tokenizers put before a text: the pieces are then the text's own.
fn drop_added_space(pieces: &mut [Vec<u8>], text: &str) {
    let Some(first) = pieces.iter().position(|piece| !piece.is_empty()) else { return };
    if pieces.concat().strip_prefix(b" ") == Some(text.as_bytes()) {
        pieces[first].remove(0);
    }
}

/// That the answer may call tools.
#[derive(Debug)]
pub struct ToolUse {
    /// The grammar of calls, to be held to once the model begins one; `None` where one holds from the start.
    pub once_called: Option<Grammar>,
    /// Names of the tools.
    pub names: Vec<String>,
    /// Whether there may be more than one call.
    pub parallel: bool,
}

const MOST_CHOICES: u32 = 32;
const MOST_STOPS: usize = 16;
const MOST_LOGPROBS: u8 = 20;

impl Job {
    /// A chat. `gone`: whether nobody waits for it any more.
    ///
    /// # Errors
    /// For the first parameter that cannot be honoured, by name.
    pub fn chat(
        loaded: &Loaded,
        params: &chat::Params,
        terms: Terms,
        gone: &dyn Fn() -> bool,
    ) -> Result<Self> {
        let form = grammar::of_format(&params.response_format, gone)?;
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
        // Who names a function wants that call, and no second.
        let named = matches!(params.tool_choice, ToolChoice::Named(_));
        let parallel = params.parallel_tool_calls.unwrap_or(true) && !named;
        let calls = (offers && form.is_none())
            .then(|| {
                let text = grammar::of_tools(&params.tools, &params.tool_choice, parallel, gone)?;
                Grammar::of_calls(loaded, &text)
            })
            .transpose()?;
        let form = form.map(|text| Grammar::of_answer(loaded, &text)).transpose()?;
        let (form, once_called) = if demands { (calls, None) } else { (form, calls) };
        let tools = (offers && (demands || once_called.is_some())).then(|| {
            let names = params.tools.iter().map(|tool| tool.name.clone()).collect();
            ToolUse { once_called, names, parallel }
        });
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
    pub fn complete(
        loaded: &Loaded,
        params: &complete::Params,
        terms: Terms,
        gone: &dyn Fn() -> bool,
    ) -> Result<Self> {
        let form = grammar::of_format(&params.response_format, gone)?;
        let form = form.map(|text| Grammar::of_answer(loaded, &text)).transpose()?;
        let Continued { tokens, echoed } = loaded.prompter.complete(params)?;
        let common = Common {
            sampling: &params.sampling,
            stop: &params.stop,
            max_tokens: params.max_tokens,
            n: params.n,
            logprobs: params.logprobs,
        };
        let mut job = common.job(loaded, tokens, form, terms)?;
        // As OpenAI's completions, where an answer's last token is the end of the text.
        job.tells_end = true;
        if params.echo {
            job.echo = match &params.prompt {
                complete::Prompt::Text(text) => text.clone(),
                complete::Prompt::Tokens(_) => {
                    let pieces = job.prompt.iter().flat_map(|&token| piece(&loaded.model, token, false));
                    lossy(&pieces.collect::<Vec<u8>>())
                }
            };
            job.rated = params.logprobs.map(|_| Rated::new(&loaded.model, &job.prompt, echoed, &job.echo));
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
    fn job(&self, loaded: &Loaded, prompt: Vec<i32>, form: Option<Grammar>, terms: Terms) -> Result<Job> {
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
            tells_end: false,
            grammar: form,
            tools: None,
            echo: String::new(),
            rated: None,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_space_that_the_text_lacks_is_dropped() {
        let dropped = |pieces: &[&str], text: &str| {
            let mut pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.as_bytes().to_vec()).collect();
            drop_added_space(&mut pieces, text);
            pieces.into_iter().map(|piece| lossy(&piece)).collect::<Vec<_>>()
        };
        assert_eq!(dropped(&["", " Hello", " you"], "Hello you"), ["", "Hello", " you"]);
        assert_eq!(dropped(&[" Hello", " you"], " Hello you"), [" Hello", " you"]);
        assert_eq!(dropped(&["", " "], ""), ["", ""]);
        assert_eq!(dropped(&[], ""), [""; 0]);
    }
}
