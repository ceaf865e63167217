//! Requests that are wrong, sent to the real program: each is refused with a status that says whose fault it is and,
//! where a field is to blame, with its name; and the next request is served.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

use e2e::Server;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const EMBEDDINGS: &str = "/v1/embeddings";
const ECHO: &str = "/v1/capabilities/echo";

/// Path, body, status, and the field that is named.
type Case = (&'static str, Vec<u8>, u16, Option<&'static str>);

/// A good chat with one member that is not.
fn chat(member: &str, value: Value) -> Vec<u8> {
    let mut body = json!({"model": "echo", "messages": [{"role": "user", "content": "x"}]});
    body[member] = value;
    body.to_string().into_bytes()
}

/// A request to echo with a tensor that is wrong.
fn tensor(tensor: Value) -> Vec<u8> {
    json!({"model": "echo", "tensors": [tensor]}).to_string().into_bytes()
}

fn echo(params: Value) -> Vec<u8> {
    json!({"model": "echo", "params": params}).to_string().into_bytes()
}

fn bodies() -> Vec<Case> {
    let bomb = |depth: usize| {
        [b"{\"model\":\"echo\",\"metadata\":", &*b"[".repeat(depth), &*b"]".repeat(depth), b"}"].concat()
    };
    let paths = [CHAT, COMPLETIONS, EMBEDDINGS, ECHO];
    let wrong: [Vec<u8>; 8] = [
        b"{".to_vec(),
        b"[]".to_vec(),
        b"{} {}".to_vec(),
        b"\x00".to_vec(),
        b"{\"model\":\"\xff\xfe\"}".to_vec(),
        bomb(65),
        bomb(100_000),
        b"{\"model\":\"echo\",\"model\":\"echo\"}".to_vec(),
    ];
    paths.iter().flat_map(|path| wrong.iter().map(|body| (*path, body.clone(), 400, None))).collect()
}

fn fields() -> Vec<Case> {
    let message = |role: &str, content: Value| json!([{"role": role, "content": content}]);
    let many: Vec<Value> = vec![json!({"role": "user", "content": "x"}); 100_000];
    vec![
        (CHAT, b"{\"model\":\"echo\"}".to_vec(), 400, Some("messages")),
        (CHAT, chat("messages", json!("hi")), 400, Some("messages")),
        (CHAT, chat("messages", json!([])), 400, Some("messages")),
        (CHAT, chat("messages", json!(many)), 400, Some("messages")),
        (CHAT, chat("messages", message("king", json!("x"))), 400, Some("messages[0].role")),
        (CHAT, chat("messages", message("user", json!(7))), 400, Some("messages[0].content")),
        (CHAT, chat("temperature", json!(9)), 400, Some("temperature")),
        (CHAT, chat("temperature", json!("hot")), 400, Some("temperature")),
        (CHAT, chat("top_p", json!(-0.1)), 400, Some("top_p")),
        (CHAT, chat("max_tokens", json!(-1)), 400, Some("max_tokens")),
        (CHAT, chat("max_tokens", json!(1.5)), 400, Some("max_tokens")),
        (CHAT, chat("n", json!(0)), 400, Some("n")),
        (CHAT, chat("n", json!(100_000)), 400, Some("n")),
        (CHAT, chat("top_logprobs", json!(21)), 400, Some("top_logprobs")),
        (CHAT, chat("stop", json!(vec!["a"; 20])), 400, Some("stop")),
        (CHAT, chat("presence_penalty", json!(3)), 400, Some("presence_penalty")),
        (CHAT, chat("logit_bias", json!({"1": 200})), 400, Some("logit_bias.1")),
        (CHAT, chat("logit_bias", json!({"x": 1})), 400, Some("logit_bias.x")),
        (CHAT, chat("tool_choice", json!("sometimes")), 400, Some("tool_choice")),
        (CHAT, chat("tools", json!([{"type": "function"}])), 400, Some("tools[0].function")),
        (CHAT, chat("response_format", json!({"type": "poem"})), 400, Some("response_format.type")),
        (CHAT, chat("stream", json!("yes")), 400, Some("stream")),
        (CHAT, chat("seed", json!("x")), 400, Some("seed")),
        (CHAT, chat("model", json!(5)), 400, Some("model")),
        (CHAT, chat("model", json!("nobody")), 404, Some("model")),
        (CHAT, chat("model", json!("../../etc/passwd")), 404, Some("model")),
        // A model that is there and serves something else.
        (CHAT, chat("model", json!("echo")), 400, Some("model")),
        (COMPLETIONS, b"{\"model\":\"echo\",\"prompt\":{\"a\":1}}".to_vec(), 400, Some("prompt")),
        (
            COMPLETIONS,
            b"{\"model\":\"echo\",\"prompt\":\"a\",\"max_tokens\":-3}".to_vec(),
            400,
            Some("max_tokens"),
        ),
        (EMBEDDINGS, b"{\"model\":\"echo\"}".to_vec(), 400, Some("input")),
        (
            EMBEDDINGS,
            b"{\"model\":\"echo\",\"input\":\"a\",\"dimensions\":0}".to_vec(),
            400,
            Some("dimensions"),
        ),
        (EMBEDDINGS, b"{\"model\":\"echo\",\"input\":[[-1]]}".to_vec(), 400, Some("input")),
        (
            EMBEDDINGS,
            b"{\"model\":\"echo\",\"input\":\"a\",\"encoding_format\":\"hex\"}".to_vec(),
            400,
            Some("encoding_format"),
        ),
        (ECHO, echo(json!([1])), 400, Some("params")),
        (ECHO, echo(json!({"txet": "x"})), 400, Some("txet")),
        (ECHO, echo(json!({"text": 1})), 400, Some("text")),
        (ECHO, echo(json!({"chunks": -1})), 400, Some("chunks")),
        (ECHO, echo(json!({"call": {"model": "x"}})), 400, Some("call.capability")),
        (
            ECHO,
            tensor(json!({"name": "x", "datatype": "FP99", "shape": [1], "data": [1]})),
            400,
            Some("tensors[0].datatype"),
        ),
        (ECHO, tensor(json!({"name": "x", "datatype": "FP32", "shape": [-1], "data": [1]})), 400, Some("x")),
        (
            ECHO,
            tensor(json!({"name": "x", "datatype": "FP32", "shape": [i64::MAX, 9], "data": [1]})),
            400,
            Some("x"),
        ),
        (ECHO, tensor(json!({"name": "x", "datatype": "FP32", "shape": [3], "data": [1]})), 400, Some("x")),
        (ECHO, tensor(json!({"name": "x", "datatype": "INT8", "shape": [1], "data": [300]})), 400, Some("x")),
        (
            ECHO,
            tensor(json!({"name": "x", "datatype": "INT8", "shape": [1], "base64": "!"})),
            400,
            Some("tensors[0].base64"),
        ),
        (ECHO, tensor(json!({"name": "x", "datatype": "INT8", "shape": [1]})), 400, Some("tensors[0]")),
        ("/v1/capabilities/com.example.nobody", b"{}".to_vec(), 404, None),
        ("/v1/capabilities/..%2f..%2fetc", b"{}".to_vec(), 400, Some("capability")),
    ]
}

#[test]
fn what_is_wrong_with_a_request_is_named_and_the_next_one_is_served() {
    let state = tempfile::Builder::new().prefix("requests").tempdir_in(e2e::root().join("target")).unwrap();
    let server = Server::start_on(state, "");
    let mut failed = Vec::new();
    for (path, body, expected, field) in bodies().into_iter().chain(fields()) {
        let request = server.request("POST", path).header("content-type", "application/json");
        let answer = request.body(body.clone()).send().unwrap();
        let status = answer.status().as_u16();
        let answer: Value = answer.json().unwrap_or_default();
        let error = &answer["error"];
        let explained = error["message"].as_str().is_some_and(|message| message.len() > 10);
        if status != expected || !explained || field.is_some_and(|field| error["param"] != field) {
            let body = String::from_utf8_lossy(&body[..body.len().min(150)]).into_owned();
            failed.push(format!("{path} {body}\n  {status} {answer}\n  not {expected} naming {field:?}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    let (status, answer) = server.post(ECHO, &json!({"model": "echo", "params": {"text": "still here"}}));
    assert_eq!((status, &answer["result"]["text"]), (200, &json!("still here")), "{answer}");
}
