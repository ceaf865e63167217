//! Without ONNX Runtime, with a wrong one, and with the right one that comes later. One test: a process that has loaded
//! the library once has it for ever.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use backplane_registry::onnx::Graph;
use backplane_registry::onnx::Side::Any;
use backplane_testkit::{Code, DType, Failure, PluginTest, TensorInput};
use serde_json::json;
use std::path::Path;
use std::process::Command;
use support::{Made, floats, state};

fn plugin(runtime: &Path) -> PluginTest {
    PluginTest::of(backplane_onnx::backplane_export::bp_entry_v1)
        .config(json!({"runtime": runtime}).to_string())
}

/// A library that says it is ONNX Runtime of this version, or says nothing.
fn fake(path: &Path, version: Option<&str>) {
    let source = path.with_extension("c");
    let code = match version {
        Some(version) => format!(
            "static const void *api(unsigned v) {{ (void)v; return 0; }}\n\
             static const char *version(void) {{ return \"{version}\"; }}\n\
             static const struct {{ const void *(*a)(unsigned); const char *(*b)(void); }} base = {{ api, version }};\n\
             const void *OrtGetApiBase(void) {{ return &base; }}\n"
        ),
        None => "int nothing(void) { return 0; }\n".to_owned(),
    };
    std::fs::write(&source, code).unwrap();
    let made = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(path).arg(&source).status();
    assert!(
        made.is_ok_and(|status| status.success()),
        "a C compiler is needed to make a library of another version"
    );
}

#[test]
fn a_missing_or_wrong_runtime_is_said_and_a_right_one_is_picked_up() {
    let real = state().join("runtimes");
    let folder = tempfile::tempdir().unwrap();
    let graph = Graph::default()
        .input("x", DType::Fp32, &[Any("batch")])
        .output("y", DType::Fp32, &[Any("batch")])
        .node("Neg", &["x"], &["y"], &[])
        .finish("negative");
    let made = Made::of(&graph, json!({}));
    let refused = |plugin: PluginTest| -> Failure {
        let failure = plugin.open(&made.json()).err().unwrap_or_else(|| panic!("it opened"));
        assert_eq!(
            (failure.canonical(), &*failure.reason),
            (Some(Code::FailedPrecondition), "runtime_missing"),
            "{failure}"
        );
        assert!(failure.message.contains("`backplane pull onnxruntime`"), "{failure}");
        assert!(
            !failure.message.contains(&*folder.path().to_string_lossy()),
            "no paths for callers: {failure}"
        );
        failure
    };
    let says = |file: &str, says: &str| {
        let failure = refused(plugin(&folder.path().join(file)));
        assert!(failure.message.contains(says), "{failure}\n does not say: {says}");
    };

    says("gone.so", "there is none where the plugin's setting `runtime` points");
    std::fs::write(folder.path().join("text.so"), "not a library").unwrap();
    says("text.so", "`text.so` cannot be loaded");
    fake(&folder.path().join("other.so"), None);
    says("other.so", "`other.so` is not ONNX Runtime");
    fake(&folder.path().join("old.so"), Some("1.22.1"));
    says("old.so", "`old.so` is version 1.22.1, and at least 1.24 is needed");
    fake(&folder.path().join("odd.so"), Some("latest"));
    says("odd.so", "`odd.so` is version latest");

    // A settings typo is an error of init, not a missing runtime.
    let typo = PluginTest::of(backplane_onnx::backplane_export::bp_entry_v1).config(r#"{"runtme":"/x"}"#);
    let failure = typo.open(&made.json()).err().unwrap();
    assert!(
        failure.message.contains("[plugins.settings.\"dev.backplane.onnx\"]")
            && failure.message.contains("`runtme`"),
        "{failure}"
    );

    let right = PluginTest::of(backplane_onnx::backplane_export::bp_entry_v1)
        .config(json!({"runtimes": real}).to_string());
    let instance = right.open(&made.json()).unwrap().instance().unwrap();
    let answer = instance.submit("tensor.infer", "{}", vec![TensorInput::fp32("x", &[1], &[3.0])]).wait();
    assert_eq!(floats(&answer.tensor("y").unwrap().data), [-3.0]);
    assert_eq!(instance.model().faults(), vec![]);
}
