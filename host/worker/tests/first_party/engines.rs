//! What computes, or asks another server to: llama, onnx, cuda, remote; and the plugin that is sold.

use crate::support::LONG;
use crate::upstream::Upstream;
use crate::{confined, confined_to, pulled, state};
use backplane::isolation::Granted;
use backplane_testkit::{Case, License, PluginTest, TensorInput};
use serde_json::{Value, json};
use std::path::Path;

#[test]
fn llama() {
    let parameters = json!({"context": 512, "threads": 1, "prompt_threads": 1});
    let mut model = pulled("smollm2", parameters);
    // Its card leaves `embed` out; any model of the format can.
    model["capabilities"] = json!(["chat", "complete", "embed"]);
    let model = model.to_string();
    let request = |mut params: Value, max_tokens: u32| {
        params["temperature"] = json!(0);
        params["max_tokens"] = json!(max_tokens);
        params["ignore_eos"] = json!(max_tokens > 100);
        params.to_string()
    };
    // A question that the model is sure of: what runs beside a request changes the last bits of its sums.
    let messages = json!([
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is the capital of France?"},
    ]);
    let chat = |max_tokens| request(json!({"messages": messages}), max_tokens);
    let complete = |max_tokens| request(json!({"prompt": "1, 2, 3, 4, 5, 6, 7,"}), max_tokens);
    let cases = [
        Case::new(&model, "chat", chat(8)).slow(chat(150)).named("chat"),
        Case::new(&model, "complete", complete(4)).slow(complete(150)).named("complete"),
        Case::new(&model, "embed", json!({"input": ["a", "b"]}).to_string()).named("embed"),
    ];
    let worker = confined("backplane-llama");
    worker.check_conformance(&cases).assert_ok();

    // To the last token as in-process.
    let ask = |plugin: PluginTest| {
        let instance = plugin.patience(LONG).open(&model).unwrap().instance().unwrap();
        let params = request(json!({"messages": messages, "logprobs": true}), 32);
        format!("{:?}", instance.submit("chat", &params, vec![]).wait().chunks)
    };
    let there = ask(confined("backplane-llama"));
    assert_eq!(ask(PluginTest::build("backplane-llama").unwrap()), there);
}

#[test]
fn onnx() {
    let model = pulled("minilm", json!({})).to_string();
    let ids = [101, 7592, 2088, 102];
    let cases = [
        Case::new(&model, "embed", r#"{"input":["a b","c"]}"#).named("texts"),
        Case::new(&model, "tensor.infer", "{}")
            .named("tensors")
            .tensor(TensorInput::int64("input_ids", &[1, 4], &ids))
            .tensor(TensorInput::int64("attention_mask", &[1, 4], &[1; 4]))
            .tensor(TensorInput::int64("token_type_ids", &[1, 4], &[0; 4])),
    ];
    let settings = json!({"runtimes": state().join("runtimes")}).to_string();
    let worker = confined("backplane-onnx").config(settings);
    worker.check_conformance(&cases).assert_ok();
}

#[test]
fn remote() {
    let upstream = Upstream::start();
    let model = json!({
        "name": "m",
        "format": "openai",
        "capabilities": ["chat", "complete", "embed"],
        "parameters": {"upstream": {"url": upstream.url}},
    })
    .to_string();
    let chat =
        |mode: &str| json!({"messages": [{"role": "user", "content": "hi"}], "mode": mode}).to_string();
    let complete = |mode: &str| json!({"prompt": "1, 2,", "mode": mode}).to_string();
    let cases = [
        Case::new(&model, "chat", chat("")).slow(chat("slow")).named("chat"),
        Case::new(&model, "complete", complete("")).slow(complete("slow")).named("complete"),
        Case::new(&model, "embed", json!({"input": ["a", "b"]}).to_string()).named("embed"),
    ];
    let granted = confined_to("backplane-remote", Granted { network: true, ..Granted::default() });
    granted.check_conformance(&cases).assert_ok();

    // And without the network it reaches nobody.
    let alone = confined("backplane-remote");
    let opened = alone.open(&model).and_then(|model| model.instance());
    // It may not even read which servers are to be believed.
    let answer = opened.ok().map(|instance| instance.submit("chat", &chat(""), vec![]).wait());
    assert!(answer.is_none_or(|answer| answer.failure().is_some()), "it reached a server");
}

#[test]
fn metered_echo() {
    let case = Case::new(
        r#"{"name":"metered-echo","capabilities":["metered.echo"]}"#,
        "metered.echo",
        r#"{"text":"hello"}"#,
    );
    let worker = confined("backplane-metered-echo");
    worker.licensed(License::default()).check_conformance(&[case]).assert_ok();
}

/// Without a GPU the plugin is a plugin all the same, and says of every kernel what is missing; with one, its kernels are
/// what `plugins/cuda/tests/plugin.rs` asks for.
#[test]
fn cuda() {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/cuda/kernels");
    let granted = Granted { gpu: true, read: vec![kernels.clone()], ..Granted::default() };
    let settings = json!({"runtimes": state().join("runtimes")}).to_string();
    let worker = || confined_to("backplane-cuda", granted.clone()).config(&*settings);
    worker().check_conformance(&[]).assert_ok();

    let card = std::fs::read_to_string(kernels.join("image-prepare.toml")).unwrap();
    let mut card: Value = toml::from_str(&card).unwrap();
    for file in card["files"].as_array_mut().unwrap() {
        let path = kernels.join(file["path"].as_str().unwrap());
        file["size"] = json!(std::fs::metadata(&path).unwrap().len());
        file["path"] = json!(path);
    }
    let opened = |plugin: PluginTest| plugin.open(&card.to_string()).err();
    if Path::new("/dev/nvidiactl").exists() {
        return;
    }
    let refused = opened(worker()).unwrap();
    assert_eq!(refused.reason, "device_missing", "{refused}");
    assert!(refused.message.contains("was compiled by NVRTC"), "{refused}");
    let inside = PluginTest::build("backplane-cuda").unwrap().config(settings);
    assert_eq!(Some(refused), opened(inside), "as in-process");
}
