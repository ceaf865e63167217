//! `make install` and `make uninstall`: what is installed finds its plugins and its worker by itself.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod support;

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};
use support::Server;

/// Runs `make` as a person would, with what is built for tests.
fn make(target: &str, prefix: &Path) {
    let built = Path::new(env!("CARGO_BIN_EXE_backplane")).parent().unwrap();
    let done = Command::new("make")
        .args(["--no-print-directory", target, "PLUGINS=echo"])
        .arg(format!("BUILT={}", built.display()))
        .arg(format!("PREFIX={}", prefix.display()))
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
}

/// Files below a folder, without the folder.
fn files(below: &Path) -> Vec<String> {
    let done = Command::new("find").arg(below).args(["-type", "f", "-printf", "%P\n"]).output().unwrap();
    let mut files: Vec<String> = String::from_utf8(done.stdout).unwrap().lines().map(str::to_owned).collect();
    files.sort();
    files
}

#[test]
fn what_is_installed_serves_and_what_is_uninstalled_is_gone() {
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "-p", "backplane-echo", "-p", "backplane-worker"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .status()
        .unwrap();
    assert!(built.success());
    let prefix = tempfile::tempdir().unwrap();
    make("install", prefix.path());
    let installed = [
        "bin/backplane",
        "lib/backplane/backplane-worker",
        "lib/backplane/plugins/libbackplane_echo.so",
        "share/bash-completion/completions/backplane",
        "share/fish/vendor_completions.d/backplane.fish",
        "share/zsh/site-functions/_backplane",
    ];
    assert_eq!(files(prefix.path()), installed);

    // In a process of its own, so that the worker has to be found too.
    let state = tempfile::tempdir().unwrap();
    let config = "[plugins.isolation]\n\"dev.backplane.echo\" = \"worker\"\n";
    std::fs::write(state.path().join("backplane.toml"), config).unwrap();
    let program = prefix.path().join("bin/backplane");
    let server = Server::start_of(&program, Path::new("."), state.path(), &[]);
    let echo = &server.said["plugins"][0];
    assert_eq!((&echo["id"], &echo["ready"]), (&"dev.backplane.echo".into(), &true.into()), "{echo}");
    let mut ask = support::command_of(&program, state.path());
    let answer = ask.args(["infer", "echo", "--params", r#"{"text":"hello"}"#, "--json"]).output().unwrap();
    assert!(answer.status.success(), "{answer:?}");
    let answer: Value = serde_json::from_slice(&answer.stdout).unwrap();
    assert!(answer.to_string().contains("hello"), "{answer}");
    drop(server);

    make("uninstall", prefix.path());
    assert_eq!(files(prefix.path()), [""; 0]);
}
