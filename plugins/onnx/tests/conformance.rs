//! The plugin keeps the contract of `backplane.h`: linked into this test, and as the library that a host loads.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use backplane_registry::onnx::Graph;
use backplane_registry::onnx::Side::{Any, Is};
use backplane_testkit::{Case, DType, PluginTest, TensorInput};
use serde_json::json;
use support::{Made, plugin, tokenizer};

fn made() -> [Made; 2] {
    let table: Vec<f32> = (0..26).map(|n| n as f32).collect();
    let infer = Graph::default()
        .input("x", DType::Fp32, &[Any("batch"), Is(2)])
        .input("s", DType::Bytes, &[Any("batch")])
        .output("y", DType::Fp32, &[Any("batch"), Is(2)])
        .output("t", DType::Bytes, &[Any("batch")])
        .node("Neg", &["x"], &["y"], &[])
        .node("Identity", &["s"], &["t"], &[])
        .finish("infer");
    let embed = Graph::default()
        .input("input_ids", DType::Int64, &[Any("batch"), Any("sequence")])
        .output("states", DType::Fp32, &[Any("batch"), Any("sequence"), Is(2)])
        .floats("w", &[13, 2], &table)
        .node("Gather", &["w", "input_ids"], &["states"], &[])
        .finish("embed");
    [
        Made::of(&infer, json!({})),
        Made::of(&embed, json!({})).file("tokenizer", "tokenizer.json", &tokenizer()).serves(&["embed"]),
    ]
}

fn cases([infer, embed]: &[Made; 2]) -> Vec<Case> {
    vec![
        Case::new(infer.json(), "tensor.infer", "{}")
            .named("tensors")
            .tensor(TensorInput::fp32("x", &[2, 2], &[1.0, 2.0, 3.0, 4.0]))
            .tensor(TensorInput::strings("s", &[2], &["one", ""])),
        Case::new(embed.json(), "embed", r#"{"input":["a b","c"]}"#).named("texts"),
    ]
}

#[test]
fn it_conforms_when_linked() {
    plugin().check_conformance(&cases(&made())).assert_ok();
}

#[test]
fn it_conforms_when_loaded() {
    let settings = json!({"runtimes": support::state().join("runtimes")}).to_string();
    PluginTest::build("backplane-onnx")
        .unwrap()
        .config(settings)
        .check_conformance(&cases(&made()))
        .assert_ok();
}
