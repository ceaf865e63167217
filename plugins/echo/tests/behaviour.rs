//! What echo does, through the tables, as its users see it.

#![allow(clippy::unwrap_used, reason = "a test helper fails by panicking")]

use backplane_testkit::{
    Answer, Chunk, Code, DType, End, Failure, Instance, PluginTest, RequestInput, TensorInput, TensorOutput,
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

fn plugin() -> PluginTest {
    PluginTest::of(backplane_echo::backplane_export::bp_entry_v1)
}

fn open(execution: &str) -> Instance {
    let model =
        json!({"name": "echo", "capabilities": ["echo"], "parameters": {"execution": execution}}).to_string();
    plugin().open(&model).unwrap().instance().unwrap()
}

fn ask(params: serde_json::Value) -> Answer {
    open("concurrent").submit("echo", &params.to_string(), vec![]).wait()
}

#[test]
fn text_comes_back_in_pieces_and_its_words_are_counted() {
    let answer = ask(json!({"text": "one two three", "chunks": 4, "confidence": 0.5}));
    assert_eq!(answer.chunks.len(), 4);
    assert_eq!(answer.json()["text"], "one two three");
    let End::Done { usage, confidence } = answer.end else { panic!("{}", answer.end) };
    assert_eq!((usage["prompt_tokens"].as_u64(), confidence), (Some(3), Some(0.5)));
    let model = open("concurrent").model().clone();
    assert_eq!(model.count_tokens("echo", r#"{"text":"one two three"}"#).unwrap().unwrap(), 3);
}

#[test]
fn it_fails_as_it_is_told() {
    let fail = json!({"code": "unavailable", "message": "gone", "reason": "tested", "retry_after_ms": 7, "after": 1});
    let answer = ask(json!({"text": "ab", "chunks": 2, "fail": fail}));
    assert_eq!(answer.chunks.len(), 1);
    let failure = answer.failure().unwrap();
    assert_eq!(failure.canonical(), Some(Code::Unavailable));
    assert_eq!((&*failure.message, &*failure.reason, failure.retry_after_ms), ("gone", "tested", 7));
}

#[test]
fn an_unknown_parameter_is_refused_by_its_name() {
    let failure = ask(json!({"txet": "typo"})).failure().cloned().unwrap();
    assert_eq!(failure.canonical(), Some(Code::InvalidArgument));
    assert!(failure.message.contains("`txet`"), "{}", failure.message);
    let model = r#"{"name":"echo","parameters":{"exectuion":"serial"}}"#;
    let failure = plugin().open(model).err().unwrap();
    assert!(failure.message.contains("`exectuion`"), "{}", failure.message);
}

#[test]
fn the_manifest_describes_the_parameters_that_there_are() {
    let manifest: toml::Table = toml::from_str(include_str!("../plugin.toml")).unwrap();
    let described = manifest["capabilities"][0]["input_schema"]["properties"].as_table().unwrap();
    // The refusal of an unknown one lists the known ones.
    let refusal = ask(json!({"txet": "typo"})).failure().cloned().unwrap().message;
    let mut known: Vec<_> = refusal.split('`').skip(3).step_by(2).collect();
    known.sort_unstable();
    assert_eq!(described.keys().map(String::as_str).collect::<Vec<_>>(), known);
}

#[test]
fn a_serial_instance_says_how_many_came_together() {
    let instance = open("serial");
    let request = RequestInput::new("echo", r#"{"text":"hi"}"#, vec![]);
    for running in instance.send_batch(vec![request; 5]) {
        let End::Done { usage, .. } = running.wait().end else { panic!("not done") };
        assert_eq!(usage["batch"], 5);
    }
}

#[test]
fn a_waiting_request_notices_at_once_that_its_caller_left() {
    for execution in ["concurrent", "serial", "continuous"] {
        let running = open(execution).submit("echo", r#"{"text":"late","delay_ms":60000}"#, vec![]);
        running.cancel();
        let start = Instant::now();
        assert_eq!(running.wait().failure().unwrap().canonical(), Some(Code::Cancelled));
        assert!(start.elapsed() < Duration::from_secs(30), "it waited for its delay");
    }
}

#[test]
fn it_asks_another_plugin_and_gives_its_answer_back() {
    let plugin = plugin().answering(|call| match call.capability.as_str() {
        "com.example.double" => Ok(vec![json!({"n": call.params["n"].as_i64().unwrap_or(0) * 2})]),
        _ => Err(Failure {
            code: Code::NotFound as i32,
            message: "nobody serves that".into(),
            ..Failure::default()
        }),
    });
    let instance = plugin.open(r#"{"name":"echo"}"#).unwrap().instance().unwrap();
    let call =
        |capability: &str| json!({"call": {"capability": capability, "params": {"n": 21}}}).to_string();
    let answer = instance.submit("echo", &call("com.example.double"), vec![]).wait();
    assert_eq!(answer.json()["answer"], json!([{"n": 42}]));
    let answer = instance.submit("echo", &call("com.example.nothing"), vec![]).wait();
    assert_eq!(answer.failure().unwrap().message, "nobody serves that");
    // A host that lets no plugin call another says so.
    let answer = open("concurrent").submit("echo", &call("com.example.double"), vec![]).wait();
    assert_eq!(answer.failure().unwrap().canonical(), Some(Code::Unimplemented));
    // And a thread that serves many requests must not wait for one.
    let answer = open("continuous").submit("echo", &call("com.example.double"), vec![]).wait();
    assert_eq!(answer.failure().unwrap().canonical(), Some(Code::Unimplemented));
}

#[test]
fn tensors_go_along_with_a_call_and_come_back_from_it() {
    // The other plugin doubles every number. One tensor is so large that its memory is shared, the other is copied.
    let plugin = plugin().answering(|call| {
        let double = |tensor: &TensorOutput| TensorOutput {
            data: tensor.data.chunks_exact(8).flat_map(|n| (2 * number(n)).to_le_bytes()).collect(),
            ..tensor.clone()
        };
        let tensors = call.tensors.iter().map(double).collect();
        Ok(vec![Chunk { json: json!({"tensors": call.tensors.len()}), tensors }])
    });
    let instance = plugin.open(r#"{"name":"echo"}"#).unwrap().instance().unwrap();
    let ask = |tensors| {
        let params = json!({"call": {"capability": "com.example.double"}}).to_string();
        instance.submit("echo", &params, tensors).wait()
    };
    let (few, many): (Vec<i64>, Vec<i64>) = (vec![1, -2, 3], (0..5000).collect());
    let answer =
        ask(vec![TensorInput::int64("few", &[3], &few), TensorInput::int64("many", &[50, 100], &many)]);
    assert_eq!(answer.json()["answer"], json!([{"tensors": 2}]), "{}", answer.end);
    for (name, shape, sent) in [("few", vec![3], few), ("many", vec![50, 100], many)] {
        let tensor = answer.tensor(name).unwrap();
        assert_eq!((tensor.dtype, &tensor.shape), (DType::Int64, &shape));
        let got: Vec<_> = tensor.data.chunks_exact(8).map(number).collect();
        assert_eq!(got, sent.iter().map(|n| 2 * n).collect::<Vec<_>>());
    }
    assert_eq!(ask(vec![]).json()["answer"], json!([{"tensors": 0}]));
    assert_eq!(instance.model().faults(), [], "every buffer was given back");
}

/// An answer whose tensor does not add up is an error that says so, and no undefined memory.
#[test]
fn a_broken_tensor_in_an_answer_is_named() {
    let plugin = plugin().answering(|_| {
        let broken =
            TensorOutput { name: "short".into(), dtype: DType::Fp32, shape: vec![1 << 40], data: vec![0; 8] };
        Ok(vec![Chunk { json: json!({}), tensors: vec![broken] }])
    });
    let instance = plugin.open(r#"{"name":"echo"}"#).unwrap().instance().unwrap();
    let answer = instance.submit("echo", r#"{"call":{"capability":"com.example.broken"}}"#, vec![]).wait();
    let failure = answer.failure().unwrap();
    assert!(failure.message.contains("tensor `short` has 8 bytes"), "{failure}");
}

/// A test that is wrong about what it is asked fails, and does not wait until its patience ends.
#[test]
fn a_call_ends_though_what_the_test_answers_with_panics() {
    let plugin = plugin().answering(|call| -> Result<Vec<Value>, _> { panic!("{}", call.capability) });
    let instance = plugin.open(r#"{"name":"echo"}"#).unwrap().instance().unwrap();
    let answer = instance.submit("echo", r#"{"call":{"capability":"com.example.wrong"}}"#, vec![]).wait();
    let failure = answer.failure().unwrap();
    assert!(failure.message.contains("`com.example.wrong` with panicked"), "{failure}");
}

fn number(bytes: &[u8]) -> i64 {
    i64::from_le_bytes(bytes.try_into().unwrap())
}
