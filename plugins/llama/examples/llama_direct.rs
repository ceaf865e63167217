//! The yardstick: llama-cpp-2 called directly, without an engine, beside the engine, in one run.
//!
//! ```text
//! cargo run --release -p backplane-llama --example llama_direct -- MODEL.gguf [ROUNDS]
//! ```
//!
//! Prints tokens per CPU second of both at one and at four streams (greedy, one thread, prompt included), then the time
//! to the first token of a long prompt, then what a token's log-probabilities cost. Rounds alternate, and ratios are the
//! middle one of all rounds. No prompt comes twice, so that the engine finds none in its cache. `make bench` reads the
//! lines that begin with `bench`.
#![expect(clippy::print_stdout, reason = "it prints what it measured")]

use backplane_llama::engine::{Config, Delta, Engine, Loaded, Push, Sink, Terms, Unlimited, bench};
use backplane_plugin::payload::{Sampling, Usage, complete};
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::token::LlamaToken;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

const TOKENS: u32 = 64;
const PROMPTS: [&str; 4] = [
    "The history of bread begins",
    "A sailing boat needs",
    "In the mountains of the north",
    "Once upon a time there was a",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: direct MODEL.gguf [ROUNDS]")?;
    let rounds: usize = arguments.next().map_or(Ok(5), |n| n.parse())?;
    backplane_llama::sys::route_log(Box::new(|_, _| {}));
    let config = Config { threads: 1, prompt_threads: 1, context: Some(1024), ..Config::default() };
    let engine = Engine::start(Arc::new(Loaded::open(Path::new(&path), config)?), Arc::new(Unlimited))?;
    let backend = bench::backend()?;
    let model = LlamaModel::load_from_file(backend, &path, &LlamaModelParams::default())?;
    for streams in [1, 4] {
        let (mut direct, mut through) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            direct.push(by_hand(backend, &model, &prompts(round, streams), TOKENS)?.tokens_per_cpu_second);
            through.push(by_engine(&engine, &prompts(round, streams), TOKENS)?.tokens_per_cpu_second);
        }
        let ratio = median(through.iter().zip(&direct).map(|(through, direct)| through / direct));
        let (direct, through) = (median(direct), median(through));
        println!(
            "bench llama streams={streams} direct={direct:.2} engine={through:.2} ratio={ratio:.4} (tokens per CPU second, median of {rounds})"
        );
    }
    let (mut direct, mut through) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        direct.push(by_hand(backend, &model, &[long(round)], 2)?.first);
        through.push(by_engine(&engine, &[long(round)], 2)?.first);
    }
    let over = median(through.iter().zip(&direct).map(|(through, direct)| through - direct));
    println!(
        "bench first_token direct={:.3} engine={:.3} over={over:.3} (ms, median of {rounds})",
        median(direct),
        median(through)
    );
    for vocabulary in [49_152, 151_936] {
        let (ours, plain, top) = bench::logprobs(vocabulary);
        println!(
            "bench logprobs vocabulary={vocabulary} log_sum_exp={ours:.1} plain={plain:.1} top_20={top:.1} (microseconds)"
        );
    }
    Ok(())
}

/// What one run saw.
struct Seen {
    /// All streams together, from the prompts' text to the last token.
    tokens_per_cpu_second: f64,
    /// Milliseconds from the prompts' text to the last stream's first token.
    first: f64,
}

/// Of five digits; another in each round, and in another process.
fn number(round: usize) -> usize {
    10_000 + (std::process::id() as usize * 37 + round) % 90_000
}

/// Prompts of this round.
fn prompts(round: usize, streams: usize) -> Vec<String> {
    let number = number(round);
    PROMPTS.iter().take(streams).map(|prompt| format!("{number} {prompt}")).collect()
}

/// A prompt of some 200 tokens, which begins as none before: what it shared would be in the engine's cache.
fn long(round: usize) -> String {
    let sentence = "and then there was bread again, of rye and of wheat. ";
    format!("{} {} {}", 109_999 - number(round), PROMPTS[0], sentence.repeat(14))
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Seconds this process has computed, all threads together: what other load on the machine disturbs least.
fn cpu_seconds() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let nanos = tasks.filter_map(|task| {
        std::fs::read_to_string(task.path().join("schedstat")).ok()?.split(' ').next()?.parse::<f64>().ok()
    });
    nanos.sum::<f64>() / 1e9
}

/// What a program does that uses llama.cpp itself. The context is there before the clock starts, as the engine's is.
fn by_hand(
    backend: &LlamaBackend,
    model: &LlamaModel,
    prompts: &[String],
    max_tokens: u32,
) -> Result<Seen, Box<dyn std::error::Error>> {
    let streams = prompts.len();
    let params = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(4096))
        .with_n_batch(256)
        .with_n_ubatch(256)
        .with_n_seq_max(4)
        .with_kv_unified(true)
        .with_n_threads(1)
        .with_n_threads_batch(1);
    let mut context = model.new_context(backend, params)?;
    let mut batch = LlamaBatch::new(256, 1);
    let (start, began) = (Instant::now(), cpu_seconds());
    let mut at = Vec::new();
    for (stream, prompt) in prompts.iter().enumerate() {
        let tokens = model.vocab().tokenize(prompt.as_bytes(), true, false);
        for (i, &token) in tokens.iter().enumerate() {
            batch.add(token, i as i32, &[stream as i32], i + 1 == tokens.len())?;
        }
        at.push((tokens.len() as i32, batch.n_tokens() - 1));
    }
    context.decode(&mut batch)?;
    let mut samplers: Vec<LlamaSampler> = (0..streams).map(|_| LlamaSampler::greedy()).collect();
    let mut tokens: Vec<LlamaToken> =
        samplers.iter_mut().zip(&at).map(|(sampler, &(_, last))| sampler.sample(&context, last)).collect();
    let first = start.elapsed().as_secs_f64() * 1e3;
    let mut text = Vec::new();
    for _ in 1..max_tokens {
        batch.clear();
        for (stream, &token) in tokens.iter().enumerate() {
            model.vocab().token_to_piece_into(token, &mut text, false, None);
            batch.add(token, at[stream].0, &[stream as i32], true)?;
            at[stream].0 += 1;
        }
        context.decode(&mut batch)?;
        for (stream, token) in tokens.iter_mut().enumerate() {
            *token = samplers[stream].sample(&context, stream as i32);
        }
    }
    let tokens = f64::from(max_tokens * streams as u32);
    Ok(Seen { tokens_per_cpu_second: tokens / (cpu_seconds() - began), first })
}

struct Collect {
    started: bool,
    events: Sender<Event>,
}

enum Event {
    First(Instant),
    End,
}

impl Sink for Collect {
    fn push(&mut self, _: &Delta) -> Push {
        if !std::mem::replace(&mut self.started, true) {
            let _ = self.events.send(Event::First(Instant::now()));
        }
        Push::Taken
    }

    fn is_gone(&self) -> bool {
        false
    }

    fn finish(self: Box<Self>, _: backplane_plugin::Result<Usage>) {
        let _ = self.events.send(Event::End);
    }
}

fn by_engine(
    engine: &Engine,
    prompts: &[String],
    max_tokens: u32,
) -> Result<Seen, Box<dyn std::error::Error>> {
    let (sender, events) = channel();
    let (start, began) = (Instant::now(), cpu_seconds());
    for prompt in prompts {
        let params = complete::Params {
            prompt: complete::Prompt::Text(prompt.clone()),
            max_tokens: Some(max_tokens),
            sampling: Sampling { temperature: Some(0.0), ignore_eos: true, ..Sampling::default() },
            ..complete::Params::default()
        };
        engine.complete(
            &params,
            Terms::default(),
            Box::new(Collect { started: false, events: sender.clone() }),
        );
    }
    drop(sender);
    let mut first = None;
    for event in events {
        match event {
            Event::First(at) => first = Some(at),
            Event::End => {}
        }
    }
    let first = first.ok_or("the engine gave nothing")?;
    let tokens = f64::from(max_tokens * prompts.len() as u32);
    Ok(Seen {
        tokens_per_cpu_second: tokens / (cpu_seconds() - began),
        first: (first - start).as_secs_f64() * 1e3,
    })
}
