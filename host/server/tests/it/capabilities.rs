//! Any capability: one that the host has never heard of is called, streamed and documented like the others.

use crate::host::{Got, start, start_with};
use base64::Engine as _;
use serde_json::{Value, json};

const PATH: &str = "/v1/capabilities/test.unforeseen";

#[actix_web::test]
async fn an_unforeseen_capability_is_listed_documented_and_answers() {
    let host = start();
    let list = host.get("/v1/capabilities").await.json();
    let found = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .find(|entry| entry["name"] == "test.unforeseen")
        .unwrap()
        .clone();
    assert_eq!(found["models"], json!(["script"]));
    assert_eq!(host.get(PATH).await.json(), found);
    assert!(host.get("/openapi.json").await.json()["paths"][PATH]["post"].is_object());

    // A standard one has a schema without any manifest's, which the list leaves out.
    assert!(!list.to_string().contains("input_schema"), "{list}");
    let embed = host.get("/v1/capabilities/embed").await.json();
    let ours = &embed["schemas"][0];
    assert_eq!((ours.get("plugin"), &ours["version"]), (None, &json!(1)), "{embed}");
    assert!(ours["input_schema"]["properties"]["input"].is_object(), "{ours}");
    let document = host.get("/openapi.json").await.json();
    let asked = &document["paths"]["/v1/capabilities/embed"]["post"]["requestBody"];
    assert!(asked.to_string().contains("#/components/schemas/embed.1.input\""), "{asked}");
    assert!(document["components"]["schemas"]["embed.1.input"]["properties"]["dimensions"].is_object());

    let got = host.post(PATH, json!({ "params": { "a": [1, 2.50] } })).await;
    assert_eq!(got.status, 200, "{}", got.text());
    let body = got.json();
    assert_eq!(body["model"], "script");
    assert_eq!(body["result"], json!({ "count": 0, "params": { "a": [1, 2.5] } }));
    assert_eq!(body["confidence"], 0.75);
    assert!(body.get("chunks").is_none() && body["usage"].is_object());
    let body = host.post(PATH, json!({ "model": "script", "params": { "count": 3 } })).await.json();
    assert_eq!(body["chunks"].as_array().unwrap().len(), 3);
    assert_eq!(host.post_with(PATH, &[], "").await.status, 200, "no body means no parameters");
    host.stop().await;
}

#[actix_web::test]
async fn it_streams() {
    let host = start();
    let got = host.post(PATH, json!({ "params": { "count": 2 }, "stream": true })).await;
    assert_eq!(got.header("content-type"), Some("text/event-stream"));
    let pieces = got.pieces();
    assert_eq!(pieces.len(), 3);
    assert_eq!(pieces[1]["chunk"]["count"], 1);
    assert_eq!(pieces[2]["done"]["model"], "script");
    host.stop().await;
}

#[actix_web::test]
async fn tensors_go_in_and_out_in_each_form() {
    let host = start();
    let base64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let tensors = json!([
        { "name": "numbers", "datatype": "FP32", "shape": [2], "data": [1, 2.5] },
        { "name": "memory", "datatype": "INT16", "shape": [1], "base64": base64(&[1, 2]) },
        { "name": "half", "datatype": "FP16", "shape": [1], "base64": base64(&[0, 0x3c]) },
    ]);
    let body = host.post(PATH, json!({ "tensors": tensors })).await.json();
    assert_eq!(
        body["tensors"],
        json!([
            { "name": "numbers", "datatype": "FP32", "shape": [2], "data": [1.0, 2.5] },
            { "name": "memory", "datatype": "INT16", "shape": [1], "data": [513] },
            { "name": "half", "datatype": "FP16", "shape": [1], "base64": base64(&[0, 0x3c]) },
        ])
    );

    let head = json!({ "binary_data_output": true, "tensors": [
        { "name": "b", "datatype": "UINT8", "shape": [3], "parameters": { "binary_data_size": 3 } },
    ] })
    .to_string();
    let length = head.len().to_string();
    let mut sent = head.into_bytes();
    sent.extend_from_slice(b"\x00\xff\x7f");
    let got = host.post_with(PATH, &[("inference-header-content-length", &length)], sent).await;
    let length: usize = got.header("inference-header-content-length").unwrap().parse().unwrap();
    let head: Value = serde_json::from_slice(&got.body[..length]).unwrap();
    assert_eq!(head["tensors"][0]["parameters"]["binary_data_size"], 3);
    assert_eq!(&got.body[length..], b"\x00\xff\x7f");
    host.stop().await;
}

#[actix_web::test]
async fn what_is_wrong_is_named() {
    let host = start();
    let got = host.post("/v1/capabilities/nobody.offers.this", json!({})).await;
    assert_eq!(got.status, 404, "{}", got.text());
    assert_eq!(got.json()["error"]["code"], "capability_not_found");
    assert_eq!(host.get("/v1/capabilities/nobody.offers.this").await.status, 404);
    for (body, param) in [
        (json!({ "params": [] }), "params"),
        (json!({ "params": "x" }), "params"),
        (
            json!({ "tensors": [{ "name": "x", "datatype": "FP33", "shape": [], "data": [] }] }),
            "tensors[0].datatype",
        ),
        (json!({ "tensors": [{ "name": "x", "datatype": "FP32", "shape": [1] }] }), "tensors[0]"),
        (
            json!({ "tensors": [{ "name": "x", "datatype": "FP32", "shape": [1], "base64": "?" }] }),
            "tensors[0].base64",
        ),
        (json!({ "tensors": [{ "name": "x", "datatype": "FP32", "shape": [2], "data": [1] }] }), "x"),
    ] {
        let got = host.post(PATH, body).await;
        assert_eq!((got.status, got.json()["error"]["param"].clone()), (400, json!(param)), "{}", got.text());
    }
    let got = host.post(PATH, json!({ "unknown": 1 })).await;
    assert_eq!(got.header("x-ignored-params"), Some("unknown"));
    let tensor =
        json!({ "name": "x", "datatype": "UINT8", "shape": [1], "data": [1], "parameters": { "odd": 1 } });
    let got = host.post(PATH, json!({ "tensors": [tensor] })).await;
    assert_eq!(got.header("x-ignored-params"), Some("tensors[0].parameters.odd"));
    // What belongs into the parameters is not passed over.
    for (capability, body, param) in [
        ("embed", json!({ "input": ["a"] }), "input"),
        ("chat", json!({ "params": { "messages": [] }, "temperature": 0 }), "temperature"),
    ] {
        let got = host.post(&format!("/v1/capabilities/{capability}"), body).await;
        let error = &got.json()["error"];
        assert_eq!((got.status, &error["param"]), (400, &json!(param)), "{error}");
        let says = format!("\"{param}\" stands beside \"params\", and belongs in it");
        assert_eq!(error["message"], says);
    }
    // Events carry no memory.
    let streamed = json!({ "stream": true, "binary_data_output": true });
    let got = host.post(PATH, streamed.clone()).await;
    assert_eq!((got.status, got.header("x-ignored-params")), (200, Some("binary_data_output")));
    let got = host.post_with(PATH, &[("x-strict", "true")], streamed.to_string()).await;
    assert_eq!(got.status, 400, "{}", got.text());
    let got = host.post(PATH, json!({ "stream": true, "binary_data_output": false })).await;
    assert_eq!(got.header("x-ignored-params"), None);
    host.stop().await;
}

#[actix_web::test]
async fn an_answer_tells_who_won_and_who_was_refused_for_what_reason() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("weights"), "none").unwrap();
    let card = |name: &str, format: &str| {
        let path = folder.path().join(format!("{name}.toml"));
        let card = format!(
            "name = '{name}'\nformat = '{format}'\nplugin = 'test.scripted'\n\
             capabilities = ['test.unforeseen', 'chat', 'embed', 'tensor.infer']\n\
             [[files]]\nrole = 'model'\npath = 'weights'\n"
        );
        std::fs::write(&path, card).unwrap();
        path.display().to_string()
    };
    let cards = [card("down", "down"), card("kernel", "gpu"), card("giant", "big")];
    let host = start_with(&[("models.cards", &format!("{cards:?}"))]);
    let refused = |got: &Got| got.header("x-route-refused").map(str::to_owned);
    let all = Some("down=load_failed, giant=no_memory, kernel=device_missing");
    let asked = [
        (PATH, json!({})),
        (PATH, json!({ "stream": true })),
        ("/v1/chat/completions", json!({ "messages": [{ "role": "user", "content": "hello" }] })),
        (
            "/v1/chat/completions",
            json!({ "messages": [{ "role": "user", "content": "hi" }], "stream": true }),
        ),
        ("/v1/embeddings", json!({ "input": "hello" })),
    ];
    for (path, body) in asked {
        let got = host.post(path, body.clone()).await;
        assert_eq!(got.status, 200, "{path} {body}: {}", got.text());
        assert_eq!(refused(&got).as_deref(), all, "{path} {body}");
        let decision = got.header("x-route-decision").unwrap();
        assert!(decision.contains("plugin=test.scripted") && decision.contains("best of "), "{decision}");
        assert!(got.headers.values().all(|value| !value.to_str().unwrap().contains("secret")));
    }
    let named = host.post(PATH, json!({ "model": "script" })).await;
    assert_eq!((named.status, refused(&named)), (200, None), "who names a model is told of no other");
    let alone = host.post(PATH, json!({ "model": "kernel" })).await;
    assert_eq!((alone.status, &alone.json()["error"]["code"]), (503, &json!("device_missing")));
    // Who asks for a model to be opened gets past what the machine lacks, at once, and past nothing else.
    for (model, code) in [("kernel", None), ("giant", Some("no_memory")), ("down", Some("load_failed"))] {
        let loaded = host.post(&format!("/admin/v1/models/{model}/load"), json!({})).await;
        assert_eq!(loaded.json()["error"]["code"].as_str(), code, "{model}: {}", loaded.text());
    }
    host.stop().await;
}
