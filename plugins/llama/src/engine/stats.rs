//! What the engine counts. Written by its threads, read by any.

use backplane_plugin::Code;
use backplane_plugin::{Error, Result};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Counters since the model was opened.
#[derive(Debug, Default)]
pub struct Stats {
    inflight: AtomicU64,
    busy: AtomicU64,
    steps: AtomicU64,
    step_tokens: AtomicU64,
    step_answers: AtomicU64,
    most_answers: AtomicU64,
    prompt: AtomicU64,
    cached: AtomicU64,
    generated: AtomicU64,
    prompt_nanos: AtomicU64,
    answer_nanos: AtomicU64,
    embedded: AtomicU64,
    failed: AtomicBool,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Requests taken and not finished.
    pub inflight: u64,
    /// Slots in use.
    pub slots_busy: u64,
    /// Batches decoded.
    pub steps: u64,
    /// Tokens in them.
    pub step_tokens: u64,
    /// Answers in them: divided by `steps`, how many ran together.
    pub step_answers: u64,
    /// Most answers in one step.
    pub most_answers: u64,
    /// Prompt tokens of requests taken.
    pub prompt_tokens: u64,
    /// Those of them that were in the cache.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Seconds in steps that held prompt tokens.
    pub prompt_seconds: f64,
    /// Seconds in the other steps.
    pub answer_seconds: f64,
    /// Tokens embedded.
    pub embedded_tokens: u64,
}

impl Stats {
    /// Counts a request in, if fewer than `most` are open.
    ///
    /// # Errors
    /// `ResourceExhausted` otherwise.
    pub fn enter(&self, most: u64) -> Result<()> {
        self.inflight
            .fetch_update(Relaxed, Relaxed, |open| (open < most).then_some(open + 1))
            .map(|_| ())
            .map_err(|open| {
                let what = format!(
                    "all {most} slots are taken and {open} requests are open; retry, or raise `slots`"
                );
                Error::new(Code::ResourceExhausted, what).with_retry_after(Duration::from_millis(500))
            })
    }

    /// Counts a request out.
    pub fn leave(&self) {
        self.inflight.fetch_sub(1, Relaxed);
    }

    /// Notes that the engine's thread ended by a panic.
    pub fn fail(&self) {
        self.failed.store(true, Relaxed);
    }

    /// Whether it did.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Relaxed)
    }

    pub(super) fn set_busy(&self, slots: usize) {
        self.busy.store(slots as u64, Relaxed);
    }

    pub(super) fn add_prompt(&self, tokens: usize) {
        self.prompt.fetch_add(tokens as u64, Relaxed);
    }

    pub(super) fn add_cached(&self, tokens: usize) {
        self.cached.fetch_add(tokens as u64, Relaxed);
    }

    pub(super) fn add_generated(&self, tokens: usize) {
        self.generated.fetch_add(tokens as u64, Relaxed);
    }

    pub(super) fn add_embedded(&self, tokens: usize) {
        self.embedded.fetch_add(tokens as u64, Relaxed);
    }

    pub(super) fn add_step(&self, tokens: usize, answers: usize, prompt_tokens: usize, took: Duration) {
        self.steps.fetch_add(1, Relaxed);
        self.step_tokens.fetch_add(tokens as u64, Relaxed);
        self.step_answers.fetch_add(answers as u64, Relaxed);
        self.most_answers.fetch_max(answers as u64, Relaxed);
        let nanos = if prompt_tokens > 0 { &self.prompt_nanos } else { &self.answer_nanos };
        nanos.fetch_add(took.as_nanos() as u64, Relaxed);
    }

    /// All of them.
    pub fn snapshot(&self) -> Snapshot {
        let seconds = |nanos: &AtomicU64| nanos.load(Relaxed) as f64 / 1e9;
        Snapshot {
            inflight: self.inflight.load(Relaxed),
            slots_busy: self.busy.load(Relaxed),
            steps: self.steps.load(Relaxed),
            step_tokens: self.step_tokens.load(Relaxed),
            step_answers: self.step_answers.load(Relaxed),
            most_answers: self.most_answers.load(Relaxed),
            prompt_tokens: self.prompt.load(Relaxed),
            cached_tokens: self.cached.load(Relaxed),
            generated_tokens: self.generated.load(Relaxed),
            prompt_seconds: seconds(&self.prompt_nanos),
            answer_seconds: seconds(&self.answer_nanos),
            embedded_tokens: self.embedded.load(Relaxed),
        }
    }
}
