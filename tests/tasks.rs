//! Every task at one server, as people ask for it: what a page says, what a photograph shows, a document in another language,
//! a chat of a server behind it, and what becomes of kernels here: one that NVRTC compiles, and one that it does not.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

use e2e::{Server, python, root, state_with_models_of};
use serde_json::{Value, json};
use std::path::Path;

/// A scanned page and a photograph, of those that scikit-image comes with.
const UNPACK: &str = "import glob, sys, zipfile
wheel = zipfile.ZipFile(glob.glob(sys.argv[1] + '/scikit_image*.whl')[0])
for name in ('page', 'coffee'):
    open(sys.argv[2] + '/' + name + '.png', 'wb').write(wheel.read('skimage/data/' + name + '.png'))";

/// What a command printed; it went well.
fn said(server: &Server, arguments: &[&str]) -> String {
    let output = server.cli(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn one_server_answers_every_task() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let packages = Path::new(python().get_program()).parent().unwrap().join("../../sdist");
    let unpacked = python().args(["-c", UNPACK]).arg(packages).arg(folder.path()).status().unwrap();
    assert!(unpacked.success(), "the wheel of scikit-image is missing: run `make e2e`");

    let far = Server::start_on(state_with_models_of(&["smollm2"]), "");
    std::fs::write(path("key"), &far.key).unwrap();
    let card = format!(
        "name = 'far'\nformat = 'openai'\ncapabilities = ['chat']\n[parameters]\nmodel = 'smollm2'\n\
         upstream = {{ url = '{}/v1', flavour = 'backplane', keys = ['file:{}'] }}\n",
        far.url,
        path("key")
    );
    std::fs::write(path("far.toml"), card).unwrap();
    let kernel = root().join("plugins/cuda/kernels/image-prepare.toml");
    // The same with a slip of the pen.
    for ending in ["toml", "cu", "ptx"] {
        let text = std::fs::read_to_string(kernel.with_extension(ending)).unwrap();
        let text = text.replace("int x = blockIdx.x", "int x = blockIdx.w");
        let text = text.replace("name = \"image-prepare\"", "name = \"slip\"");
        std::fs::write(path(&format!("image-prepare.{ending}")), text).unwrap();
    }
    let slip = path("image-prepare.toml");
    let models = ["pp-ocr", "yolov3-tiny", "lid.176", "magika", "onnxruntime"];
    let config = format!("[models]\ncards = [{:?}, {kernel:?}, {slip:?}]\n", path("far.toml"));
    let near = Server::start_on(state_with_models_of(&models), &config);

    let page = said(&near, &["ocr", &path("page.png")]);
    // RapidOCR leaves out the same spaces.
    assert!(page.replace(' ', "").contains("Region-basedsegmentation"), "{page}");

    let shown = said(&near, &["detect", &path("coffee.png"), "--draw", &path("boxes.png")]);
    assert!(shown.contains("cup"), "{shown}");
    let (before, drawn) =
        (std::fs::read(path("coffee.png")).unwrap(), std::fs::read(path("boxes.png")).unwrap());
    // The width and the height of a PNG stand at the same place.
    assert!(drawn.starts_with(b"\x89PNG") && drawn[16..24] == before[16..24] && drawn != before);

    std::fs::write(
        path("house.md"),
        "# The house\n\n- The **house** is big: [see](https://a.b/c) `the house`.\n",
    )
    .unwrap();
    let spanish = said(&near, &["translate", "--from", "en", "--to", "es", &path("house.md")]);
    assert!(spanish.starts_with("# La casa\n\n- La **casa** es grande: ["), "{spanish}");
    assert!(spanish.ends_with("](https://a.b/c) `the house`.\n"), "{spanish}");

    let question =
        json!([{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]);
    let body = json!({"model": "far", "messages": question, "temperature": 0, "max_tokens": 16});
    let (status, answer) = near.post("/v1/chat/completions", &body);
    assert_eq!(status, 200, "{answer}");
    assert!(answer["choices"][0]["message"]["content"].as_str().unwrap().contains("Paris"), "{answer}");

    // By its capability alone: the kernel would have been asked, and why it was not is told, with who was.
    let bytes = json!({"name": "bytes", "datatype": "INT32", "shape": [1, 2048], "data": vec![0; 2048]});
    let asked = near.request("POST", "/v1/capabilities/tensor.infer").json(&json!({"tensors": [bytes]}));
    let answer = asked.send().unwrap();
    assert_eq!(answer.status(), 200);
    let header =
        |name: &str| answer.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
    let (decision, refused) = (header("x-route-decision"), header("x-route-refused"));
    assert!(decision.contains("plugin=dev.backplane.onnx"), "{decision}");
    let (status, told) = near.post("/v2/repository/models/slip/load", &json!({}));
    assert_eq!(status, 422, "{told}");
    let wrong = "image-prepare.cu(11): error: class \"uint3\" has no member \"w\"";
    assert!(told["error"].as_str().unwrap().contains(wrong), "{told}");
    assert!(said(&near, &["show", "slip"]).contains(wrong));
    let (status, told) = near.post("/v2/repository/models/image-prepare/load", &json!({}));
    if Path::new("/dev/nvidiactl").exists() {
        assert_eq!(status, 200, "{told}");
    } else {
        assert_eq!(status, 503, "{told}");
        let told = told["error"].as_str().unwrap();
        assert!(told.starts_with("`image-prepare.cu` was compiled by NVRTC 12."), "{told}");
        assert!(refused.contains("image-prepare=device_missing"), "{refused}");
        let plugins: Value = serde_json::from_str(&said(&near, &["plugin", "ls", "--json"])).unwrap();
        let cuda = plugins.as_array().unwrap().iter().find(|plugin| plugin["id"] == "dev.backplane.cuda");
        let problem = cuda.unwrap()["problem"].as_str().unwrap();
        assert!(problem.contains("no NVIDIA driver is installed here"), "{problem}");
    }
}
