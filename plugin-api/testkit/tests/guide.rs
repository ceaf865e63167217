//! The plugins of docs/writing-plugins.md, built from that page as it stands, conform and answer.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test helper fails by panicking")]

use backplane_testkit::{Case, PluginTest};
use std::fs;
use std::path::Path;
use std::process::Command;

/// The first block of this language on the page.
fn block<'a>(page: &'a str, language: &str) -> &'a str {
    let (_, rest) = page.split_once(&format!("```{language}\n")).unwrap();
    rest.split_once("```").unwrap().0
}

#[test]
fn the_plugin_of_the_guide_conforms_and_answers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    let page = fs::read_to_string(root.join("docs/writing-plugins.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    // The versions that were fetched for this tree are here: with its lock file no network is needed.
    fs::copy(root.join("Cargo.lock"), folder.path().join("Cargo.lock")).unwrap();
    let published = "git = \"https://github.com/backplane/backplane\"";
    let sdk = format!("path = \"{}\"", root.join("plugin-api/sdk").display());
    let manifest = block(&page, "toml");
    assert!(manifest.contains(published), "{manifest}");
    fs::write(folder.path().join("Cargo.toml"), manifest.replace(published, &sdk)).unwrap();
    fs::create_dir(folder.path().join("src")).unwrap();
    let code = block(&page, "rust");
    assert!(code.lines().count() <= 40, "the page promises forty lines");
    fs::write(folder.path().join("src/lib.rs"), code).unwrap();
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("outside");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--offline"])
        .current_dir(folder.path())
        .env("CARGO_TARGET_DIR", &target)
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));

    let plugin = PluginTest::load(target.join("debug/libword_count.so")).unwrap();
    let card = r#"{"name":"word-count","capabilities":["com.example.count"]}"#;
    let text = r#"{"text":"a bee sees"}"#;
    plugin.check_conformance(&[Case::new(card, "com.example.count", text)]).assert_ok();
    let instance = plugin.open(card).unwrap().instance().unwrap();
    assert_eq!(instance.submit("com.example.count", text, vec![]).wait().json()["words"], 3);
}

#[test]
fn the_plugin_in_c_needs_one_header_and_conforms() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    let page = fs::read_to_string(root.join("docs/writing-plugins.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::copy(root.join("plugin-api/include/backplane.h"), folder.path().join("backplane.h")).unwrap();
    let hello = block(&page, "c");
    // With what the page adds to sell it; without, it is as it stands.
    let (_, selling) = page.split_once("### A licence in C").unwrap();
    let asks = format!("{}\nstatic void answer(", block(selling, "c"));
    let begins = "static void answer(const bp_host *host, const bp_request *request) {\n";
    assert!(hello.contains(begins), "{hello}");
    let sold = hello.replacen("static void answer(", &asks, 1);
    let sold = sold.replacen(begins, &format!("{begins}  if (!licensed(host, request)) return;\n"), 1);
    fs::write(folder.path().join("sold.c"), sold).unwrap();
    let command = page.lines().find(|line| line.starts_with("cc ")).unwrap();
    let compile = format!("{} -Wall -Wextra -Wpedantic -Werror", command.replace("hello.c", "sold.c"));
    let built = Command::new("sh").args(["-c", &compile]).current_dir(folder.path()).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    fs::write(folder.path().join("hello.c"), hello).unwrap();
    let command = page.lines().find(|line| line.starts_with("cc ")).unwrap();
    let built = Command::new("sh")
        .args(["-c", &format!("{command} -Wall -Wextra -Wpedantic -Werror")])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));

    let plugin = PluginTest::load(folder.path().join("libhello.so")).unwrap();
    let card = r#"{"name":"hello","capabilities":["com.example.hello"]}"#;
    plugin.check_conformance(&[Case::new(card, "com.example.hello", "{}")]).assert_ok();
    let instance = plugin.open(card).unwrap().instance().unwrap();
    assert_eq!(instance.submit("com.example.hello", "{}", vec![]).wait().json()["hello"], "world");
}
