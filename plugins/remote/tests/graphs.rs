//! Graphs of a server that speaks the Open Inference Protocol: what is sent, what is read, and what lies.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod upstream;

use backplane_testkit::{Answer, Code, DType, Failure, Instance, PluginTest, TensorInput};
use serde_json::{Value, json};
use upstream::{Reply, Seen, Upstream, bytes_reply, json_reply};

const HEADER: &str = "inference-header-content-length";

/// A server with the graph `g`, which gives back what it is given.
fn server(binary: bool, infer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Upstream {
    Upstream::answering(move |seen| match seen.path.as_str() {
        "/v1" => json_reply(
            200,
            &json!({"name": "x", "extensions": if binary { vec!["binary_tensor_data"] } else { vec![] }}),
        ),
        "/v1/models/g" | "/v1/models/g/versions/2" => json_reply(
            200,
            &json!({"name": "g", "platform": "onnx",
                "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
                "outputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]}),
        ),
        "/v1/models/g/infer" | "/v1/models/g/versions/2/infer" => infer(seen),
        _ => json_reply(404, &json!({"error": "no such model"})),
    })
}

/// The inputs as outputs, in the form they came in.
fn echo(seen: &Seen) -> Reply {
    let json = json!({"model_name": "g", "outputs": seen.body["inputs"]}).to_string();
    let length = json.len().to_string();
    let mut body = json.into_bytes();
    body.extend_from_slice(&seen.binary);
    let reply = bytes_reply(200, body);
    if seen.binary.is_empty() { reply } else { reply.header(HEADER, length) }
}

fn open_with(upstream: &Upstream, more: Value) -> Result<Instance, Failure> {
    let mut parameters = json!({"model": "g", "upstream": {"url": upstream.url}});
    parameters.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let model =
        json!({"name": "m", "format": "oip", "capabilities": ["tensor.infer"], "parameters": parameters});
    PluginTest::of(backplane_remote::backplane_export::bp_entry_v1).open(&model.to_string())?.instance()
}

fn inputs() -> Vec<TensorInput> {
    vec![
        TensorInput::fp32("x", &[2, 2], &[1.5, -2.0, 0.1, 4e30]),
        TensorInput::strings("s", &[3], &["one", "", "grün"]),
    ]
}

fn ask(model: &Instance, params: Value) -> Answer {
    model.submit("tensor.infer", &params.to_string(), inputs()).wait()
}

fn refused(answer: &Answer) -> (Code, &str, &str) {
    let failure = answer.failure().unwrap_or_else(|| panic!("it was to fail: {answer:?}"));
    (failure.canonical().unwrap(), &failure.reason, &failure.message)
}

#[test]
fn tensors_go_there_and_back_as_json_and_as_bytes() {
    for (binary, card) in [(true, json!({})), (false, json!({})), (false, json!({"version": "2"}))] {
        let upstream = server(binary, echo);
        let model = open_with(&upstream, card.clone()).unwrap();
        assert_eq!(model.model().describe()["inputs"][0]["shape"], json!([-1, 2]));
        let answer = ask(&model, json!({"outputs": ["x", "s"], "temperature": 1}));
        assert!(answer.is_done(), "{answer:?}");
        for given in inputs() {
            let back = answer.tensor(std::str::from_utf8(&given.name).unwrap()).unwrap();
            assert_eq!((&back.shape, &back.data), (&given.shape, &given.data));
        }
        let seen = upstream.seen();
        let sent = seen.last().unwrap();
        assert_eq!(sent.body["outputs"], json!([{"name": "x"}, {"name": "s"}]));
        assert_eq!(sent.body["parameters"]["temperature"], 1);
        assert_eq!(sent.binary.is_empty(), !binary);
        assert_eq!(sent.path.contains("/versions/2/"), card["version"] == "2");
    }
    // The card knows better than the server.
    let upstream = server(true, echo);
    let model = open_with(&upstream, json!({"binary": false})).unwrap();
    assert!(ask(&model, json!({})).is_done());
    assert!(upstream.seen().iter().all(|seen| seen.binary.is_empty()));
}

#[test]
fn every_type_survives_the_way() {
    let whole = [DType::Bool, DType::Bytes];
    for binary in [true, false] {
        let upstream = server(binary, echo);
        let model = open_with(&upstream, json!({})).unwrap();
        for dtype in DType::ALL.into_iter().filter(|dtype| !whole.contains(dtype)) {
            // Small whole numbers, which are finite in every type.
            let size = dtype.size().unwrap();
            let data: Vec<u8> =
                (0..6 * size).map(|at| if at % size == 0 { 1 + at as u8 } else { 0 }).collect();
            if !binary && matches!(dtype, DType::Fp16 | DType::Bf16) {
                continue;
            }
            let input = TensorInput::new("x", dtype, &[2, 3], data.clone());
            let answer = model.submit("tensor.infer", "{}", vec![input]).wait();
            let back = answer.tensor("x").unwrap_or_else(|| panic!("{dtype:?}: {answer:?}"));
            assert_eq!((back.dtype, &back.shape, &back.data), (dtype, &vec![2, 3], &data));
        }
        let flags = TensorInput::new("x", DType::Bool, &[2], vec![1, 0]);
        let answer = model.submit("tensor.infer", "{}", vec![flags]).wait();
        assert_eq!(answer.tensor("x").unwrap().data, [1, 0]);
    }
}

#[test]
fn what_json_does_not_carry_is_refused_before_it_is_sent() {
    let upstream = server(false, echo);
    let model = open_with(&upstream, json!({})).unwrap();
    let before = upstream.seen().len();
    for input in [
        TensorInput::fp32("x", &[1], &[f32::NAN]),
        TensorInput::new("x", DType::Fp16, &[1], vec![0, 60]),
        TensorInput::strings("x", &[1], &[&[0xff_u8]]),
    ] {
        let answer = model.submit("tensor.infer", "{}", vec![input]).wait();
        let (code, _, message) = refused(&answer);
        assert_eq!(code, Code::InvalidArgument);
        assert!(message.contains("tensor `x` has") && message.contains("JSON does not carry"), "{message}");
    }
    assert_eq!(upstream.seen().len(), before);
}

#[test]
fn a_server_that_lies_is_told_so() {
    let outputs = |text: &str| format!(r#"{{"outputs":[{text}]}}"#);
    let lies = [
        (outputs(r#"{"name":"x","datatype":"FP32","shape":[9],"data":[1]}"#), "not what FP32 [9] takes"),
        (
            outputs(r#"{"name":"x","datatype":"FP32","shape":[1],"parameters":{"binary_data_size":4}}"#),
            "more than there is",
        ),
        ("[]".to_owned(), "does not keep to its API"),
        ("{}".to_owned(), "outputs"),
    ];
    for (lie, why) in lies {
        let upstream = server(true, move |_| bytes_reply(200, lie.clone().into_bytes()));
        let model = open_with(&upstream, json!({})).unwrap();
        let answer = ask(&model, json!({}));
        let (code, reason, message) = refused(&answer);
        assert_eq!((code, reason), (Code::Unavailable, "upstream_error"), "{message}");
        assert!(message.contains(why), "{message}");
    }
    let upstream = server(true, |_| bytes_reply(200, b"{}".to_vec()).header(HEADER, "many"));
    let answer = ask(&open_with(&upstream, json!({})).unwrap(), json!({}));
    assert!(refused(&answer).2.contains("is no number"));
    let upstream = server(true, |_| json_reply(400, &json!({"error": "input `x` is odd"})));
    let answer = ask(&open_with(&upstream, json!({})).unwrap(), json!({}));
    assert_eq!(refused(&answer).0, Code::InvalidArgument);
    assert!(refused(&answer).2.ends_with("input `x` is odd"), "{answer:?}");
}

#[test]
fn tensors_that_would_take_all_memory_once_they_are_read_are_refused() {
    let upstream = server(false, |_| {
        let numbers = "0,".repeat(9 << 20);
        let output = format!(r#"{{"name":"x","datatype":"INT8","shape":[1],"data":[{numbers}0]}}"#);
        bytes_reply(200, format!(r#"{{"outputs":[{output}]}}"#).into_bytes())
    });
    let model = open_with(&upstream, json!({})).unwrap();
    let answer = ask(&model, json!({}));
    let (code, reason, message) = refused(&answer);
    assert_eq!((code, reason), (Code::Unavailable, "upstream_error"), "{message}");
    assert!(message.contains("MiB once it is read, of 512; tensors take least as binary"), "{message}");
}

#[test]
fn a_graph_that_is_not_there_says_so() {
    let upstream = server(true, echo);
    let told = open_with(&upstream, json!({"model": "h"})).err().unwrap();
    assert!(told.message.contains("does not have it: no such model"), "{}", told.message);
    let told = open_with(&upstream, json!({"discover": true})).err().unwrap();
    assert!(told.message.contains("`discover`"), "{}", told.message);
    let model = open_with(&upstream, json!({})).unwrap();
    let answer = model.submit("chat", r#"{"messages": []}"#, vec![]).wait();
    assert_eq!(refused(&answer).0, Code::Unimplemented);
}
