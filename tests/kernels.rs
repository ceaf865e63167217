//! Kernels through the real program: on a machine without a GPU what is missing is said wherever somebody looks, and what NVRTC
//! makes of a source; on one with a GPU they answer.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

use e2e::{Server, root, state_with_models_of};
use serde_json::{Value, json};
use std::fmt::Write as _;
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

/// Opening a model for its own sake has NVRTC compile its source wherever that can run, so that whoever writes a kernel hears of
/// a mistake on a machine without a GPU; a request is refused by the bid, which compiles nothing.
#[test]
fn a_kernel_is_compiled_where_there_is_no_gpu_when_it_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let sound = "extern \"C\" __global__ void twice(const float* x, float* y, long long n) {\n    \
                 long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;\n    \
                 if (at < n) y[at] = 2 * x[at];\n}\n";
    let card = |name: &str, source: &str| {
        std::fs::write(folder.path().join(format!("{name}.cu")), source).unwrap();
        let path = folder.path().join(format!("{name}.toml"));
        let card = format!(
            "name = '{name}'\nformat = 'cuda'\ncapabilities = ['tensor.infer']\n\
             [[files]]\nrole = 'model'\nname = '{name}.cu'\npath = '{name}.cu'\n\
             [parameters]\ninputs = [{{ name = 'x', dtype = 'FP32', shape = ['n'] }}]\n\
             outputs = [{{ name = 'y', dtype = 'FP32', shape = ['n'] }}]\n\
             [[parameters.launch]]\nentry = 'twice'\ngrid = ['ceil_div(n, 256)']\nblock = [256]\n\
             arguments = ['x', 'y', 'n']\n"
        );
        std::fs::write(&path, card).unwrap();
        path
    };
    let cards = [card("sound", sound), card("broken", &sound.replace("2 * x[at]", "two * x[at]"))];
    let mut config = String::from("[models]\ncards = [");
    cards.iter().for_each(|card| write!(config, "{card:?}, ").unwrap());
    let server = Server::start_on(state_with_models_of(&[]), &format!("{config}]\n"));
    let wrong = "broken.cu(3): error: identifier \"two\" is undefined";

    // A request goes by the bid, and a load that comes right after it does not.
    let gpu = Path::new("/dev/nvidiactl").exists();
    let x = json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}]});
    if !gpu {
        let (status, refused) = server.post("/v2/models/broken/infer", &x);
        assert_eq!(status, 503, "{refused}");
        assert!(!refused.to_string().contains("NVRTC"), "{refused}");
    }
    for load in ["/v2/repository/models/broken/load", "/admin/v1/models/broken/load"] {
        let (status, refused) = server.post(load, &json!({}));
        assert_eq!(status, 422, "{load}: {refused}");
        // The Open Inference Protocol's errors are a text.
        let told = refused["error"].as_str().or(refused["error"]["message"].as_str()).unwrap();
        assert!(told.contains(wrong), "{told}");
    }
    // Wherever somebody looks.
    let (_, index) = server.post("/v2/repository/index", &json!({}));
    let of = |list: &Value, key: &str, name: &str| {
        list.as_array().unwrap().iter().find(|model| model[key] == name).unwrap().clone()
    };
    let listed = of(&index, "name", "broken");
    assert_eq!(listed["state"], "UNAVAILABLE");
    assert!(listed["reason"].as_str().unwrap().contains(wrong), "{listed}");
    for (path, key) in [("/v1/models", "id"), ("/admin/v1/models", "name")] {
        let listed = of(&server.get(path).1["data"], key, "broken");
        assert_eq!(listed["state"], "failed");
        assert!(listed["problem"].as_str().unwrap().contains(wrong), "{path}: {listed}");
    }
    let shown = server.cli(&["show", "broken"]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains(wrong), "{shown}");

    let (status, answer) = server.post("/v2/repository/models/sound/load", &json!({}));
    if gpu {
        assert_eq!(status, 200, "{answer}");
        let (status, answer) = server.post("/v2/models/sound/infer", &x);
        assert_eq!((status, &answer["outputs"][0]["data"]), (200, &json!([2.0, 4.0])));
        return;
    }
    assert_eq!(status, 503, "{answer}");
    let told = answer["error"].as_str().unwrap();
    assert!(told.starts_with("`sound.cu` was compiled by NVRTC 12."), "{told}");
    assert!(told.contains("no NVIDIA driver is installed here"), "{told}");
    let log = server.output.lock().unwrap().clone();
    let said =
        |line: &&str| line.contains("model not opened") && line.contains("`sound.cu` was compiled by NVRTC");
    assert_eq!(log.lines().filter(said).count(), 1, "{log}");
    // Of what was pulled `ls` tells as well, which lists nothing else.
    let pulled = server.cli(&["pull", cards[1].to_str().unwrap(), "--name", "pulled"]);
    assert!(pulled.status.success(), "{}", String::from_utf8_lossy(&pulled.stderr));
    assert_eq!(server.post("/v2/repository/models/pulled/load", &json!({})).0, 422);
    let list = String::from_utf8(server.cli(&["ls"]).stderr).unwrap();
    assert!(
        list.contains("warning: `pulled`: the kernel does not compile") && list.contains(wrong),
        "{list}"
    );
    let shown = String::from_utf8(server.cli(&["show", "pulled"]).stdout).unwrap();
    assert!(shown.contains(wrong), "{shown}");
}
