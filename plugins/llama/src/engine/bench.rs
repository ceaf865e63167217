//! What `examples/llama_direct.rs` measures inside the engine. Not part of the plugin's interface.

use super::{backend, logprobs, sampling};
use backplane_plugin::Result;
use llama_cpp_2::llama_backend::LlamaBackend;
use std::hint::black_box;
use std::time::Instant;

/// llama.cpp as the engine started it: a process can start it only once.
///
/// # Errors
/// When this machine cannot run it.
pub fn backend() -> Result<&'static LlamaBackend> {
    backend::get()
}

/// Microseconds for a vocabulary of this size: the engine's log-sum-exp, the plain one, the 20 likeliest.
pub fn logprobs(vocabulary: usize) -> (f64, f64, f64) {
    let logits: Vec<f32> =
        (0..vocabulary).map(|i| ((i * 2_654_435_761) % 1000) as f32 / 50.0 - 12.0).collect();
    let mut top = Vec::new();
    let plain = |logits: &[f32]| {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        max + logits.iter().map(|&x| (x - max).exp()).sum::<f32>().ln()
    };
    (
        best(|| {
            black_box(logprobs::log_sum_exp(black_box(&logits)));
        }),
        best(|| {
            black_box(plain(black_box(&logits)));
        }),
        best(|| sampling::top_k(black_box(&logits), 20, &mut top)),
    )
}

fn best(mut run: impl FnMut()) -> f64 {
    (0..50)
        .map(|_| {
            let began = Instant::now();
            run();
            began.elapsed().as_secs_f64() * 1e6
        })
        .fold(f64::INFINITY, f64::min)
}
