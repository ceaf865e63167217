//! What a search takes beside reading the same memory: run by `make bench`, or alone with `--release`.
//!
//! Prints a line for each kind of component: what a search took, and what it took to read as many bytes in a loop on as many
//! threads, which share what memory gives; in milliseconds of processor time, which other work on the machine touches least;
//! as medians of rounds that took turns.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark says what it measured, or ends")]

use backplane_testkit::{DType, Instance, PluginTest, TensorInput};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use std::hint::black_box;

const DIMENSION: usize = 384;
const ROWS: usize = 250_000;
const BATCH: usize = 10_000;
const ROUNDS: usize = 15;

fn main() {
    let plugin = PluginTest::of(backplane_vector::backplane_export::bp_entry_v1);
    let model = plugin.open(r#"{"name":"vectors","capabilities":["vector.search"]}"#).unwrap();
    let instance = model.instance().unwrap();
    for (dtype, size) in [("f32", 4), ("f16", 2), ("i8", 1)] {
        fill(&instance, dtype);
        let memory: Vec<u64> = (0..(ROWS * DIMENSION * size / 8) as u64).collect();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let kinds = [
            (1, 1, "one query"),
            (1, 1, "one query of whole numbers"),
            (1, cores, "one query, a thread on each core"),
            (16, cores, "sixteen queries, a thread on each core"),
        ];
        for (batch, threads, kind) in kinds {
            let is_whole = kind.ends_with("numbers");
            if is_whole && dtype != "i8" {
                continue;
            }
            model.grant_at_most(threads as u32);
            let query = query(batch, is_whole);
            let params = json!({"collection": dtype, "k": 10}).to_string();
            let (mut searched, mut read) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                searched.push(timed(|| {
                    let answer = instance.submit("vector.search", &params, vec![query.clone()]).wait();
                    assert!(answer.is_done(), "{:?}", answer.failure());
                }));
                read.push(timed(|| read_by(threads, &memory)));
            }
            println!(
                "bench dtype={dtype} queries=\"{kind}\" megabytes={} search_ms={:.3} read_ms={:.3}",
                memory.len() * 8 / 1_000_000,
                median(searched),
                median(read)
            );
        }
        ask(&instance, json!({"operation": "drop", "collection": dtype}), vec![]);
    }
}

fn fill(instance: &Instance, dtype: &str) {
    ask(
        instance,
        json!({"operation": "create", "collection": dtype, "dimension": DIMENSION, "dtype": dtype}),
        vec![],
    );
    for first in (0..ROWS).step_by(BATCH) {
        let ids: Vec<String> = (first..first + BATCH).map(|n| n.to_string()).collect();
        let shape = [BATCH as i64, DIMENSION as i64];
        let rows = TensorInput::new("vectors", DType::Int8, &shape, bytes(first, BATCH));
        ask(instance, json!({"operation": "upsert", "collection": dtype, "ids": ids}), vec![rows]);
    }
}

fn ask(instance: &Instance, params: serde_json::Value, tensors: Vec<TensorInput>) {
    let answer = instance.submit("vector.search", &params.to_string(), tensors).wait();
    assert!(answer.is_done(), "{:?}", answer.failure());
}

/// Queries, of whole numbers or not: the rows of i8 are.
fn query(count: usize, is_whole: bool) -> TensorInput {
    let (shape, numbers) = ([count as i64, DIMENSION as i64], bytes(7, count));
    if is_whole {
        return TensorInput::new("vectors", DType::Int8, &shape, numbers);
    }
    let numbers: Vec<f32> = numbers.iter().map(|number| f32::from(*number as i8) * 0.37).collect();
    TensorInput::fp32("vectors", &shape, &numbers)
}

/// Rows of numbers that look like noise.
fn bytes(seed: usize, rows: usize) -> Vec<u8> {
    let mut state = seed as u64 + 1;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as u8
    };
    std::iter::repeat_with(next).take(rows * DIMENSION).collect()
}

fn read_by(threads: usize, memory: &[u64]) {
    let mut parts = memory.chunks(memory.len().div_ceil(threads));
    let first = parts.next().unwrap_or_default();
    std::thread::scope(|scope| {
        parts.for_each(|part| _ = scope.spawn(|| sum(part)));
        sum(first);
    });
}

/// Reads memory as fast as a loop can.
fn sum(memory: &[u64]) {
    let mut lanes = [0_u64; 16];
    for block in memory.chunks_exact(16) {
        lanes.iter_mut().zip(block).for_each(|(lane, number)| *lane = lane.wrapping_add(*number));
    }
    black_box(lanes);
}

fn timed(work: impl FnOnce()) -> f64 {
    let clock = || {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
    };
    let start = clock();
    work();
    clock() - start
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
