//! Tensors that stay on a device between two requests, through the ABI: the processor stands in for a GPU, and the memory of
//! each of its contexts is in a process of its own, at no address of this one. Where there is a GPU, it is tried too.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod emulator;
mod support;

use backplane_testkit::{
    Answer, Code, DType, DeviceOutput, Instance, Model, PluginTest, RequestInput, TensorInput,
};
use cudarc::driver::sys::CUresult;
use emulator::{Traffic, again_on_the_device, fail, is_on_the_device, stand_in, traffic};
use serde_json::json;
use std::sync::{Mutex, MutexGuard, PoisonError};

const PICTURES: &str = r#"{"name":"pictures-cuda","capabilities":["image.prepare"]}"#;
const SOURCE: &str = r#"
extern "C" __global__ void twice(const float* x, float* y, long long n) {
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at < n) y[at] = 2 * x[at];
}
"#;

/// A kernel that doubles, what prepares pictures, and nobody else on the device.
struct Scene {
    models: Vec<Model>,
    _folder: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Scene {
    fn new() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        stand_in();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("double.cu");
        std::fs::write(&path, SOURCE).unwrap();
        let double = json!({
            "name": "double", "format": "cuda", "capabilities": ["tensor.infer"],
            "files": [{"role": "model", "name": "double.cu", "path": path, "size": SOURCE.len()}],
            "parameters": {
                "inputs": [{"name": "x", "dtype": "FP32", "shape": ["b", "c", "h", "w"]}],
                "outputs": [{"name": "y", "dtype": "FP32", "shape": ["b", "c", "h", "w"]}],
                "launch": [{"entry": "twice", "grid": ["ceil_div(b * c * h * w, 64)"], "block": [64],
                            "arguments": ["x", "y", "b * c * h * w"]}],
            },
        });
        let plugin = PluginTest::of(backplane_cuda::backplane_export::bp_entry_v1);
        let models = plugin.open_all(&[&double.to_string(), PICTURES]).unwrap();
        traffic();
        Self { models, _folder: folder, _alone: alone }
    }

    fn instances(&self) -> [Instance; 2] {
        [0, 1].map(|model: usize| self.models[model].instance().unwrap())
    }

    /// Nothing was done wrong, and all memory is given back.
    fn ends_well(self) {
        assert_eq!(self.models[0].faults(), []);
    }
}

fn double(instance: &Instance, x: TensorInput, stays: bool) -> Answer {
    let request = RequestInput::new("tensor.infer", "{}", vec![x]);
    instance.send(if stays { request.keep_on_device() } else { request }).wait()
}

/// Two pictures of two pixels, as they are.
fn prepare(instance: &Instance) -> Answer {
    let region = json!({"from": [0, 0, 2, 1], "to": [0, 0, 2, 1]});
    let params = json!({"width": 2, "height": 1, "scale": 1.0, "regions": [region, region]});
    let picture = |name, data| TensorInput::new(name, DType::Uint8, &[1, 2, 3], data);
    let pictures = vec![picture("0", vec![1, 2, 3, 4, 5, 6]), picture("1", vec![7, 8, 9, 10, 11, 12])];
    instance.send(RequestInput::new("image.prepare", &params.to_string(), pictures).keep_on_device()).wait()
}

fn left(mut answer: Answer) -> DeviceOutput {
    assert!(answer.is_done(), "{:?}", answer.failure());
    assert!(answer.tensors().is_empty(), "nothing came to the host");
    answer.on_device.remove(0)
}

fn numbers(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn four() -> TensorInput {
    TensorInput::fp32("x", &[1, 1, 1, 4], &[1.0, 2.0, 3.0, 4.0])
}

/// What crossed, which only the processor counts.
fn went(expected: Traffic) {
    if !is_on_the_device() {
        assert_eq!(traffic(), expected);
    }
}

#[test]
fn on_the_device_that_is_here() {
    again_on_the_device(&[
        "what_a_model_leaves_on_the_device_it_takes_again_where_it_is",
        "what_one_model_prepares_another_takes_without_the_way_through_the_host",
        "who_does_not_ask_for_it_gets_the_same_numbers_from_the_host",
    ]);
}

#[test]
fn what_a_model_leaves_on_the_device_it_takes_again_where_it_is() {
    let scene = Scene::new();
    let [instance, _] = scene.instances();
    let once = left(double(&instance, four(), true));
    assert_eq!((once.device(), &*once.name, &*once.shape), ((2, 0), "y", &[1, 1, 1, 4][..]));
    let twice = left(double(&instance, TensorInput::there("x", &once), true));
    let thrice = double(&instance, TensorInput::there("x", &twice), false);
    assert_eq!(numbers(&thrice.tensor("y").unwrap().data), [8.0, 16.0, 24.0, 32.0]);
    // The end of it is read, and nothing before.
    went(Traffic { reads: 1, copies: 0, adoptions: 2 });
    assert_eq!(numbers(&once.read().unwrap()), [2.0, 4.0, 6.0, 8.0], "what was read was left as it is");
    drop((once, twice, instance));
    scene.ends_well();
}

#[test]
fn what_one_model_prepares_another_takes_without_the_way_through_the_host() {
    let scene = Scene::new();
    let [instance, pictures] = scene.instances();
    let pixels = left(prepare(&pictures));
    assert_eq!((&*pixels.name, &*pixels.shape), ("pixels", &[2, 3, 1, 2][..]));
    let answer = double(&instance, TensorInput::there("x", &pixels), false);
    let expected = [2.0, 8.0, 4.0, 10.0, 6.0, 12.0, 14.0, 20.0, 16.0, 22.0, 18.0, 24.0];
    assert_eq!(numbers(&answer.tensor("y").unwrap().data), expected);
    // Each model has a context of its own: from one to the other it is copied on the device.
    went(Traffic { reads: 1, copies: 1, adoptions: 0 });
    // It lasts longer than who made it.
    drop(pictures);
    assert_eq!(numbers(&pixels.read().unwrap())[..2], [1.0, 4.0]);
    drop((pixels, instance));
    scene.ends_well();
}

#[test]
fn who_does_not_ask_for_it_gets_the_same_numbers_from_the_host() {
    let scene = Scene::new();
    let [instance, _] = scene.instances();
    let there = left(double(&instance, four(), true)).read().unwrap();
    let here = double(&instance, four(), false);
    assert_eq!(here.tensor("y").unwrap().data, there);
    drop(instance);
    scene.ends_well();
}

#[test]
fn what_cannot_be_made_or_had_is_named() {
    let scene = Scene::new();
    let [instance, pictures] = scene.instances();
    let pixels = left(prepare(&pictures));

    // No memory: the request fails, and the next one does not.
    fail("alloc", CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    let failure = double(&instance, four(), true).failure().unwrap().clone();
    assert_eq!((failure.canonical(), &*failure.reason), (Some(Code::ResourceExhausted), "device_memory"));
    let y = left(double(&instance, four(), true));

    // A fault of the kernel is told to who asked, though nobody reads what it made.
    fail("wait", CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    let failure = double(&instance, four(), true).failure().unwrap().clone();
    assert_eq!((&*failure.reason, failure.sub), ("kernel_fault", 3), "{failure}");

    // With the context all is lost that was made in it.
    let failure = y.read().unwrap_err();
    assert_eq!((failure.canonical(), &*failure.reason), (Some(Code::Unavailable), "device_lost"));

    // Another instance has one of its own, and takes what others made; what is lost it cannot take, and lives.
    let [next, _] = scene.instances();
    let failure = double(&next, TensorInput::there("x", &y), false).failure().unwrap().clone();
    assert_eq!((&*failure.reason, failure.sub), ("device_lost", 0), "{failure}");
    assert!(double(&next, TensorInput::there("x", &pixels), false).is_done());
    drop((y, pixels, instance, pictures, next));
    scene.ends_well();
}
