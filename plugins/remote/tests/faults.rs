//! What becomes of a request whose upstream delays, cuts, errs, floods and lies.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod upstream;

use backplane_testkit::{
    Answer, Code, Deadline, End, Failure, Instance, PluginTest, RequestInput, TensorInput,
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use upstream::{Upstream, json_reply, well_behaved};

fn plugin() -> PluginTest {
    PluginTest::of(backplane_remote::backplane_export::bp_entry_v1)
}

fn open_with(parameters: Value) -> Result<Instance, Failure> {
    let model = json!({"name": "m", "format": "openai", "capabilities": ["chat", "complete", "embed"],
        "parameters": parameters});
    plugin().open(&model.to_string())?.instance()
}

fn open(upstream: &Upstream) -> Instance {
    open_with(json!({"upstream": {"url": upstream.url, "idle_timeout": "400ms"}})).unwrap()
}

fn chat(more: Value) -> String {
    let mut params = json!({"messages": [{"role": "user", "content": "hi"}]});
    params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    params.to_string()
}

fn ask(instance: &Instance, more: Value) -> Answer {
    instance.submit("chat", &chat(more), vec![]).wait()
}

/// As a caller who wants the answer at once and whole.
fn ask_whole(instance: &Instance, capability: &str, params: &str) -> Answer {
    instance.send(RequestInput { flags: 0, ..RequestInput::new(capability, params, vec![]) }).wait()
}

fn failure(answer: &Answer) -> (Code, &str, &str) {
    let failure = answer.failure().unwrap_or_else(|| panic!("it was to fail: {answer:?}"));
    (failure.canonical().unwrap(), &failure.reason, &failure.message)
}

fn text(answer: &Answer) -> String {
    answer.chunks.iter().filter_map(|chunk| chunk.json["content"].as_str()).collect()
}

#[test]
fn a_chat_is_the_same_streamed_and_whole() {
    let upstream = Upstream::start();
    let model = open(&upstream);
    let streamed = ask(&model, json!({"max_tokens": 5, "temperature": 0.5}));
    let whole = ask_whole(&model, "chat", &chat(json!({})));
    for answer in [&streamed, &whole] {
        assert_eq!(text(answer), "Hello from upstream");
        let End::Done { usage, .. } = &answer.end else { panic!("{}", answer.end) };
        assert_eq!((&usage["prompt_tokens"], &usage["cached_tokens"]), (&json!(7), &json!(2)));
        assert_eq!(answer.chunks.last().unwrap().json["finish_reason"], "stop");
    }
    assert!(whole.chunks.len() < streamed.chunks.len());
    let sent = &upstream.seen()[0];
    assert_eq!(sent.path, "/v1/chat/completions");
    assert_eq!(sent.body["model"], "m");
    assert_eq!((&sent.body["max_completion_tokens"], &sent.body["temperature"]), (&json!(5), &json!(0.5)));
    assert_eq!(sent.body["stream_options"]["include_usage"], true);
    assert_eq!(model.model().describe()["context"], 512);
}

#[test]
fn tools_reasons_and_probabilities_come_through() {
    let upstream = Upstream::start();
    let model = open(&upstream);
    let called = ask(
        &model,
        json!({"mode": "tools", "tools": [{"name": "f", "parameters": {"type": "object"}}],
        "tool_choice": {"named": "f"}}),
    );
    assert!(called.is_done(), "{called:?}");
    let calls = called.chunks.iter().filter_map(|chunk| chunk.json["tool_calls"][0].as_object());
    let arguments: String = calls.filter_map(|call| call.get("arguments")?.as_str()).collect();
    assert_eq!(arguments, r#"{"a":1}"#);
    assert_eq!(called.chunks[0].json["tool_calls"][0]["name"], "f");
    assert_eq!(called.chunks.last().unwrap().json["finish_reason"], "tool_calls");
    let sent = &upstream.seen()[0].body;
    assert_eq!(sent["tools"][0]["function"]["name"], "f");
    assert_eq!(sent["tool_choice"], json!({"type": "function", "function": {"name": "f"}}));
    let thought = ask(&model, json!({"mode": "reasons"}));
    assert_eq!(thought.chunks[0].json["reasoning_content"], "because");
    assert_eq!(text(&thought), "so");
    let rated = ask(&model, json!({"logprobs": 1}));
    assert_eq!(rated.chunks[0].json["logprobs"][0]["bytes"], json!(b"Hello"));
    let two = ask(&model, json!({"n": 2}));
    assert_eq!(two.chunks.iter().filter(|chunk| chunk.json["finish_reason"] == "stop").count(), 2);
}

#[test]
fn a_host_that_wants_a_confidence_has_one_and_the_caller_no_probabilities() {
    let upstream = Upstream::start();
    let model = open(&upstream);
    // As backplane.h has them: BP_REQUEST_CONFIDENCE, and with it BP_REQUEST_STREAM.
    for flags in [1, 1 | 2] {
        let input = RequestInput { flags, ..RequestInput::new("chat", &chat(json!({})), vec![]) };
        let answer = model.send(input).wait();
        let End::Done { confidence, .. } = answer.end else { panic!("{}", answer.end) };
        assert!((confidence.unwrap() - (-0.5f64).exp()).abs() < 1e-6, "{confidence:?}");
        assert!(answer.chunks.iter().all(|chunk| chunk.json.get("logprobs").is_none()));
    }
}

#[test]
fn completions_and_embeddings() {
    let upstream = Upstream::start();
    let model = open(&upstream);
    let said = model.submit("complete", &json!({"prompt": [1, 2], "stop": ["x"]}).to_string(), vec![]).wait();
    let said: String = said.chunks.iter().filter_map(|chunk| chunk.json["text"].as_str()).collect();
    assert_eq!(said, "Hello from upstream");
    assert_eq!(upstream.seen()[0].body["prompt"], json!([1, 2]));
    let embedded = ask_whole(&model, "embed", r#"{"input":["a","b","c"]}"#);
    let vectors = embedded.tensor("embeddings").unwrap_or_else(|| panic!("{embedded:?}"));
    assert_eq!(vectors.shape, [3, 2]);
    let mixed = ask_whole(&model, "embed", r#"{"input":["a",[1]]}"#);
    assert_eq!(failure(&mixed).0, Code::InvalidArgument);
}

#[test]
fn pictures_travel_as_files_and_nothing_else_does() {
    let upstream = Upstream::start();
    let model = open(&upstream);
    let look = |bytes: &[u8]| {
        let tensor =
            TensorInput::new("p", backplane_testkit::DType::Uint8, &[bytes.len() as i64], bytes.to_vec());
        let content = json!([{"type": "text", "text": "what?"}, {"type": "image", "tensor": "p"}]);
        let params = json!({"messages": [{"role": "user", "content": content}]});
        model.submit("chat", &params.to_string(), vec![tensor]).wait()
    };
    assert!(look(b"\x89PNG\r\n\x1a\n").is_done());
    let sent = &upstream.seen()[0].body["messages"][0]["content"][1];
    assert_eq!(sent["image_url"]["url"], "data:image/png;base64,iVBORw0KGgo=");
    assert_eq!(failure(&look(b"<svg>")).0, Code::InvalidArgument);
}

#[test]
fn a_stream_that_breaks_off_is_an_error_with_the_pieces_before_it() {
    let upstream = Upstream::start();
    for (mode, reason, says) in [
        ("cut", "upstream_unreachable", "broke the connection"),
        ("forgets", "upstream_cut", "ended its answer before it was complete"),
        ("silent", "upstream_unreachable", "said nothing for 0.4 s"),
        ("error inside", "upstream_error", "out of memory"),
    ] {
        let answer = ask(&open(&upstream), json!({"mode": mode}));
        assert_eq!(text(&answer), "half", "{mode}");
        let (code, why, message) = failure(&answer);
        assert_eq!((code, why), (Code::Unavailable, reason), "{mode}: {message}");
        assert!(message.contains(says), "{mode}: {message}");
    }
    for (mode, says) in [
        ("never begins", "said nothing for 0.4 s"),
        ("no end of line", "a line of its stream has no end"),
        ("no json", "does not keep to its API"),
    ] {
        let answer = ask(&open(&upstream), json!({"mode": mode}));
        let (code, _, message) = failure(&answer);
        assert_eq!(code, Code::Unavailable);
        assert!(message.contains(says), "{mode}: {message}");
    }
}

#[test]
fn a_server_that_does_not_keep_to_what_was_asked_is_cut_off() {
    let upstream = Upstream::start();
    let model = open(&upstream);
    let endless = ask(&model, json!({"mode": "slow", "max_tokens": 5}));
    let (code, _, message) = failure(&endless);
    assert_eq!(code, Code::Unavailable);
    assert!(message.contains("did not keep to `max_tokens`") && endless.chunks.len() < 30, "{message}");
    let many = ask(&model, json!({"mode": "choices"}));
    assert!(failure(&many).2.contains("choice 7 of 1 came"), "{many:?}");
}

#[test]
fn a_chain_that_leads_back_to_its_beginning_ends() {
    let upstream = Upstream::start();
    let model = open(&upstream);
    assert!(ask(&model, json!({})).is_done());
    let id = upstream.seen()[0].id.clone();
    assert!(id.ends_with("-hop1"), "{id}");
}

#[test]
fn odd_but_whole_streams_are_read() {
    let upstream = Upstream::start();
    let model = open(&upstream);
    for (mode, says) in [("no done", "all"), ("comments", "all"), ("byte by byte", "Grüße")] {
        let answer = ask(&model, json!({"mode": mode}));
        assert!(answer.is_done(), "{mode}: {}", answer.end);
        assert_eq!(text(&answer), says, "{mode}");
    }
}

#[test]
fn refusals_say_what_the_caller_can_do() {
    let upstream = Upstream::start();
    let model = open(&upstream);
    let wrong = ask(&model, json!({"status": 400, "says": "too hot", "at": "temperature"}));
    assert_eq!(failure(&wrong).0, Code::InvalidArgument);
    assert_eq!(wrong.failure().unwrap().details["param"], "temperature");
    let long = ask(&model, json!({"status": 400, "code": "context_length_exceeded"}));
    assert_eq!(failure(&long).1, "context_length_exceeded");
    let limited = ask(&model, json!({"status": 429, "after": "0.25"}));
    assert_eq!(failure(&limited).0, Code::ResourceExhausted);
    assert_eq!(limited.failure().unwrap().retry_after_ms, 250);
    // The only key there is rests now.
    assert_eq!(failure(&ask(&model, json!({}))).0, Code::ResourceExhausted);
    std::thread::sleep(Duration::from_millis(300));
    assert!(ask(&model, json!({})).is_done());
}

#[test]
fn a_server_that_is_down_is_left_alone_for_a_while() {
    let upstream = Upstream::start();
    let model = open(&upstream);
    for _ in 0..5 {
        let answer = ask(&model, json!({"status": 500, "says": "boom"}));
        assert!(failure(&answer).2.contains("boom"));
    }
    let asked = upstream.seen().len();
    let kept = ask(&model, json!({}));
    let (code, reason, message) = failure(&kept);
    assert_eq!((code, reason), (Code::Unavailable, "upstream_unreachable"), "{message}");
    assert!(kept.failure().unwrap().retry_after_ms > 0);
    assert_eq!(upstream.seen().len(), asked, "it was not asked");
    let stats = model.model().stats().unwrap();
    assert!(stats.contains(&("upstream_down".to_owned(), 1.0)), "{stats:?}");
    std::thread::sleep(Duration::from_millis(1100));
    assert!(ask(&model, json!({})).is_done(), "one request tries, and finds it well");
}

#[test]
fn a_key_that_is_refused_or_limited_gives_way_to_the_next_and_is_told_to_nobody() {
    let upstream = Upstream::answering(|seen| match &*seen.key {
        "Bearer sk-first-0123456789" if !seen.path.ends_with("/models") => {
            json_reply(429, &json!({"error": {"message": "slow down"}})).header("retry-after", "30")
        }
        "Bearer sk-second-0123456789" if !seen.path.ends_with("/models") => {
            json_reply(401, &json!({"error": {"message": format!("bad key {}", seen.key)}}))
        }
        _ => well_behaved(seen),
    });
    let folder = tempfile::tempdir().unwrap();
    let key = |name: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, format!("sk-{name}-0123456789\n")).unwrap();
        format!("file:{}", path.display())
    };
    let keys = [key("first"), key("second"), key("third")];
    let with = |keys: &[String]| open_with(json!({"upstream": {"url": upstream.url, "keys": keys}})).unwrap();
    let model = with(&keys);
    for _ in 0..4 {
        assert!(ask(&model, json!({})).is_done());
    }
    let used = upstream.seen().iter().map(|seen| seen.key.clone()).collect::<Vec<_>>();
    let count = |name: &str| used.iter().filter(|key| key.contains(name)).count();
    assert!(count("first") <= 1 && count("second") <= 1, "those that are refused rest: {used:?}");
    assert_eq!(count("third"), 4);
    let refused = ask(&with(&keys[1..2]), json!({}));
    let (code, reason, message) = failure(&refused);
    assert_eq!((code, reason), (Code::FailedPrecondition, "upstream_auth"));
    assert!(!message.contains("0123456789"), "{message}");
    // A server may say the key where nobody expects it.
    let third = with(&keys[2..]);
    let told = ask(&third, json!({"status": 400, "says": "no, {key}", "at": "sk-third-0123456789"}));
    assert!(failure(&told).2.ends_with("no, Bearer [key]"), "{told:?}");
    assert!(!format!("{told:?}").contains("0123456789"), "{told:?}");
    let told = ask(&third, json!({"mode": "key inside"}));
    assert!(
        failure(&told).2.ends_with("Bearer [key]") && !format!("{told:?}").contains("0123456789"),
        "{told:?}"
    );
    let secret = json!({"upstream": {"url": upstream.url, "secret_headers": {"x-tenant": keys[0]}}});
    let told = ask(&open_with(secret).unwrap(), json!({"status": 400, "says": "no, sk-first-0123456789"}));
    assert!(failure(&told).2.ends_with("no, [key]"), "{told:?}");
}

#[test]
fn a_caller_who_leaves_ends_it_at_the_upstream_too() {
    let upstream = Upstream::start();
    let model = open(&upstream);
    let running = model.submit("chat", &chat(json!({"mode": "slow"})), vec![]);
    assert!(running.wait_for_chunks(3));
    running.cancel();
    assert_eq!(failure(&running.wait()).0, Code::Cancelled);
    assert!(upstream.wait_until(|seen| seen[0].left), "its connection is closed");
}

#[test]
fn a_deadline_ends_it() {
    let upstream = Upstream::start();
    let model = open(&upstream);
    let input = RequestInput {
        deadline: Deadline::In(Duration::from_millis(200)),
        ..RequestInput::new("chat", &chat(json!({"mode": "slow"})), vec![])
    };
    let start = Instant::now();
    let answer = model.send(input).wait();
    assert_eq!(failure(&answer).0, Code::DeadlineExceeded);
    assert!(!answer.chunks.is_empty() && start.elapsed() < Duration::from_secs(5));
    assert!(upstream.wait_until(|seen| seen[0].left));
}

#[test]
fn what_cannot_be_opened_says_why() {
    let upstream = Upstream::start();
    let at = |more: Value| {
        let mut parameters = json!({"upstream": {"url": upstream.url}});
        parameters.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        open_with(parameters).err().unwrap().message
    };
    assert!(at(json!({"model": "othr"})).contains("lists no model `othr`: did you mean `other`?"));
    assert!(at(json!({"modle": "m"})).contains("`modle`"));
    assert!(at(json!({"upstream": "vllm"})).contains("no upstream is called `vllm`"));
    let url = |url: &str| at(json!({"upstream": {"url": url}}));
    assert!(url("ftp://x/v1").contains("`http://` or `https://`"));
    let told = url("https://user:hunter2@example.org/v1");
    assert!(told.contains("password") && !told.contains("hunter2"), "{told}");
    assert!(url("http://127.0.0.1:1/v1").contains("cannot be reached"), "{}", url("http://127.0.0.1:1/v1"));
    let written_out = at(json!({"upstream": {"url": upstream.url, "keys": ["sk-hunter2"]}}));
    assert!(written_out.contains("`env:NAME`") && !written_out.contains("hunter2"), "{written_out}");
    let unlisted = json!({"upstream": {"url": upstream.url}, "model": "secret", "discover": false});
    assert!(open_with(unlisted).is_ok());
}
