//! The plugin keeps the contract of `backplane.h`, linked into this test and as the library that a host loads.

mod upstream;

use backplane_testkit::{Case, PluginTest};
use serde_json::json;
use upstream::Upstream;

fn check(plugin: PluginTest) {
    let upstream = Upstream::start();
    let model = json!({
        "name": "m",
        "format": "openai",
        "capabilities": ["chat", "complete", "embed"],
        "parameters": {"upstream": {"url": upstream.url}},
    })
    .to_string();
    let chat =
        |mode: &str| json!({"messages": [{"role": "user", "content": "hi"}], "mode": mode}).to_string();
    let complete = |mode: &str| json!({"prompt": "1, 2,", "mode": mode}).to_string();
    let cases = [
        Case::new(&model, "chat", chat("")).slow(chat("slow")).named("chat"),
        Case::new(&model, "complete", complete("")).slow(complete("slow")).named("complete"),
        Case::new(&model, "embed", json!({"input": ["a", "b"]}).to_string()).named("embed"),
    ];
    plugin.check_conformance(&cases).assert_ok();
}

#[test]
fn it_conforms_when_linked() {
    check(PluginTest::of(backplane_remote::backplane_export::bp_entry_v1));
}

#[test]
fn it_conforms_when_loaded() {
    check(PluginTest::build("backplane-remote").unwrap());
}
