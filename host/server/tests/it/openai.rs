//! OpenAI's API: what comes in reaches the model, what the model says comes out, and nothing is dropped silently.

use crate::host::{Running, start};
use serde_json::{Value, json};

fn user(content: impl Into<Value>) -> Value {
    json!([{ "role": "user", "content": content.into() }])
}

/// A message that makes the model do what `script` says.
fn scripted(script: Value) -> Value {
    user(script.to_string())
}

async fn chat(host: &Running, mut body: Value) -> crate::host::Got {
    body["model"] = "script".into();
    host.post("/v1/chat/completions", body).await
}

/// The parameters that a chat request reaches the model with.
async fn params_of(host: &Running, mut body: Value) -> (Value, Option<String>) {
    body["messages"] = scripted(json!({ "params": true }));
    let got = chat(host, body).await;
    assert_eq!(got.status, 200, "{}", got.text());
    let text = got.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    (serde_json::from_str(&text).unwrap(), got.header("x-ignored-params").map(str::to_owned))
}

#[actix_web::test]
async fn a_chat_is_answered_whole() {
    let host = start();
    let got = chat(&host, json!({ "messages": user("hello world") })).await;
    assert_eq!(got.status, 200, "{}", got.text());
    let body = got.json();
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(body["model"], "script");
    assert_eq!(
        body["choices"][0]["message"],
        json!({ "role": "assistant", "content": "hello world", "refusal": null })
    );
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    assert_eq!(body["choices"][0]["logprobs"], Value::Null);
    assert_eq!(got.header("x-model"), Some("script"));
    assert!(got.header("x-route-decision").unwrap().contains("plugin=test.scripted"));
    assert!(got.header("server-timing").unwrap().contains("total;dur="));
    assert!(got.header("x-overhead-ms").unwrap().parse::<f64>().unwrap() >= 0.0);
    assert!(body["id"].as_str().unwrap().ends_with(got.header("x-request-id").unwrap()));
    assert_eq!(got.header("x-ignored-params"), None);
    host.stop().await;
}

/// Azure's clients name a version there.
#[actix_web::test]
async fn a_query_that_has_no_effect_is_listed_or_refused() {
    let host = start();
    let chat = json!({ "model": "script", "messages": user("hello") });
    let inputs = json!([{ "name": "A", "shape": [1], "datatype": "INT32", "data": [1] },
        { "name": "B", "shape": [1], "datatype": "INT32", "data": [2] }]);
    for (path, body) in [
        ("/v1/chat/completions", chat.clone()),
        ("/v1/completions", json!({ "model": "script", "prompt": "hello" })),
        ("/v1/embeddings", json!({ "model": "script", "input": "hello" })),
        ("/v1/capabilities/chat", json!({ "params": { "messages": chat["messages"] } })),
        ("/v2/models/script/infer", json!({ "inputs": inputs })),
    ] {
        let path = format!("{path}?api-version=1&a%20b");
        let got = host.post(&path, body.clone()).await;
        let listed = got.header("x-ignored-params").map(str::to_owned);
        assert_eq!(
            (got.status, listed.as_deref()),
            (200, Some("api-version, a b")),
            "{path}: {}",
            got.text()
        );
        let strict = host.post_with(&path, &[("x-strict", "true")], body.to_string()).await;
        assert_eq!(
            (strict.status, strict.text().contains("`api-version`")),
            (400, true),
            "{}",
            strict.text()
        );
    }
    host.stop().await;
}

/// Every member of OpenAI's request: a value, and what becomes of it.
#[actix_web::test]
async fn every_chat_member_is_honoured_refused_or_listed() {
    enum Fate {
        /// Reaches the model as this, at this pointer.
        Reaches(&'static str, Value),
        /// Is for the server, and neither reaches the model nor is listed.
        Served,
        /// Is listed in `x-ignored-params`.
        Listed,
        /// Is a 400 that names this.
        Refused(&'static str),
    }
    use Fate::{Listed, Reaches, Refused, Served};
    let tools =
        json!([{ "type": "function", "function": { "name": "f", "parameters": { "type": "object" } } }]);
    let table: Vec<(&str, Value, Fate)> = vec![
        ("temperature", json!(0.5), Reaches("/temperature", json!(0.5))),
        ("temperature", json!(2.5), Refused("temperature")),
        ("top_p", json!(0.5), Reaches("/top_p", json!(0.5))),
        ("top_p", json!(-1), Refused("top_p")),
        ("top_k", json!(7), Reaches("/top_k", json!(7))),
        ("min_p", json!(0.25), Reaches("/min_p", json!(0.25))),
        ("repeat_penalty", json!(1.5), Reaches("/repeat_penalty", json!(1.5))),
        ("frequency_penalty", json!(-2), Reaches("/frequency_penalty", json!(-2.0))),
        ("frequency_penalty", json!(-2.1), Refused("frequency_penalty")),
        ("presence_penalty", json!(2), Reaches("/presence_penalty", json!(2.0))),
        ("seed", json!(7), Reaches("/seed", json!(7))),
        ("seed", json!("7"), Refused("seed")),
        ("logit_bias", json!({ "5": -100 }), Reaches("/logit_bias/5", json!(-100.0))),
        ("logit_bias", json!({ "foo": 1 }), Refused("logit_bias.foo")),
        ("stop", json!("\n"), Reaches("/stop", json!(["\n"]))),
        ("stop", json!(["a", "b"]), Reaches("/stop", json!(["a", "b"]))),
        ("stop", json!(vec!["x"; 17]), Refused("stop")),
        ("max_tokens", json!(5), Reaches("/max_tokens", json!(5))),
        ("max_completion_tokens", json!(6), Reaches("/max_tokens", json!(6))),
        ("max_completion_tokens", json!(-1), Refused("max_completion_tokens")),
        ("n", json!(2), Reaches("/n", json!(2))),
        ("n", json!(0), Refused("n")),
        ("n", json!(9), Refused("n")),
        ("logprobs", json!(true), Reaches("/logprobs", json!(0))),
        ("top_logprobs", json!(3), Refused("top_logprobs")),
        ("top_logprobs", json!(21), Refused("top_logprobs")),
        ("tools", tools.clone(), Reaches("/tools/0/name", json!("f"))),
        ("tools", json!([{ "type": "custom", "custom": { "name": "x" } }]), Refused("tools[0].type")),
        ("tools", json!([{ "type": "function" }]), Refused("tools[0].function")),
        ("tools", Value::Array(vec![tools[0].clone(); 129]), Refused("tools")),
        ("tool_choice", json!("none"), Reaches("/tool_choice", json!("none"))),
        ("tool_choice", json!("required"), Refused("tool_choice")),
        ("tool_choice", json!("sometimes"), Refused("tool_choice")),
        (
            "tool_choice",
            json!({ "type": "function", "function": { "name": "g" } }),
            Refused("tool_choice.function.name"),
        ),
        ("parallel_tool_calls", json!(false), Reaches("/parallel_tool_calls", json!(false))),
        (
            "response_format",
            json!({ "type": "json_object" }),
            Reaches("/response_format/type", json!("json_object")),
        ),
        (
            "response_format",
            json!({ "type": "json_schema", "json_schema": { "name": "s", "schema": { "type": "object" }, "strict": true } }),
            Reaches("/response_format/schema/type", json!("object")),
        ),
        ("response_format", json!({ "type": "json_schema" }), Refused("response_format.json_schema.schema")),
        ("response_format", json!({ "type": "xml" }), Refused("response_format.type")),
        ("truncate", json!("oldest_messages"), Reaches("/truncate", json!("oldest_messages"))),
        ("modalities", json!(["text"]), Served),
        ("modalities", json!(["text", "audio"]), Refused("modalities")),
        ("stream", json!(false), Served),
        ("stream_options", json!({ "include_usage": true, "include_obfuscation": true }), Served),
        ("keep_alive", json!("5m"), Served),
        ("keep_alive", json!("soon"), Refused("keep_alive")),
        ("functions", json!([{ "name": "f" }]), Refused("functions")),
        ("function_call", json!("none"), Listed),
        ("audio", json!({ "format": "wav", "voice": "alloy" }), Listed),
        ("metadata", json!({ "foo": "bar" }), Listed),
        ("moderation", json!({ "model": "m" }), Listed),
        ("prediction", json!({ "type": "content", "content": "x" }), Listed),
        ("prompt_cache_key", json!("k"), Listed),
        ("prompt_cache_options", json!({ "mode": "implicit" }), Listed),
        ("prompt_cache_retention", json!("in_memory"), Listed),
        ("reasoning_effort", json!("none"), Listed),
        ("safety_identifier", json!("s"), Listed),
        ("service_tier", json!("auto"), Listed),
        ("store", json!(true), Listed),
        ("user", json!("u"), Listed),
        ("verbosity", json!("low"), Listed),
        ("web_search_options", json!({}), Listed),
        ("something_new", json!(1), Listed),
    ];
    let host = start();
    for (member, value, fate) in table {
        let body = json!({ member: value });
        match fate {
            Reaches(pointer, expected) => {
                let (params, ignored) = params_of(&host, body).await;
                assert_eq!(params.pointer(pointer), Some(&expected), "{member}: {params}");
                assert_eq!(ignored, None, "{member}");
            }
            Served => assert_eq!(params_of(&host, body).await.1, None, "{member}"),
            Listed => {
                assert_eq!(params_of(&host, body.clone()).await.1.as_deref(), Some(member));
                let mut strict = body;
                strict["messages"] = user("x");
                let got =
                    host.post_with("/v1/chat/completions", &[("x-strict", "true")], strict.to_string()).await;
                assert_eq!(got.status, 400, "{member}");
                assert_eq!(got.json()["error"]["param"], member);
                assert_eq!(got.json()["error"]["code"], "ignored_params");
            }
            Refused(param) => {
                let mut body = body;
                body["messages"] = user("x");
                let got = chat(&host, body).await;
                assert_eq!(got.status, 400, "{member}: {}", got.text());
                let error = &got.json()["error"];
                assert_eq!(error["param"], param, "{error}");
                assert_eq!(error["type"], "invalid_request_error");
                assert!(error["message"].as_str().unwrap().contains(member), "{error}");
            }
        }
    }
    host.stop().await;
}

#[actix_web::test]
async fn what_openais_own_client_sends_in_its_tests_is_taken() {
    let host = start();
    let mut body: Value = serde_json::from_str(include_str!("openai_all_params.json")).unwrap();
    body["model"] = "script".into();
    let got = host.post("/v1/chat/completions", body.clone()).await;
    assert_eq!(got.status, 200, "{}", got.text());
    body["stream"] = true.into();
    let got = host.post("/v1/chat/completions", body).await;
    assert_eq!(got.status, 200, "{}", got.text());
    assert!(got.pieces().len() > 2);
    host.stop().await;
}

#[actix_web::test]
async fn messages_are_read_as_they_are_meant() {
    let host = start();
    let messages = json!([
        { "role": "developer", "content": "be brief" },
        { "role": "user", "name": "ann", "content": [{ "type": "text", "text": "hi" }] },
        { "role": "assistant", "content": null,
          "tool_calls": [{ "id": "c1", "type": "function", "function": { "name": "f", "arguments": "{}" } }] },
        { "role": "tool", "tool_call_id": "c1", "content": "42" },
        { "role": "user", "content": r#"{"params": true}"# },
    ]);
    let got = chat(&host, json!({ "messages": messages })).await;
    let text = got.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let seen: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(seen["messages"][0], json!({ "role": "system", "content": "be brief" }));
    assert_eq!(
        seen["messages"][1],
        json!({ "role": "user", "content": [{ "type": "text", "text": "hi" }], "name": "ann" })
    );
    assert_eq!(seen["messages"][2]["tool_calls"], json!([{ "id": "c1", "name": "f", "arguments": "{}" }]));
    assert_eq!(seen["messages"][3]["tool_call_id"], "c1");
    host.stop().await;
}

#[actix_web::test]
async fn bad_messages_are_refused_by_their_place() {
    let host = start();
    let picture = json!([{ "role": "user", "content": [
        { "type": "text", "text": "what is this?" },
        { "type": "image_url", "image_url": { "url": "data:image/png;base64,AAAA" } },
    ] }]);
    let sound = json!([{ "role": "user", "content": [{ "type": "input_audio", "input_audio": {} }] }]);
    for (messages, param) in [
        (json!([]), "messages"),
        (json!([{ "role": "narrator", "content": "x" }]), "messages[0].role"),
        (json!([{ "role": "user" }]), "messages[0].content"),
        (json!([{ "role": "user", "content": 7 }]), "messages[0].content"),
        (json!([{ "role": "user", "content": [] }]), "messages[0].content"),
        (json!([{ "content": "x" }]), "messages[0].role"),
        (json!("hi"), "messages"),
        (picture, "messages[0].content[1]"),
        (sound, "messages[0].content[0].type"),
        (json!(vec![json!({ "role": "user", "content": "x" }); 10_001]), "messages"),
    ] {
        let got = chat(&host, json!({ "messages": messages })).await;
        assert_eq!(got.status, 400, "{}", got.text());
        assert_eq!(got.json()["error"]["param"], param, "{}", got.text());
    }
    assert_eq!(host.post("/v1/chat/completions", json!({})).await.json()["error"]["param"], "messages");
    host.stop().await;
}

#[actix_web::test]
async fn a_hundred_thousand_messages_are_refused_by_name() {
    let host = start();
    let body = json!({ "messages": vec![json!({ "role": "user", "content": "x" }); 100_000] });
    let got = chat(&host, body).await;
    assert_eq!(got.status, 400, "{}", got.text());
    assert_eq!(got.json()["error"]["param"], "messages");
    host.stop().await;
}

#[actix_web::test]
async fn tool_calls_and_logprobs_come_out() {
    let host = start();
    let token = |token: &str| {
        json!({ "token": token, "bytes": token.as_bytes(), "logprob": -0.5,
        "top": [{ "token": "x", "bytes": [120], "logprob": -1.5 }] })
    };
    let script = json!({
        "chunks": [
            { "content": "so", "logprobs": [token("so")], "mood": "good" },
            { "tool_calls": [{ "index": 0, "id": "c1", "name": "f", "arguments": "{\"a\"" }] },
            { "tool_calls": [{ "index": 0, "arguments": ":1}" }, { "index": 1, "id": "c2", "name": "g" }] },
            { "index": 1, "content": "other", "finish_reason": "length" },
            { "finish_reason": "tool_calls" },
        ],
        "usage": { "prompt_tokens": 3, "completion_tokens": 4, "cached_tokens": 2 },
    });
    let ask = |extra: Value| {
        let mut body = json!({ "messages": scripted(script.clone()), "n": 2 });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    let got = chat(&host, ask(json!({ "logprobs": true, "top_logprobs": 1 }))).await.json();
    let choice = &got["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], "so");
    assert_eq!(choice["message"]["mood"], "good");
    assert_eq!(
        choice["message"]["tool_calls"],
        json!([
            { "id": "c1", "type": "function", "function": { "name": "f", "arguments": "{\"a\":1}" } },
            { "id": "c2", "type": "function", "function": { "name": "g", "arguments": "" } },
        ])
    );
    assert_eq!(
        choice["logprobs"]["content"],
        json!([{ "token": "so", "logprob": -0.5, "bytes": [115, 111],
                 "top_logprobs": [{ "token": "x", "logprob": -1.5, "bytes": [120] }] }])
    );
    assert_eq!(got["choices"][1]["message"]["content"], "other");
    assert_eq!(
        got["usage"],
        json!({ "prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7,
                "prompt_tokens_details": { "cached_tokens": 2 } })
    );
    // What was not asked for is not told.
    let got = chat(&host, ask(json!({}))).await.json();
    assert_eq!(got["choices"][0]["logprobs"], Value::Null);
    host.stop().await;
}

#[actix_web::test]
async fn an_answer_that_only_calls_has_no_content() {
    let host = start();
    let script = json!({ "chunks": [
        { "tool_calls": [{ "index": 0, "id": "c1", "name": "f", "arguments": "{}" }] },
        { "finish_reason": "tool_calls" },
    ] });
    let got = chat(&host, json!({ "messages": scripted(script) })).await.json();
    assert_eq!(got["choices"][0]["message"]["content"], Value::Null);
    host.stop().await;
}

#[actix_web::test]
async fn an_answer_without_an_end_is_the_plugins_fault() {
    let host = start();
    for chunks in [json!([{ "content": "half" }]), json!([])] {
        let got = chat(&host, json!({ "messages": scripted(json!({ "chunks": chunks })) })).await;
        assert_eq!(got.status, 500, "{}", got.text());
        assert_eq!(got.json()["error"]["code"], "plugin_fault");
    }
    let got = chat(&host, json!({ "messages": scripted(json!({ "chunks": [{ "content": 7 }] })) })).await;
    assert_eq!(got.status, 500, "{}", got.text());
    host.stop().await;
}

#[actix_web::test]
async fn confidence_is_told_with_its_worth() {
    let host = start();
    let script = json!({ "chunks": [{ "content": "x", "finish_reason": "stop" }], "confidence": 0.5 });
    let got = chat(&host, json!({ "messages": scripted(script) })).await;
    assert_eq!(got.header("x-confidence"), Some("0.50;uncalibrated"));
    host.stop().await;
}

#[actix_web::test]
async fn headers_that_mean_nothing_are_refused_and_a_deadline_holds() {
    let host = start();
    let ask = json!({ "model": "script", "messages": scripted(json!({ "delay_ms": 20000 })) }).to_string();
    let got = host.post_with("/v1/chat/completions", &[("x-request-timeout", "soon")], ask.clone()).await;
    assert_eq!((got.status, got.json()["error"]["param"].clone()), (400, json!("x-request-timeout")));
    let got = host.post_with("/v1/chat/completions", &[("x-request-timeout", "100ms")], ask).await;
    assert_eq!(got.status, 504, "{}", got.text());
    assert_eq!(got.json()["error"]["code"], "deadline_exceeded");
    assert_eq!(got.header("x-should-retry"), Some("false"));
    host.stop().await;
}

#[actix_web::test]
async fn unknown_models_and_bad_bodies_are_told_as_openai_tells_them() {
    let host = start();
    let got = host.post("/v1/chat/completions", json!({ "model": "nobody", "messages": user("x") })).await;
    assert_eq!(got.status, 404, "{}", got.text());
    assert_eq!(got.json()["error"]["code"], "model_not_found");
    for body in ["", "{", "[]", "{\"messages\": \"\u{0}\"}", "{\"messages\":[]} {}"] {
        let got = host.post_with("/v1/chat/completions", &[], body.to_owned()).await;
        assert_eq!(got.status, 400, "{body}");
        assert!(got.json()["error"]["message"].is_string(), "{body}");
    }
    let got = host
        .post_with(
            "/v1/chat/completions",
            &[],
            b"{\"messages\":[{\"role\":\"user\",\"content\":\"\xff\"}]}".to_vec(),
        )
        .await;
    assert_eq!(got.status, 400, "{}", got.text());
    let got = host.post_with("/v1/chat/completions", &[("content-encoding", "gzip")], "x").await;
    assert_eq!(got.status, 415, "{}", got.text());
    host.stop().await;
}

#[actix_web::test]
async fn what_is_of_another_type_is_told_in_the_words_of_json() {
    let host = start();
    let hello = user("hello");
    let whole = "must be a whole number from 0 to 4294967295";
    for (path, body, param, says) in [
        (
            "/v1/chat/completions",
            json!({ "messages": hello, "max_tokens": "7" }),
            "max_tokens",
            format!("{whole}; got a string"),
        ),
        (
            "/v1/completions",
            json!({ "prompt": "a", "logprobs": true }),
            "logprobs",
            "must be a whole number from 0 to 20; `true` and `false` are for a chat, which has the number in `top_logprobs`".into(),
        ),
        (
            "/v1/completions",
            json!({ "prompt": "a", "logprobs": 300 }),
            "logprobs",
            "must be a whole number from 0 to 20; `true` and `false` are for a chat, which has the number in `top_logprobs`".into(),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": hello, "max_tokens": -1 }),
            "max_tokens",
            format!("{whole}; got -1"),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": hello, "temperature": [1] }),
            "temperature",
            "must be a number; got an array".into(),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": hello, "stream": 1 }),
            "stream",
            "must be `true` or `false`; got 1".into(),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": { "role": "user" } }),
            "messages",
            "must be an array; got an object".into(),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": ["hi"] }),
            "messages[0]",
            "must be an object; got a string".into(),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": hello, "stop": 1 }),
            "stop",
            "must be a string or an array of strings".into(),
        ),
        (
            "/v1/completions",
            json!({ "prompt": 1 }),
            "prompt",
            "must be a string, an array of strings, an array of tokens, or an array of such arrays".into(),
        ),
        (
            "/v1/embeddings",
            json!({ "input": "a", "dimensions": 1.5 }),
            "dimensions",
            format!("{whole}; got 1.5"),
        ),
        (
            "/v1/capabilities/chat",
            json!({ "stream": "yes" }),
            "stream",
            "must be `true` or `false`; got a string".into(),
        ),
        ("/admin/v1/keys", json!({ "name": 1 }), "name", "must be a string; got 1".into()),
    ] {
        let got = host.post(path, body.clone()).await;
        let error = &got.json()["error"];
        assert_eq!(got.status, 400, "{body}: {error}");
        assert_eq!(error["message"], format!("`{param}` {says}"), "{body}");
        assert_eq!((&error["param"], &error["code"]), (&json!(param), &json!("invalid_type")), "{body}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    let twice = r#"{"model":"script","model":"script","messages":[]}"#;
    let twice = host.post_with("/v1/chat/completions", &[], twice).await.json();
    assert_eq!(twice["error"]["message"], "`model` is there twice");
    assert_eq!(twice["error"]["param"], "model");
    let tensor = json!({ "inputs": [{ "name": "A", "shape": ["1"], "datatype": "INT32", "data": [1] }] });
    let tensor = host.post("/v2/models/script/infer", tensor).await.json();
    let whole = "must be a whole number from -9223372036854775808 to 9223372036854775807; got a string";
    assert_eq!(tensor["error"], format!("`inputs[0].shape[0]` {whole}"));
    host.stop().await;
}

#[actix_web::test]
async fn what_does_not_fit_the_context_is_named_as_the_caller_knows_it() {
    let host = start();
    let script = json!({ "fail": [11, "too long"], "reason": "context_length_exceeded" });
    let script_text = script.to_string();
    let late =
        json!({ "fail": [11, "too long"], "reason": "context_length_exceeded", "chunks": [{}] }).to_string();
    for (path, body, param) in [
        ("/v1/chat/completions", json!({ "messages": scripted(script.clone()) }), "messages"),
        ("/v1/chat/completions", json!({ "messages": scripted(script.clone()), "stream": true }), "messages"),
        ("/v1/completions", json!({ "prompt": script_text }), "prompt"),
        ("/v1/completions", json!({ "prompt": script_text, "stream": true }), "prompt"),
        ("/v1/embeddings", json!({ "input": "long ".repeat(100) }), "input"),
    ] {
        let mut body = body;
        body["model"] = "script".into();
        let got = host.post(path, body.clone()).await;
        let error = &got.json()["error"];
        assert_eq!((got.status, &error["param"]), (400, &json!(param)), "{body}: {error}");
        assert_eq!(error["code"], "context_length_exceeded");
        assert_eq!(error["type"], "invalid_request_error");
    }
    let got =
        host.post("/v1/completions", json!({ "model": "script", "prompt": late, "stream": true })).await;
    assert!(got.text().contains(r#""param":"prompt""#), "inside a stream too: {}", got.text());
    host.stop().await;
}

#[actix_web::test]
async fn several_prompts_are_several_requests() {
    let host = start();
    let ask = |prompt: Value| json!({ "model": "script", "prompt": prompt });
    let texts = |got: &crate::host::Got| -> Vec<(u64, String)> {
        assert_eq!(got.status, 200, "{}", got.text());
        let body = got.json();
        let choices = body["choices"].as_array().unwrap();
        choices
            .iter()
            .map(|choice| (choice["index"].as_u64().unwrap(), choice["text"].as_str().unwrap().to_owned()))
            .collect()
    };
    let got = host.post("/v1/completions", ask(json!("one two"))).await;
    assert_eq!(texts(&got), [(0, "one two".to_owned())]);
    assert_eq!(got.json()["object"], "text_completion");
    let got = host.post("/v1/completions", ask(json!(["a", "b"]))).await;
    assert_eq!(texts(&got), [(0, "a".to_owned()), (1, "b".to_owned())]);
    let got = host.post("/v1/completions", ask(json!([1, 2]))).await;
    assert_eq!(texts(&got), [(0, "[1, 2]".to_owned())]);
    let got = host.post("/v1/completions", ask(json!([[1], [2, 3]]))).await;
    assert_eq!(texts(&got), [(0, "[1]".to_owned()), (1, "[2, 3]".to_owned())]);

    let mut streamed = ask(json!(["a b", "c"]));
    streamed["stream"] = true.into();
    streamed["stream_options"] = json!({ "include_usage": true });
    let pieces = host.post("/v1/completions", streamed).await.pieces();
    for (index, text) in [(0, "a b"), (1, "c")] {
        let own = pieces
            .iter()
            .flat_map(|piece| piece["choices"].as_array().unwrap())
            .filter(|choice| choice["index"] == index);
        let (mut said, mut ends) = (String::new(), 0);
        for choice in own {
            said.push_str(choice["text"].as_str().unwrap());
            ends += usize::from(choice["finish_reason"] == "stop");
        }
        assert_eq!((said.as_str(), ends), (text, 1));
    }
    assert_eq!(pieces.last().unwrap()["choices"], json!([]));
    assert!(pieces.last().unwrap()["usage"].is_object());
    host.stop().await;
}

#[actix_web::test]
async fn completion_members_are_honoured_refused_or_listed() {
    let host = start();
    let params = |extra: Value| {
        let mut body = json!({ "model": "script", "prompt": r#"{"params": true}"# });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    let all = params(json!({
        "echo": true, "suffix": "end", "logprobs": 2, "max_tokens": 3, "n": 1, "best_of": 1, "stop": "x", "seed": 5,
        "temperature": 0.5, "top_p": 0.5, "frequency_penalty": 1, "presence_penalty": 1, "logit_bias": { "1": 2 },
        "user": "u",
    }));
    let got = host.post("/v1/completions", all).await;
    assert_eq!(got.status, 200, "{}", got.text());
    assert_eq!(got.header("x-ignored-params"), Some("user"));
    let seen: Value = serde_json::from_str(got.json()["choices"][0]["text"].as_str().unwrap()).unwrap();
    for (member, value) in [
        ("echo", json!(true)),
        ("suffix", json!("end")),
        ("logprobs", json!(2)),
        ("max_tokens", json!(3)),
        ("stop", json!(["x"])),
        ("seed", json!(5)),
        ("temperature", json!(0.5)),
        ("top_p", json!(0.5)),
        ("frequency_penalty", json!(1.0)),
        ("presence_penalty", json!(1.0)),
        ("logit_bias", json!({ "1": 2.0 })),
    ] {
        assert_eq!(seen[member], value, "{member}");
    }
    let seen = host.post("/v1/completions", params(json!({}))).await.json();
    let seen: Value = serde_json::from_str(seen["choices"][0]["text"].as_str().unwrap()).unwrap();
    assert_eq!(seen["max_tokens"], 16, "as OpenAI's default");
    for (extra, param) in [
        (json!({ "best_of": 3 }), "best_of"),
        (json!({ "logprobs": 21 }), "logprobs"),
        (json!({ "n": 9 }), "n"),
        (json!({ "prompt": [] }), "prompt"),
        (json!({ "prompt": { "a": 1 } }), "prompt"),
        (json!({ "prompt": vec!["x"; 65] }), "prompt"),
    ] {
        let got = host.post("/v1/completions", params(extra)).await;
        assert_eq!((got.status, got.json()["error"]["param"].clone()), (400, json!(param)), "{}", got.text());
    }
    host.stop().await;
}

#[actix_web::test]
async fn embeddings_come_as_numbers_and_as_base64() {
    use base64::Engine as _;
    let host = start();
    let ask = |extra: Value| {
        let mut body = json!({ "model": "script", "input": ["ab", "c"] });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    let got = host.post("/v1/embeddings", ask(json!({}))).await;
    assert_eq!(got.status, 200, "{}", got.text());
    let body = got.json();
    assert_eq!(body["object"], "list");
    assert_eq!(body["data"][1], json!({ "object": "embedding", "index": 1, "embedding": [1.0, 1.0] }));
    assert_eq!(body["usage"], json!({ "prompt_tokens": 2, "total_tokens": 2 }));

    let body = host
        .post("/v1/embeddings", ask(json!({ "encoding_format": "base64", "dimensions": 3 })))
        .await
        .json();
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(body["data"][0]["embedding"].as_str().unwrap())
        .unwrap();
    let numbers: Vec<f32> = bytes.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect();
    assert_eq!(numbers, [0.0, 2.0, 0.5]);

    let body = host.post("/v1/embeddings", ask(json!({ "input": [[1, 2, 3], [4]] }))).await.json();
    assert_eq!(body["data"][0]["embedding"], json!([0.0, 3.0]));
    let body = host.post("/v1/embeddings", ask(json!({ "input": [1, 2, 3] }))).await.json();
    assert_eq!(body["data"].as_array().unwrap().len(), 1);

    for (extra, param) in [
        (json!({ "input": [] }), "input"),
        (json!({ "input": ["a", ""] }), "input[1]"),
        (json!({ "input": vec!["x"; 2049] }), "input"),
        (json!({ "dimensions": 0 }), "dimensions"),
        (json!({ "encoding_format": "int8" }), "encoding_format"),
    ] {
        let got = host.post("/v1/embeddings", ask(extra)).await;
        assert_eq!((got.status, got.json()["error"]["param"].clone()), (400, json!(param)), "{}", got.text());
    }
    host.stop().await;
}

#[actix_web::test]
async fn models_are_listed_and_found_under_any_name() {
    let host =
        crate::host::start_with(&[("models.aliases.small", "script"), ("models.aliases.\"*\"", "script")]);
    let body = host.get("/v1/models").await.json();
    let ids: Vec<&str> =
        body["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["acme/script:2", "script"]);
    let model = host.get("/v1/models/script").await.json();
    assert_eq!(
        (model["object"].as_str(), model["owned_by"].as_str()),
        (Some("model"), Some("test.scripted"))
    );
    assert_eq!(model["state"], "idle");
    for path in
        ["/v1/models/acme/script:2", "/v1/models/acme%2Fscript%3A2", "/openai/v1/models/acme/script:2"]
    {
        assert_eq!(host.get(path).await.json()["id"], "acme/script:2", "{path}");
    }
    assert_eq!(host.get("/v1/models/small").await.json()["id"], "script");
    assert_eq!(host.get("/v1/models/gpt-6").await.json()["id"], "script");
    let got = host.post("/v1/chat/completions", json!({ "model": "gpt-6", "messages": user("x") })).await;
    assert_eq!(got.json()["model"], "script");
    assert_eq!(host.get("/v1/models/script").await.json()["context"], 4096, "known once it was open");
    host.stop().await;
}

#[actix_web::test]
async fn the_cache_is_told_of_and_can_be_passed_by() {
    let host = start();
    let ask = json!({ "model": "script", "messages": user("again"), "temperature": 0 }).to_string();
    let with = async |headers: &[(&str, &str)]| {
        let got = host.post_with("/v1/chat/completions", headers, ask.clone()).await;
        assert_eq!(got.status, 200, "{}", got.text());
        got.header("x-cache").unwrap().to_owned()
    };
    assert_eq!(with(&[]).await, "miss");
    assert_eq!(with(&[]).await, "exact");
    assert_eq!(with(&[("cache-control", "no-store")]).await, "bypass");
    assert_eq!(with(&[("cache-control", "no-cache")]).await, "miss");
    assert_eq!(with(&[("x-cache", "bypass")]).await, "bypass");
    host.stop().await;
}
