//! Copied out of the tree as the README says, with the SDK as its one dependency, echo builds and serves.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test helper fails by panicking")]

use backplane_testkit::PluginTest;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The `Cargo.toml` of the README, with this tree's SDK in place of the published one.
fn cargo_toml(here: &Path) -> String {
    let readme = fs::read_to_string(here.join("README.md")).unwrap();
    let (_, rest) = readme.split_once("```toml\n").unwrap();
    let (toml, _) = rest.split_once("```").unwrap();
    let (published, _) = toml.split_once("git = \"").and_then(|(_, rest)| rest.split_once('"')).unwrap();
    let sdk = here.join("../../plugin-api/sdk").canonicalize().unwrap();
    toml.replace(&format!("git = \"{published}\""), &format!("path = \"{}\"", sdk.display()))
}

#[test]
fn a_copy_builds_with_the_sdk_alone_and_answers() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let copy = tempfile::tempdir().unwrap();
    let toml = cargo_toml(here);
    assert_eq!(
        toml.lines().skip_while(|line| *line != "[dependencies]").count(),
        2,
        "one dependency:\n{toml}"
    );
    fs::write(copy.path().join("Cargo.toml"), toml).unwrap();
    fs::copy(here.join("plugin.toml"), copy.path().join("plugin.toml")).unwrap();
    fs::create_dir(copy.path().join("src")).unwrap();
    for file in fs::read_dir(here.join("src")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), copy.path().join("src").join(file.file_name())).unwrap();
    }
    // The versions that were fetched for this tree are here; a test needs no network.
    fs::copy(here.join("../../Cargo.lock"), copy.path().join("Cargo.lock")).unwrap();
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("outside");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--offline"])
        .current_dir(copy.path())
        .env("CARGO_TARGET_DIR", &target)
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));

    let plugin = PluginTest::load(target.join("debug/libmy_plugin.so")).unwrap();
    let instance = plugin.open(r#"{"name":"echo","capabilities":["echo"]}"#).unwrap().instance().unwrap();
    assert_eq!(instance.submit("echo", r#"{"text":"out here"}"#, vec![]).wait().json()["text"], "out here");
}
