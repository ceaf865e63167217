//! Apertium for real: the pair English-Spanish, which `make setup` installs.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use backplane_testkit::{Instance, PluginTest};
use serde_json::{Value, json};
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn instance() -> Instance {
    let model = r#"{"name":"apertium","capabilities":["translate"],"parameters":{"engines":["apertium"]}}"#;
    let plugin = PluginTest::of(backplane_translation::backplane_export::bp_entry_v1);
    plugin.open(model).unwrap().instance().unwrap()
}

fn translate(instance: &Instance, params: &Value) -> Value {
    let answer = instance.submit("translate", &params.to_string(), vec![]).wait();
    assert!(answer.failure().is_none(), "{:?}", answer.failure());
    answer.json()["translations"].clone()
}

fn one(text: &str, format: &str) -> String {
    let params = json!({"text": [text], "source": "en", "target": "es", "format": format});
    translate(&instance(), &params)[0]["text"].as_str().unwrap().to_owned()
}

/// What the `apertium` of the system says.
fn reference(text: &str) -> String {
    let mut child = Command::new("apertium")
        .arg("eng-spa")
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("`apertium` is not installed: run `make setup`");
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap().trim().replace('*', "")
}

#[test]
fn it_says_what_the_system_s_own_apertium_says() {
    for text in [
        "The server processes each request and returns the answer.",
        "The house is big and the garden is small.",
        "My brother has three children and lives in Madrid.",
        "We want to read the new book about the history of the city.",
    ] {
        assert_eq!(one(text, "text"), reference(text), "{text}");
    }
}

#[test]
fn words_are_translated_and_the_rest_is_kept() {
    assert_eq!(
        one(
            "# The server\n\n- The **house** is big.\n- Read [the page](https://a.b/c) with `make run`.\n",
            "markdown"
        ),
        "# El servidor\n\n- La **casa** es grande.\n- Leído [la página](https://a.b/c) con `make run`.\n"
    );
}

#[test]
fn a_caller_that_leaves_is_not_kept_waiting() {
    let text = "The house is big and the garden is small. ".repeat(3_000);
    let params = json!({"text": [text], "source": "en", "target": "es"}).to_string();
    let instance = instance();
    let running = instance.submit("translate", &params, vec![]);
    std::thread::sleep(Duration::from_millis(200));
    let left = Instant::now();
    running.cancel();
    assert!(running.wait().failure().is_some());
    assert!(left.elapsed() < Duration::from_secs(5), "it took {:?}", left.elapsed());
}

/// A mode whose program ends at once, for its file is missing.
#[test]
fn programs_that_end_are_started_again_and_not_for_ever() {
    let modes = tempfile::tempdir().unwrap();
    std::fs::write(modes.path().join("eng-spa.mode"), "lt-proc /nowhere/eng-spa.bin\n").unwrap();
    let model = r#"{"name":"apertium","capabilities":["translate"],"parameters":{"engines":["apertium"]}}"#;
    let plugin = PluginTest::of(backplane_translation::backplane_export::bp_entry_v1)
        .config(json!({"apertium_modes": modes.path()}).to_string());
    let instance = plugin.open(model).unwrap().instance().unwrap();
    let ask = |text: &str| {
        let params = json!({"text": [text], "source": "en", "target": "es"}).to_string();
        instance.submit("translate", &params, vec![]).wait()
    };
    // One sentence may be more than the programs bear: it stays as it is.
    let answer = ask("The house is big.");
    assert!(answer.failure().is_none(), "{:?}", answer.failure());
    let translation = &answer.json()["translations"][0];
    assert_eq!(
        (&translation["text"], &translation["untranslated"]),
        (&json!("The house is big."), &json!(1))
    );
    // Three in a row are no accident.
    let failure = ask("The house is big. The city is big. The garden is big.").failure().unwrap().clone();
    assert_eq!(failure.message, "a program of Apertium has ended");
}

#[test]
fn a_pair_that_is_not_installed_is_refused_in_words() {
    let params = json!({"text": ["x"], "source": "en", "target": "ja"}).to_string();
    let answer = instance().submit("translate", &params, vec![]).wait();
    let failure = answer.failure().unwrap();
    assert!(failure.message.contains("Japanese (`ja`)"), "{}", failure.message);
}
