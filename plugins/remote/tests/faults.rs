//! What becomes of a request whose upstream delays, cuts, errs, floods and lies.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod upstream;

use backplane_testkit::{
    Answer, Code, Deadline, End, Failure, Instance, PluginTest, RequestInput, TensorInput,
};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use upstream::{Reply, Upstream, bytes_reply, json_reply, stream_reply, well_behaved};

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

fn chat_request() -> RequestInput {
    RequestInput::new("chat", &chat(json!({})), vec![])
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
    assert_eq!((&sent.body["max_tokens"], &sent.body["temperature"]), (&json!(5), &json!(0.5)));
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

/// As Ollama, LM Studio and llama-cpp-python do: `max_tokens` is kept to, and what has another name is passed over.
fn endless(seen: &upstream::Seen) -> Reply {
    if seen.path.ends_with("/models") {
        return json_reply(200, &json!({"object": "list", "data": [{"id": "m:latest", "object": "model"}]}));
    }
    let (chat, count) = (seen.path.contains("/chat/"), seen.body["max_tokens"].as_u64().unwrap_or(500));
    let likely = json!({"content": [{"token": "la ", "logprob": -0.5, "bytes": [108, 97, 32],
        "top_logprobs": [{"token": "la ", "logprob": -0.5, "bytes": [108, 97, 32]}]}]});
    let piece = |place: u64| {
        let finish = (place + 1 == count).then_some("length");
        let mut choice = json!({"index": 0, "finish_reason": finish});
        if chat {
            choice["delta"] = json!({"content": "la "})
        } else {
            choice["text"] = "la ".into()
        };
        if seen.body["logprobs"].as_u64().is_some_and(|top| top > 0) {
            choice["logprobs"] = likely.clone();
        }
        json!({"choices": [choice]})
    };
    stream_reply(&(0..count).map(piece).collect::<Vec<_>>())
}

#[test]
fn a_limit_is_kept_to_by_a_server_that_knows_one_name_of_it() {
    let upstream = Upstream::answering(endless);
    let open = |more: Value| {
        let mut at = json!({"url": upstream.url});
        at.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        open_with(json!({"upstream": at, "discover": false})).unwrap()
    };
    for more in [json!({}), json!({"flavour": "ollama"}), json!({"flavour": "llama-cpp", "metrics": ""})] {
        let answer = ask(&open(more.clone()), json!({"max_tokens": 30}));
        assert!(answer.is_done(), "{more}: {}", answer.end);
        assert_eq!(text(&answer), "la ".repeat(30), "{more}");
        assert_eq!(answer.chunks.last().unwrap().json["finish_reason"], "length");
    }
    // Whoever says that the server has the other name is told when it has not.
    let answer = ask(&open(json!({"max_tokens": "max_completion_tokens"})), json!({"max_tokens": 30}));
    assert_eq!(upstream.seen().last().unwrap().body["max_completion_tokens"], 30);
    assert!(failure(&answer).2.contains("did not keep to `max_tokens`"), "{answer:?}");
}

#[test]
fn what_ollama_would_pass_over_in_silence_is_refused() {
    let upstream = Upstream::answering(endless);
    let at = json!({"url": upstream.url, "flavour": "ollama"});
    // Its list names each model with its tag.
    let model = open_with(json!({"upstream": at})).unwrap();
    let tools = json!([{"name": "f", "parameters": {"type": "object"}}]);
    let refused = |capability, params: Value| {
        let answer = model.submit(capability, &params.to_string(), vec![]).wait();
        let failed = answer.failure().unwrap_or_else(|| panic!("{params} was sent"));
        assert_eq!(failed.canonical(), Some(Code::Unimplemented), "{failed}");
        failed.details["param"].as_str().unwrap().to_owned()
    };
    let messages = json!([{"role": "user", "content": "hi"}]);
    for (name, value) in [
        ("top_k", json!(3)),
        ("logit_bias", json!({"7": 1.0})),
        ("n", json!(2)),
        ("tool_choice", json!("required")),
        ("parallel_tool_calls", json!(false)),
        ("response_format", json!({"type": "grammar", "grammar": "g"})),
    ] {
        let mut params = json!({"messages": messages, "tools": tools});
        params[name] = value;
        assert_eq!(refused("chat", params), name);
    }
    for (name, value) in [
        ("prompt", json!([1, 2])),
        ("echo", json!(true)),
        ("response_format", json!({"type": "json_object"})),
    ] {
        let mut params = json!({"prompt": "hi"});
        params[name] = value;
        assert_eq!(refused("complete", params), name);
    }
    assert!(upstream.seen().is_empty());
    // Nobody chooses a tool that is not there.
    assert!(ask(&model, json!({"tools": tools, "tool_choice": "none", "max_tokens": 2})).is_done());
    assert_eq!(upstream.seen()[0].body.get("tools"), None);
    // Its completions tell probabilities as chats do.
    let params = json!({"prompt": "hi", "logprobs": 0, "max_tokens": 2}).to_string();
    let answer = model.submit("complete", &params, vec![]).wait();
    assert_eq!(answer.chunks[0].json["logprobs"][0]["logprob"], -0.5, "{answer:?}");
}

#[test]
fn a_chain_that_leads_back_to_its_beginning_ends() {
    // A server that asks this host for what it was asked, under the name that the request came with.
    let host: Arc<OnceLock<Instance>> = Arc::default();
    let asks = host.clone();
    let upstream = Upstream::answering(move |seen| {
        let request = RequestInput { flags: 0, request_id: Some(seen.id.clone()), ..chat_request() };
        let answer = asks.get().unwrap().send(request).wait();
        let message = answer.failure().unwrap_or_else(|| panic!("it went round: {answer:?}")).message.clone();
        json_reply(400, &json!({"error": {"message": message}}))
    });
    let model = open_with(json!({"upstream": {"url": upstream.url}, "discover": false})).unwrap();
    assert!(host.set(model.clone()).is_ok());
    let answer = model.send(RequestInput { flags: 0, ..chat_request() }).wait();
    assert!(failure(&answer).2.contains("lead back to its own server?"), "{answer:?}");
    let ids: Vec<_> = upstream.seen().into_iter().map(|seen| seen.id).collect();
    assert_eq!(ids, (1..=8).map(|hops| format!("test-1-hop{hops}")).collect::<Vec<_>>());
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
fn a_server_that_breaks_off_says_nothing_or_is_not_there_is_left_alone_too() {
    let upstream = Upstream::start();
    for (mode, says) in [("cut", "broke the connection"), ("never begins", "said nothing for 0.4 s")] {
        // Each mode another server to the plugin.
        let at = json!({"url": upstream.url, "idle_timeout": "400ms", "headers": {"x-site": mode}});
        let model = open_with(json!({"upstream": at, "discover": false})).unwrap();
        for _ in 0..5 {
            assert!(failure(&ask(&model, json!({"mode": mode}))).2.contains(says), "{mode}");
        }
        let asked = upstream.seen().len();
        let kept = ask(&model, json!({}));
        assert!(failure(&kept).2.contains("does not answer; it is asked again in"), "{mode}: {kept:?}");
        assert_eq!(upstream.seen().len(), asked, "{mode}");
    }
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let at = json!({"url": format!("http://{nobody}/v1"), "proxy": ""});
    let model = open_with(json!({"upstream": at, "discover": false})).unwrap();
    for _ in 0..5 {
        assert!(failure(&ask(&model, json!({}))).2.contains("cannot be reached"));
    }
    let begun = Instant::now();
    assert!(failure(&ask(&model, json!({}))).2.contains("does not answer; it is asked again in"));
    assert!(begun.elapsed() < Duration::from_millis(400), "it was tried again: {:?}", begun.elapsed());
}

/// Several models of one plugin, by what each says of its server.
fn open_several(upstreams: &[Value]) -> Vec<Instance> {
    let model = |(number, upstream): (usize, &Value)| {
        json!({"name": format!("m{number}"), "format": "openai", "capabilities": ["chat"],
            "parameters": {"discover": false, "upstream": upstream}})
        .to_string()
    };
    let models: Vec<String> = upstreams.iter().enumerate().map(model).collect();
    let models: Vec<&str> = models.iter().map(String::as_str).collect();
    let models = plugin().open_all(&models).unwrap();
    models.iter().map(|model| model.instance().unwrap()).collect()
}

#[test]
fn what_is_true_of_a_server_is_known_to_all_its_models() {
    let folder = tempfile::tempdir().unwrap();
    let key = |name: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, format!("sk-{name}-0123456789")).unwrap();
        format!("file:{}", path.display())
    };
    let (mine, others) = (key("mine"), key("others"));
    let upstream = Upstream::start();
    let at = |key: &str| json!({"url": upstream.url, "keys": [key], "idle_timeout": "400ms"});
    // One that waits longer is at the same server, and so is one that is called otherwise there.
    let patient = json!({"url": upstream.url, "keys": [mine], "max_inflight": 7});
    let models = open_several(&[at(&mine), patient, at(&others)]);
    let [first, second, other] = &models[..] else { panic!("three were opened") };

    // Its key is limited for all of them, and for nobody with another.
    assert_eq!(failure(&ask(first, json!({"status": 429, "after": "0.4"}))).0, Code::ResourceExhausted);
    let asked = upstream.seen().len();
    assert_eq!(failure(&ask(second, json!({}))).1, "upstream_rate_limited");
    assert_eq!(upstream.seen().len(), asked, "it was not asked");
    assert!(ask(other, json!({})).is_done());
    std::thread::sleep(Duration::from_millis(450));
    assert!(ask(second, json!({})).is_done());

    // What it fails with for one model says nothing of the others.
    (0..5).for_each(|_| assert_eq!(failure(&ask(first, json!({"status": 500}))).1, "upstream_error"));
    assert_eq!(failure(&ask(first, json!({}))).1, "upstream_unreachable");
    assert!(ask(second, json!({})).is_done());

    // A server that breaks the connection breaks it for all.
    (0..5).for_each(|_| assert_eq!(failure(&ask(second, json!({"mode": "cut"}))).1, "upstream_unreachable"));
    std::thread::sleep(Duration::from_millis(100));
    let asked = upstream.seen().len();
    assert!(failure(&ask(second, json!({}))).2.contains("it is asked again in"));
    assert!(failure(&ask(first, json!({}))).2.contains("it is asked again in"));
    assert_eq!(upstream.seen().len(), asked);
    // What is counted is each model's own.
    let requests = |model: &Instance| {
        let stats = model.model().stats().unwrap();
        stats.iter().find(|(figure, _)| figure == "upstream_requests_total").unwrap().1
    };
    assert_eq!((requests(first), requests(second), requests(other)), (8.0, 9.0, 1.0));
}

#[test]
fn connections_are_shared_by_models_of_a_server() {
    let upstream = Upstream::start();
    let at = json!({"url": upstream.url});
    let models = open_several(&[at.clone(), at]);
    for model in models.iter().cycle().take(6) {
        assert!(ask_whole(model, "chat", &chat(json!({}))).is_done());
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn a_key_with_nothing_left_rests_before_it_is_refused() {
    let used_up = |seen: &upstream::Seen| match &*seen.key {
        "Bearer sk-1-0123456789" => well_behaved(seen),
        _ => well_behaved(seen)
            .header("x-ratelimit-limit-requests", "3")
            .header("x-ratelimit-remaining-requests", "0")
            .header("x-ratelimit-reset-requests", "700ms")
            .header("x-ratelimit-remaining-tokens", "5"),
    };
    let upstream = Upstream::answering(used_up);
    let (_keys, model) = keyed(&upstream, "openai", 2);
    // The list of models used the first one up.
    (0..3).for_each(|_| assert!(ask(&model, json!({})).is_done()));
    let keys: Vec<_> = upstream.seen().into_iter().map(|seen| seen.key).collect();
    assert_eq!(keys, ["Bearer sk-1-0123456789"; 3]);
    let (_keys, only) = keyed(&upstream, "openai", 1);
    let told = ask(&only, json!({}));
    assert_eq!(failure(&told).1, "upstream_rate_limited");
    assert!((1..=700).contains(&told.failure().unwrap().retry_after_ms), "{told:?}");
    std::thread::sleep(Duration::from_millis(750));
    assert!(ask(&only, json!({})).is_done());
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

/// An upstream with so many keys of this host.
fn keyed(upstream: &Upstream, flavour: &str, count: usize) -> (tempfile::TempDir, Instance) {
    let folder = tempfile::tempdir().unwrap();
    let keys = (0..count).map(|number| {
        let path = folder.path().join(number.to_string());
        std::fs::write(&path, format!("sk-{number}-0123456789\n")).unwrap();
        format!("file:{}", path.display())
    });
    let upstream = json!({"url": upstream.url, "flavour": flavour, "keys": keys.collect::<Vec<_>>()});
    let model = open_with(json!({"upstream": upstream})).unwrap();
    (folder, model)
}

#[test]
fn one_who_asks_for_too_much_does_not_take_the_key_from_the_others() {
    let upstream = Upstream::start();
    for count in [1, 2] {
        let (_keys, model) = keyed(&upstream, "backplane", count);
        for _ in 0..12 {
            let spent = json!({"status": 429, "code": "insufficient_quota", "says": "3900 of 3000"});
            let told = ask(&model, spent);
            assert_eq!(failure(&told).1, "upstream_rate_limited");
            assert!(failure(&told).2.ends_with("too little for this request: 3900 of 3000"), "{told:?}");
            let told =
                ask(&model, json!({"status": 403, "code": "feature_not_licensed", "says": "no vision"}));
            let (_, reason, message) = failure(&told);
            assert_eq!(reason, "upstream_error");
            assert!(message.ends_with("this request (feature_not_licensed): no vision"), "{message}");
        }
        assert!(ask(&model, json!({})).is_done(), "{count} keys");
    }
    // What is the key's own makes it rest, and with it the others are served.
    let (_keys, model) = keyed(&upstream, "backplane", 2);
    let told = ask(&model, json!({"status": 403, "code": "admin_only"}));
    assert_eq!(failure(&told).1, "upstream_auth");
    let told = ask(&model, json!({}));
    assert_eq!(failure(&told).0, Code::ResourceExhausted, "both keys were refused and rest: {told:?}");
}

#[test]
fn a_server_that_does_not_say_whose_fault_it_is_is_believed_after_several_times() {
    let upstream = Upstream::start();
    for doubt in [
        json!({"status": 429}),
        json!({"status": 429, "code": "insufficient_quota"}),
        json!({"status": 403}),
        json!({"status": 403, "code": "moderated"}),
    ] {
        let (_keys, model) = keyed(&upstream, "openai", 1);
        for _ in 0..2 {
            (0..4).for_each(|_| assert!(!ask(&model, doubt.clone()).is_done()));
            assert!(ask(&model, json!({})).is_done(), "{doubt}");
        }
        (0..5).for_each(|_| assert!(!ask(&model, doubt.clone()).is_done()));
        let rests = ask(&model, json!({}));
        assert_eq!(failure(&rests).0, Code::ResourceExhausted, "{doubt}");
        let wait = rests.failure().unwrap().retry_after_ms;
        assert!((1..=1000).contains(&wait), "{wait} ms, so that one who does it keeps it for a moment only");
    }
}

/// Answers with a text so many times over, which is too long to be made as a value.
fn around(begin: &str, text: &str, times: usize, end: &str) -> Reply {
    bytes_reply(200, [begin, &text.repeat(times), end].concat().into_bytes())
}

#[test]
fn an_answer_takes_no_more_memory_than_what_was_asked_for() {
    let model = |reply: fn() -> Reply| {
        let upstream = Upstream::answering(move |seen| match seen.path.ends_with("/models") {
            true => well_behaved(seen),
            false => reply(),
        });
        open_with(json!({"upstream": {"url": upstream.url}})).unwrap()
    };
    let long = model(|| {
        let end = r#""},"finish_reason":"stop"}]}"#;
        around(r#"{"choices":[{"message":{"content":""#, "word ", 2 << 20, end)
    });
    assert_eq!(text(&ask_whole(&long, "chat", &chat(json!({"max_tokens": 60_000})))).len(), 10 << 20);
    let told = ask_whole(&long, "chat", &chat(json!({"max_tokens": 5})));
    assert_eq!(failure(&told).1, "upstream_error");
    assert!(failure(&told).2.contains("its answer takes more than 8389888 bytes"), "{}", failure(&told).2);
    // Small where it travels, large where it is read.
    let swollen = [
        model(|| {
            around(r#"{"choices":[{"message":{"x":["#, "0,", 1 << 17, r#"0]},"finish_reason":"stop"}]}"#)
        }),
        model(|| around(r#"{"choices":["#, "{},", 1 << 17, "{}]}")),
        model(|| around(r#"{"error":{"message":"no","code":["#, "0,", 1 << 17, "0]}}")),
    ];
    for model in &swollen {
        let told = ask_whole(model, "chat", &chat(json!({"max_tokens": 5})));
        assert!(failure(&told).2.contains("values, which what was asked for has not"), "{told:?}");
    }
    let told = ask_whole(&swollen[0], "embed", r#"{"input":["a"]}"#);
    assert!(failure(&told).2.contains("values, which"), "{told:?}");
    let piece = model(|| around(r#"data: {"choices":[{"delta":{"x":["#, "0,", 1 << 17, "0]}}]}\n\n"));
    let told = ask(&piece, json!({"max_tokens": 5}));
    assert!(failure(&told).2.contains("values, which"), "{told:?}");
}

#[test]
fn a_key_in_a_good_answer_is_told_to_nobody() {
    let message = |key: &str| {
        json!({"content": format!("hi {key}"), "reasoning_content": key, "more": [{key: {"a": key}}], key: 1,
            "tool_calls": [{"index": 0, "id": key, "function": {"name": key, "arguments": key}}]})
    };
    let upstream = Upstream::answering(move |seen| {
        let choice = |member: &str| {
            json!({"choices": [{"index": 0, member: message(&seen.key), "text": seen.key,
                "finish_reason": seen.key}]})
        };
        match &seen.body["stream"] {
            _ if seen.path.ends_with("/models") => well_behaved(seen),
            Value::Bool(true) => stream_reply(&[choice("delta")]),
            _ => json_reply(200, &choice("message")),
        }
    });
    let (_keys, model) = keyed(&upstream, "openai", 1);
    for answer in [ask(&model, json!({})), ask_whole(&model, "chat", &chat(json!({})))] {
        assert!(answer.is_done(), "{answer:?}");
        let said = &answer.chunks[0].json;
        assert_eq!(
            (&said["content"], &said["reasoning_content"]),
            (&json!("hi Bearer [key]"), &json!("Bearer [key]"))
        );
        assert_eq!(said["more"][0]["Bearer [key]"]["a"], "Bearer [key]");
        assert_eq!(said["upstream_finish_reason"], "Bearer [key]");
        assert_eq!(said["tool_calls"][0]["arguments"], "Bearer [key]");
        assert!(!format!("{answer:?}").contains("0123456789"), "{answer:?}");
    }
    let said = ask_whole(&model, "complete", r#"{"prompt":"x"}"#);
    assert!(said.is_done() && !format!("{said:?}").contains("0123456789"), "{said:?}");
}

#[test]
fn each_choice_ends_once_and_all_do() {
    let piece = |index: u32, text: &str, finish: Option<&str>| json!({"choices": [{"index": index, "delta": {"content": text}, "finish_reason": finish}]});
    let told = |pieces: Vec<Value>, n: u32| {
        let upstream = Upstream::answering(move |seen| match &seen.body["stream"] {
            _ if seen.path.ends_with("/models") => well_behaved(seen),
            Value::Bool(true) => stream_reply(&pieces),
            _ => {
                let choices = pieces.iter().map(|piece| {
                    let mut choice = piece["choices"][0].clone();
                    choice["message"] = choice["delta"].take();
                    choice.as_object_mut().unwrap().remove("delta");
                    choice
                });
                json_reply(200, &json!({"choices": choices.collect::<Vec<_>>()}))
            }
        });
        let model = open(&upstream);
        [ask(&model, json!({"n": n})), ask_whole(&model, "chat", &chat(json!({"n": n})))]
    };
    let end = Some("stop");
    for (pieces, n, says) in [
        (vec![piece(0, "one", end), piece(0, "two", end)], 1, "choice 0 went on after its end"),
        (vec![piece(0, "one", end), piece(0, "two", None)], 1, "choice 0 went on after its end"),
        (vec![piece(0, "one", end), piece(0, "", Some("length"))], 1, "choice 0 went on after its end"),
        (vec![piece(1, "one", end)], 2, "1 of 2 choices came to an end"),
        (vec![piece(0, "one", end), piece(1, "half", None)], 2, "1 of 2 choices came to an end"),
        (vec![], 1, "0 of 1 choices came to an end"),
    ] {
        for answer in told(pieces.clone(), n) {
            assert!(failure(&answer).2.contains(says), "{answer:?}");
        }
    }
    // What good servers do: an empty piece beside the usage, the end said again.
    let mut usage = piece(0, "", None);
    usage["choices"][0]["delta"] =
        json!({"role": "assistant", "content": "", "reasoning_content": null, "annotations": []});
    usage["usage"] = json!({"prompt_tokens": 7});
    for answer in told(vec![piece(0, "one", end), usage, piece(0, "", end)], 1) {
        assert!(answer.is_done(), "{answer:?}");
        assert_eq!((text(&answer).as_str(), answer.chunks.len()), ("one", 1));
    }
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
        deadline: Deadline::In(Duration::from_secs(1)),
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

#[test]
fn an_adapter_has_the_context_of_what_it_adapts() {
    // As vLLM lists a base and an adapter of it.
    let upstream = Upstream::answering(|seen| match seen.path.ends_with("/models") {
        true => json_reply(
            200,
            &json!({"object": "list", "data": [
                {"id": "base", "object": "model", "owned_by": "vllm", "root": "/models/base", "parent": null,
                    "max_model_len": 4096},
                {"id": "sql", "object": "model", "owned_by": "vllm", "root": "/adapters/sql", "parent": "base",
                    "max_model_len": null},
            ]}),
        ),
        false => well_behaved(seen),
    });
    let at = json!({"url": upstream.url, "flavour": "vllm", "metrics": ""});
    let adapter = open_with(json!({"model": "sql", "upstream": at})).unwrap();
    let described = adapter.model().describe();
    assert_eq!((&described["context"], &described["upstream_parent"]), (&json!(4096), &json!("base")));
    let ids = ask(
        &adapter,
        json!({"stop_token_ids": [7, 9], "response_format": {"type": "grammar", "grammar": "g"}}),
    );
    assert!(ids.is_done(), "{ids:?}");
    let sent = &upstream.seen()[0].body;
    assert_eq!((&sent["model"], &sent["stop_token_ids"]), (&json!("sql"), &json!([7, 9])));
    assert_eq!(sent["structured_outputs"], json!({"grammar": "g"}));
    let base = open_with(json!({"model": "base", "upstream": at})).unwrap();
    assert_eq!(base.model().describe().get("upstream_parent"), None);
}

#[test]
fn what_a_list_means_by_parent_is_its_own() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("key"), "sk-0123456789").unwrap();
    let upstream = Upstream::answering(|_| {
        json_reply(
            200,
            &json!({"data": [
                {"id": "m", "parent": {"id": 7}, "max_model_len": 4096},
                {"id": "n", "parent": "of sk-0123456789"},
            ]}),
        )
    });
    let described = |model: &str| {
        let key = format!("file:{}", folder.path().join("key").display());
        let at = json!({"url": upstream.url, "keys": [key]});
        open_with(json!({"model": model, "upstream": at})).unwrap().model().describe()
    };
    let object = described("m");
    assert_eq!((&object["context"], object.get("upstream_parent")), (&json!(4096), None));
    assert_eq!(described("n")["upstream_parent"], "of [key]");
}

#[test]
fn a_redirect_is_not_followed_with_the_key() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("key"), "sk-0123456789").unwrap();
    let elsewhere = Upstream::start();
    let to = format!("{}/chat/completions", elsewhere.url);
    for status in [301, 302, 307, 308] {
        let to = to.clone();
        let upstream = Upstream::answering(move |_| json_reply(status, &json!({})).header("location", &*to));
        let key = format!("file:{}", folder.path().join("key").display());
        let at = json!({"url": upstream.url, "keys": [key]});
        let answer = ask(&open_with(json!({"upstream": at, "discover": false})).unwrap(), json!({}));
        let (code, reason, message) = failure(&answer);
        assert_eq!((code, reason), (Code::Unavailable, "upstream_error"));
        assert!(message.contains(&format!("failed with {status}")), "{message}");
        assert_eq!((upstream.seen().len(), &*upstream.seen()[0].key), (1, "Bearer sk-0123456789"));
    }
    assert!(elsewhere.seen().is_empty());
}

#[test]
fn who_gives_no_metrics_is_named_in_the_log_once() {
    let upstream = Upstream::answering(|seen| match &*seen.path {
        "/metrics" => json_reply(401, &json!({})),
        _ => well_behaved(seen),
    });
    let plugin = plugin();
    let at = json!({"url": upstream.url, "flavour": "backplane", "headers": {"x-site": "one"}});
    let model =
        json!({"name": "m", "format": "openai", "capabilities": ["chat"], "parameters": {"upstream": at}});
    let model = plugin.open(&model.to_string()).unwrap();
    let told = || {
        let lines = model.log().into_iter().map(|(_, line)| line);
        lines.filter(|line| line.contains("gives no metrics")).collect::<Vec<_>>()
    };
    assert!(upstream.wait_until(|_| !told().is_empty()));
    let line = told().remove(0);
    assert!(line.contains("`/metrics` is refused with 401") && line.contains("admin's key"), "{line}");
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(told().len(), 1);
    let seen = upstream.seen();
    assert_eq!((seen.len(), &*seen[0].site), (1, "one"));
}

#[test]
fn an_upstream_is_asked_how_busy_it_is_unless_it_does_not_say() {
    let status = Arc::new(AtomicU16::new(200));
    let answered = status.clone();
    let upstream = Upstream::answering(move |seen| {
        match &*seen.path {
        "/metrics" => bytes_reply(
            answered.load(Ordering::Relaxed),
            b"vllm:num_requests_running{model_name=\"m\"} 3.0\nvllm:num_requests_waiting{model_name=\"m\"} 2.0\n"
                .to_vec(),
        ),
        _ => well_behaved(seen),
    }
    });
    let asked = |of: &Upstream| of.seen().iter().filter(|seen| seen.path == "/metrics").count();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("key"), "sk-0123456789").unwrap();
    let at = |more: Value| {
        let key = format!("file:{}", folder.path().join("key").display());
        let mut at = json!({"url": upstream.url, "flavour": "vllm", "keys": [key]});
        at.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"upstream": at})
    };
    let model = open_with(at(json!({}))).unwrap();
    let figure = |name: &str| {
        let stats = model.model().stats().unwrap();
        stats.iter().find(|(figure, _)| figure == name).map(|(_, value)| *value)
    };
    assert!(upstream.wait_until(|_| figure("upstream_waiting") == Some(2.0)));
    assert_eq!(figure("upstream_running"), Some(3.0));
    assert!(
        upstream.seen().iter().all(|seen| seen.path != "/metrics" || seen.key.is_empty()),
        "no key is needed"
    );

    // It stops saying so: what it said is forgotten, and it is left alone.
    status.store(404, Ordering::Relaxed);
    assert!(upstream.wait_until(|_| figure("upstream_waiting").is_none()));
    let then = asked(&upstream);
    std::thread::sleep(Duration::from_millis(4500));
    assert_eq!(asked(&upstream), then);
    assert_eq!(text(&ask(&model, json!({}))), "Hello from upstream", "and it serves as before");

    let refused = |more| open_with(at(more)).err().unwrap();
    let error = refused(json!({"flavour": "openai", "metrics": "/metrics"}));
    assert!(error.message.contains("`metrics`") && error.message.contains("`flavour`"), "{error:?}");
    let error = refused(json!({"metrics": "/a b"}));
    assert!(error.message.contains("`metrics` is `/a b`: "), "{error:?}");
    let error = refused(json!({"metrics": "http://elsewhere/metrics"}));
    assert!(error.message.contains("a path of that host"), "{error:?}");
}

#[test]
fn another_context_after_a_restart_is_told() {
    // Its metrics fail once, as those of a server that is started again.
    let (looks, context) = (Arc::new(AtomicU16::new(0)), Arc::new(AtomicU16::new(8192)));
    let (counted, said) = (looks.clone(), context.clone());
    let upstream = Upstream::answering(move |seen| match &*seen.path {
        "/metrics" if counted.fetch_add(1, Ordering::Relaxed) == 0 => json_reply(503, &json!({})),
        "/metrics" => {
            bytes_reply(200, b"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n".to_vec())
        }
        "/v1/models" => {
            let context = said.load(Ordering::Relaxed);
            json_reply(200, &json!({"data": [{"id": "m", "max_model_len": context}]}))
        }
        _ => well_behaved(seen),
    });
    let model = open_with(json!({"upstream": {"url": upstream.url, "flavour": "vllm"}})).unwrap();
    context.store(4096, Ordering::Relaxed);
    let told = || {
        let lines = model.model().log().into_iter().map(|(_, line)| line);
        lines.filter(|line| line.contains("context")).collect::<Vec<_>>()
    };
    assert!(upstream.wait_until(|_| !told().is_empty()), "{} looks", looks.load(Ordering::Relaxed));
    let line = told().remove(0);
    assert!(line.contains("serves `m` with a context of 4096 now, and it was 8192"), "{line}");
}
