//! A plugin in a worker answers as it does in-process: the whole conformance suite, and bit for bit.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod support;

use backplane::isolation::{Confinement, Launch};
use backplane_testkit::{Answer, Code, DType, Instance, PluginTest, TensorInput};
use serde_json::json;
use std::time::{Duration, Instant};
use support::{LONG, cases, cpu, echo, echo_library, in_process, launch, through};

#[test]
fn one_request() {
    let model = echo(Confinement::Nothing).open(r#"{"name":"echo","capabilities":["echo"]}"#).unwrap();
    let answer = model.instance().unwrap().submit("echo", r#"{"text":"hello"}"#, vec![]).wait();
    assert_eq!(answer.json()["text"], "hello", "{}", answer.end);
}

#[test]
fn the_whole_suite() {
    echo(Confinement::Nothing).check_conformance(&cases()).assert_ok();
}

#[test]
fn the_whole_suite_with_a_worker_for_each_instance() {
    let launch = Launch { per_instance: true, polling: false, ..launch(echo_library(), cpu()) };
    through(launch).rounds(20).check_conformance(&cases()).assert_ok();
}

/// An answer as text, tensors and all; figures of time are none of it.
fn said(answer: &Answer) -> String {
    format!("{:?} {:?}", answer.chunks, answer.end)
}

fn instance(test: &PluginTest, execution: &str) -> Instance {
    let model = json!({"name": "echo", "capabilities": ["echo"], "parameters": {"execution": execution}});
    test.open(&model.to_string()).unwrap().instance().unwrap()
}

#[test]
fn answers_are_the_same_bit_for_bit() {
    let fail = json!({"code": "unavailable", "message": "gone", "reason": "tested", "retry_after_ms": 7, "after": 1});
    let params = [
        json!({"text": "Grüße\u{0}\u{1f600}", "chunks": 3, "confidence": 0.25}),
        json!({"text": ""}),
        json!({"text": "ab", "chunks": 2, "fail": fail}),
        json!({"txet": "typo"}),
        json!({"text": "x".repeat(300_000), "chunks": 5}),
    ];
    for execution in ["concurrent", "serial", "continuous"] {
        let (here, there) =
            (instance(&in_process(), execution), instance(&echo(Confinement::Nothing), execution));
        assert_eq!(here.model().describe(), there.model().describe());
        for params in &params {
            for len in [0, 1, 63, 16_383, 16_384, 3_000_000] {
                let tensors = vec![TensorInput::patterned("t", DType::Uint8, &[len])];
                let ask = |instance: &Instance| {
                    said(&instance.submit("echo", &params.to_string(), tensors.clone()).wait())
                };
                let (here, there) = (ask(&here), ask(&there));
                assert!(here == there, "{execution} {params:.80} {len}: {here:.400}\n{there:.400}");
            }
        }
        let count = |instance: &Instance| {
            instance.model().count_tokens("echo", r#"{"text":"one two three"}"#).map(Result::unwrap)
        };
        assert_eq!(count(&here), count(&there));
    }
}

/// Who leaves while the request is still on its way into the worker is heard: that goes by another connection, and may be
/// faster.
#[test]
fn a_caller_may_leave_before_the_worker_has_the_request() {
    let instance = instance(&echo(Confinement::Nothing), "concurrent");
    let tensor = TensorInput::patterned("t", DType::Uint8, &[8 << 20]);
    for pause in 0..60 {
        let running = instance.submit("echo", r#"{"delay_ms":600000}"#, vec![tensor.clone()]);
        std::thread::sleep(Duration::from_micros(pause * 400));
        let left = Instant::now();
        running.cancel();
        assert_eq!(running.wait().failure().unwrap().canonical(), Some(Code::Cancelled));
        assert!(left.elapsed() < LONG / 2, "it waited for what nobody wanted");
    }
}
