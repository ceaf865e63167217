//! The real client packages against the real server.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

use e2e::{Server, root};
use std::path::PathBuf;
use std::process::{Command, Output};

/// Python with the packages of `clients/requirements.txt`.
fn python() -> Command {
    let python = std::env::var_os("BACKPLANE_TEST_PYTHON")
        .map_or_else(|| root().join(".cache/venv/bin/python"), PathBuf::from);
    assert!(
        python.exists(),
        "no Python with the client packages: run `make e2e`, or name one in BACKPLANE_TEST_PYTHON"
    );
    let mut command = Command::new(python);
    command.env("PYTHONDONTWRITEBYTECODE", "1").current_dir(root().join("tests/clients"));
    command
}

fn check(output: &Output, server: &Server) -> String {
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}\n---- server:\n{}", server.output.lock().unwrap());
    text
}

#[test]
fn tritonclient_completes_its_twenty_calls() {
    let server = Server::start("");
    let address = server.url.trim_start_matches("http://");
    let output = python().args(["triton_calls.py", address, &server.key, "minilm"]).output().unwrap();
    assert!(check(&output, &server).contains("20 of 20"));
}

#[test]
fn the_snippet_of_the_readme_runs_unchanged() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let snippet = readme.split("```python\n").nth(1).unwrap().split("```").next().unwrap();
    let server = Server::start("");
    let output = python()
        .args(["-c", snippet])
        .env("OPENAI_BASE_URL", format!("{}/v1", server.url))
        .env("OPENAI_API_KEY", &server.key)
        .output()
        .unwrap();
    let text = check(&output, &server);
    assert!(text.contains("Paris"), "{text}");
}
