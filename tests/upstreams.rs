//! Models of another server, the real models at the far end: one real Backplane behind another, and llama.cpp's own server.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use e2e::{Server, model_file, python, state_with_models_of, until};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
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
fn a_card_that_is_wrong_is_told_of_when_it_is_pulled_and_is_no_mistake_of_the_callers() {
    let (server, cards) = (Server::start_on(state_with_models_of(&[]), ""), tempfile::tempdir().unwrap());
    let secret = "upstream = { url = 'http://127.0.0.1:9/v1', keys = ['sk-0123456789'] }";
    for (name, parameters, says) in [
        ("misspelt", "upstrem = 'gpu'", "upstrem"),
        ("nowhere", "upstream = 'gpu'", "no upstream is called `gpu`"),
        ("written-out", secret, "never written out"),
    ] {
        let card = cards.path().join(format!("{name}.toml"));
        std::fs::write(&card, format!("name = '{name}'\nformat = 'openai'\n[parameters]\n{parameters}\n"))
            .unwrap();
        let mut pull = std::process::Command::new(&e2e::built().program);
        let pulled = pull.arg("pull").arg(&card).arg("--state").arg(server.state.path()).output().unwrap();
        let said = String::from_utf8(pulled.stderr).unwrap();
        assert_eq!(pulled.status.code(), Some(1), "{said}");
        assert!(said.contains(says) && said.contains("cannot be opened") && !said.contains("sk-0"), "{said}");
        let (status, answer) = server.post(CHAT, &chat(name, json!({})));
        assert_eq!((status, &answer["error"]["code"]), (422, &json!("model_invalid")), "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(says), "{answer}");
        assert_eq!(answer["error"]["param"], Value::Null, "{answer}");
    }
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
fn a_graph_is_the_same_from_near_and_far() {
    let far = Server::start("[cache]\nenabled = false\n");
    let cards = tempfile::tempdir().unwrap();
    std::fs::write(cards.path().join("key"), &far.key).unwrap();
    let mut paths = Vec::new();
    for (name, more) in [("far-bytes", ""), ("far-json", "binary = false\n")] {
        let path = cards.path().join(format!("{name}.toml"));
        let card = format!(
            "name = '{name}'\nformat = 'oip'\n[parameters]\nmodel = 'magika'\n{more}\
             upstream = {{ url = '{}/v2', keys = ['file:{}'] }}\n",
            far.url,
            cards.path().join("key").display()
        );
        std::fs::write(&path, card).unwrap();
        paths.push(path);
    }
    let near = Server::start_on(
        state_with_models_of(&[]),
        &format!("[models]\ncards = {paths:?}\n[cache]\nenabled = false\n"),
    );
    let page = "fn main() { println!(\"hello\"); }\n".repeat(100);
    let mut bytes: Vec<i64> = page.bytes().take(1024).map(i64::from).collect();
    bytes.extend(page.bytes().rev().take(1024).map(i64::from).rev());
    let ask = |server: &Server, model: &str| {
        let body =
            json!({"inputs": [{"name": "bytes", "datatype": "INT32", "shape": [1, 2048], "data": bytes}]});
        let (status, answer) = server.post(&format!("/v2/models/{model}/infer"), &body);
        assert_eq!(status, 200, "{answer}");
        answer["outputs"].clone()
    };
    let right = ask(&far, "magika");
    assert!(right[0]["data"].as_array().unwrap().len() > 100, "{right}");
    for model in ["far-bytes", "far-json"] {
        assert_eq!(ask(&near, model), right, "{model}");
        let (_, described) = near.get(&format!("/v2/models/{model}"));
        assert_eq!(described["inputs"], far.get("/v2/models/magika").1["inputs"]);
        let wrong = json!({"inputs": [{"name": "words", "datatype": "INT32", "shape": [1], "data": [1]}]});
        let (status, refused) = near.post(&format!("/v2/models/{model}/infer"), &wrong);
        assert_eq!(status, 400, "{refused}");
        assert!(refused["error"].as_str().unwrap().contains("`words`"), "{refused}");
    }
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
    let revoked = pair.far.cli(&["key", "revoke", &admin, "--yes"]);
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

/// A server that answers every chat with one word, and gives the bodies that it was sent.
fn confidant() -> (String, Arc<Mutex<Vec<Value>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let kept = bodies.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(&stream);
            let mut length = 0;
            loop {
                let mut line = String::new();
                lines.read_line(&mut line).unwrap();
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                if line.trim().is_empty() {
                    break;
                }
            }
            let mut body = vec![0; length];
            lines.read_exact(&mut body).unwrap();
            bodies.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
            let said = json!({"choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "blue"}}]});
            let said = said.to_string();
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n";
            write!(stream, "{head}content-length: {}\r\n\r\n{said}", said.len()).unwrap();
        }
    });
    (url, kept)
}

/// By way of two hosts, each of which knows from its card that the model sees.
#[test]
fn a_picture_arrives_as_it_was_sent() {
    let (url, bodies) = confidant();
    let cards = tempfile::tempdir().unwrap();
    let host = |name: &str, upstream: &str| {
        let sees = card(cards.path(), name, "eyes", upstream);
        let text = std::fs::read_to_string(&sees).unwrap();
        let text =
            text.replace("[parameters]", "modalities = ['text', 'image']\n[parameters]\ndiscover = false");
        std::fs::write(&sees, text).unwrap();
        let blind = card(cards.path(), &format!("{name}-blind"), "ears", upstream);
        Server::start_on(state_with_models_of(&[]), &format!("[models]\ncards = {:?}\n", [blind, sees]))
    };
    let far = host("eyes", &format!("url = '{url}/v1'"));
    std::fs::write(cards.path().join("key"), &far.key).unwrap();
    let key = cards.path().join("key").display().to_string();
    let near =
        host("z-sees", &format!("url = '{}/v1', flavour = 'backplane', keys = ['file:{key}']", far.url));

    let file = std::fs::read(e2e::root().join("plugins/vision/tests/pictures/cmyk.jpg")).unwrap();
    let url = format!("data:image/jpeg;base64,{}", BASE64_STANDARD.encode(&file));
    let picture = json!({"type": "image_url", "image_url": {"url": url}});
    let messages = json!([{"role": "user", "content": [{"type": "text", "text": "What colour?"}, picture]}]);
    // No model is named, the blind one comes first by its name, and none was open before.
    let (status, answer) = near.post(CHAT, &json!({"messages": messages}));
    assert_eq!((status, &answer["choices"][0]["message"]["content"]), (200, &json!("blue")), "{answer}");
    let sent = bodies.lock().unwrap().pop().unwrap();
    assert_eq!((&sent["model"], &sent["messages"]), (&json!("eyes"), &messages));

    let (status, refused) = near.post(CHAT, &json!({"model": "z-sees-blind", "messages": messages}));
    assert_eq!((status, &refused["error"]["code"]), (400, &json!("pictures_not_supported")), "{refused}");
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(message.contains("`z-sees-blind`") && message.contains("`z-sees` does"), "{message}");
    assert!(bodies.lock().unwrap().is_empty());
    let shown = String::from_utf8(near.cli(&["show", "z-sees", "--json"]).stdout).unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(&shown).unwrap()["modalities"],
        json!(["text", "image"]),
        "{shown}"
    );
}

/// llama.cpp's own server with SmolLM2, which ends with this value.
struct LlamaServer {
    process: Child,
    url: String,
}

impl LlamaServer {
    fn start() -> Self {
        let mut command = python();
        command.arg("llama_server.py").arg(model_file("smollm2"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().unwrap();
        let mut url = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut url).unwrap();
        assert!(url.starts_with("http://127.0.0.1:"), "llama.cpp's server did not start: {url:?}");
        Self { process, url: url.trim().to_owned() }
    }

    fn get(&self, path: &str) -> Value {
        reqwest::blocking::get(format!("{}{path}", self.url)).unwrap().json().unwrap()
    }

    fn chat(&self, body: &Value) -> Value {
        let client = reqwest::blocking::Client::new();
        client.post(format!("{}{CHAT}", self.url)).json(body).send().unwrap().json().unwrap()
    }

    fn is_busy(&self) -> bool {
        self.get("/slots").as_array().unwrap().iter().any(|slot| slot["is_processing"] == true)
    }
}

impl Drop for LlamaServer {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// The card of a model of another server.
fn card(folder: &std::path::Path, name: &str, model: &str, upstream: &str) -> std::path::PathBuf {
    let path = folder.join(format!("{name}.toml"));
    let card = format!(
        "name = '{name}'\nformat = 'openai'\n[parameters]\nmodel = '{model}'\nupstream = {{ {upstream} }}\n"
    );
    std::fs::write(&path, card).unwrap();
    path
}

#[test]
fn where_no_model_is_named_another_answers_for_a_server_that_is_gone() {
    let cards = tempfile::tempdir().unwrap();
    let mut gone = Server::start_on(state_with_models_of(&[]), "");
    std::fs::write(cards.path().join("key"), &gone.key).unwrap();
    let upstream = format!(
        "url = '{}/v1', flavour = 'backplane', keys = ['file:{}'], metrics = ''",
        gone.url,
        cards.path().join("key").display()
    );
    let (lives, _) = confidant();
    let paths = [("a", upstream), ("b", format!("url = '{lives}/v1'"))].map(|(name, upstream)| {
        let path = card(cards.path(), name, "m", &upstream);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("[parameters]", "[parameters]\ndiscover = false")).unwrap();
        path
    });
    let near = Server::start_on(
        state_with_models_of(&[]),
        &format!("[models]\ncards = {paths:?}\n[cache]\nenabled = false\n"),
    );
    // Open, and so the first of equal bids; the other is not yet.
    assert_eq!(near.post("/admin/v1/models/a/load", &json!({})).0, 200);
    gone.signal("KILL");
    gone.wait(Duration::from_secs(10));
    let mut body = chat("a", json!({}));
    let (status, refused) = near.post(CHAT, &body);
    assert_eq!((status, &refused["error"]["code"]), (503, &json!("upstream_unreachable")), "{refused}");
    body.as_object_mut().unwrap().remove("model");
    // More than the failures after which it is left alone.
    for place in 0..10 {
        let answer = near.request("POST", CHAT).json(&body).send().unwrap();
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(answer.status(), 200, "request {place}");
        assert_eq!(
            (header("x-model"), header("x-route-refused")),
            ("b".into(), "a=upstream_unreachable".into())
        );
    }
}

/// Both say how busy they are, each in words of its own.
#[test]
fn a_request_goes_to_the_server_where_nobody_waits() {
    let (busy, idle) = (LlamaServer::start(), Server::start("[cache]\nenabled = false\n"));
    let cards = tempfile::tempdir().unwrap();
    std::fs::write(cards.path().join("key"), &idle.key).unwrap();
    let key = cards.path().join("key").display().to_string();
    let paths = [
        card(cards.path(), "a", "smol", &format!("url = '{}/v1', flavour = 'llama-cpp'", busy.url)),
        card(
            cards.path(),
            "b",
            "smollm2",
            &format!("url = '{}/v1', flavour = 'backplane', keys = ['file:{key}']", idle.url),
        ),
    ];
    let near = Server::start_on(
        state_with_models_of(&[]),
        &format!("[models]\ncards = {paths:?}\n[cache]\nenabled = false\n"),
    );
    let decision = || {
        let mut body = chat("a", json!({"max_tokens": 1}));
        body.as_object_mut().unwrap().remove("model");
        let answer = near.request("POST", CHAT).json(&body).send().unwrap();
        assert_eq!(answer.status(), 200);
        answer.headers()["x-route-decision"].to_str().unwrap().to_owned()
    };
    for model in ["a", "b"] {
        assert_eq!(near.post(CHAT, &chat(model, json!({"max_tokens": 1}))).0, 200);
    }
    let free = decision();
    assert!(free.starts_with("a;") && free.contains("a:200, b:200"), "{free}");

    // Four long answers, and it gives two at a time.
    let body = chat("smol", json!({"stream": true, "max_tokens": 900, "ignore_eos": true}));
    let client = reqwest::blocking::Client::builder().timeout(None).build().unwrap();
    let ask = || client.post(format!("{}{CHAT}", busy.url)).json(&body);
    let streams: Vec<_> = (0..4)
        .map(|_| {
            let request = ask();
            std::thread::spawn(move || request.send().map(|answer| BufReader::new(answer).lines().count()))
        })
        .collect();
    let engine = |figure: &str| near.metric(&format!("backplane_engine{{model=\"a\",figure=\"{figure}\"}}"));
    until("those who wait are seen", || {
        (engine("upstream_running"), engine("upstream_waiting")) == (2.0, 2.0)
    });
    // The bid from before stands for two seconds.
    std::thread::sleep(Duration::from_millis(2100));
    let crowded = decision();
    assert!(crowded.starts_with("b;") && crowded.contains("b:200, a:120"), "{crowded}");
    drop(busy);
    for stream in streams {
        stream.join().unwrap().ok();
    }
}

#[test]
fn the_server_of_llama_cpp_serves_as_a_model() {
    let far = LlamaServer::start();
    let cards = tempfile::tempdir().unwrap();
    let path = cards.path().join("far.toml");
    let card = format!(
        "name = 'far'\nformat = 'openai'\n[parameters]\nmodel = 'smol'\n\
         upstream = {{ url = '{}/v1', flavour = 'llama-cpp' }}\n",
        far.url
    );
    std::fs::write(&path, card).unwrap();
    let near = Server::start_on(
        state_with_models_of(&[]),
        &format!("[models]\ncards = {:?}\n[cache]\nenabled = false\n", [&path]),
    );
    let said = |answer: &Value| answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();

    // What it is asked for, it was asked for: the answer is the one that it gives itself.
    for more in [json!({}), json!({"top_k": 3, "min_p": 0.1, "seed": 7, "stop": ["."]})] {
        let (status, answer) = near.post(CHAT, &chat("far", more.clone()));
        assert_eq!(status, 200, "{answer}");
        assert_eq!(said(&answer), said(&far.chat(&chat("smol", more))));
        assert!(answer["usage"]["prompt_tokens"].as_u64().unwrap() > 10, "{answer}");
    }
    let streamed: String = events(&near, &chat("far", json!({"stream": true})))
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(streamed, said(&near.post(CHAT, &chat("far", json!({}))).1));
    let probable = json!({"logprobs": true, "top_logprobs": 2, "max_tokens": 3});
    let tokens = |answer: &Value| -> Vec<String> {
        let tokens = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
        tokens.iter().map(|token| token["token"].to_string()).collect()
    };
    assert_eq!(
        tokens(&near.post(CHAT, &chat("far", probable.clone())).1),
        tokens(&far.chat(&chat("smol", probable)))
    );
    let schema = json!({"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}},
        "required": ["city"], "additionalProperties": false});
    let held =
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}});
    let (_, answer) = near.post(CHAT, &chat("far", held));
    assert!(serde_json::from_str::<Value>(&said(&answer)).unwrap()["city"].is_string(), "{answer}");
    let grammar = json!({"response_format": {"type": "grammar", "grammar": "root ::= \"yes\" | \"no\""}});
    let (_, answer) = near.post(CHAT, &chat("far", grammar));
    assert!(["yes", "no"].contains(&&*said(&answer)), "{answer}");
    let complete = json!({"model": "far", "prompt": "1, 2, 3, 4,", "temperature": 0, "max_tokens": 6});
    let (status, answer) = near.post("/v1/completions", &complete);
    assert!(status == 200 && answer["choices"][0]["text"].as_str().unwrap().starts_with(" 5, 6"), "{answer}");

    // Its context was found out, and a prompt beyond it is refused by that name.
    assert_eq!(near.get("/v1/models/far").1["context"], 1024, "{}", near.get("/v1/models/far").1);
    let long = json!({"messages": [{"role": "user", "content": "word ".repeat(3000)}]});
    let (status, refused) = near.post(CHAT, &chat("far", long));
    assert_eq!((status, &refused["error"]["code"]), (400, &json!("context_length_exceeded")), "{refused}");

    // Who leaves frees the slot there.
    let body = chat("far", json!({"stream": true, "max_tokens": 900, "ignore_eos": true}));
    let answer = near.request("POST", CHAT).json(&body).send().unwrap();
    let mut lines = BufReader::new(answer).lines();
    assert!(lines.by_ref().take(10).all(|line| line.is_ok()));
    assert!(far.is_busy());
    drop(lines);
    until("the far slot is free again", || !far.is_busy());
}
