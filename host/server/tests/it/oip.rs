//! The Open Inference Protocol, as Triton's clients speak it.

use crate::host::{Got, Running, start};
use serde_json::{Value, json};

async fn ready() -> Running {
    let host = start();
    assert_eq!(host.post("/v2/repository/models/script/load", json!({})).await.status, 200);
    host
}

/// A body with memory behind its JSON.
async fn binary(host: &Running, json: Value, memory: &[u8]) -> Got {
    let json = json.to_string();
    let mut body = json.clone().into_bytes();
    body.extend_from_slice(memory);
    let length = json.len().to_string();
    host.post_with("/v2/models/script/infer", &[("inference-header-content-length", &length)], body).await
}

fn ints(values: &[i32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[actix_web::test]
async fn the_server_and_its_models_are_described() {
    let host = start();
    assert_eq!(host.get("/v2/health/live").await.status, 200);
    assert_eq!(host.get("/v2/health/ready").await.status, 200);
    let server = host.get("/v2").await.json();
    assert_eq!(server["name"], "backplane");
    assert!(server["extensions"].as_array().unwrap().contains(&json!("binary_tensor_data")));

    assert_eq!(host.get("/v2/models/script/ready").await.status, 503);
    let got = host.get("/v2/models/script").await;
    assert_eq!(got.status, 503, "its tensors are not known before it was open: {}", got.text());
    assert_eq!(host.post("/v2/repository/models/script/load", json!({})).await.status, 200);
    assert_eq!(host.get("/v2/models/script/ready").await.status, 200);
    assert_eq!(host.get("/v2/models/script/versions/1/ready").await.status, 200);
    assert_eq!(host.get("/v2/models/script/versions/2/ready").await.status, 404);

    let model = host.get("/v2/models/script").await.json();
    assert_eq!((model["name"].as_str(), model["platform"].as_str()), (Some("script"), Some("scripted")));
    assert_eq!(model["versions"], json!(["1"]));
    assert_eq!(model["inputs"][0], json!({ "name": "A", "datatype": "INT32", "shape": [-1] }));
    let config = host.get("/v2/models/script/config").await.json();
    assert_eq!(config["input"][1], json!({ "name": "B", "data_type": "TYPE_INT32", "dims": [-1] }));
    assert_eq!(config["max_batch_size"], 0);
    host.stop().await;
}

#[actix_web::test]
async fn tensors_go_in_and_out_as_json() {
    let host = ready().await;
    let body = json!({ "id": "7", "inputs": [
        { "name": "A", "shape": [3], "datatype": "INT32", "data": [1, 2, 3] },
        { "name": "B", "shape": [3], "datatype": "INT32", "data": [[10], [20], [30]] },
    ] });
    let got = host.post("/v2/models/script/infer", body.clone()).await;
    assert_eq!(got.status, 200, "{}", got.text());
    assert_eq!(
        got.json(),
        json!({ "model_name": "script", "model_version": "1", "id": "7",
                "outputs": [{ "name": "SUM", "datatype": "INT32", "shape": [3], "data": [11, 22, 33] }] })
    );
    assert_eq!(got.header("inference-header-content-length"), None);
    assert_eq!(got.header("x-ignored-params"), None);
    let mut odd = body.clone();
    odd["inputs"][1]["parameters"] = json!({ "content_type": "np", "none": null });
    let got = host.post("/v2/models/script/infer", odd.clone()).await;
    assert_eq!(
        (got.status, got.header("x-ignored-params")),
        (200, Some("inputs[1].parameters.content_type"))
    );
    let strict = host.post_with("/v2/models/script/infer", &[("x-strict", "true")], odd.to_string()).await;
    assert_eq!(strict.status, 400, "{}", strict.text());
    let got = host.post("/v2/models/script/versions/1/infer", body).await;
    assert_eq!(got.status, 200, "{}", got.text());
    host.stop().await;
}

#[actix_web::test]
async fn tensors_go_in_and_out_as_binary_data() {
    let host = ready().await;
    let input = |name: &str| json!({ "name": name, "shape": [2], "datatype": "INT32", "parameters": { "binary_data_size": 8 } });
    let memory: Vec<u8> = [ints(&[1, 2]), ints(&[3, 4])].concat();
    // In only.
    let body = json!({ "inputs": [input("A"), input("B")], "outputs": [{ "name": "SUM" }] });
    assert_eq!(binary(&host, body, &memory).await.json()["outputs"][0]["data"], json!([4, 6]));
    // Both, by the output's own word and by the request's.
    for extra in [
        json!({ "outputs": [{ "name": "SUM", "parameters": { "binary_data": true } }] }),
        json!({ "parameters": { "binary_data_output": true } }),
    ] {
        let mut body = json!({ "inputs": [input("A"), input("B")] });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let got = binary(&host, body, &memory).await;
        assert_eq!(got.status, 200, "{}", got.text());
        assert_eq!(got.header("content-type"), Some("application/octet-stream"));
        let length: usize = got.header("inference-header-content-length").unwrap().parse().unwrap();
        let head: Value = serde_json::from_slice(&got.body[..length]).unwrap();
        assert_eq!(head["outputs"][0]["parameters"], json!({ "binary_data_size": 8 }));
        assert_eq!(&got.body[length..], ints(&[4, 6]));
    }
    // Out only.
    let json_in = |name: &str| json!({ "name": name, "shape": [1], "datatype": "INT32", "data": [5] });
    let body =
        json!({ "inputs": [json_in("A"), json_in("B")], "parameters": { "binary_data_output": true } });
    let got = host.post("/v2/models/script/infer", body).await;
    assert!(got.body.ends_with(&ints(&[10])));
    host.stop().await;
}

#[actix_web::test]
async fn strings_and_half_floats_keep_their_bytes() {
    let host = ready().await;
    let body = json!({ "inputs": [{ "name": "S", "shape": [2], "datatype": "BYTES", "data": ["é", ""] }] });
    let got = host.post("/v2/models/script/infer", body).await.json();
    assert_eq!(got["outputs"][0]["data"], json!(["é", ""]));

    let half =
        json!({ "name": "H", "shape": [2], "datatype": "FP16", "parameters": { "binary_data_size": 4 } });
    let body = json!({ "inputs": [half], "parameters": { "binary_data_output": true } });
    assert!(binary(&host, body, &[0, 0x3c, 0, 0x40]).await.body.ends_with(&[0, 0x3c, 0, 0x40]));
    // JSON has no half floats, and no NaN: that is said, not rounded.
    let got = binary(&host, json!({ "inputs": [half] }), &[0; 4]).await;
    assert_eq!(got.status, 400);
    assert!(got.json()["error"].as_str().unwrap().contains("binary_data"));
    let nan =
        json!({ "name": "N", "shape": [1], "datatype": "FP32", "parameters": { "binary_data_size": 4 } });
    let got = binary(&host, json!({ "inputs": [nan] }), &f32::NAN.to_le_bytes()).await;
    assert_eq!(got.status, 400, "{}", got.text());
    let got = host
        .post(
            "/v2/models/script/infer",
            json!({ "inputs": [{ "name": "H", "shape": [1], "datatype": "FP16", "data": [1] }] }),
        )
        .await;
    assert_eq!(got.status, 400, "{}", got.text());
    host.stop().await;
}

#[actix_web::test]
async fn what_is_wrong_is_one_line_of_error() {
    let host = ready().await;
    let input = |extra: Value| {
        let mut input = json!({ "name": "A", "shape": [2], "datatype": "INT32" });
        input.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!({ "inputs": [input] })
    };
    for body in [
        input(json!({ "data": [1] })),
        input(json!({ "data": [1, 2, 3] })),
        input(json!({ "data": [1, "2"] })),
        input(json!({ "data": [1, 2.5] })),
        input(json!({})),
        input(json!({ "data": [1, 2], "datatype": "INT33" })),
        input(json!({ "data": [1, 2], "shape": [-2] })),
        input(json!({ "data": [1, 2], "shape": [9223372036854775807i64, 2] })),
        input(json!({ "data": [1, 2], "parameters": { "binary_data_size": 0 } })),
        input(json!({ "data": [1, 2], "parameters": { "shared_memory_region": "r" } })),
        json!({ "inputs": [{ "name": "X", "shape": [1], "datatype": "BOOL", "data": [true] }],
                "outputs": [{ "name": "X" }, { "name": "X" }] }),
        json!({ "inputs": "no" }),
        json!({}),
    ] {
        let got = host.post("/v2/models/script/infer", body.clone()).await;
        assert_eq!(got.status, 400, "{body}: {}", got.text());
        let answer = got.json();
        let members: Vec<&String> = answer.as_object().unwrap().keys().collect();
        assert_eq!(members, ["error"], "{answer}");
        assert!(answer["error"].is_string());
    }
    let sized = |size: usize| input(json!({ "parameters": { "binary_data_size": size } }));
    for (size, memory) in [(8, 7), (8, 9), (4, 4)] {
        assert_eq!(binary(&host, sized(size), &vec![0; memory]).await.status, 400, "{size} {memory}");
    }
    let got =
        host.post_with("/v2/models/script/infer", &[("inference-header-content-length", "99")], "{}").await;
    assert_eq!(got.status, 400);
    let unknown = host.get("/v2/models/nobody").await;
    assert_eq!(unknown.status, 404);
    assert!(unknown.json()["error"].as_str().unwrap().contains("nobody"));
    assert_eq!(host.post("/v2/models/nobody/infer", json!({ "inputs": [] })).await.status, 404);
    assert!(host.get("/v2/nowhere").await.json()["error"].is_string());
    let got =
        host.post("/v2/models/script/infer", json!({ "inputs": [], "outputs": [{ "name": "NONE" }] })).await;
    assert_eq!(got.status, 400, "{}", got.text());
    host.stop().await;
}

#[actix_web::test]
async fn an_unknown_model_stays_unknown_where_the_star_is_set() {
    let host = crate::host::start_with(&[("models.aliases.\"*\"", "script")]);
    assert_eq!(host.get("/v2/models/nobody").await.status, 404);
    assert_eq!(host.post("/v2/repository/models/nobody/load", json!({})).await.status, 404);
    host.stop().await;
}

#[actix_web::test]
async fn models_are_loaded_listed_counted_and_unloaded() {
    let host = start();
    let index = async |body: Value| {
        let list = host.post("/v2/repository/index", body).await.json();
        let list = list.as_array().unwrap().clone();
        list.into_iter()
            .map(|entry| format!("{} {}", entry["name"].as_str().unwrap(), entry["state"].as_str().unwrap()))
            .collect::<Vec<_>>()
    };
    assert_eq!(index(json!({})).await, ["acme/script:2 UNAVAILABLE", "script UNAVAILABLE"]);
    assert_eq!(host.post("/v2/repository/models/acme/script:2/load", json!({})).await.status, 200);
    assert_eq!(host.post("/v2/repository/models/script/load", json!({})).await.status, 200);
    assert_eq!(index(json!({ "ready": true })).await, ["acme/script:2 READY", "script READY"]);
    let body = json!({ "inputs": [{ "name": "X", "shape": [1], "datatype": "BOOL", "data": [true] }] });
    assert_eq!(host.post("/v2/models/script/infer", body).await.status, 200);
    let stats = host.get("/v2/models/script/stats").await.json();
    assert_eq!(stats["model_stats"][0]["inference_stats"]["success"]["count"], 1, "{stats}");
    assert!(stats["model_stats"][0]["inference_stats"]["success"]["ns"].as_u64().unwrap() > 0);
    assert_eq!(host.get("/v2/models/stats").await.json()["model_stats"].as_array().unwrap().len(), 2);
    let unload = json!({ "parameters": { "unload_dependents": false } });
    assert_eq!(host.post("/v2/repository/models/script/unload", unload).await.status, 200);
    assert_eq!(host.get("/v2/models/script/ready").await.status, 503);
    // What it takes is known since it was open, and looking does not open it again.
    assert_eq!(host.get("/v2/models/script").await.status, 200);
    assert_eq!(host.get("/v2/models/script/ready").await.status, 503);
    assert_eq!(index(json!({ "ready": true })).await, ["acme/script:2 READY"]);
    let changed = json!({ "parameters": { "config": "{}" } });
    assert_eq!(host.post("/v2/repository/models/script/load", changed).await.status, 400);
    host.stop().await;
}

#[actix_web::test]
async fn settings_are_told_and_not_changed() {
    let host = start();
    assert_eq!(host.get("/v2/trace/setting").await.json()["trace_level"], json!(["OFF"]));
    assert_eq!(host.get("/v2/models/script/trace/setting").await.json()["trace_level"], json!(["OFF"]));
    assert_eq!(host.post("/v2/trace/setting", json!({ "trace_level": ["TIMESTAMPS"] })).await.status, 400);
    assert_eq!(host.post("/v2/trace/setting", json!({ "trace_rate": null })).await.status, 200);
    let log = host.get("/v2/logging").await.json();
    assert_eq!(log["log_info"], true);
    assert_eq!(host.post("/v2/logging", log).await.status, 200);
    assert_eq!(host.post("/v2/logging", json!({ "log_verbose_level": 1 })).await.status, 400);
    for kind in ["system", "cuda"] {
        assert_eq!(host.get(&format!("/v2/{kind}sharedmemory/status")).await.json(), json!([]));
        assert_eq!(host.post(&format!("/v2/{kind}sharedmemory/unregister"), json!({})).await.status, 200);
        let got =
            host.post(&format!("/v2/{kind}sharedmemory/region/r/register"), json!({ "key": "/k" })).await;
        assert_eq!(got.status, 400);
        assert!(got.json()["error"].as_str().unwrap().contains("`r`"));
    }
    host.stop().await;
}
