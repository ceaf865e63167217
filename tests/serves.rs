//! What the program promises to an application: real models, loaded by plugins at run time, over HTTP.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

use e2e::{Server, until};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

fn chat(content: &str) -> Value {
    json!({"model": "smollm2", "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 32})
}

/// Sends a streamed request and hands its events to `each` until it returns false, then closes the connection.
fn stream(server: &Server, path: &str, body: &Value, mut each: impl FnMut(&str) -> bool) {
    let address = server.url.trim_start_matches("http://");
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let body = body.to_string();
    write!(
        socket,
        "POST {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        server.key,
        body.len()
    )
    .unwrap();
    for line in BufReader::new(socket.try_clone().unwrap()).lines().map_while(Result::ok) {
        if let Some(event) = line.strip_prefix("data: ")
            && !each(event)
        {
            return;
        }
    }
}

#[test]
fn a_real_model_answers_and_says_what_it_took() {
    let server = Server::start("");
    let (status, answer) =
        server.post("/v1/chat/completions", &chat("What is the capital of France? Answer in one sentence."));
    assert_eq!(status, 200, "{answer}");
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.contains("Paris"), "{text}");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert!(answer["usage"]["prompt_tokens"].as_u64().unwrap() > 5);

    let (status, answer) = server.post(
        "/v1/embeddings",
        &json!({"model": "minilm", "input": ["a guitar", "a musical instrument", "the stock market"]}),
    );
    assert_eq!(status, 200, "{answer}");
    let vector = |place: usize| -> Vec<f64> {
        answer["data"][place]["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let (guitar, instrument, market) = (vector(0), vector(1), vector(2));
    assert_eq!(guitar.len(), 384);
    assert!(dot(&guitar, &instrument) > 0.5 && dot(&guitar, &market) < 0.3);
}

#[test]
fn a_copy_is_open_once_and_goes_by_its_own_name() {
    let state = e2e::state_with_models_of(&["smollm2"]);
    let backplane = |arguments: &[&str], state: &std::path::Path| {
        let mut command = std::process::Command::new(&e2e::built().program);
        let done = command.args(arguments).arg("--state").arg(state).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    backplane(&["cp", "smollm2", "gpt-4o"], state.path());
    let server = Server::start_on(state, "[cache]\nenabled = false\n");
    let ask = |model: &str| {
        let mut body = chat("What is the capital of France?");
        body["model"] = json!(model);
        let (status, answer) = server.post("/v1/chat/completions", &body);
        assert_eq!(status, 200, "{answer}");
        answer["choices"][0]["message"]["content"].clone()
    };
    assert_eq!(ask("gpt-4o"), ask("smollm2"));
    let open = || {
        let models = server.get("/admin/v1/models").1["data"].as_array().unwrap().clone();
        let open = models.into_iter().filter(|model| !model["running"].is_null());
        open.map(|model| (model["name"].clone(), model["copies"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(open(), [(json!("smollm2"), json!(["gpt-4o"]))]);
    let listed = server.get("/v1/models").1["data"].as_array().unwrap().clone();
    let has = |name: &str| listed.iter().any(|model| model["id"] == name);
    assert!(has("smollm2") && has("gpt-4o"), "{listed:?}");
    assert_eq!(server.get("/v1/models/gpt-4o").0, 200);
    // The name goes, and what is open stays so.
    backplane(&["rm", "gpt-4o"], server.state.path());
    assert_eq!(open(), [(json!("smollm2"), Value::Null)]);
    assert_eq!(server.get("/v1/models/gpt-4o").0, 404);
}

#[test]
fn a_prompt_one_token_too_long_is_refused_with_the_counts() {
    let server = Server::start("[models.override.smollm2]\nparameters = { context = 256, slots = 1 }\n");
    let count = |words: usize| {
        let (status, answer) = server.post(
            "/v1/completions",
            &json!({"model": "smollm2", "prompt": " hello".repeat(words), "max_tokens": 1}),
        );
        (status, answer)
    };
    let (status, answer) = count(200);
    assert_eq!(status, 200, "{answer}");
    let (status, answer) = count(400);
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("context_length_exceeded")), "{answer}");
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("400") && message.contains("256"), "{message}");
}

#[test]
fn four_chats_run_as_one_batch() {
    let server = Server::start("");
    server.post("/v1/chat/completions", &chat("hi"));
    let before = (
        server.metric("backplane_engine{model=\"smollm2\",figure=\"steps_total\"}"),
        server.metric("backplane_engine{model=\"smollm2\",figure=\"generated_tokens_total\"}"),
    );
    std::thread::scope(|scope| {
        for topic in ["rivers", "bridges", "clocks", "bread"] {
            let server = &server;
            scope.spawn(move || {
                let mut body = chat(&format!("Write a long story about {topic}."));
                body["max_tokens"] = json!(96);
                let (status, answer) = server.post("/v1/chat/completions", &body);
                assert_eq!(status, 200, "{answer}");
            });
        }
    });
    let steps = server.metric("backplane_engine{model=\"smollm2\",figure=\"steps_total\"}") - before.0;
    let tokens =
        server.metric("backplane_engine{model=\"smollm2\",figure=\"generated_tokens_total\"}") - before.1;
    assert!(tokens > 1.5 * steps, "{tokens} tokens in {steps} steps: they did not run together");
}

#[test]
fn a_client_that_is_killed_in_mid_stream_frees_its_slot() {
    let server = Server::start("");
    let mut body = chat("Count from one to ten thousand.");
    (body["stream"], body["max_tokens"]) = (json!(true), json!(2000));
    let mut events = 0;
    stream(&server, "/v1/chat/completions", &body, |_| {
        events += 1;
        events < 5
    });
    let busy = || server.metric("backplane_model_busy_slots{model=\"smollm2\"}");
    until("the slot is free", || busy() == 0.0);
    let (status, _) = server.post("/v1/chat/completions", &chat("hi"));
    assert_eq!(status, 200);
}

#[test]
fn a_model_goes_after_its_idle_time_and_its_memory_with_it() {
    let server = Server::start("[models]\nkeep_alive = \"200ms\"\n");
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap()
    };
    let state = || {
        let (_, models) = server.get("/admin/v1/models");
        models.to_string().contains("\"ready\"")
    };
    let round = || {
        let mut body = chat("hi");
        body["max_tokens"] = json!(4);
        assert_eq!(server.post("/v1/chat/completions", &body).0, 200);
        until("the model is gone", || !state());
    };
    // The first rounds bring in what stays: code pages, arenas, threads' stacks.
    for _ in 0..5 {
        round();
    }
    let first = resident();
    for _ in 0..50 {
        round();
    }
    let last = resident();
    assert!(last <= first * 1.02, "{first} kB became {last} kB");
}

#[test]
fn any_capability_of_any_plugin_has_its_route_and_its_place_in_the_document() {
    let server = Server::start("");
    let (status, answer) = server.post(
        "/v1/capabilities/echo",
        &json!({"model": "echo", "params": {"text": "hello"}, "tensors": [
            {"name": "x", "datatype": "FP32", "shape": [2], "data": [1.5, 2.5]}]}),
    );
    assert_eq!(status, 200, "{answer}");
    assert!(answer.to_string().contains("hello") && answer.to_string().contains("2.5"), "{answer}");
    let (_, document) = server.get("/openapi.json");
    assert!(document["paths"].as_object().unwrap().keys().any(|path| path.contains("/v1/capabilities/echo")));
}

#[test]
fn keys_have_limits_that_hold_and_say_when_to_come_back() {
    let server = Server::start("");
    let (status, key) = server.post(
        "/admin/v1/keys",
        &json!({"name": "app", "role": "user",
        "limits": {"requests_per_minute": 2, "tokens": {"tokens": 100000, "window": "day"}}}),
    );
    assert!(status == 200 || status == 201, "{key}");
    let secret = key["secret"].as_str().unwrap().to_owned();
    let ask = || {
        let request = server.request("POST", "/v1/capabilities/echo").bearer_auth("");
        drop(request);
        reqwest::blocking::Client::new()
            .post(format!("{}/v1/capabilities/echo", server.url))
            .bearer_auth(&secret)
            .json(&json!({"model": "echo", "params": {"text": "x"}}))
            .send()
            .unwrap()
    };
    assert_eq!((ask().status(), ask().status()), (reqwest::StatusCode::OK, reqwest::StatusCode::OK));
    let refused = ask();
    assert_eq!(refused.status(), 429);
    let wait: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait));
    let (status, _) = server.get("/admin/v1/keys");
    assert_eq!(status, 200);
    let as_user = reqwest::blocking::Client::new()
        .get(format!("{}/admin/v1/keys", server.url))
        .bearer_auth(&secret)
        .send()
        .unwrap();
    assert_eq!(as_user.status(), 403, "a user key manages nothing");
    let nobody = reqwest::blocking::get(format!("{}/v1/models", server.url)).unwrap();
    assert_eq!(nobody.status(), 401);
}

#[test]
fn sigterm_lets_a_stream_finish() {
    let mut server = Server::start("");
    server.post("/v1/chat/completions", &chat("hi"));
    let mut body = chat("Tell me a story.");
    (body["stream"], body["max_tokens"], body["ignore_eos"]) = (json!(true), json!(100), json!(true));
    let mut last = String::new();
    let mut events = 0;
    stream(&server, "/v1/chat/completions", &body, |event| {
        if events == 2 {
            server.signal("TERM");
        }
        events += 1;
        event.clone_into(&mut last);
        true
    });
    assert_eq!(last, "[DONE]", "after {events} events");
    let status = server.wait(Duration::from_secs(20)).expect("it ends");
    assert!(status.success(), "{status}");
}

#[test]
fn bad_requests_are_named_by_their_field() {
    let server = Server::start("");
    let send = |path: &str, body: &[u8]| {
        let answer = server
            .request("POST", path)
            .header("content-type", "application/json")
            .body(body.to_vec())
            .send()
            .unwrap();
        (answer.status().as_u16(), answer.json::<Value>().unwrap())
    };
    let messages = "{\"role\":\"user\",\"content\":\"x\"},".repeat(100_000);
    let cases: Vec<(u16, Vec<u8>)> = vec![
        (400, b"{".to_vec()),
        (400, b"[]".to_vec()),
        (400, vec![b'"', 0xff, 0xfe, b'"']),
        (400, format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)).into_bytes()),
        (400, json!({"model": "smollm2", "messages": "hi"}).to_string().into_bytes()),
        (400, json!({"model": "smollm2", "messages": [], "max_tokens": 1}).to_string().into_bytes()),
        (400, json!({"model": "smollm2", "messages": [{"role": "user", "content": "x"}], "temperature": 9}).to_string().into_bytes()),
        (400, json!({"model": "smollm2", "messages": [{"role": "user", "content": "x"}], "max_tokens": -1}).to_string().into_bytes()),
        (400, json!({"model": "smollm2", "messages": [{"role": "user", "content": "x"}], "top_logprobs": 21, "logprobs": true}).to_string().into_bytes()),
        (400, format!("{{\"model\":\"smollm2\",\"messages\":[{}]}}", messages.trim_end_matches(',')).into_bytes()),
        (404, json!({"model": "nobody", "messages": [{"role": "user", "content": "x"}]}).to_string().into_bytes()),
        (404, json!({"model": "../../etc/passwd", "messages": [{"role": "user", "content": "x"}]}).to_string().into_bytes()),
    ];
    for (expected, body) in cases {
        let (status, answer) = send("/v1/chat/completions", &body);
        let shown = String::from_utf8_lossy(&body[..body.len().min(120)]).into_owned();
        assert_eq!(status, expected, "{shown}: {answer}");
        assert!(
            answer["error"]["message"].as_str().is_some_and(|message| message.len() > 10),
            "{shown}: {answer}"
        );
    }
    // By the capability's own name nothing is passed over either.
    let chat = json!({"messages": [{"role": "user", "content": "x"}], "max_token": 1});
    for (capability, params, param) in [
        ("chat", chat, "max_token"),
        ("complete", json!({"prompt": "x", "temprature": 1}), "temprature"),
        ("embed", json!({"input": ["x"], "dimension": 3}), "dimension"),
    ] {
        let model = if capability == "embed" { "minilm" } else { "smollm2" };
        let body = json!({"model": model, "params": params}).to_string();
        let (status, answer) = send(&format!("/v1/capabilities/{capability}"), body.as_bytes());
        assert_eq!((status, &answer["error"]["param"]), (400, &json!(param)), "{answer}");
    }
    let mut text = String::new();
    server.request("GET", "/readyz").send().unwrap().read_to_string(&mut text).unwrap();
    assert!(text.contains("true") || text.contains("ready"), "{text}");
}
