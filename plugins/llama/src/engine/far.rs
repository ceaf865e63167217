//! What is far too long: found out piece by piece, so that it costs no more than a prompt that just fits.
//!
//! A prompt takes time and memory in proportion to its length (a second and 80 MB for each megabyte) before its tokens
//! are known, and a body may have many megabytes. So what is long is first counted from below, up to the context.

use super::prompt::Prompter;
use backplane_plugin::payload::chat::{Content, Message, Part};
use backplane_plugin::{Code, Error, Result};

/// What is tokenized at once without counting it first.
pub const PIECE: usize = 64 << 10;
/// More bytes than a token has, in the tokenizers that we know but for runs of spaces. For what a template may leave out,
/// so that it cannot be counted.
const BYTES_OF_A_TOKEN: usize = 128;

/// Counts tokens from below, until it is sure that they do not fit.
pub struct Least<'a> {
    prompter: &'a Prompter,
    pub tokens: usize,
    most: usize,
}

impl<'a> Least<'a> {
    pub fn new(prompter: &'a Prompter) -> Self {
        // Where a text was cut there may be a token more than in the whole, and templates join what they like.
        let context = prompter.context as usize;
        Self { prompter, tokens: 0, most: context + context / 4 + 64 }
    }

    /// Adds a text. How much of it was looked at: all of it as long as it may fit.
    pub fn add(&mut self, text: &str) -> usize {
        let mut rest = text;
        while !rest.is_empty() && self.may_fit() {
            let (piece, after) = rest.split_at(rest.floor_char_boundary(PIECE));
            self.tokens += self.prompter.count_plain(piece);
            rest = after;
        }
        text.len() - rest.len()
    }

    pub fn may_fit(&self) -> bool {
        self.tokens <= self.most
    }

    /// # Errors
    /// `OutOfRange` when it is sure that it does not fit.
    pub fn check(&self) -> Result<()> {
        if self.may_fit() { Ok(()) } else { Err(far_too_long(self.tokens, self.prompter.context)) }
    }
}

/// How many of the oldest messages in `rest` cannot stay, whatever becomes of the others.
///
/// # Errors
/// `OutOfRange` when not even the newest may fit behind `system`.
pub fn hopeless(prompter: &Prompter, system: &[Message], rest: &[Message], tools: usize) -> Result<usize> {
    if prompter.context as usize * BYTES_OF_A_TOKEN + PIECE < tools {
        return Err(far_too_long(tools / BYTES_OF_A_TOKEN, prompter.context));
    }
    let size = |message: &Message| 16 + texts(message).map(str::len).sum::<usize>();
    if system.iter().chain(rest).map(size).sum::<usize>() <= PIECE {
        return Ok(0);
    }
    let mut least = Least::new(prompter);
    let mut add = |message: &Message| {
        // Whatever a template makes of it is a token at least.
        least.tokens += 1;
        texts(message).for_each(|text| _ = least.add(text));
        least.check()
    };
    system.iter().try_for_each(&mut add)?;
    for (place, message) in rest.iter().enumerate().rev() {
        match add(message) {
            Err(error) if place + 1 == rest.len() => return Err(error),
            Err(_) => return Ok(place + 1),
            Ok(()) => {}
        }
    }
    Ok(0)
}

/// All that a template may write of a message.
fn texts(message: &Message) -> impl Iterator<Item = &str> {
    let content: Box<dyn Iterator<Item = &str>> = match &message.content {
        Content::Text(text) => Box::new(std::iter::once(text.as_str())),
        Content::Parts(parts) => Box::new(parts.iter().filter_map(|part| match part {
            Part::Text { text } => Some(text.as_str()),
            _ => None,
        })),
        Content::Absent => Box::new(std::iter::empty()),
    };
    content.chain(message.tool_calls.iter().map(|call| call.arguments.as_str()))
}

/// Nobody knows by how much: that is the point.
pub fn far_too_long(at_least: usize, context: u32) -> Error {
    Error::new(
        Code::OutOfRange,
        format!(
            "the prompt has more than {at_least} tokens, and the context {context}; shorten it, or open the model with \
             a larger `context`"
        ),
    )
    .with_reason("context_length_exceeded")
    .with_detail("n_prompt_at_least", at_least)
    .with_detail("n_ctx", context)
}
