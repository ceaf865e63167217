//! Figures of a model, over all of its instances.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// See the fields.
#[derive(Debug, Default)]
pub struct Counters {
    /// Runs of the graph.
    pub runs: AtomicU64,
    /// Runs that were broken off because nobody waited for them any more.
    pub broken_off: AtomicU64,
    /// Runs on one thread of a graph that is set to several, since no more were granted at once.
    pub narrow: AtomicU64,
    /// Requests that shared their run with others.
    pub shared: AtomicU64,
    /// Tokens of texts.
    pub tokens: AtomicU64,
    /// What rows of tokens were filled up with.
    pub padding: AtomicU64,
}

impl Counters {
    /// Names and values, as `bp.stats/1` wants them.
    pub fn read(&self) -> [(&'static str, f64); 6] {
        let read = |counter: &AtomicU64| counter.load(Relaxed) as f64;
        [
            ("runs_total", read(&self.runs)),
            ("runs_broken_off_total", read(&self.broken_off)),
            ("runs_narrow_total", read(&self.narrow)),
            ("requests_batched_total", read(&self.shared)),
            ("tokens_total", read(&self.tokens)),
            ("padding_tokens_total", read(&self.padding)),
        ]
    }
}
