//! The plugin keeps the contract of `backplane.h`, linked into this test and as the library that a host loads.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use backplane_testkit::{Case, PluginTest, TensorInput};
use serde_json::json;

const MODEL: &str = r#"{"name":"vectors","capabilities":["vector.search"]}"#;

fn check(plugin: PluginTest) {
    let data = tempfile::tempdir().unwrap();
    let plugin = plugin.config(json!({"data": data.path()}).to_string());
    let model = plugin.open(MODEL).unwrap();
    let ids: Vec<String> = (0..1000).map(|n| format!("v{n}")).collect();
    let rows: Vec<f32> = (0..64_000).map(|n| ((n * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
    let create = json!({"operation": "create", "collection": "docs", "dimension": 64, "metric": "dot"});
    let upsert = json!({"operation": "upsert", "collection": "docs", "ids": ids});
    let instance = model.instance().unwrap();
    instance.submit("vector.search", &create.to_string(), vec![]).wait();
    let tensor = TensorInput::fp32("vectors", &[1000, 64], &rows);
    let kept = instance.submit("vector.search", &upsert.to_string(), vec![tensor]).wait();
    assert_eq!(kept.json()["count"], 1000);
    drop((instance, model));

    let search = json!({"collection": "docs", "k": 3}).to_string();
    let cases = [
        Case::new(MODEL, "vector.search", search).named("search").tensor(TensorInput::fp32(
            "vectors",
            &[2, 64],
            &rows[..128],
        )),
        Case::new(MODEL, "vector.search", json!({"operation": "list"}).to_string()).named("list"),
    ];
    plugin.check_conformance(&cases).assert_ok();
}

#[test]
fn it_conforms_when_linked() {
    check(PluginTest::of(backplane_vector::backplane_export::bp_entry_v1));
}

#[test]
fn it_conforms_when_loaded() {
    check(PluginTest::build("backplane-vector").unwrap());
}
