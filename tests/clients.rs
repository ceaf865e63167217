//! The real client packages against the real server.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

use e2e::{Server, python, root};
use std::path::PathBuf;
use std::process::{Command, Output};

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

#[test]
fn the_program_of_the_page_about_the_open_inference_protocol_runs_unchanged() {
    let page = std::fs::read_to_string(root().join("docs/open-inference.md")).unwrap();
    let program = page.split("```python\n").nth(1).unwrap().split("```").next().unwrap();
    let server = Server::start("");
    let output = python()
        .args(["-c", program])
        .env("BACKPLANE_ADDR", server.url.trim_start_matches("http://"))
        .env("BACKPLANE_API_KEY", &server.key)
        .output()
        .unwrap();
    let text = check(&output, &server);
    assert!(text.contains("('input_ids', 'INT64'") && text.ends_with("(1, 4, 384)\n"), "{text}");
}

/// The package's source distribution, unpacked: only there are its tests.
fn openai_source(dir: &std::path::Path) -> PathBuf {
    let name = "openai-3.52.0";
    let archive = root().join(".cache/sdist").join(format!("{name}.tar.gz"));
    assert!(archive.exists(), "{} is missing: run `make e2e`", archive.display());
    let status = Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(dir).status().unwrap();
    assert!(status.success(), "{} could not be unpacked", archive.display());
    dir.join(name)
}

/// `attribute="7"` in a JUnit report.
fn figure(report: &str, attribute: &str) -> u32 {
    let rest = report.split(&format!(" {attribute}=\"")).nth(1).unwrap();
    rest.split('"').next().unwrap().parse().unwrap()
}

#[test]
fn the_openai_packages_own_tests_pass() {
    // They name models of OpenAI, set no limit where none is required, fill in the middle, and cut vectors.
    let server = Server::start(
        r#"
        [auth]
        enabled = false
        [models.aliases]
        "*" = "smollm2"
        "gpt-3.5-turbo-instruct" = "qwen2.5-coder:0.5b"
        "text-embedding-3-small" = "minilm"
        [models.override.smollm2]
        parameters = { max_tokens = 16 }
        [models.override.minilm]
        parameters = { matryoshka = true }
        "#,
    );
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("report.xml");
    let output = python()
        .args(["-m", "pytest", "-p", "known", "-p", "no:cacheprovider", "-n", "4", "-rfE", "--durations=3"])
        .args([
            "tests/api_resources/chat/test_completions.py",
            "tests/api_resources/test_completions.py",
            "tests/api_resources/test_embeddings.py",
            "tests/api_resources/test_models.py",
        ])
        // Not what manages stored chats or deletes a model.
        .args(["-k", "create or (test_models and (list or retrieve))"])
        .arg(format!("--junit-xml={}", report.display()))
        .env("PYTHONPATH", root().join("tests/clients"))
        .env("TEST_API_BASE_URL", format!("{}/v1", server.url))
        .current_dir(openai_source(dir.path()))
        .output()
        .unwrap();
    let text = check(&output, &server);
    let report = std::fs::read_to_string(&report).unwrap();
    // JUnit counts the known failures of `known.py` as skipped; the package itself skips none of these.
    let (ran, known) = (figure(&report, "tests"), figure(&report, "skipped"));
    assert_eq!((figure(&report, "failures"), figure(&report, "errors")), (0, 0), "{text}");
    assert_eq!((ran, known), (135, 9), "{text}");
}
