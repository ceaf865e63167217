//! Schemas and grammars that hold an answer.

use crate::support::{Switches, asks, chat, collect, model_file, reader, with_engine};
use backplane_llama::engine::{Terms, bench};
use backplane_plugin::Code;
use backplane_plugin::payload::{FinishReason, ResponseFormat, Sampling, chat};
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use serde_json::{Value, json};

#[test]
fn a_schema_holds_the_answer() {
    with_engine(|engine| {
        let schema = json!({
            "type": "object",
            "properties": {"zone": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
                           "color": {"enum": ["red", "green"]}},
            "required": ["zone", "age", "color"],
            "additionalProperties": false,
        });
        for (temperature, seed) in [(0.0, 0), (1.5, 1), (1.5, 2)] {
            let params = chat::Params {
                response_format: ResponseFormat::JsonSchema { schema: schema.clone() },
                sampling: Sampling {
                    temperature: Some(temperature),
                    seed: Some(seed),
                    ..Sampling::default()
                },
                ..asks("Describe a person as JSON.", 120)
            };
            let choice = chat(engine, &params).unwrap().0.remove(0);
            assert_eq!(choice.finish, Some(FinishReason::Stop), "{choice:?}");
            let value: Value = serde_json::from_str(&choice.text).expect(&choice.text);
            let keys: Vec<&String> = value.as_object().unwrap().keys().collect();
            assert_eq!(keys, ["zone", "age", "color"], "in the schema's order");
            assert!(value["age"].as_u64().unwrap() <= 150);
        }
        let params = chat::Params {
            response_format: ResponseFormat::JsonObject,
            ..asks("Describe a cat as JSON.", 200)
        };
        let choice = chat(engine, &params).unwrap().0.remove(0);
        let parses = serde_json::from_str::<Value>(&choice.text).is_ok_and(|value| value.is_object());
        assert_eq!(parses, choice.finish == Some(FinishReason::Stop), "{choice:?}");
        let cut = chat::Params {
            response_format: ResponseFormat::JsonSchema { schema },
            ..asks("Describe a person as JSON.", 3)
        };
        assert_eq!(chat(engine, &cut).unwrap().0[0].finish, Some(FinishReason::Length));
        let grammar = "root ::= \"yes\" | \"no\"".to_owned();
        let params =
            chat::Params { response_format: ResponseFormat::Grammar { grammar }, ..asks("Is water wet?", 9) };
        let answer = chat(engine, &params).unwrap().0.remove(0).text;
        assert!(answer == "yes" || answer == "no", "{answer}");
    });
}

#[test]
fn joined_schemas_hold_the_answer() {
    with_engine(|engine| {
        let schema = json!({
            "$defs": {"named": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}}}},
            "allOf": [
                {"$ref": "#/$defs/named"},
                {"type": "object", "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["name", "age"]},
            ],
        });
        let params = chat::Params {
            response_format: ResponseFormat::JsonSchema { schema },
            ..asks("Describe a person as JSON.", 80)
        };
        let choice = chat(engine, &params).unwrap().0.remove(0);
        let value: Value = serde_json::from_str(&choice.text).expect(&choice.text);
        assert!(value["name"].is_string() && value["age"].as_u64().unwrap() <= 99, "{value}");
    });
}

#[test]
fn a_grammar_that_doubles_its_work_ends_its_own_answer_only() {
    with_engine(|engine| {
        let grammar = "root ::= a\na ::= \"(\" a \")\" | \"(\" a \"]\"".to_owned();
        let hostile = chat::Params {
            response_format: ResponseFormat::Grammar { grammar },
            ..asks("Write many brackets.", 500)
        };
        let node = |end: &str| {
            json!({"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}, "end": {"const": end}},
                   "required": ["next", "end"], "additionalProperties": false})
        };
        let schema = json!({"$defs": {"node": {"anyOf": [node("a"), node("b")]}},
                            "type": "object", "properties": {"node": {"$ref": "#/$defs/node"}},
                            "required": ["node"], "additionalProperties": false});
        let recursive =
            chat::Params { response_format: ResponseFormat::JsonSchema { schema }, ..hostile.clone() };
        let beside = reader(&Switches::default());
        engine.chat(&asks("Tell me a story.", 60), Terms::default(), beside.0);
        for params in [hostile, recursive] {
            let error = chat(engine, &params).unwrap_err();
            assert_eq!(
                (error.code, error.reason.as_deref()),
                (Code::InvalidArgument, Some("grammar_too_ambiguous"))
            );
            assert_eq!(error.details["param"], "response_format");
        }
        let (choices, usage) = collect(&beside.1).unwrap();
        assert!(choices[0].finish.is_some() && usage.completion_tokens > 10, "{choices:?}");
        assert_eq!(engine.stats().inflight, 0);
    });
}

#[test]
fn a_bias_against_all_that_a_form_allows_is_refused() {
    with_engine(|engine| {
        let mut params = chat::Params {
            response_format: ResponseFormat::Grammar { grammar: "root ::= \"7\"".into() },
            ..asks("Say a number.", 4)
        };
        let vocabulary = LlamaModel::load_from_file(
            bench::backend().unwrap(),
            model_file(),
            &LlamaModelParams::default().with_vocab_only(true),
        )
        .unwrap();
        for token in vocabulary.vocab().tokenize(b"7", false, false) {
            params.sampling.logit_bias.insert(token.0.to_string(), -100.0);
        }
        let error = chat(engine, &params).unwrap_err();
        assert_eq!((error.code, &error.details["param"]), (Code::InvalidArgument, &"logit_bias".into()));
        assert!(error.message.contains("schema allows"), "{error}");
    });
}
