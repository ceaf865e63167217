//! Streams: what clients of OpenAI rely on, event by event.

use crate::host::{Got, Running, start};
use futures::StreamExt as _;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

fn ask(script: Value, extra: Value) -> Value {
    let mut body = json!({
        "model": "script", "stream": true, "messages": [{ "role": "user", "content": script.to_string() }],
    });
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

async fn stream(host: &Running, script: Value, extra: Value) -> Got {
    host.post("/v1/chat/completions", ask(script, extra)).await
}

#[actix_web::test]
async fn the_role_comes_first_and_the_end_is_marked() {
    let host = start();
    let script = json!({ "chunks": [{ "content": "né" }, { "content": "e" }, { "finish_reason": "stop" }],
        "usage": { "prompt_tokens": 1, "completion_tokens": 2 } });
    let got = stream(&host, script.clone(), json!({})).await;
    assert_eq!(got.header("content-type"), Some("text/event-stream"));
    assert_eq!(got.header("cache-control"), Some("no-cache"));
    assert_eq!(got.header("x-accel-buffering"), Some("no"));
    assert_eq!(got.header("x-model"), Some("script"));
    let pieces = got.pieces();
    let deltas: Vec<Value> = pieces.iter().map(|piece| piece["choices"][0]["delta"].clone()).collect();
    assert_eq!(
        deltas,
        [
            json!({ "role": "assistant", "content": "" }),
            json!({ "content": "né" }),
            json!({ "content": "e" }),
            json!({}),
        ]
    );
    assert_eq!(pieces[3]["choices"][0]["finish_reason"], "stop");
    assert!(pieces[..3].iter().all(|piece| piece["choices"][0]["finish_reason"].is_null()));
    assert!(
        pieces
            .iter()
            .all(|piece| piece["object"] == "chat.completion.chunk" && piece["id"] == pieces[0]["id"])
    );
    assert!(pieces.iter().all(|piece| piece.get("usage").is_none()), "nobody asked for it");

    let pieces = stream(&host, script, json!({ "stream_options": { "include_usage": true } })).await.pieces();
    let (last, others) = pieces.split_last().unwrap();
    assert!(others.iter().all(|piece| piece["usage"].is_null() && piece.get("usage").is_some()));
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["total_tokens"], 3);
    host.stop().await;
}

#[actix_web::test]
async fn tool_calls_and_choices_keep_their_index() {
    let host = start();
    let script = json!({ "chunks": [
        { "tool_calls": [{ "index": 0, "id": "c1", "name": "f", "arguments": "{" }] },
        { "tool_calls": [{ "index": 0, "arguments": "}" }] },
        { "index": 1, "content": "x", "finish_reason": "length" },
        { "finish_reason": "tool_calls" },
    ] });
    let pieces = stream(&host, script, json!({ "n": 2 })).await.pieces();
    let choices: Vec<&Value> = pieces.iter().map(|piece| &piece["choices"][0]).collect();
    assert_eq!(
        choices[1]["delta"]["tool_calls"],
        json!([{ "index": 0, "id": "c1", "type": "function", "function": { "name": "f", "arguments": "{" } }])
    );
    assert_eq!(choices[2]["delta"]["tool_calls"], json!([{ "index": 0, "function": { "arguments": "}" } }]));
    assert_eq!(
        (choices[3]["index"].clone(), choices[3]["delta"]["role"].clone()),
        (json!(1), json!("assistant"))
    );
    assert_eq!(choices[5]["finish_reason"], "tool_calls");
    host.stop().await;
}

#[actix_web::test]
async fn what_fails_before_the_first_piece_has_a_status() {
    let host = start();
    let got = stream(&host, json!({ "fail": [3, "`x` is wrong"] }), json!({})).await;
    assert_eq!(got.status, 400, "{}", got.text());
    assert_eq!(got.header("content-type"), Some("application/json"));
    assert_eq!(got.json()["error"]["message"], "`x` is wrong");
    let got = stream(&host, json!({}), json!({ "model": "nobody" })).await;
    assert_eq!(got.status, 404, "{}", got.text());
    host.stop().await;
}

#[actix_web::test]
async fn what_fails_later_is_an_event_and_no_end() {
    let host = start();
    let script = json!({ "chunks": [{ "content": "a" }], "every_ms": 50, "fail": [14, "gone"] });
    let got = stream(&host, script, json!({})).await;
    assert_eq!(got.status, 200);
    let events = got.events();
    let error: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(error["error"]["message"], "gone");
    assert!(!got.text().contains("[DONE]"));
    // So is an answer that ends without an end.
    let got = stream(&host, json!({ "chunks": [{ "content": "a" }], "every_ms": 50 }), json!({})).await;
    let events = got.events();
    let error: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(error["error"]["code"], "plugin_fault");
    host.stop().await;
}

#[actix_web::test]
async fn pieces_arrive_as_they_are_made() {
    let host = start();
    let script = json!({ "chunks": [{ "content": "a" }, { "content": "b" }, { "finish_reason": "stop" }], "every_ms": 300 });
    let body = ask(script, json!({})).to_string();
    let request =
        host.client.post(host.url("/v1/chat/completions")).header("content-type", "application/json");
    let mut bytes = request.body(body).send().await.unwrap().bytes_stream();
    let mut arrived = Vec::new();
    while let Some(part) = bytes.next().await {
        arrived.push(String::from_utf8(part.unwrap().to_vec()).unwrap());
    }
    assert!(3 <= arrived.len(), "{arrived:?}");
    assert!(!arrived[0].contains("\"b\""), "{arrived:?}");
    host.stop().await;
}

#[actix_web::test]
async fn a_client_that_leaves_frees_its_slot() {
    let host = start();
    let busy = || host.host.model("script").unwrap().running.map_or(0, |running| running.busy);
    let chunks: Vec<Value> = (0..2000).map(|count| json!({ "content": count.to_string() })).collect();
    let body = ask(json!({ "chunks": chunks, "every_ms": 10 }), json!({})).to_string();
    let request =
        host.client.post(host.url("/v1/chat/completions")).header("content-type", "application/json");
    let mut bytes = request.body(body).send().await.unwrap().bytes_stream();
    bytes.next().await.unwrap().unwrap();
    assert_eq!(busy(), 1);
    drop(bytes);
    let left = Instant::now();
    while busy() != 0 && left.elapsed() < Duration::from_secs(10) {
        actix_web::rt::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(busy(), 0);
    host.stop().await;
}
