//! A kernel through the real program: on a machine without a GPU what is missing is said wherever somebody looks, and on one
//! with a GPU it answers.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

use e2e::{Server, root, state_with_models_of};
use serde_json::{Value, json};
use std::path::Path;

#[test]
fn a_kernel_that_cannot_run_here_says_why() {
    let why = "no NVIDIA driver is installed here";
    let card = root().join("plugins/cuda/kernels/image-prepare.toml");
    let server =
        Server::start_on(state_with_models_of(&["magika"]), &format!("[models]\ncards = [{card:?}]\n"));
    if Path::new("/dev/nvidiactl").exists() {
        let tensor = |name: &str, datatype: &str, shape: Value, data: Value| json!({"name": name, "datatype": datatype, "shape": shape, "data": data});
        let inputs = [
            tensor("pictures", "UINT8", json!([1, 1, 2, 3]), json!([0, 51, 255, 102, 153, 204])),
            tensor("regions", "FP32", json!([1, 4]), json!([0, 0, 2, 1])),
            tensor("mean", "FP32", json!([3]), json!([0, 0, 0])),
            tensor("scale", "FP32", json!([3]), json!([5, 5, 5])),
        ];
        let body = json!({"inputs": inputs, "parameters": {"height": 1, "width": 2}});
        let (status, answer) = server.post("/v2/models/image-prepare/infer", &body);
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["outputs"][0]["data"], json!([0.0, 2.0, 1.0, 3.0, 5.0, 4.0]));
        return;
    }
    let (_, plugins) = server.get("/admin/v1/plugins");
    let cuda = plugins["data"]
        .as_array()
        .unwrap()
        .iter()
        .find(|plugin| plugin["id"] == "dev.backplane.cuda")
        .unwrap();
    assert_eq!(cuda["ready"], true, "{cuda}");
    assert!(cuda["problem"].as_str().unwrap().contains(why), "{cuda}");
    let doctor = String::from_utf8(server.cli(&["doctor"]).stdout).unwrap();
    assert!(doctor.contains(&format!("dev.backplane.cuda: {why}")), "{doctor}");

    let body = json!({"inputs": [{"name": "mean", "datatype": "FP32", "shape": [3], "data": [0, 0, 0]}]});
    let (status, refused) = server.post("/v2/models/image-prepare/infer", &body);
    assert_eq!(status, 503, "{refused}");
    assert!(refused.to_string().contains(why), "{refused}");
    // Who names a capability and no model is served by another, and told so.
    let bytes = json!({"name": "bytes", "datatype": "INT32", "shape": [1, 2048], "data": vec![0; 2048]});
    let asked = server.request("POST", "/v1/capabilities/tensor.infer").json(&json!({"tensors": [bytes]}));
    let answer = asked.send().unwrap();
    assert_eq!(answer.status(), 200);
    let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
    assert!(header("x-route-decision").starts_with("magika; plugin=dev.backplane.onnx"), "{answer:?}");
    assert_eq!(header("x-route-refused"), "image-prepare=device_missing");
    let lines = server.output.lock().unwrap().matches(&format!("\"message\":\"{why}")).count();
    assert_eq!(lines, 1, "the plugin itself says it once in the log");
}
