//! Log-probabilities over a whole vocabulary, fast enough to be computed for every token.
//!
//! Lanes of 16 floats and a polynomial `exp` are what the compiler turns into vector code; `f32::exp` one by one
//! takes four times as long (`examples/llama_direct.rs --logprobs` prints both).

const LANES: usize = 16;

/// `ln Σ exp(logit)`: subtract it from a logit to get the token's log-probability.
///
/// Within 1e-5 of the sum in `f64`. Logits that are not numbers count as impossible; with nothing finite the result
/// is negative infinity.
pub fn log_sum_exp(logits: &[f32]) -> f32 {
    let max = max(logits);
    if !max.is_finite() {
        return max;
    }
    let mut total = 0f64;
    // Blocks keep the sums of the lanes small enough for f32.
    for block in logits.chunks(LANES * 64) {
        let mut sums = [0f32; LANES];
        let (lanes, rest) = block.as_chunks::<LANES>();
        for lane in lanes {
            for (sum, &logit) in sums.iter_mut().zip(lane) {
                *sum += exp_non_positive(logit - max);
            }
        }
        for (sum, &logit) in sums.iter_mut().zip(rest) {
            *sum += exp_non_positive(logit - max);
        }
        total += f64::from(sums.iter().sum::<f32>());
    }
    max + total.ln() as f32
}

/// The largest, or negative infinity.
pub fn max(logits: &[f32]) -> f32 {
    let (lanes, rest) = logits.as_chunks::<LANES>();
    let mut best = [f32::NEG_INFINITY; LANES];
    for lane in lanes {
        for (best, &logit) in best.iter_mut().zip(lane) {
            *best = if logit > *best { logit } else { *best };
        }
    }
    rest.iter().chain(&best).copied().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
}

/// `exp(x)` for `x <= 0`, within 3e-7 of the true value; 0 below -87 and for what is not a number.
///
/// # Source
/// Cody and Waite's reduction, `exp(x) = 2^n · exp(r)` with `|r| <= ln 2 / 2`, and the minimax polynomial of the
/// Cephes library (`expf.c`).
#[inline]
fn exp_non_positive(x: f32) -> f32 {
    // Adding and taking away 1.5 · 2^23 rounds to an integer, and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let possible = x >= -87.0;
    let x = if possible { x } else { 0.0 };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let e = p * r * r + r + 1.0;
    let scale = f32::from_bits(rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    if possible { e * scale } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn exact(logits: &[f32]) -> f64 {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        f64::from(max) + logits.iter().map(|&x| f64::from(x - max).exp()).sum::<f64>().ln()
    }

    #[test]
    fn exp_is_close_everywhere() {
        for i in 0..=87_000 {
            let x = -(i as f32) / 1000.0;
            let error = (f64::from(exp_non_positive(x)) / f64::from(x).exp() - 1.0).abs();
            assert!(error < 3e-7, "exp({x}) is off by {error}");
        }
        assert_eq!(exp_non_positive(0.0), 1.0);
        assert_eq!(exp_non_positive(-100.0), 0.0);
        assert_eq!(exp_non_positive(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp_non_positive(f32::NAN), 0.0);
    }

    #[test]
    fn nothing_possible_is_negative_infinity() {
        assert_eq!(log_sum_exp(&[]), f32::NEG_INFINITY);
        assert_eq!(log_sum_exp(&[f32::NEG_INFINITY; 40]), f32::NEG_INFINITY);
        assert_eq!(log_sum_exp(&[f32::NAN, 1.0]), 1.0);
    }

    proptest! {
        #[test]
        fn agrees_with_f64(logits in proptest::collection::vec(-60f32..60.0, 1..3000)) {
            prop_assert!((f64::from(log_sum_exp(&logits)) - exact(&logits)).abs() < 2e-5);
        }
    }
}
