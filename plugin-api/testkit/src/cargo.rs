//! Where cargo puts the library of a package.

use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;

/// Builds the library of this package and says where it is.
pub(crate) fn library(package: &str) -> Result<PathBuf, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    let built = Command::new(cargo)
        .args(["build", "--package", package, "--profile", profile, "--message-format=json"])
        .output()
        .map_err(|error| format!("cargo cannot be started: {error}"))?;
    if !built.status.success() {
        return Err(format!("`{package}` cannot be built:\n{}", String::from_utf8_lossy(&built.stderr)));
    }
    let is_library = |message: &Value| {
        let kinds = message["target"]["kind"].as_array();
        kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind == "cdylib"))
    };
    // The package itself comes last, after what it depends on.
    String::from_utf8_lossy(&built.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(is_library)
        .flat_map(|message| message["filenames"].as_array().cloned().unwrap_or_default())
        .filter_map(|file| file.as_str().filter(|file| file.ends_with(".so")).map(PathBuf::from))
        .next_back()
        .ok_or_else(|| format!("`{package}` builds no library: add `crate-type = [\"cdylib\"]` to its [lib]"))
}
