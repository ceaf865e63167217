//! How sure an answer is. Pure.

use backplane_abi::payload::Usage;

/// Confidence of an answer: the plugin's own, else the geometric mean of its tokens' probabilities, `exp(mean log p)`.
///
/// Neither is calibrated: it orders answers of one model to like questions, and is no probability of being right.
pub fn confidence(claimed: Option<f64>, usage: &Usage) -> Option<f64> {
    claimed
        .or_else(|| usage.mean_logprob.map(f64::exp))
        .filter(|confidence| confidence.is_finite())
        .map(|confidence| confidence.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_become_a_confidence() {
        let usage = |mean_logprob| Usage { mean_logprob, ..Usage::default() };
        assert_eq!(confidence(None, &usage(None)), None);
        assert_eq!(confidence(None, &usage(Some(0.0))), Some(1.0));
        assert!((confidence(None, &usage(Some(-0.7))).unwrap() - 0.4966).abs() < 1e-3);
        assert_eq!(confidence(Some(0.25), &usage(Some(0.0))), Some(0.25), "the plugin knows better");
        assert_eq!(confidence(Some(f64::NAN), &usage(None)), None);
    }
}
