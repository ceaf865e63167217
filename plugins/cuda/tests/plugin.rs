//! The plugin keeps the contract of `backplane.h`, and says what is missing where there is no GPU.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use backplane_testkit::{Case, Code, PluginTest};
use serde_json::{Value, json};
use support::{has_gpu, image, model, runtimes};

/// Requests that work, where there is something to work on.
fn cases() -> Vec<Case> {
    if has_gpu() { vec![image()] } else { Vec::new() }
}

#[test]
fn it_conforms_when_linked() {
    PluginTest::of(backplane_cuda::backplane_export::bp_entry_v1).check_conformance(&cases()).assert_ok();
}

#[test]
fn it_conforms_when_loaded() {
    PluginTest::build("backplane-cuda").unwrap().check_conformance(&cases()).assert_ok();
}

#[test]
fn a_kernel_is_opened_where_there_is_a_gpu_and_elsewhere_it_says_why_not() {
    let plugin = PluginTest::of(backplane_cuda::backplane_export::bp_entry_v1);
    // Without a compiler: what was compiled beforehand is there.
    let plugin = plugin.config(r#"{"nvrtc":"/nowhere"}"#);
    let card = model("image-prepare");
    let opened = plugin.open(&card.to_string());
    if has_gpu() {
        return drop(opened.unwrap());
    }
    let failure = opened.err().unwrap();
    assert_eq!((failure.canonical(), &*failure.reason), (Some(Code::FailedPrecondition), "device_missing"));
    assert!(failure.message.starts_with("no NVIDIA driver is installed here"), "{failure}");
    assert!(!failure.message.contains("NVRTC"), "{failure}");
    // Without that either, both are told.
    let mut bare = card;
    bare["files"].as_array_mut().unwrap().retain(|file| file["role"] == "model");
    let failure = plugin.open(&bare.to_string()).err().unwrap();
    assert_eq!(failure.reason, "device_missing");
    assert!(
        failure.message.contains("nor was `image-prepare.cu` compiled: NVRTC cannot be used"),
        "{failure}"
    );
}

#[test]
fn what_does_not_compile_is_told_where_there_is_no_gpu_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.cu");
    let settings = json!({"runtimes": runtimes()}).to_string();
    let plugin = PluginTest::of(backplane_cuda::backplane_export::bp_entry_v1).config(settings);
    let opened = |source: &str| {
        std::fs::write(&path, source).unwrap();
        let mut card = model("image-prepare");
        card["files"][0] = json!({"role": "model", "name": "mine.cu", "path": path, "size": source.len()});
        plugin.open(&card.to_string()).err()
    };
    let failure = opened("extern \"C\" __global__ void prepare(float* x) {\n    x[0] = y;\n}\n").unwrap();
    assert_eq!(failure.reason, "model_invalid", "{failure}");
    assert!(failure.message.contains("mine.cu(2): error: identifier \"y\" is undefined"), "{failure}");
    let sound = include_str!("../kernels/image-prepare.cu");
    match opened(sound) {
        None => assert!(has_gpu()),
        Some(failure) => {
            assert_eq!(failure.reason, "device_missing", "{failure}");
            assert!(failure.message.starts_with("`mine.cu` was compiled by NVRTC 12."), "{failure}");
            assert!(failure.message.contains("for compute capability 9.0 ("), "{failure}");
            let failure = opened(&sound.replace("prepare(", "prepared(")).unwrap();
            assert!(failure.message.contains("has no function `prepare`"), "{failure}");
        }
    }
}

#[test]
fn a_bad_card_is_told_before_anything_is_looked_for() {
    let plugin = PluginTest::of(backplane_cuda::backplane_export::bp_entry_v1);
    let refused = |spoil: &dyn Fn(&mut Value)| {
        let mut card = model("image-prepare");
        spoil(&mut card);
        plugin.open(&card.to_string()).err().unwrap()
    };
    let failure = refused(&|card| card["parameters"]["launch"][0]["grid"][0] = json!("ceil_div(widht, 32)"));
    assert!(
        failure.message.contains("launch of `prepare`: `ceil_div(widht, 32)` names `widht`"),
        "{failure}"
    );
    let failure = refused(&|card| card["files"] = json!([]));
    assert!(failure.message.contains("no file with role `model`"), "{failure}");
    let failure = refused(&|card| card["capabilities"] = json!(["chat"]));
    assert_eq!(failure.canonical(), Some(Code::Unimplemented));
}
