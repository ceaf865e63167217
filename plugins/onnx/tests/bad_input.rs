//! Files that are no models, and models that reach for what is not theirs.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use backplane_registry::onnx::Graph;
use backplane_registry::onnx::Side::{Any, Is};
use backplane_testkit::{Code, DType, Failure, TensorInput};
use serde_json::json;
use support::{Made, floats, plugin};

fn add(weights: impl Fn(&mut Graph) -> &mut Graph) -> Vec<u8> {
    let (mut graph, rows) = (Graph::default(), [Any("batch"), Is(2)]);
    weights(graph.input("x", DType::Fp32, &rows).output("y", DType::Fp32, &rows))
        .node("Add", &["x", "w"], &["y"], &[])
        .finish("add")
}

fn refused(made: &Made) -> Failure {
    made.open().err().unwrap_or_else(|| panic!("it opened"))
}

#[test]
fn a_file_that_is_no_graph_is_the_models_fault() {
    let good = add(|graph| graph.floats("w", &[2], &[1.0, 2.0]));
    let graph = |operator: &str, takes: &str| {
        Graph::default()
            .input("x", DType::Fp32, &[Is(1)])
            .output("y", DType::Fp32, &[Is(1)])
            .node(operator, &[takes], &["y"], &[])
            .finish("wrong")
    };
    for (what, bytes) in [
        ("empty", vec![]),
        ("text", b"this is not a model".repeat(50)),
        ("cut", good[..good.len() - 20].to_vec()),
        ("gguf", [b"GGUF\x03\0\0\0".to_vec(), vec![0; 1000]].concat()),
        ("zeros", vec![0; 4096]),
        ("unknown operator", graph("NoSuch", "x")),
        ("unconnected", graph("Neg", "q")),
    ] {
        let failure = refused(&Made::of(&bytes, json!({})));
        assert_eq!(
            (failure.canonical(), &*failure.reason),
            (Some(Code::DataLoss), "model_invalid"),
            "{what}: {failure}"
        );
        assert!(
            failure.message.starts_with("model `made` is not an ONNX graph that can run: "),
            "{what}: {failure}"
        );
        assert!(
            failure.message.len() < 450 && !failure.message.contains("onnxruntime_src"),
            "{what}: {failure}"
        );
    }
    // It opens what is right afterwards.
    let instance = Made::of(&good, json!({})).instance();
    let answer =
        instance.submit("tensor.infer", "{}", vec![TensorInput::fp32("x", &[1, 2], &[0.0, 0.0])]).wait();
    assert_eq!(floats(&answer.tensor("y").unwrap().data), [1.0, 2.0]);
}

#[test]
fn a_card_without_a_readable_graph_says_so() {
    let gone = Made::of(&add(|graph| graph.floats("w", &[2], &[1.0, 2.0])), json!({}));
    std::fs::remove_file(gone.folder().join("model.onnx")).unwrap();
    let failure = refused(&gone);
    assert_eq!(&*failure.reason, "model_invalid");
    assert!(failure.message.contains("role `model` of model `made` cannot be read"), "{failure}");
    assert!(!failure.message.contains(&*gone.folder().to_string_lossy()), "no paths for callers: {failure}");
    let none = plugin().open(r#"{"name":"none","format":"onnx"}"#).err().unwrap();
    assert!(none.message.contains("no file with role `model`"), "{none}");
}

#[test]
fn weights_in_files_come_from_the_card_and_from_nowhere_else() {
    let bytes: Vec<u8> = [10.0f32, 20.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    let graph = |location: &str| add(|graph| graph.floats_elsewhere("w", &[2], location));
    let listed = Made::of(&graph("w.bin"), json!({})).file("external", "w.bin", &bytes);
    let answer = listed
        .instance()
        .submit("tensor.infer", "{}", vec![TensorInput::fp32("x", &[1, 2], &[0.0, 1.0])])
        .wait();
    assert_eq!(floats(&answer.tensor("y").unwrap().data), [10.0, 21.0]);

    // Beside the graph, but not in its card; outside; and by its whole path.
    let outside = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(outside.path(), &bytes).unwrap();
    let name = outside.path().file_name().unwrap().to_str().unwrap();
    for location in ["w.bin", &format!("../{name}"), outside.path().to_str().unwrap()] {
        let made = Made::of(&graph(location), json!({}));
        std::fs::write(made.folder().join("w.bin"), &bytes).unwrap();
        let failure = refused(&made);
        assert_eq!(&*failure.reason, "model_invalid", "{location}: {failure}");
    }
    let short = Made::of(&graph("w.bin"), json!({})).file("external", "w.bin", &bytes[..4]);
    assert_eq!(&*refused(&short).reason, "model_invalid");
}

#[test]
fn parameters_of_a_card_are_checked() {
    let made = |parameters| Made::of(&add(|graph| graph.floats("w", &[2], &[1.0, 2.0])), parameters);
    for (parameters, says) in [
        (json!({"thread": 1}), "`thread`"),
        (json!({"threads": 0}), "`threads` is 0"),
        (json!({"max_batch": "many"}), "`max_batch` must be a whole number"),
    ] {
        let failure = refused(&made(parameters));
        assert_eq!(failure.canonical(), Some(Code::InvalidArgument));
        assert!(
            failure.message.contains("[parameters] of model `made`") && failure.message.contains(says),
            "{failure}"
        );
    }
}
