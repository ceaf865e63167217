//! What does a task and has others compute for it, or needs nobody: vision, translation, vector.

use crate::support::LONG;
use crate::{cache, confined, confined_to, pulled, state};
use backplane::isolation::Granted;
use backplane_testkit::{
    CallInput, Case, Chunk, Code, Failure, Instance, PluginTest, TensorInput, TensorOutput,
};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

/// The answer to a call that no model of the test serves.
fn nobody() -> Failure {
    Failure { code: Code::NotFound as i32, message: "nobody serves it here".to_owned(), ..Failure::default() }
}

/// The graphs of a model, run by the onnx plugin in this process: what the host does for it.
fn graphs(model: &Value) -> impl Fn(&CallInput) -> Result<Vec<Chunk>, Failure> + Send + Sync + 'static {
    let settings = json!({"runtimes": state().join("runtimes")}).to_string();
    let onnx = PluginTest::build("backplane-onnx").unwrap().config(settings);
    let name = model["name"].as_str().unwrap();
    let graph = |file: &Value| {
        let role = file["role"].as_str().unwrap();
        let mut graph = file.clone();
        graph["role"] = json!("model");
        let name = format!("{name}.{role}");
        let card =
            json!({"name": name, "format": "onnx", "capabilities": ["tensor.infer"], "files": [graph]});
        (name, onnx.open(&card.to_string()).unwrap().instance().unwrap())
    };
    let is_graph = |file: &&Value| file["name"].as_str().unwrap().ends_with(".onnx");
    let files = model["files"].as_array().unwrap();
    let open: Vec<(String, Instance)> = files.iter().filter(is_graph).map(graph).collect();
    move |call| {
        if call.capability != "tensor.infer" {
            return Err(nobody());
        }
        let (_, graph) = open.iter().find(|(name, _)| *name == call.model).expect("a graph of the model");
        let tensor = |tensor: &TensorOutput| {
            TensorInput::new(&tensor.name, tensor.dtype, &tensor.shape, tensor.data.clone())
        };
        let inputs = call.tensors.iter().map(tensor).collect();
        let answer = graph.submit(&call.capability, &call.params.to_string(), inputs).wait();
        answer.failure().map_or(Ok(answer.chunks.clone()), |failure| Err(failure.clone()))
    }
}

/// Stripes of grey: a picture that needs no library to be written.
fn picture() -> Vec<u8> {
    let pixels = (0..96u32 * 64).map(|at| (at % 96 * 2) as u8);
    [b"P5 96 64 255\n".to_vec(), pixels.collect()].concat()
}

#[test]
fn vision() {
    let model = pulled("efficientnet-lite0", json!({}));
    let image = TensorInput::strings("image", &[1], &[picture()]);
    let cases = ["vision.classify", "vision.embed"]
        .map(|task| Case::new(model.to_string(), task, "{}").named(task).tensor(image.clone()));
    let worker = confined("backplane-vision").answering(graphs(&model));
    worker.check_conformance(&cases).assert_ok();
}

#[test]
fn translation() {
    // Apertium is programs of the system, and a worker starts none: what translates is another plugin, by `chat`.
    let chat = |call: &CallInput| {
        // Who is not told the language asks which it is.
        if call.capability != "chat" {
            return Err(nobody());
        }
        let question = call.params["messages"].to_string();
        let answer = if question.contains("from English to Spanish") { "El gato negro duerme." } else { "?" };
        Ok(vec![json!({"index": 0, "content": answer, "finish_reason": "stop"})])
    };
    let translator = json!({
        "name": "translator", "capabilities": ["translate", "language.list"], "parameters": {"engines": ["chat"]},
    });
    let whatlang = json!({"name": "whatlang", "capabilities": ["language.detect"]});
    let lid = pulled("lid.176", json!({}));
    let translate = json!({"text": ["The black cat sleeps."], "source": "en", "target": "es"}).to_string();
    let detect = json!({"text": ["Où est la bibliothèque ?"]}).to_string();
    let cases = [
        Case::new(translator.to_string(), "translate", translate).named("translate"),
        Case::new(translator.to_string(), "language.list", "{}").named("language.list"),
        Case::new(whatlang.to_string(), "language.detect", &*detect).named("whatlang"),
        Case::new(lid.to_string(), "language.detect", &*detect).named("lid.176"),
    ];
    confined("backplane-translation").answering(chat).check_conformance(&cases).assert_ok();
}

/// A model that is made here as Marian's are, with its graphs run by another plugin: a call for each token.
#[test]
fn translation_of_a_sequence() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/translation/tests");
    let folder = tempfile::tempdir().unwrap();
    let made = Command::new(cache("BACKPLANE_TEST_PYTHON", "venv/bin/python"))
        .arg(tests.join("seq2seq/make.py"))
        .args([folder.path(), &tests.join("data/languages.tsv")])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let file = |(role, name): (&str, &str)| {
        let path = folder.path().join(name);
        json!({"role": role, "name": name, "size": path.metadata().unwrap().len(), "path": path})
    };
    let files = [
        ("encoder", "encoder_model.onnx"),
        ("decoder", "decoder_model.onnx"),
        ("decoder_with_past", "decoder_with_past_model.onnx"),
        ("config", "config.json"),
        ("generation_config", "generation_config.json"),
        ("vocabulary", "vocab.json"),
        ("source", "source.spm"),
        ("target", "target.spm"),
    ];
    let model = json!({
        "name": "made", "format": "marian", "capabilities": ["translate"], "languages": ["en", "es"],
        "files": files.map(file),
    });
    let reference = std::fs::read(folder.path().join("reference.json")).unwrap();
    let reference: Value = serde_json::from_slice(&reference).unwrap();
    let texts: Vec<&Value> = reference["texts"].as_array().unwrap().iter().map(|pair| &pair[0]).collect();
    let params = |texts: &[&Value]| json!({"text": texts, "source": "en", "target": "es"}).to_string();
    let plugins = || {
        let granted = Granted { read: vec![folder.path().to_owned()], ..Granted::default() };
        [confined_to("backplane-translation", granted), PluginTest::build("backplane-translation").unwrap()]
            .map(|plugin| plugin.answering(graphs(&model)))
    };
    let [worker, in_process] = plugins();
    let case = Case::new(model.to_string(), "translate", params(&texts[..1])).slow(params(&texts));
    worker.check_conformance(&[case]).assert_ok();

    let ask = |plugin: PluginTest| {
        let instance = plugin.patience(LONG).open(&model.to_string()).unwrap().instance().unwrap();
        let answer = instance.submit("translate", &params(&texts[..5]), vec![]).wait();
        assert!(answer.failure().is_none(), "{}", answer.end);
        answer.json().clone()
    };
    assert_eq!(ask(worker), ask(in_process));
}

#[test]
fn vector() {
    // Its folder is there and may not be written: collections last as long as the worker.
    let folder = tempfile::tempdir().unwrap();
    let model = r#"{"name":"vectors","capabilities":["vector.search"]}"#;
    let create = json!({"operation": "create", "collection": "docs", "dimension": 2}).to_string();
    let cases = [
        Case::new(model, "vector.search", create).named("create"),
        Case::new(model, "vector.search", json!({"operation": "list"}).to_string()).named("list").varies(),
    ];
    let settings = json!({"data": folder.path()}).to_string();
    let worker = confined("backplane-vector").config(settings);
    worker.check_conformance(&cases).assert_ok();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
