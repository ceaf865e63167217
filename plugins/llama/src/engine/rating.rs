//! How likely the model held a token, and what else could have come: what `logprobs` reports.

use super::job::piece;
use super::logprobs::log_sum_exp;
use super::sampling::{Candidate, top_k};
use backplane_plugin::payload::TopLogprob;
use llama_cpp_2::model::LlamaModel;

/// JSON has no infinity; this is what OpenAI writes.
const IMPOSSIBLE: f32 = -9999.0;

/// Rates tokens by the logits at their place.
#[derive(Debug, Default)]
pub struct Rater {
    top: Vec<Candidate>,
}

impl Rater {
    /// The natural log of `token`'s probability, and the `alternatives` likeliest tokens.
    pub fn rate(
        &mut self,
        model: &LlamaModel,
        logits: &[f32],
        token: i32,
        alternatives: usize,
    ) -> (f32, Vec<TopLogprob>) {
        let total = log_sum_exp(logits);
        let of = |logit: f32| (logit - total).max(IMPOSSIBLE);
        top_k(logits, alternatives, &mut self.top);
        let top = self
            .top
            .iter()
            .map(|candidate| {
                let bytes = piece(model, candidate.token, true);
                TopLogprob { token: lossy(&bytes), logprob: of(candidate.logit), bytes }
            })
            .collect();
        let logit = usize::try_from(token).ok().and_then(|token| logits.get(token));
        (of(logit.copied().unwrap_or(f32::NEG_INFINITY)), top)
    }
}

/// A token's text, with what is not UTF-8 replaced.
pub fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
