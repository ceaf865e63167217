//! Models and labelled texts for tests.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    reason = "each test uses a part of it, and fails by panicking"
)]

use backplane_testkit::{Instance, PluginTest};
use serde_json::{Value, json};
use std::path::PathBuf;

/// From the test data of lingua 1.8 (Apache-2.0), which took it from the Wortschatz corpora of Leipzig University: the code of the
/// language, `s` for a sentence or `w` for a pair of words, the text.
pub const TEXTS: &str = include_str!("../data/languages.tsv");

/// Languages and texts of this kind.
pub fn texts(kind: &str) -> Vec<(&'static str, &'static str)> {
    let text = |line: &'static str| {
        let mut columns = line.split('\t');
        let (language, of, text) = (columns.next()?, columns.next()?, columns.next()?);
        (of == kind).then_some((language, text))
    };
    TEXTS.lines().filter_map(text).collect()
}

/// The file of the catalogue's `lid.176`, which `make models` fetches.
pub fn lid_176_file() -> PathBuf {
    let state = std::env::var_os("BACKPLANE_TEST_MODELS")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../.cache/state"));
    let file =
        state.join("models/blobs/sha256/8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83");
    assert!(file.exists(), "`lid.176` is not in {}: run `make models`", state.display());
    file
}

/// Its card.
pub fn lid_176() -> String {
    json!({"name": "lid.176", "format": "fasttext", "capabilities": ["language.detect"],
           "files": [{"role": "model", "path": lid_176_file(), "size": 938_013}]})
    .to_string()
}

/// An instance of a model of the plugin.
pub fn open(model: &str) -> Instance {
    let plugin = PluginTest::of(backplane_translation::backplane_export::bp_entry_v1);
    plugin.open(model).unwrap().instance().unwrap()
}

pub fn open_whatlang() -> Instance {
    open(r#"{"name":"whatlang","capabilities":["language.detect"]}"#)
}

/// What a detector says of texts.
pub fn detect(instance: &Instance, texts: &[&str]) -> Vec<Value> {
    let params = json!({"text": texts, "top": 3}).to_string();
    let answer = instance.submit("language.detect", &params, vec![]).wait();
    assert!(answer.failure().is_none(), "{:?}", answer.failure());
    answer.json()["results"].as_array().unwrap().clone()
}
