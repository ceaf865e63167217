//! An ONNX graph through the host, beside `ort` called directly (`plugins/onnx/examples/onnx_direct.rs`).
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot measure says so and ends")]

mod support;

use backplane::{CacheUse, Caller, DType, Host, Request, Tensor};
use futures::executor::block_on;
use serde_json::json;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::time::{Duration, Instant};
use support::Against::{AtLeast, AtMost, Nothing};
use support::{Table, cpu, median};

const ROUNDS: usize = 5;
const CLIENTS: usize = 8;
/// How long eight clients are measured in each round, here as in the yardstick.
const SPAN: Duration = Duration::from_millis(700);

fn main() {
    let direct = support::example("backplane-onnx", "onnx_direct");
    let models = e2e::test_models();
    let yardstick =
        || support::yardstick(&direct, &[models.as_os_str(), OsStr::new("1"), OsStr::new("alone")]);
    let plugins = support::plugins(&["backplane-onnx"]);
    let start = |instances: usize| {
        let config =
            format!("[models]\nkeep_alive = 'forever'\n[models.override.minilm]\ninstances = {instances}\n");
        support::host(plugins.path(), true, &config)
    };
    let (one, two) = (start(1), start(2));
    for _ in 0..50 {
        call(&one.host);
        call(&two.host);
    }

    // By kind of texts: what the yardstick said in each round, and what the host did.
    type Text = fn(usize) -> String;
    type Rates = Vec<(f64, f64)>;
    let kinds: [(&str, Text); 2] = [("16 tokens", equal), ("7 to 38 tokens", mixed)];
    let mut rounds: Vec<(Rates, Rates, Rates)> = vec![Default::default(); kinds.len()];
    let (mut lines, mut calls, mut outside) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let said = yardstick();
        let (mut times, mut others) = (Vec::new(), Vec::new());
        for _ in 0..200 {
            let start = Instant::now();
            let ran = call(&one.host);
            let took = start.elapsed();
            times.push(took.as_secs_f64() * 1e3);
            others.push(took.saturating_sub(ran).as_secs_f64() * 1e3);
        }
        calls.push(median(times));
        outside.push(median(others));
        for ((kind, text), (base, ours, twice)) in kinds.iter().zip(&mut rounds) {
            let line = said.iter().find(|line| line.get("texts").is_some_and(|texts| texts == kind)).unwrap();
            base.push((number(line, "per_second"), number(line, "cpu_ms")));
            ours.push(clients(&one.host, *text));
            twice.push(clients(&two.host, *text));
        }
        lines.extend(said.into_iter().filter(|line| line.contains_key("other_thread")));
    }
    let mut table = Table::new("onnx");
    let of = |key: &str| lines.iter().map(|line| number(line, key)).collect::<Vec<_>>();
    let over = |base: &str| median(calls.iter().zip(of(base)).map(|(ours, base)| ours - base).collect());
    let name = "MiniLM, 16 tokens: `ort` called directly";
    table.row(name, median(of("direct")), "ms p50", Nothing);
    table.row("  `ort` called on another thread", median(of("other_thread")), "ms p50", Nothing);
    table.row("  through the host", median(calls.clone()), "ms p50", Nothing);
    table.row("  host over direct", over("direct"), "ms", AtMost(0.15));
    table.row("  host over a direct call on another thread", over("other_thread"), "ms", Nothing);
    table.row("  of the host's, outside the plugin", median(outside), "ms p50", AtMost(0.15));

    for ((kind, _), (base, ours, twice)) in kinds.iter().zip(rounds) {
        let rate = |rates: &Rates| median(rates.iter().map(|(rate, _)| *rate).collect());
        let busy = |rates: &Rates| median(rates.iter().map(|(_, cpu)| *cpu).collect());
        let gain = |rates: &Rates, value: fn(&(f64, f64)) -> f64| {
            median(rates.iter().zip(&base).map(|(ours, base)| value(ours) / value(base)).collect())
        };
        table.row(format!("{CLIENTS} clients, {kind}: one by one by `ort`"), rate(&base), "texts/s", Nothing);
        table.row("  CPU time", busy(&base), "ms/text", Nothing);
        for (name, rates) in [("one instance", &ours), ("two instances", &twice)] {
            table.row(format!("  through the host, {name}"), rate(rates), "texts/s", Nothing);
            table.row("    CPU time", busy(rates), "ms/text", Nothing);
            table.row("    texts/s against one by one", gain(rates, |r| r.0), "", AtLeast(1.25));
            table.row("    texts per CPU second against one by one", 1.0 / gain(rates, |r| r.1), "", Nothing);
        }
    }
}

/// A call of 16 tokens; says how long the plugin had it.
fn call(host: &Host) -> Duration {
    let tensor = |name: &str, value: i64| {
        let data: Vec<u8> = std::iter::repeat_n(value.to_le_bytes(), 16).flatten().collect();
        Tensor::new(name, DType::Int64, vec![1, 16], data).unwrap()
    };
    let request = Request::new(Caller::internal("bench"), "tensor.infer", "{}").model("minilm");
    let tensors = [tensor("input_ids", 7), tensor("attention_mask", 1), tensor("token_type_ids", 0)];
    let request = tensors.into_iter().fold(request, Request::tensor);
    block_on(async { host.serve(request).await.unwrap().collect().await.unwrap() }).done.timing.run
}

/// Texts per second for eight clients, and CPU milliseconds for each.
fn clients(host: &Host, text: fn(usize) -> String) -> (f64, f64) {
    let (start, before) = (Instant::now(), cpu());
    let texts: usize = std::thread::scope(|scope| {
        let client = |client: usize| {
            let mut count = 0;
            while start.elapsed() < SPAN {
                embed(host, &text(client * 1000 + count));
                count += 1;
            }
            count
        };
        let clients: Vec<_> = (0..CLIENTS).map(|number| scope.spawn(move || client(number))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    (texts as f64 / start.elapsed().as_secs_f64(), (cpu() - before) * 1e3 / texts as f64)
}

fn embed(host: &Host, text: &str) {
    let params = json!({"input": [text]}).to_string();
    let mut request = Request::new(Caller::internal("bench"), "embed", params).model("minilm");
    request.cache = CacheUse::Bypass;
    block_on(async { host.serve(request).await.unwrap().collect().await.unwrap() });
}

/// Sentences of 14 words, which are 16 tokens; the yardstick's.
fn equal(number: usize) -> String {
    words(14, number)
}

/// Sentences of 5 to 36 words; the yardstick's.
fn mixed(number: usize) -> String {
    words(5 + number * 7 % 32, number)
}

fn words(count: usize, number: usize) -> String {
    const WORDS: [&str; 8] = ["ships", "carry", "grain", "across", "quiet", "seas", "before", "winter"];
    (0..count).map(|word| WORDS[(word * 5 + number) % 8]).collect::<Vec<_>>().join(" ")
}

fn number(line: &HashMap<String, String>, key: &str) -> f64 {
    line[key].parse().unwrap()
}
