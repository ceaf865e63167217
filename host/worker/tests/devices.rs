//! Memory of a device does not leave a process: a plugin in a worker leaves nothing there, and gets copies.

#![allow(clippy::unwrap_used, reason = "in a test a failure is the test's")]

// Compiles a plugin in C with a device of its own.
#[path = "../../runtime/tests/support/library.rs"]
#[allow(dead_code, reason = "a part of it is used")]
mod library;

use backplane::config::Isolation;
use backplane::{Caller, Config, Host, Request};
use library::device;
use serde_json::{Value, json};

/// What comes of it when plugins are asked in turn, of which one is in a worker: what was made where, what was taken where.
async fn with_in_a_worker(id: &str) -> Value {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [plugins, state] = folders.each_ref().map(tempfile::TempDir::path);
    device(plugins, "the.maker", "device.make", &[]);
    device(plugins, "a.device", "device.take", &["TAKES=1"]);
    device(plugins, "the.relay", "device.relay", &[]);
    let mut config = Config::for_tests();
    config.plugins.isolation =
        [("*".to_owned(), Isolation::InProcess), (id.to_owned(), Isolation::Worker)].into();
    let host = Host::builder().config(config).state_dir(state).plugin_dir(plugins).start().unwrap();
    let params = json!({"how": "a.device"}).to_string();
    let request = Request::new(Caller::internal("tests"), "device.relay", params);
    let answer = host.serve(request).await.unwrap().collect().await.unwrap();
    let isolated = |plugin: &backplane::PluginInfo| plugin.isolation == "worker";
    assert!(host.plugins().iter().all(|plugin| isolated(plugin) == (plugin.id == id)));
    let mut said = answer.json::<Value>().unwrap().remove(0);
    // Which address it is says nothing.
    let at = said["made"]["at"].as_str().unwrap().starts_with("0x");
    said["made"] = json!(if at { "on the device" } else { "in CPU memory" });
    said["took"].as_object_mut().unwrap().retain(|name, _| name == "kind" || name == "text");
    let copies = host.metrics().render();
    let copies = copies.lines().find_map(|line| line.strip_prefix("backplane_device_copies_total "));
    said["copies"] = json!(copies.unwrap().parse::<u64>().unwrap());
    said
}

#[tokio::test]
async fn memory_of_a_device_stays_in_its_process() {
    let took = |kind: i32| json!({"kind": kind, "text": "on the device!!!"});
    let expected = json!({"made": "on the device", "took": took(12), "copies": 0});
    assert_eq!(with_in_a_worker("nobody.here").await, expected, "all in one process");
    for (id, made, copies) in [
        ("the.maker", "in CPU memory", 0),
        ("a.device", "on the device", 1),
        // Who asks cannot take it, and so nothing is left there.
        ("the.relay", "in CPU memory", 0),
    ] {
        let expected = json!({"made": made, "took": took(1), "copies": copies});
        assert_eq!(with_in_a_worker(id).await, expected, "{id} in a worker");
    }
}
