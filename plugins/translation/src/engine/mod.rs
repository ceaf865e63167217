//! Engines: what translates sentences. Each says which pairs of languages it serves.

pub mod apertium;
pub mod chat;
pub mod seq2seq;

use crate::languages::Language;
use crate::protect::document::Rendering;
use crate::protect::weave::Part;
use backplane_plugin::prelude::*;
use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Instant;

/// From one language into another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    pub from: &'static Language,
    pub to: &'static Language,
}

/// What translates.
pub trait Engine: Send + Sync {
    /// What answers call it.
    fn name(&self) -> &'static str;

    /// Sentences longer than so many characters are cut.
    fn longest(&self) -> usize;

    /// Whether it serves the pair.
    fn serves(&self, pair: Pair) -> bool;

    /// Whether it is for any pair, and so for none in particular.
    fn is_general(&self) -> bool {
        false
    }

    /// The chat models that it asks, in their order: none where the host chooses, or it asks none.
    fn chat_models(&self) -> &[String] {
        &[]
    }

    /// Whether it has more than one translation of a sentence.
    fn has_variants(&self) -> bool {
        self.is_general()
    }

    /// Translates sentences, in their order. What it cannot make anything of has no parts.
    ///
    /// # Errors
    /// When the request has ended, or the engine is broken.
    fn translate(&self, pair: Pair, sentences: &[Vec<Part>], work: &Work<'_>) -> Result<Vec<Rendering>>;
}

/// The request that is worked on.
pub struct Work<'a> {
    pub request: &'a Request,
    /// Which of several translations of a sentence: 0 is the best.
    pub variant: u32,
    /// How many translations of a text are wanted altogether.
    pub wanted: u32,
    /// Sentences whose translations are known, the best of each first: what an engine finds all at once it is asked for one by
    /// one.
    pub known: &'a RefCell<HashMap<Vec<Part>, Vec<Rendering>>>,
    /// What was seen of the chat models that were asked.
    pub chats: &'a RefCell<chat::Seen>,
}

impl Work<'_> {
    /// # Errors
    /// When the caller has left, or the deadline has passed.
    pub fn check(&self) -> Result<()> {
        if self.request.is_cancelled() {
            return Err(Error::cancelled());
        }
        if self.request.deadline().is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(Error::new(Code::DeadlineExceeded, "the deadline passed before all was translated"));
        }
        Ok(())
    }
}
