//! Models of another server: one real Backplane behind another, the real models at the far end.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

use e2e::{Server, state_with_models_of, until};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::time::Duration;

const CHAT: &str = "/v1/chat/completions";

/// A server with models, and one without any that asks it.
struct Pair {
    far: Server,
    near: Server,
    _cards: tempfile::TempDir,
}

/// `more` is added to the upstream of both cards.
fn pair(far: &str, more: &str) -> Pair {
    let far = Server::start(far);
    let cards = tempfile::tempdir().unwrap();
    let key = cards.path().join("key");
    std::fs::write(&key, format!("{}\n", far.key)).unwrap();
    let mut paths = Vec::new();
    for (name, theirs, capabilities) in
        [("far-chat", "smollm2", r#"["chat", "complete"]"#), ("far-embed", "minilm", r#"["embed"]"#)]
    {
        let path = cards.path().join(format!("{name}.toml"));
        let card = format!(
            "name = '{name}'\nformat = 'openai'\ncapabilities = {capabilities}\n[parameters]\nmodel = '{theirs}'\n\
             upstream = {{ url = '{}/v1', flavour = 'backplane', keys = ['file:{}']{more} }}\n",
            far.url,
            key.display()
        );
        std::fs::write(&path, card).unwrap();
        paths.push(path);
    }
    let near = Server::start_on(
        state_with_models_of(&[]),
        &format!(
            "[models]\ncards = {paths:?}\n[models.aliases]\n\"gpt-4o\" = \"far-chat\"\n[cache]\nenabled = false\n"
        ),
    );
    Pair { far, near, _cards: cards }
}

fn chat(model: &str, more: Value) -> Value {
    let question = "What is the capital of France? Answer in one sentence.";
    let mut body = json!({"model": model, "messages": [{"role": "user", "content": question}],
        "temperature": 0, "max_tokens": 24});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// What a caller cares about: not the ids, times and names of models, nor what the far server had in its cache.
fn essence(answer: &Value) -> (Value, Value, Value) {
    let usage = &answer["usage"];
    (answer["choices"].clone(), usage["prompt_tokens"].clone(), usage["completion_tokens"].clone())
}

fn events(server: &Server, body: &Value) -> Vec<Value> {
    let answer = server.request("POST", CHAT).json(body).send().unwrap();
    assert_eq!(answer.status(), 200);
    let lines = BufReader::new(answer).lines().map_while(Result::ok);
    let events: Vec<String> =
        lines.filter_map(|line| Some(line.strip_prefix("data: ")?.to_owned())).collect();
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    events[..events.len() - 1].iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

#[test]
fn an_answer_is_the_same_from_near_and_far() {
    let pair = pair("[cache]\nenabled = false\n", "");
    let weather = json!({"type": "function", "function": {"name": "weather", "parameters": {"type": "object",
        "properties": {"city": {"type": "string"}}, "required": ["city"]}}});
    let schema = json!({"type": "object", "properties": {"city": {"type": "string", "maxLength": 10}},
        "required": ["city"], "additionalProperties": false});
    for more in [
        json!({}),
        json!({"logprobs": true, "top_logprobs": 2, "max_tokens": 4}),
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}),
        json!({"response_format": {"type": "grammar", "grammar": "root ::= \"yes\" | \"no\""}}),
        json!({"n": 2, "stop": [","], "repeat_penalty": 1.1, "top_k": 5}),
    ] {
        let (status, far) = pair.far.post(CHAT, &chat("smollm2", more.clone()));
        let (_, near) = pair.near.post(CHAT, &chat("far-chat", more.clone()));
        assert_eq!(status, 200, "{far}");
        assert_eq!(essence(&near), essence(&far), "{more}");
    }
    let tools = json!({"tools": [weather], "max_tokens": 60,
        "tool_choice": {"type": "function", "function": {"name": "weather"}}});
    let (_, called) = pair.near.post(CHAT, &chat("gpt-4o", tools));
    let call = &called["choices"][0]["message"]["tool_calls"][0]["function"];
    assert_eq!(call["name"], "weather", "{called}");
    assert!(serde_json::from_str::<Value>(call["arguments"].as_str().unwrap()).unwrap()["city"].is_string());

    let streamed = |server, model| events(server, &chat(model, json!({"stream": true})));
    let said = |events: &[Value]| -> String {
        events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect()
    };
    let (near, far) = (streamed(&pair.near, "far-chat"), streamed(&pair.far, "smollm2"));
    assert_eq!(said(&near), said(&far));
    assert!(near.len() > 5 && said(&near).contains("Paris"), "{near:?}");

    let embed = |server: &Server, model: &str| {
        let (status, answer) =
            server.post("/v1/embeddings", &json!({"model": model, "input": ["a guitar", "Grüße"]}));
        assert_eq!(status, 200, "{answer}");
        answer["data"].clone()
    };
    assert_eq!(embed(&pair.near, "far-embed"), embed(&pair.far, "minilm"));

    let complete = json!({"prompt": "1, 2, 3, 4,", "temperature": 0, "max_tokens": 6});
    let completed = |server: &Server, model: &str| {
        let mut body = complete.clone();
        body["model"] = model.into();
        server.post("/v1/completions", &body).1["choices"].clone()
    };
    assert_eq!(completed(&pair.near, "far-chat"), completed(&pair.far, "smollm2"));
}

#[test]
fn the_callers_mistakes_are_told_and_the_hosts_are_not_blamed_on_it() {
    let mut pair = pair("", "");
    // Its context is known since the model was opened, so it may be refused here or there: by its name in either case.
    let long = json!({"messages": [{"role": "user", "content": "word ".repeat(9000)}]});
    let (status, refused) = pair.near.post(CHAT, &chat("far-chat", long));
    assert_eq!((status, &refused["error"]["code"]), (400, &json!("context_length_exceeded")), "{refused}");

    let (status, listed) = pair.near.get("/v1/models/far-chat");
    assert_eq!(status, 200, "{listed}");

    // The far server takes the key back: that is not this caller's key.
    let keys = String::from_utf8(pair.far.cli(&["key", "ls", "--json"]).stdout).unwrap();
    let keys: Value = serde_json::from_str(&keys).unwrap();
    let admin =
        keys.as_array().or_else(|| keys["keys"].as_array()).unwrap()[0]["id"].as_str().unwrap().to_owned();
    let revoked = pair.far.cli(&["key", "revoke", &admin]);
    assert!(revoked.status.success(), "{revoked:?}");
    let (status, refused) = pair.near.post(CHAT, &chat("far-chat", json!({})));
    assert_eq!(refused["error"]["code"], "upstream_auth", "{refused}");
    assert_ne!(status, 401);
    assert!(!refused.to_string().contains(&pair.far.key), "{refused}");
    assert!(!pair.near.output.lock().unwrap().contains(&pair.far.key), "no key in the log");

    // It goes away: an error that says so, and the host serves on.
    pair.far.signal("KILL");
    pair.far.wait(Duration::from_secs(10));
    let (status, refused) = pair.near.post(CHAT, &chat("far-chat", json!({})));
    assert_eq!((status, &refused["error"]["code"]), (503, &json!("upstream_unreachable")), "{refused}");
    assert_eq!(pair.near.get("/readyz").0, 200);
}

#[test]
fn a_caller_who_leaves_frees_the_slot_at_the_far_end() {
    let pair = pair("", "");
    let body = chat("far-chat", json!({"stream": true, "max_tokens": 2000, "ignore_eos": true}));
    let answer = pair.near.request("POST", CHAT).json(&body).send().unwrap();
    let mut lines = BufReader::new(answer).lines();
    assert!(lines.by_ref().take(10).all(|line| line.is_ok()));
    let running = || pair.far.metric("backplane_requests_in_flight");
    until("the far model serves it", || running() == 1.0);
    drop(lines);
    until("the far model is free again", || running() == 0.0);
}
