//! The plugin keeps the contract of `backplane.h`, linked into this test and as the library that a host loads.
//!
//! Needs SmolLM2, as `engine.rs` does.

mod models;

use backplane_testkit::{Case, PluginTest};
use serde_json::json;

fn cases() -> Vec<Case> {
    let model = json!({
        "name": "smollm2",
        "format": "gguf",
        "capabilities": ["chat", "complete", "embed"],
        "files": [{"role": "model", "path": models::smollm2()}],
        "parameters": {"context": 512, "threads": 1, "prompt_threads": 1},
    })
    .to_string();
    // Questions the model is sure of: what runs beside a request changes the last bits of its sums.
    let messages = json!([
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is the capital of France?"},
    ]);
    let counting = "1, 2, 3, 4, 5, 6, 7,";
    let request = |mut params: serde_json::Value, max_tokens: u32| {
        params["temperature"] = json!(0);
        params["max_tokens"] = json!(max_tokens);
        params["ignore_eos"] = json!(max_tokens > 100);
        params.to_string()
    };
    let chat = |max_tokens| request(json!({"messages": messages}), max_tokens);
    let complete = |max_tokens| request(json!({"prompt": counting}), max_tokens);
    vec![
        Case::new(&model, "chat", chat(8)).slow(chat(150)).named("chat"),
        Case::new(&model, "complete", complete(4)).slow(complete(150)).named("complete"),
        Case::new(&model, "embed", json!({"input": ["a", "b"]}).to_string()).named("embed"),
    ]
}

/// How often a model is opened and closed to see what it leaves behind: each time takes half a second, and what is left
/// every time shows in far fewer than the kit's 200.
const ROUNDS: usize = 50;

#[test]
fn it_conforms_when_linked() {
    let plugin = PluginTest::of(backplane_llama::backplane_export::bp_entry_v1);
    plugin.rounds(ROUNDS).check_conformance(&cases()).assert_ok();
}

#[test]
fn it_conforms_when_loaded() {
    let plugin = PluginTest::build("backplane-llama").unwrap();
    plugin.rounds(ROUNDS).check_conformance(&cases()).assert_ok();
}
