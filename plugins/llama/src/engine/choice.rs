//! One answer being made: from the model's logits to pieces for the caller.

use super::grammar::Grammar;
use super::job::{CALL, Delta, Job, piece};
use super::rating::{Rater, lossy};
use super::sampling::{Allow, Sampler};
use super::stop::TextOut;
use super::tools::{Parsed, ToolParser};
use backplane_plugin::Result;
use backplane_plugin::payload::{FinishReason, TokenLogprob};
use llama_cpp_2::model::LlamaModel;
use std::collections::VecDeque;

/// One of a request's answers.
pub struct Choice {
    /// The request.
    pub job: u64,
    pub index: u32,
    /// The token to decode next; `None` while the prompt is worked through.
    pub next: Option<i32>,
    sampler: Sampler,
    grammar: Option<Grammar>,
    text: TextOut,
    tools: Option<ToolParser>,
    trigger: Option<Trigger>,
    produced: u32,
    max_tokens: u32,
    ignore_eos: bool,
    stop_tokens: Vec<i32>,
    logprobs: Option<usize>,
    /// Where in the answer's bytes a token begins, for tokens whose text still waits.
    waiting: VecDeque<(usize, TokenLogprob)>,
    bytes: usize,
    confidence: bool,
    /// Sum of the log-probabilities of what was chosen.
    pub logprob_sum: f64,
    rater: Rater,
    /// Whether the token that ends the answer is reported too.
    tells_end: bool,
}

/// Waits for the model to begin a tool call of its own accord; from there on a grammar holds.
struct Trigger {
    grammar: Grammar,
    /// The end of the answer, enough to hold [`CALL`].
    bytes: Vec<u8>,
}

impl Choice {
    pub fn new(job: &Job, id: u64, index: u32, eog: &[i32], answer: &str) -> Self {
        let tools = job.tools.as_ref();
        let banned = if job.sampling.ignore_eos { eog } else { &[] };
        Self {
            job: id,
            index,
            next: None,
            sampler: Sampler::new(job.sampling.clone(), &job.prompt, banned, index),
            grammar: job.grammar.clone(),
            text: TextOut::new(&job.stops),
            tools: tools.map(|tools| ToolParser::new(answer, tools.names.clone(), tools.parallel)),
            trigger: tools
                .and_then(|tools| tools.once_called.clone())
                .map(|grammar| Trigger { grammar, bytes: Vec::new() }),
            produced: 0,
            max_tokens: job.max_tokens,
            ignore_eos: job.sampling.ignore_eos,
            stop_tokens: job.sampling.stop_tokens.clone(),
            logprobs: job.logprobs,
            waiting: VecDeque::new(),
            bytes: 0,
            confidence: job.terms.confidence,
            logprob_sum: 0.0,
            rater: Rater::default(),
            tells_end: job.tells_end,
        }
    }

    /// Tokens generated so far.
    pub fn produced(&self) -> u32 {
        self.produced
    }

    /// Chooses the next token from `logits` and says what it adds to the answer. `full`: no token fits behind it.
    /// Afterwards [`Choice::next`] is the token, unless the piece ends the answer.
    ///
    /// # Errors
    /// When no token can come, or the grammar takes too much to follow.
    pub fn advance(&mut self, model: &LlamaModel, logits: &[f32], full: bool) -> Result<Delta> {
        let grammar = self.grammar.as_mut().map(|grammar| grammar as &mut dyn Allow);
        let token = self.sampler.next(logits, grammar)?;
        self.next = None;
        if self.ends_at(model, token) {
            if let (true, Some(alternatives)) = (self.tells_end, self.logprobs) {
                let (logprob, top) = self.rater.rate(model, logits, token, alternatives);
                let entry = TokenLogprob {
                    token: lossy(&piece(model, token, true)),
                    bytes: Vec::new(),
                    logprob,
                    top,
                };
                self.waiting.push_back((self.bytes, entry));
            }
            return Ok(self.end(FinishReason::Stop, String::new()));
        }
        if let Some(grammar) = &mut self.grammar {
            grammar.accept(token)?;
        }
        // Where calls are read, their tags may be control tokens, which otherwise have no text.
        let bytes = piece(model, token, self.tools.is_some());
        self.pull_trigger(&bytes)?;
        self.note_logprob(model, token, &bytes, logits);
        self.produced += 1;
        self.bytes += bytes.len();
        let text = self.text.push(&bytes);
        if self.text.is_stopped() {
            return Ok(self.end(FinishReason::Stop, text));
        }
        if self.produced >= self.max_tokens || full {
            return Ok(self.end(FinishReason::Length, text));
        }
        self.next = Some(token);
        let logprobs = self.take_logprobs(false);
        let delta = Delta { index: self.index, text, logprobs, ..Delta::default() };
        Ok(self.read_tools(delta))
    }

    /// Whether the answer ends before this token.
    fn ends_at(&self, model: &LlamaModel, token: i32) -> bool {
        self.stop_tokens.contains(&token)
            || (!self.ignore_eos && model.vocab().is_eog(llama_cpp_2::token::LlamaToken(token)))
    }

    /// The last piece of an answer that ends before its first token.
    pub fn cut(&mut self) -> Delta {
        self.end(FinishReason::Length, String::new())
    }

    /// The last piece: `text` and whatever still waits.
    fn end(&mut self, reason: FinishReason, mut text: String) -> Delta {
        text.push_str(&self.text.finish());
        let logprobs = self.take_logprobs(!self.text.is_stopped());
        let delta = Delta { index: self.index, text, logprobs, finish: Some(reason), ..Delta::default() };
        self.read_tools(delta)
    }

    /// Turns the text of a piece into what is text and what are calls.
    fn read_tools(&mut self, mut delta: Delta) -> Delta {
        let Some(tools) = &mut self.tools else { return delta };
        let Parsed { mut content, mut calls } = tools.push(&delta.text);
        if let Some(reason) = delta.finish {
            let rest = tools.finish(reason == FinishReason::Length);
            content.push_str(&rest.content);
            calls.extend(rest.calls);
        }
        if delta.finish == Some(FinishReason::Stop) && tools.calls() > 0 {
            delta.finish = Some(FinishReason::ToolCalls);
        }
        delta.text = content;
        delta.tool_calls = calls;
        delta
    }

    fn pull_trigger(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(trigger) = &mut self.trigger else { return Ok(()) };
        trigger.bytes.extend_from_slice(bytes);
        if let Some(at) = trigger.bytes.windows(CALL.len()).position(|window| window == CALL) {
            // A model that runs ahead of its grammar within the opening token is read without one.
            let follows = trigger.grammar.accept_text(&trigger.bytes[at..])?;
            self.grammar = self.trigger.take().filter(|_| follows).map(|trigger| trigger.grammar);
            return Ok(());
        }
        let spare = trigger.bytes.len().saturating_sub(CALL.len() - 1);
        trigger.bytes.drain(..spare);
        Ok(())
    }

    fn note_logprob(&mut self, model: &LlamaModel, token: i32, bytes: &[u8], logits: &[f32]) {
        if self.logprobs.is_none() && !self.confidence {
            return;
        }
        let (logprob, top) = self.rater.rate(model, logits, token, self.logprobs.unwrap_or(0));
        self.logprob_sum += f64::from(logprob);
        if self.logprobs.is_none() {
            return;
        }
        let entry = TokenLogprob { token: lossy(bytes), bytes: bytes.to_vec(), logprob, top };
        self.waiting.push_back((self.bytes, entry));
    }

    /// The entries whose text was given out, at least in part; at the `end` those without text too.
    fn take_logprobs(&mut self, end: bool) -> Vec<TokenLogprob> {
        let given = self.text.emitted();
        let certain = self.waiting.iter().take_while(|(start, _)| end || *start < given).count();
        let entries = self.waiting.drain(..certain).map(|(_, entry)| entry).collect();
        if self.text.is_stopped() {
            self.waiting.clear();
        }
        entries
    }
}
