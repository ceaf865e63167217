//! Requests to translate, with a chat model that is played: which language, which script, which texts together.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use backplane_testkit::{CallInput, Code, Failure, Instance, PluginTest};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

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
    let failure = into("sr-Latn", |_| "Црна мачка спава.").unwrap_err();
    let told = "the chat model answered in letters that Serbian in Latin script is not written in";
    assert!(failure.message.contains(told), "{}", failure.message);
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

const HOUSE: &str = "The house is big and white.";
const CASA: &str = "La casa es grande y blanca.";

/// Chat models by name, `small` one of them that answers in English, `mute` one that is not there, `better` one that knows the two
/// sentences and `{0}`. Which of them were asked is written down.
struct Models(Instance, Arc<Mutex<Vec<String>>>);

impl Models {
    fn new(chat_model: &Value) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let heard = asked.clone();
        let host = move |call: &CallInput| -> Result<Vec<Value>, Failure> {
            let missing = |message: &str| {
                let message = message.to_owned();
                Err(Failure { code: Code::NotFound as i32, message, ..Failure::default() })
            };
            if call.capability != "chat" {
                return missing("nothing serves it here");
            }
            heard.lock().unwrap().push(call.model.clone());
            let text = call.params["messages"][1]["content"].as_str().unwrap();
            let answer = match &*call.model {
                "small" => "Sure, I can help you with the house.",
                "better" if text == HOUSE => CASA,
                "better" => "El hermano de mi amigo vive aquí.",
                "forgetful" => "Hola, tienes mensajes nuevos.",
                _ => return missing("no model is called so"),
            };
            Ok(vec![json!({"content": answer})])
        };
        let plugin = PluginTest::of(backplane_translation::backplane_export::bp_entry_v1).answering(host);
        let card = json!({"name": "m", "capabilities": ["translate"],
                          "parameters": {"engines": ["chat"], "chat_model": chat_model}});
        Self(plugin.open(&card.to_string()).unwrap().instance().unwrap(), asked)
    }

    fn translate(&self, text: &str) -> Result<Value, Failure> {
        let params = json!({"text": [text], "source": "en", "target": "es"});
        translate(&self.0, &params).map(|mut translations| translations.remove(0))
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.1.lock().unwrap())
    }
}

#[test]
fn what_one_chat_model_cannot_do_the_next_is_asked_for() {
    for (models, asked) in [
        (json!("better"), &["better"][..]),
        (json!(["better", "small"]), &["better"]),
        (json!(["small", "better"]), &["small", "better"]),
        (json!(["mute", "small", "better", "small"]), &["mute", "small", "better"]),
    ] {
        let models = Models::new(&models);
        let translation = models.translate(HOUSE).unwrap();
        assert_eq!((&translation["text"], &translation["models"]), (&json!(CASA), &json!(["better"])));
        assert_eq!(translation["untranslated"], Value::Null);
        assert_eq!(models.asked(), asked);
    }
}

#[test]
fn what_no_chat_model_can_do_is_an_error_that_names_each() {
    let models = Models::new(&json!(["small", "mute"]));
    let failure = models.translate(HOUSE).unwrap_err();
    let told = "nothing of the text was translated from English (`en`) into Spanish (`es`): the chat model `small` answered in \
                English, not Spanish; the chat model `mute` gave no answer: no model is called so; name chat models";
    assert!(failure.message.starts_with(told), "{}", failure.message);
    assert_eq!((failure.code, &*failure.reason), (Code::FailedPrecondition as i32, "untranslated"));
    // Once: the same words would have the same answer.
    assert_eq!(models.asked(), ["small", "mute"]);
    // Where none is there, the pair is not served.
    let failure = Models::new(&json!("mute")).translate(HOUSE).unwrap_err();
    assert_eq!((failure.code, &*failure.reason), (Code::NotFound as i32, "language_pair_not_found"));
    let failure = Models::new(&json!([])).translate(HOUSE).unwrap_err();
    assert_eq!(&*failure.reason, "language_pair_not_found");
}

/// What was done of the others was paid for.
#[test]
fn a_text_that_no_chat_model_can_do_is_answered_as_it_was_among_others() {
    let long = "A very long sentence about the friend of my brother, who has lived in another town by the sea for many years, \
                and who comes to see us when the winter is over.";
    let models = Models::new(&json!("better"));
    let ask = |texts: Value| translate(&models.0, &json!({"text": texts, "source": "en", "target": "es"}));
    for (texts, expected) in [
        (json!([HOUSE, HOUSE, long]), json!([CASA, CASA, long])),
        (json!([long, HOUSE, long]), json!([long, CASA, long])),
        (json!([long, "1"]), json!([long, "1"])),
    ] {
        let translations = ask(texts.clone()).unwrap();
        let found: Vec<_> = translations.iter().map(|translation| translation["text"].clone()).collect();
        assert_eq!(json!(found), expected);
        for translation in &translations {
            let is_done = translation["text"] != long;
            let untranslated = if is_done { Value::Null } else { json!(1) };
            assert_eq!(translation["untranslated"], untranslated, "{translation}");
            assert!(is_done || translation["confidence"].as_f64().unwrap() <= 0.5, "{translation}");
        }
    }
    for texts in [json!([long]), json!([long, long])] {
        assert_eq!(ask(texts).unwrap_err().reason, "untranslated");
    }
}

#[test]
fn a_model_that_can_do_nothing_of_a_text_is_asked_for_no_more_of_it() {
    let sentences = |count: usize| (0..count).map(|n| format!("The {}house is old.\n", "very ".repeat(n)));
    let models = Models::new(&json!(["small", "better"]));
    let translation = models.translate(&sentences(12).collect::<String>()).unwrap();
    let asked = models.asked();
    assert_eq!(asked.iter().filter(|model| *model == "small").count(), 5, "{asked:?}");
    assert_eq!(translation["models"], json!(["better"]));
    let models = Models::new(&json!("small"));
    assert!(models.translate(&sentences(12).collect::<String>()).is_err());
    assert_eq!(models.asked().len(), 5);
}

/// What it lost it is asked for between what is to be kept; what a translation has of its source it is not sure of.
#[test]
fn what_a_model_loses_is_kept_all_the_same() {
    let models = Models::new(&json!("forgetful"));
    let translation = models.translate("Hello {name}, you have new messages.").unwrap();
    let text = translation["text"].as_str().unwrap();
    assert!(text.contains("{name}") && translation["pieced"] == 1, "{translation}");
    let models = Models::new(&json!(["forgetful", "better"]));
    models.translate("Hello {name}, you have new messages.").unwrap();
    assert_eq!(models.asked()[..2], ["forgetful", "better"]);
}

#[test]
fn a_translation_that_is_half_one_is_not_sure() {
    // By its length it is no translation of the second.
    let long = "A very long sentence about the friend of my brother, who has lived in another town by the sea for many years, \
                and who comes to see us when the winter is over.";
    let translation = Models::new(&json!("better")).translate(&format!("{HOUSE}\n{long}")).unwrap();
    assert_eq!(translation["text"], format!("{CASA}\n{long}"));
    assert_eq!((&translation["untranslated"], &translation["models"]), (&json!(1), &json!(["better"])));
    assert!(translation["confidence"].as_f64().unwrap() <= 0.5, "{translation}");
}

#[test]
fn subtitles_have_a_cue_and_may_end_their_lines_by_a_return() {
    let models = Models::new(&json!("better"));
    let ask = |texts: Value| {
        let params = json!({"text": texts, "source": "en", "target": "es", "format": "subtitles"});
        translate(&models.0, &params)
    };
    let cue = |text: &str| format!("WEBVTT\r\r00:01.000 --> 00:02.000\r{text}\r\rNOTE {HOUSE}\r");
    assert_eq!(ask(json!([cue(HOUSE)])).unwrap()[0]["text"], cue(CASA));
    models.asked();
    for (texts, param) in [(json!([HOUSE]), "text"), (json!([cue(HOUSE), HOUSE]), "text[1]")] {
        let failure = ask(texts).unwrap_err();
        assert_eq!((failure.code, &failure.details["param"]), (Code::InvalidArgument as i32, &json!(param)));
        assert!(failure.message.contains("00:00:01,000 --> 00:00:02,500"), "{}", failure.message);
    }
    // Before any work.
    assert!(models.asked().is_empty());
}
