//! Builds the echo plugin and finds its shared library. Apart, so that tests inside the crate can use it too.

use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Folder that holds the echo plugin and nothing else that is a plugin. Built once: cargo does not order cdylibs before
/// the tests of another package.
pub fn plugins() -> PathBuf {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    DIR.get_or_init(|| {
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "-p", "backplane-echo", "--message-format=json"])
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(built.status.success(), "the echo plugin did not build");
        let library = String::from_utf8(built.stdout)
            .unwrap()
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|message| message["target"]["name"] == "backplane_echo")
            .flat_map(|message| message["filenames"].as_array().cloned().unwrap_or_default())
            .filter_map(|name| name.as_str().map(PathBuf::from))
            .find(|path| path.extension().is_some_and(|extension| extension == "so"))
            .expect("cargo named no shared library");
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(library, dir.path().join("libecho.so")).unwrap();
        dir
    })
    .path()
    .to_owned()
}
