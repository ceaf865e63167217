//! Where cargo puts the library of a package.

use serde_json::Value;
use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::path::PathBuf;
use std::process::Command;

/// The library of this package: the one that cargo built with the test that asks, else one built for it now.
///
/// # Errors
/// When it cannot be built.
pub fn library(package: &str) -> Result<PathBuf, String> {
    match beside_the_test(package) {
        Some(library) => Ok(library),
        None => build(package),
    }
}

/// `cargo test` builds the library that an integration test belongs to before it, every `crate-type` of it, and puts
/// it into the folder of the test's own program.
fn beside_the_test(package: &str) -> Option<PathBuf> {
    let own = std::env::var("CARGO_PKG_NAME").is_ok_and(|own| own == package);
    let name = format!("{}{}{}", DLL_PREFIX, package.replace('-', "_"), DLL_SUFFIX);
    let library = std::env::current_exe().ok()?.with_file_name(name);
    (own && library.exists()).then_some(library)
}

fn build(package: &str) -> Result<PathBuf, String> {
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
