//! The plugin keeps the contract of `backplane.h`: linked into this test, and as the library that a host loads.

mod support;

use backplane_testkit::{Case, PluginTest};
use image::ImageFormat;
use serde_json::json;
use support::{Reader, base64, engine, file, page, plugin};

fn check(plugin: PluginTest) {
    let reader = Reader::new();
    let params = json!({"image": base64(&file(page(2), ImageFormat::Png)), "words": true});
    plugin.check_conformance(&[Case::new(reader.json(), "vision.ocr", params.to_string())]).assert_ok();
}

#[test]
fn it_conforms_when_linked() {
    check(plugin());
}

#[test]
fn it_conforms_when_loaded() {
    check(PluginTest::build("backplane-vision").unwrap().answering(engine));
}
