//! The plugin keeps the contract of `backplane.h`, linked into this test and as the library that a host loads.

use backplane_testkit::{Case, PluginTest};
use serde_json::json;

fn check(plugin: PluginTest) {
    let apertium =
        r#"{"name":"apertium","capabilities":["translate"],"parameters":{"engines":["apertium"]}}"#;
    let whatlang = r#"{"name":"whatlang","capabilities":["language.detect"]}"#;
    let translate = |texts: &[String]| json!({"text": texts, "source": "en", "target": "es"}).to_string();
    let many: Vec<String> =
        (0..60).map(|n| format!("The black cat number {n} sleeps in the bed.").repeat(20)).collect();
    let cases = [
        Case::new(apertium, "translate", translate(&["The black cat sleeps.".to_owned()]))
            .slow(translate(&many))
            .named("translate"),
        Case::new(whatlang, "language.detect", json!({"text": ["Où est la bibliothèque ?"]}).to_string())
            .named("language.detect"),
    ];
    plugin.check_conformance(&cases).assert_ok();
}

#[test]
fn it_conforms_when_linked() {
    check(PluginTest::of(backplane_translation::backplane_export::bp_entry_v1));
}

#[test]
fn it_conforms_when_loaded() {
    check(PluginTest::build("backplane-translation").unwrap());
}
