//! Requests to translate, with a chat model that is played: which language, which script, which texts together.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use backplane_testkit::{CallInput, Code, Failure, Instance, PluginTest};
use serde_json::{Value, json};

/// The plugin beside a chat model that answers by its instructions. Nothing else tells languages there.
fn instance(answer: fn(&str) -> &'static str) -> Instance {
    let host = move |call: &CallInput| -> Result<Vec<Value>, Failure> {
        if call.capability != "chat" {
            let code = Code::NotFound as i32;
            return Err(Failure { code, message: "nothing serves it here".to_owned(), ..Failure::default() });
        }
        let instructions = call.params["messages"][0]["content"].as_str().unwrap();
        Ok(vec![json!({"content": answer(instructions)})])
    };
    let plugin = PluginTest::of(backplane_translation::backplane_export::bp_entry_v1).answering(host);
    let model = r#"{"name":"translator","capabilities":["translate"]}"#;
    plugin.open(model).unwrap().instance().unwrap()
}

fn translate(instance: &Instance, params: &Value) -> Result<Vec<Value>, Failure> {
    let answer = instance.submit("translate", &params.to_string(), vec![]).wait();
    match answer.failure() {
        Some(failure) => Err(failure.clone()),
        None => Ok(answer
            .chunks
            .iter()
            .flat_map(|chunk| chunk.json["translations"].as_array().unwrap().clone())
            .collect()),
    }
}

/// Of one text in English.
fn into(target: &str, answer: fn(&str) -> &'static str) -> Result<Value, Failure> {
    let params = json!({"text": ["The black cat sleeps."], "source": "en", "target": target});
    translate(&instance(answer), &params).map(|mut translations| translations.remove(0))
}

#[test]
fn a_script_that_is_asked_for_is_the_one_that_is_given() {
    let chinese = |instructions: &str| match instructions.contains("to Traditional Chinese.") {
        true => "黑貓正在睡覺。",
        false => "黑猫正在睡觉。",
    };
    for (target, text) in [
        ("zh", "黑猫正在睡觉。"),
        ("zh-Hans", "黑猫正在睡觉。"),
        ("zh-Hant", "黑貓正在睡覺。"),
        ("zh-TW", "黑貓正在睡覺。"),
        ("zt", "黑貓正在睡覺。"),
    ] {
        assert_eq!(into(target, chinese).unwrap()["text"], text, "{target}");
    }
    // The other script of a language is another language to the checks.
    assert_eq!(into("sr-Latn", |_| "Crna mačka spava.").unwrap()["text"], "Crna mačka spava.");
    assert_eq!(into("sr-Cyrl", |_| "Црна мачка спава.").unwrap()["text"], "Црна мачка спава.");
    let translation = into("sr-Latn", |_| "Црна мачка спава.").unwrap();
    assert_eq!(
        (&translation["text"], &translation["untranslated"]),
        (&json!("The black cat sleeps."), &json!(1))
    );
    // From one script into the other.
    let params = json!({"text": ["黑猫正在睡觉。"], "source": "zh-Hans", "target": "zh-Hant"});
    let translation = translate(&instance(chinese), &params).unwrap().remove(0);
    assert_eq!((&translation["text"], &translation["source"]), (&json!("黑貓正在睡覺。"), &json!("zh")));
    let failure = into("en-Cyrl", |_| "x").unwrap_err();
    assert!(
        failure.message.starts_with("`en-Cyrl` is no language that is known here"),
        "{}",
        failure.message
    );
}

#[test]
fn what_of_a_code_is_not_told_apart_is_said() {
    let portuguese = |_: &str| "O gato preto está a dormir.";
    for (target, told) in
        [("pt", Value::Null), ("pt-BR", json!("pt")), ("pb", json!("pt")), ("por", json!("pt"))]
    {
        assert_eq!(into(target, portuguese).unwrap()["target"], told, "{target}");
    }
    assert_eq!(into("zt", |_| "黑貓正在睡覺。").unwrap()["target"], "zh-Hant");
}

#[test]
fn short_texts_of_a_request_are_told_together() {
    let instance = instance(|_| "Some words in English.");
    let source = |texts: &[&str]| -> Vec<String> {
        let params = json!({"text": texts, "source": "auto", "target": "en"});
        let translations = translate(&instance, &params).unwrap();
        translations.iter().map(|translation| translation["source"].as_str().unwrap().to_owned()).collect()
    };
    // One by one they are told wrong: a word is in many languages.
    let menu = ["Datei öffnen", "Speichern unter", "Hilfe", "Bearbeiten", "Beenden"];
    assert_ne!([source(&menu[2..3]), source(&menu[4..])].concat(), ["de", "de"]);
    assert_eq!(source(&menu), ["de"; 5]);
    // A long text is told by itself.
    let french = "Où est la gare, s'il vous plaît ? Je ne sais pas du tout.";
    assert_eq!(source(&[&menu[..], &[french]].concat()), ["de", "de", "de", "de", "de", "fr"]);
}
