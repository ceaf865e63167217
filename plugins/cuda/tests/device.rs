//! A kernel on a device, through the ABI: the processor stands in for a GPU, and where there is one, it is tried too.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod emulator;
mod support;

use backplane_testkit::{Answer, Code, DType, Instance, PluginTest, TensorInput};
use cudarc::driver::sys::CUresult;
use emulator::{again_on_the_device, fail, stand_in};
use std::sync::{Mutex, PoisonError};
use support::{image, model};

/// A device that fails is everybody's.
static ALONE: Mutex<()> = Mutex::new(());

fn plugin() -> PluginTest {
    stand_in();
    PluginTest::of(backplane_cuda::backplane_export::bp_entry_v1)
}

#[test]
fn on_the_device_that_is_here() {
    again_on_the_device(&["a_kernel_conforms"]);
}

#[test]
fn a_kernel_conforms() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    plugin().rounds(20).check_conformance(&[image()]).assert_ok();
}

fn ask(instance: &Instance) -> Answer {
    let tensors = vec![
        TensorInput::new("pictures", DType::Uint8, &[1, 1, 2, 3], vec![0, 51, 255, 102, 153, 204]),
        TensorInput::fp32("regions", &[1, 4], &[0.0, 0.0, 2.0, 1.0]),
        TensorInput::fp32("mean", &[3], &[0.0; 3]),
        TensorInput::fp32("scale", &[3], &[5.0; 3]),
    ];
    instance.submit("tensor.infer", r#"{"height":1,"width":2}"#, tensors).wait()
}

#[test]
fn a_device_that_fails_is_named_and_the_next_instance_serves() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let model = plugin().open(&model("image-prepare").to_string()).unwrap();
    let serves = |instance: &Instance| {
        let answer = ask(instance);
        let pixels: Vec<f32> = answer.chunks[0].tensors[0]
            .data
            .as_chunks()
            .0
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect();
        assert_eq!(pixels, [0.0, 2.0, 1.0, 3.0, 5.0, 4.0]);
    };
    for (what, code, canonical, reason, is_fatal) in [
        ("alloc", CUresult::CUDA_ERROR_OUT_OF_MEMORY, Code::ResourceExhausted, "device_memory", false),
        ("launch", CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, Code::Internal, "device_error", false),
        ("read", CUresult::CUDA_ERROR_MISALIGNED_ADDRESS, Code::Internal, "kernel_fault", true),
        ("read", CUresult::CUDA_ERROR_LAUNCH_TIMEOUT, Code::Internal, "kernel_fault", true),
        ("write", CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE, Code::Unavailable, "device_lost", true),
    ] {
        let instance = model.instance().unwrap();
        serves(&instance);
        fail(what, code);
        let failure = ask(&instance).failure().unwrap().clone();
        assert_eq!((failure.canonical(), &*failure.reason), (Some(canonical), reason), "{failure}");
        assert_eq!(failure.sub == 3, is_fatal, "{failure}");
        match is_fatal {
            true => {
                assert_eq!(ask(&instance).failure().unwrap().reason, reason, "it stays broken, and says so")
            }
            false => serves(&instance),
        }
        drop(instance);
        serves(&model.instance().unwrap());
    }
}
