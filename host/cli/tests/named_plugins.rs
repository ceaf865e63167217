//! Plugin files that the configuration names, seen without a server.

#![allow(clippy::unwrap_used, reason = "in a test a failure is the test's")]

mod support;

use support::run;

#[test]
fn files_of_plugins_load_are_listed_and_checked_before_any_server_runs() {
    let state = tempfile::tempdir().unwrap();
    let named = state.path().join("named.so");
    std::fs::write(&named, "text").unwrap();
    let config = state.path().join("backplane.toml");
    std::fs::write(&config, format!("[plugins]\nload = ['{}']\n", named.display())).unwrap();
    let config = config.to_str().unwrap();

    let listed = run(state.path(), &["--config", config, "plugin", "ls", "--json"]).expect(0);
    let listed: serde_json::Value = serde_json::from_str(&listed.out).unwrap();
    assert_eq!((&listed[0]["file"], listed[1].is_null()), (&"named.so".into(), true), "{listed}");
    assert!(listed[0]["problem"].as_str().unwrap().contains("not an ELF file"), "{listed}");

    let checked = run(state.path(), &["--config", config, "doctor"]);
    assert!(checked.out.contains("named.so: "), "{checked:?}");
}
