//! A language model through the host, beside the same engine called directly (`plugins/llama/examples/llama_direct.rs`).
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot measure says so and ends")]

mod support;

use backplane::{CacheUse, Caller, Host, Next, Request};
use futures::executor::block_on;
use futures::future::join_all;
use serde_json::json;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::time::{Duration, Instant};
use support::Against::{AtLeast, AtMost, Nothing};
use support::{Table, cpu, median};

const TOKENS: u32 = 64;
const ROUNDS: usize = 5;
const PROMPTS: [&str; 4] = [
    "The history of bread begins",
    "A sailing boat needs",
    "In the mountains of the north",
    "Once upon a time there was a",
];

/// Of one round, in the order in which they are printed.
type Lines = Vec<HashMap<String, String>>;

fn main() {
    let direct = support::example("backplane-llama", "llama_direct");
    let model = e2e::model_file("smollm2");
    let plugins = support::plugins(&["backplane-llama"]);
    let running = support::host(
        plugins.path(),
        true,
        "[models]\nkeep_alive = 'forever'\n[models.override.smollm2]\n\
         parameters = { threads = 1, prompt_threads = 1, context = 1024 }\n",
    );
    let host = &running.host;
    complete(host, &["Hello".to_owned()], 8);

    // Rounds alternate: a round of the engine in a process of its own, then one through the host.
    let mut rounds: Vec<Lines> = Vec::new();
    let (mut rates, mut firsts, mut added, mut overheads) = ([vec![], vec![]], vec![], vec![], vec![]);
    for round in 0..ROUNDS {
        rounds.push(support::yardstick(&direct, &[model.as_os_str(), OsStr::new("1")]));
        for (rates, streams) in rates.iter_mut().zip([1, 4]) {
            let prompts = prompts(round, streams);
            let before = cpu();
            overheads.push(complete(host, &prompts, TOKENS).overhead);
            rates.push(f64::from(TOKENS * streams as u32) / (cpu() - before));
        }
        let seen = complete(host, &[long(round)], 2);
        firsts.push(seen.first);
        added.push(seen.first_outside);
    }
    let of = |line: usize, key: &'static str| rounds.iter().map(move |lines| number(&lines[line], key));

    let mut table = Table::new("llama");
    for (line, (rates, streams)) in rates.iter().zip(["1 stream", "4 streams"]).enumerate() {
        let ratio = |ours: &mut dyn Iterator<Item = f64>| {
            median(ours.zip(of(line, "direct")).map(|(ours, direct)| ours / direct).collect())
        };
        let unit = "tokens/CPU s";
        table.row(
            format!("{streams}: llama-cpp-2 called directly"),
            middle(of(line, "direct")),
            unit,
            Nothing,
        );
        table.row("  the plugin's engine", middle(of(line, "engine")), unit, Nothing);
        table.row("  through the host", median(rates.clone()), unit, Nothing);
        table.row("  engine against direct", ratio(&mut of(line, "engine")), "", AtLeast(0.99));
        table.row("  host against direct", ratio(&mut rates.iter().copied()), "", AtLeast(0.99));
    }
    let over =
        |base: &'static str| median(firsts.iter().zip(of(2, base)).map(|(ours, base)| ours - base).collect());
    let name = "first token of a prompt of 200 tokens: llama-cpp-2 directly";
    table.row(name, middle(of(2, "direct")), "ms", Nothing);
    table.row("  the plugin's engine", middle(of(2, "engine")), "ms", Nothing);
    table.row("  through the host", median(firsts.clone()), "ms", Nothing);
    table.row("  more than directly, in another process", over("direct"), "ms", Nothing);
    table.row("  more than the engine, in another process", over("engine"), "ms", Nothing);
    table.row("  of that outside the plugin", median(added), "ms", AtMost(1.0));
    table.row("64 tokens: time outside the plugin", median(overheads), "ms", AtMost(0.5));
}

/// What a client saw.
struct Seen {
    /// Milliseconds to the first piece, of the last stream that had one.
    first: f64,
    /// Of those the ones before the plugin had the request, and after it gave the piece.
    first_outside: f64,
    /// Milliseconds of the whole, less those that the plugin had the request.
    overhead: f64,
}

/// Completes these prompts side by side.
fn complete(host: &Host, prompts: &[String], max_tokens: u32) -> Seen {
    let seen = prompts.iter().map(|prompt| async move {
        let params = json!({
            "prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0, "ignore_eos": true,
        });
        let mut request = Request::new(Caller::internal("bench"), "complete", params.to_string())
            .model("smollm2")
            .streamed();
        request.cache = CacheUse::Bypass;
        let start = Instant::now();
        let mut reply = host.serve(request).await.unwrap();
        let mut first = None;
        loop {
            match reply.next().await.unwrap() {
                Next::Chunk(_) => _ = first.get_or_insert_with(|| start.elapsed()),
                Next::Done(done) => {
                    assert_eq!(done.usage.completion_tokens, u64::from(max_tokens), "the answer ended early");
                    let (first, ms) = (first.unwrap(), |time: Duration| time.as_secs_f64() * 1e3);
                    return Seen {
                        first: ms(first),
                        first_outside: ms(first.saturating_sub(done.timing.first)),
                        overhead: ms(start.elapsed().saturating_sub(done.timing.run)),
                    };
                }
            }
        }
    });
    let all = block_on(join_all(seen));
    let worst = |value: fn(&Seen) -> f64| all.iter().map(value).fold(0.0, f64::max);
    Seen {
        first: worst(|seen| seen.first),
        first_outside: worst(|seen| seen.first_outside),
        overhead: worst(|seen| seen.overhead),
    }
}

/// As long as those of the yardstick; none comes twice, so that none is in the engine's cache.
fn prompts(round: usize, streams: usize) -> Vec<String> {
    PROMPTS.iter().take(streams).map(|prompt| format!("{} {prompt}", 10_000 + round * 7 + streams)).collect()
}

fn long(round: usize) -> String {
    let sentence = "and then there was bread again, of rye and of wheat. ";
    format!("{} {} {}", 20_000 + round, PROMPTS[0], sentence.repeat(14))
}

fn middle(values: impl Iterator<Item = f64>) -> f64 {
    median(values.collect())
}

fn number(line: &HashMap<String, String>, key: &str) -> f64 {
    line[key].parse().unwrap()
}
