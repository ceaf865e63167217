//! Where the tests find their models.
#![expect(clippy::panic, reason = "a test without its model fails, and says what to do")]

use std::path::PathBuf;

/// SmolLM2-135M-Instruct, Q4_1.
///
/// `BACKPLANE_TEST_MODELS` names a state directory that holds it.
pub fn smollm2() -> PathBuf {
    const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
    find(SHA256, "smollm2")
}

/// Qwen2.5-Coder-0.5B-Instruct, Q4_K_M: it fills in the middle.
#[allow(dead_code, reason = "not every test needs it")]
pub fn qwen_coder() -> PathBuf {
    const SHA256: &str = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32";
    find(SHA256, "qwen2.5-coder:0.5b")
}

fn find(sha256: &str, name: &str) -> PathBuf {
    let state = std::env::var_os("BACKPLANE_TEST_MODELS").unwrap_or_else(|| {
        panic!("set BACKPLANE_TEST_MODELS to a state directory made by `backplane --state DIR pull {name}`")
    });
    let path = PathBuf::from(state).join("models/blobs/sha256").join(sha256);
    assert!(path.exists(), "{} is missing: run `backplane --state DIR pull {name}`", path.display());
    path
}
