//! What the tests of this plugin share: the runtime, models made on the spot, and the models that were pulled.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    reason = "each test uses its part; a helper fails by panicking"
)]

use backplane_testkit::{Failure, Instance, Model, PluginTest};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The state directory with ONNX Runtime and the models that tests need.
pub fn state() -> PathBuf {
    let state = std::env::var_os("BACKPLANE_TEST_MODELS").map(PathBuf::from).unwrap_or_else(|| {
        panic!(
            "BACKPLANE_TEST_MODELS is not set: these tests run real graphs. Pull what they need into a state directory \
             (`backplane --state DIR pull onnxruntime minilm magika`) and set it to DIR"
        )
    });
    let runtime = state.join("runtimes/onnxruntime");
    assert!(
        runtime.is_dir(),
        "{} is missing: `backplane --state {} pull onnxruntime`",
        runtime.display(),
        state.display()
    );
    state
}

/// The plugin, linked into this test, with the pulled runtime.
pub fn plugin() -> PluginTest {
    let settings = json!({"runtimes": state().join("runtimes")});
    PluginTest::of(backplane_onnx::backplane_export::bp_entry_v1).config(settings.to_string())
}

/// A model in a folder of its own.
pub struct Made {
    folder: TempDir,
    card: Value,
}

impl Made {
    /// Of this graph, with these parameters.
    pub fn of(graph: &[u8], parameters: Value) -> Self {
        let made = Self {
            folder: tempfile::tempdir().unwrap(),
            card: json!({"name": "made", "format": "onnx", "capabilities": ["tensor.infer"], "files": [], "parameters": parameters}),
        };
        made.file("model", "model.onnx", graph)
    }

    /// With a file more.
    pub fn file(mut self, role: &str, name: &str, content: &[u8]) -> Self {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let file = json!({"role": role, "path": path, "size": content.len()});
        self.card["files"].as_array_mut().unwrap().push(file);
        self
    }

    /// With another value in its card.
    pub fn set(mut self, key: &str, value: Value) -> Self {
        self.card[key] = value;
        self
    }

    pub fn serves(self, capabilities: &[&str]) -> Self {
        self.set("capabilities", json!(capabilities))
    }

    /// `model_json`, as the host sends it.
    pub fn json(&self) -> String {
        self.card.to_string()
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn open(&self) -> Result<Model, Failure> {
        plugin().open(&self.json())
    }

    pub fn instance(&self) -> Instance {
        self.open().unwrap().instance().unwrap()
    }
}

/// A model that was pulled, as the host would send it.
pub fn pulled(name: &str) -> String {
    let state = state();
    let path = state.join("models/cards").join(format!("{name}.toml"));
    let card = std::fs::read_to_string(&path).unwrap_or_else(|error| {
        panic!("{}: {error}; `backplane --state {} pull {name}`", path.display(), state.display())
    });
    let card: toml::Table = toml::from_str(&card).unwrap();
    let mut card = serde_json::to_value(card).unwrap();
    for file in card["files"].as_array_mut().unwrap() {
        let blob = state.join("models/blobs/sha256").join(file["sha256"].as_str().unwrap());
        file["path"] = json!(blob);
    }
    card.to_string()
}

/// A tokenizer of words: `?`, `[`, `]` and `a`..`j` have the numbers 0..13; texts stand between `[` and `]`.
pub fn tokenizer() -> Vec<u8> {
    let vocabulary: serde_json::Map<_, _> =
        "?[]abcdefghij".chars().enumerate().map(|(id, word)| (word.to_string(), json!(id))).collect();
    let special = |id: u32, text: &str| json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "decoder": null,
        "added_tokens": [special(1, "["), special(2, "]")],
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "BertProcessing", "sep": ["]", 2], "cls": ["[", 1]},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "?"},
    })
    .to_string()
    .into_bytes()
}

/// Little-endian numbers of a tensor.
pub fn floats(data: &[u8]) -> Vec<f32> {
    data.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}
