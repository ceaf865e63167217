//! Chat beside work that takes all the processor it can get: what compute permits are worth.
//!
//! Chat's *granted share* is the threads its weight entitles it to: with two models of equal weight, half of them. What
//! that share is worth is measured, not computed: the same chat, alone, on a pool of that many threads.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a benchmark that cannot measure says so and ends")]

mod support;

use backplane::{CacheUse, Caller, ErrorCode, Host, Next, Request};
use futures::executor::block_on;
use serde_json::json;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use support::Against::{AtLeast, Nothing};
use support::{Running, Table, Threads, median};

/// How long an answer may take: threads that wait for each other and have no core make a token take seconds.
const LONGEST: Duration = Duration::from_secs(6);
/// Who asks for embeddings, all the time.
const CLIENTS: usize = 8;

/// One way to run both.
struct Way {
    name: &'static str,
    running: Running,
    /// Whether the other model works.
    beside: bool,
    samples: Vec<Sample>,
}

/// What one measurement saw.
struct Sample {
    /// Tokens of the chat per second.
    rate: f64,
    /// Of the decoding thread, per token: milliseconds it computed, milliseconds it was ready and had no core, and
    /// milliseconds it waited for a permit.
    ran: f64,
    queued: f64,
    waited: f64,
    /// Texts embedded per second.
    texts: f64,
}

fn main() {
    let plugins = support::plugins(&["backplane-llama", "backplane-onnx"]);
    let threads = std::thread::available_parallelism().unwrap().get();
    let half = (threads / 2).max(1).to_string();
    let (all, threads) = (threads.to_string(), threads as f64);
    for (title, decoders, tokens, rounds) in
        [("chat on its default threads", "0", 64, 5), ("chat that asks for every core", &all, 24, 3)]
    {
        let mut table = Table::new("share");
        let start = |name, beside, (instances, wide): (&str, &str), permits: bool, pool: &str| {
            let config = format!(
                "[compute]\nthreads = {pool}\npermits = {permits}\n\
                 [models]\nkeep_alive = 'forever'\n\
                 [models.override.smollm2]\nparameters = {{ threads = {decoders} }}\n\
                 [models.override.minilm]\ninstances = {instances}\nparameters = {{ threads = {wide} }}\n"
            );
            let running = support::host(plugins.path(), true, &config);
            Way { name, running, beside, samples: Vec::new() }
        };
        let mut ways = [
            start("alone, on its share of the threads", false, ("1", "1"), true, &half),
            start("beside, permits on", true, (&all, "1"), true, "0"),
            start("beside runs on every core, permits on", true, ("1", &all), true, "0"),
            start("beside, permits off", true, (&all, "1"), false, "0"),
            start("beside one ONNX thread, no permits", true, ("1", "1"), false, "0"),
        ];
        for way in &ways {
            chat(&way.running.host, tokens);
            embed(&way.running.host, 0);
        }
        // Interleaved, so that other work on the machine meets all ways alike.
        for _ in 0..rounds {
            ways.iter_mut().for_each(|way| way.measure(tokens));
        }
        let [alone, ..] = &ways;
        table.row("cores of this machine", threads, "", Nothing);
        for way in &ways {
            let middle = |value: fn(&Sample) -> f64| median(way.samples.iter().map(value).collect());
            let pairs = way.samples.iter().zip(&alone.samples);
            let kept = median(pairs.map(|(sample, alone)| sample.rate / alone.rate).collect());
            table.row(format!("{title}: {}", way.name), middle(|s| s.rate), "tokens/s", Nothing);
            if way.beside {
                let against = if way.name.ends_with("on") { AtLeast(0.9) } else { Nothing };
                table.row("  of its granted share", kept, "", against);
                table.row("  beside it, texts embedded", middle(|s| s.texts), "texts/s", Nothing);
            }
            table.row("  per token: computing", middle(|s| s.ran), "ms", Nothing);
            table.row("  per token: ready, but no core was free", middle(|s| s.queued), "ms", Nothing);
            table.row("  per token: waiting for a permit", middle(|s| s.waited), "ms", Nothing);
        }
    }
}

impl Way {
    /// Asks for one answer of so many tokens.
    fn measure(&mut self, tokens: u32) {
        let host = &self.running.host;
        let (over, texts) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for client in 0..if self.beside { CLIENTS } else { 0 } {
                let (over, texts) = (&over, &texts);
                scope.spawn(move || {
                    let mut number = client * 1000;
                    while !over.load(Ordering::Relaxed) {
                        embed(host, number);
                        number += 1;
                        texts.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            // The other model's queue fills up first.
            std::thread::sleep(Duration::from_millis(100));
            let before =
                (Threads::named("llama"), waited(host), texts.load(Ordering::Relaxed), Instant::now());
            let (pieces, seconds) = chat(host, tokens);
            let (threads, elapsed) = (Threads::named("llama"), before.3.elapsed().as_secs_f64());
            let per_token = 1e3 / pieces.max(1.0);
            self.samples.push(Sample {
                rate: pieces / seconds,
                ran: (threads.ran - before.0.ran) * per_token,
                queued: (threads.queued - before.0.queued) * per_token,
                waited: (waited(host) - before.1) * per_token,
                texts: (texts.load(Ordering::Relaxed) - before.2) as f64 / elapsed,
            });
            over.store(true, Ordering::Relaxed);
        });
        support::progress();
    }
}

/// Pieces after the first, and the seconds they took. A piece is a token, but for characters of several. An answer that
/// takes too long is given up.
fn chat(host: &Host, tokens: u32) -> (f64, f64) {
    let params = json!({
        "messages": [{"role": "user", "content": "Tell me about the sea."}],
        "max_tokens": tokens, "temperature": 0.0, "ignore_eos": true,
    });
    let request = Request::new(Caller::internal("bench"), "chat", params.to_string()).model("smollm2");
    let mut request = request.streamed().within(LONGEST);
    request.cache = CacheUse::Bypass;
    block_on(async {
        let mut reply = host.serve(request).await.unwrap();
        let (mut pieces, mut began) = (0_u32, Instant::now());
        loop {
            match reply.next().await {
                Ok(Next::Chunk(_)) if pieces == 0 => (pieces, began) = (1, Instant::now()),
                Ok(Next::Chunk(_)) => pieces += 1,
                Ok(Next::Done(done)) => {
                    assert_eq!(done.usage.completion_tokens, u64::from(tokens), "the answer ended early");
                    break;
                }
                Err(error) if error.code == ErrorCode::DeadlineExceeded => break,
                Err(error) => panic!("{error}"),
            }
        }
        (f64::from(pieces.saturating_sub(1)), began.elapsed().as_secs_f64())
    })
}

/// One text of 5 to 36 words.
fn embed(host: &Host, number: usize) {
    const WORDS: [&str; 8] = ["ships", "carry", "grain", "across", "quiet", "seas", "before", "winter"];
    let words: Vec<_> = (0..5 + number * 7 % 32).map(|word| WORDS[(word * 5 + number) % 8]).collect();
    let params = json!({"input": [words.join(" ")]}).to_string();
    let mut request = Request::new(Caller::internal("bench"), "embed", params).model("minilm");
    request.cache = CacheUse::Bypass;
    block_on(async { host.serve(request).await.unwrap().collect().await.unwrap() });
}

/// Seconds that the chat's calls waited for a permit.
fn waited(host: &Host) -> f64 {
    let text = host.metrics().render();
    let line = text.lines().find(|line| {
        line.starts_with("backplane_compute_waited_seconds_total{") && line.contains("\"smollm2\"")
    });
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap()
}
