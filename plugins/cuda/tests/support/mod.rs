//! A kernel that comes with the plugin, and a request that it answers.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "each test uses its part")]

use backplane_testkit::{Case, TensorInput};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Whether the kernel module of NVIDIA's driver is there.
pub fn has_gpu() -> bool {
    Path::new("/dev/nvidiactl").exists()
}

/// Where `make models` put NVRTC. One that is missing fails a test, it skips none.
pub fn runtimes() -> PathBuf {
    let state = std::env::var_os("BACKPLANE_TEST_MODELS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/state"), PathBuf::from);
    let runtimes = state.join("runtimes");
    assert!(
        runtimes.join("nvrtc").is_dir(),
        "no NVRTC in {}: run `make models`, or name a state directory in BACKPLANE_TEST_MODELS",
        state.display()
    );
    runtimes
}

/// The card of a kernel that comes with the plugin, as the host hands it over.
pub fn model(name: &str) -> Value {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let card: toml::Table =
        toml::from_str(&std::fs::read_to_string(folder.join(format!("{name}.toml"))).unwrap()).unwrap();
    let mut card = serde_json::to_value(card).unwrap();
    for file in card["files"].as_array_mut().unwrap() {
        let path = folder.join(file["path"].as_str().unwrap());
        file["size"] = json!(std::fs::metadata(&path).unwrap().len());
        file["path"] = json!(path);
    }
    card
}

/// A picture of two pixels, as it is.
pub fn image() -> Case {
    Case::new(model("image-prepare").to_string(), "tensor.infer", r#"{"height":1,"width":2}"#)
        .tensor(TensorInput::new(
            "pictures",
            backplane_testkit::DType::Uint8,
            &[1, 1, 2, 3],
            vec![0, 51, 255, 102, 153, 204],
        ))
        .tensor(TensorInput::fp32("regions", &[1, 4], &[0.0, 0.0, 2.0, 1.0]))
        .tensor(TensorInput::fp32("mean", &[3], &[0.0; 3]))
        .tensor(TensorInput::fp32("scale", &[3], &[1.0; 3]))
}
