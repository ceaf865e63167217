//! Echo keeps the contract of `backplane.h`: linked into this test, and as the library that a host loads.

use backplane_testkit::{Case, PluginTest, TensorInput};

/// One request for each class of execution.
fn cases() -> Vec<Case> {
    let case = |model: &str, execution: &str| {
        let model = format!(
            r#"{{"name":"{model}","capabilities":["echo"],"parameters":{{"execution":"{execution}"}}}}"#
        );
        Case::new(model, "echo", r#"{"text":"Grüße an alle","chunks":3}"#)
            .slow(r#"{"text":"slowly","chunks":1000,"chunk_delay_ms":20}"#)
            .panics(r#"{"panic":true}"#)
            .gives_tensors_back()
    };
    vec![
        case("echo", "concurrent")
            .tensor(TensorInput::fp32("numbers", &[2, 2], &[1.0, 2.5, -3.0, 0.0]))
            .tensor(TensorInput::strings("texts", &[2], &["one", ""]))
            // So large that the SDK hands its memory over instead of copying it.
            .tensor(TensorInput::fp32("large", &[5000], &[0.5; 5000])),
        case("echo-serial", "serial").tensor(TensorInput::int64("ids", &[3], &[1, 2, 3])),
        case("echo-continuous", "continuous"),
        Case::new(r#"{"name":"echo","capabilities":["echo"]}"#, "echo", r#"{"text":"none","chunks":0}"#)
            .named("no piece"),
    ]
}

#[test]
fn it_conforms_when_linked() {
    PluginTest::of(backplane_echo::backplane_export::bp_entry_v1).check_conformance(&cases()).assert_ok();
}

#[test]
fn it_conforms_when_loaded() {
    PluginTest::build("backplane-echo").unwrap().check_conformance(&cases()).assert_ok();
}
