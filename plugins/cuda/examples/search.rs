//! What a search takes on a GPU beside copying memory on it: run by `make bench`, or alone with `--release`.
//!
//! Prints nothing where there is no GPU. Else lines: what a copy from one place of the device to another took, and searches of
//! as many bytes, through the plugin's ABI, as medians of rounds that took turns; how many of the hits are those of the plugin
//! that searches on the CPU; and the hits of the first query, to be found again by another program.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark says what it measured, or ends")]

use backplane_cuda::{Compiler, Driver, Gpu, Nvidia, Program, STAND_IN, Settings};
use backplane_testkit::{CallInput, Chunk, DType, Failure, Instance, PluginTest, TensorInput, TensorOutput};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

const DIMENSION: usize = 384;
const ROWS: usize = 2_000_000;
const BATCH: usize = 10_000;
const ROUNDS: usize = 15;
/// Bytes of the rows, of 16 bits.
const BYTES: usize = ROWS * DIMENSION * 2;

fn main() {
    // The folder of pulled runtimes; without one what was compiled beforehand is measured.
    let runtimes = std::env::args_os().nth(1).map(PathBuf::from);
    let settings = Settings { runtimes, ..Settings::default() };
    let driver: Arc<dyn Driver> = Arc::new(Nvidia { compiler: Compiler::new(settings), ordinal: 0 });
    if driver.check(true).is_err() {
        return;
    }
    STAND_IN.set(driver.clone()).ok().unwrap();
    let gpu = driver
        .load(&Program {
            source: include_str!("../kernels/pictures.cu").to_owned(),
            name: "pictures.cu".to_owned(),
            defines: [].into(),
            entries: ["prepare".to_owned()].into(),
            ptx: Some(include_str!("../kernels/pictures.ptx").to_owned()),
        })
        .unwrap();
    let (from, to) = (gpu.alloc(BYTES).unwrap(), gpu.alloc(BYTES).unwrap());

    let owner = PluginTest::build("backplane-vector").unwrap();
    let owner = owner.open(r#"{"name":"vectors","capabilities":["vector.search"]}"#).unwrap();
    let owner = owner.instance().unwrap();
    fill(&owner);
    let asked = owner.clone();
    let plugin = PluginTest::of(backplane_cuda::backplane_export::bp_entry_v1);
    let plugin = plugin.answering(move |call: &CallInput| -> Result<Vec<Chunk>, Failure> {
        let tensor = |tensor: &TensorOutput| {
            TensorInput::new(&tensor.name, tensor.dtype, &tensor.shape, tensor.data.clone())
        };
        let tensors = call.tensors.iter().map(tensor).collect();
        let answer = asked.submit("vector.search", &call.params.to_string(), tensors).wait();
        answer.failure().map_or(Ok(answer.chunks.clone()), |failure| Err(failure.clone()))
    });
    let device = plugin.open(r#"{"name":"vectors-cuda","capabilities":["vector.search"]}"#).unwrap();
    let device = device.instance().unwrap();
    // The copy of the collection is made by the first search of it.
    search(&device, 1, 0);

    for batch in [1, 64] {
        let (mut searched, mut copied) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            searched.push(timed(|| drop(search(&device, batch, round))));
            copied.push(timed(|| copy(&*gpu, from, to)));
        }
        let first = search(&device, batch, 0).swap_remove(0).join(",");
        let (mut same, mut all) = (0, 0);
        for round in 0..3 {
            let (here, there) = (search(&device, batch, round), search(&owner, batch, round));
            for (here, there) in here.iter().zip(&there) {
                same += here.iter().filter(|id| there.contains(id)).count();
                all += there.len();
            }
        }
        println!(
            "bench gpu=\"{}\" queries={batch} rows={ROWS} dimension={DIMENSION} megabytes={} search_ms={:.4} copy_ms={:.4} \
             recall={:.4} hits={first}",
            gpu.name(),
            BYTES / 1_000_000,
            median(searched),
            median(copied),
            f64::from(same as u32) / f64::from(all as u32)
        );
    }
}

fn copy(gpu: &dyn Gpu, from: u64, to: u64) {
    gpu.copy(from, to, BYTES).unwrap();
    gpu.wait().unwrap();
}

fn fill(owner: &Instance) {
    ask(
        owner,
        &json!({"operation": "create", "collection": "c", "dimension": DIMENSION, "dtype": "f16"}),
        vec![],
    );
    for first in (0..ROWS).step_by(BATCH) {
        let ids: Vec<String> = (first..first + BATCH).map(|n| n.to_string()).collect();
        let rows =
            TensorInput::new("vectors", DType::Int8, &[BATCH as i64, DIMENSION as i64], noise(first, BATCH));
        ask(owner, &json!({"operation": "upsert", "collection": "c", "ids": ids}), vec![rows]);
    }
}

/// The ids of the best ten for each of so many queries.
fn search(instance: &Instance, batch: usize, round: usize) -> Vec<Vec<String>> {
    let numbers: Vec<f32> =
        noise(round + 7, batch).iter().map(|number| f32::from(*number as i8) * 0.37).collect();
    let queries = TensorInput::fp32("vectors", &[batch as i64, DIMENSION as i64], &numbers);
    let found = ask(instance, &json!({"collection": "c", "k": 10}), vec![queries]);
    let id = |hit: &Value| hit["id"].as_str().unwrap().to_owned();
    let hits = |hits: &Value| hits.as_array().unwrap().iter().map(id).collect();
    found["results"].as_array().unwrap().iter().map(hits).collect()
}

fn ask(instance: &Instance, params: &Value, tensors: Vec<TensorInput>) -> Value {
    let answer = instance.submit("vector.search", &params.to_string(), tensors).wait();
    assert!(answer.is_done(), "{:?}", answer.failure());
    answer.json()
}

/// Rows of numbers that look like noise.
fn noise(seed: usize, rows: usize) -> Vec<u8> {
    let mut state = seed as u64 + 1;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as u8
    };
    std::iter::repeat_with(next).take(rows * DIMENSION).collect()
}

fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64() * 1e3
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
