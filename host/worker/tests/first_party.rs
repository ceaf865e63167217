//! The plugins that come with the program, each in a confined worker: the conformance suite, as their own tests run it
//! in-process, and what they answer.
//!
//! Needs the models that `make models` fetches, in the state directory that `BACKPLANE_TEST_MODELS` names.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod support;
#[path = "../../../plugins/remote/tests/upstream/mod.rs"]
mod upstream;

use backplane::isolation::{Confinement, Granted, Launch};
use backplane_testkit::{Case, License, PluginTest, TensorInput, library};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use support::{LONG, launch, through};
use upstream::Upstream;

/// Rounds of opening and closing: what is left in a worker is not the host's, and ends with it.
const ROUNDS: usize = 3;

fn state() -> PathBuf {
    let dir = std::env::var_os("BACKPLANE_TEST_MODELS").map(PathBuf::from);
    let dir = dir.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/state"));
    assert!(dir.join("models").exists(), "no test models in {}: run `make models`", dir.display());
    dir
}

/// The model as its card describes it, with the files where they lie.
fn pulled(name: &str, parameters: Value) -> Value {
    let card = state().join(format!("models/cards/{name}.toml"));
    let text = std::fs::read_to_string(&card).unwrap_or_else(|error| panic!("{}: {error}", card.display()));
    let mut card: Value = toml::from_str(&text).unwrap();
    for file in card["files"].as_array_mut().unwrap() {
        let blob = state().join("models/blobs/sha256").join(file["sha256"].as_str().unwrap());
        file["path"] = json!(blob);
    }
    for (key, value) in parameters.as_object().into_iter().flatten() {
        card["parameters"][key] = value.clone();
    }
    card
}

/// One of them, confined as the host would: it reads models and runtimes.
fn confined(package: &str, id: &str, network: bool) -> PluginTest {
    let read = ["models/blobs/sha256", "runtimes"].map(|folder| state().join(folder)).into();
    let confinement = Confinement::Sandbox(Granted { read, network, ..Granted::default() });
    let launch = launch(library(package).unwrap(), confinement);
    through(Launch { id: id.to_owned(), ..launch }).rounds(ROUNDS)
}

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
    let worker = confined("backplane-llama", "dev.backplane.llama", false);
    worker.check_conformance(&cases).assert_ok();

    // To the last token as in-process.
    let ask = |plugin: PluginTest| {
        let instance = plugin.patience(LONG).open(&model).unwrap().instance().unwrap();
        let params = request(json!({"messages": messages, "logprobs": true}), 32);
        format!("{:?}", instance.submit("chat", &params, vec![]).wait().chunks)
    };
    let there = ask(confined("backplane-llama", "dev.backplane.llama", false));
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
    let worker = confined("backplane-onnx", "dev.backplane.onnx", false).config(settings);
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
    let granted = confined("backplane-remote", "dev.backplane.remote", true);
    granted.check_conformance(&cases).assert_ok();

    // And without the network it reaches nobody.
    let alone = confined("backplane-remote", "dev.backplane.remote", false);
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
    let worker = confined("backplane-metered-echo", "dev.backplane.metered-echo", false);
    worker.licensed(License::default()).check_conformance(&[case]).assert_ok();
}
