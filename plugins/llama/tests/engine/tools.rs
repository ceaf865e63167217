//! Calls of tools.

use crate::models;
use crate::support::{asks, chat, config, with_engine};
use backplane_llama::engine::{Engine, Loaded, Unlimited};
use backplane_plugin::payload::FinishReason;
use backplane_plugin::payload::chat::{self, Tool, ToolChoice};
use serde_json::{Value, json};
use std::sync::Arc;

pub fn tools() -> Vec<Tool> {
    let tool = |name: &str, parameters: Value| Tool {
        name: name.into(),
        description: Some(format!("Gets the {name}.")),
        parameters: Some(parameters),
        ..Tool::default()
    };
    vec![
        tool(
            "weather",
            json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}),
        ),
        tool(
            "time",
            json!({"type": "object", "properties": {"zone": {"enum": ["UTC", "CET"]}}, "required": ["zone"]}),
        ),
    ]
}

#[test]
fn a_demanded_tool_is_called_with_arguments_that_fit() {
    with_engine(|engine| {
        let ask = |tool_choice| chat::Params {
            tools: tools(),
            tool_choice,
            parallel_tool_calls: Some(false),
            ..asks("What is the weather in Paris?", 80)
        };
        let choice = chat(engine, &ask(ToolChoice::Required)).unwrap().0.remove(0);
        assert_eq!(choice.finish, Some(FinishReason::ToolCalls), "{choice:?}");
        assert_eq!((choice.text.as_str(), choice.calls.len()), ("", 1), "{choice:?}");
        let choice = chat(engine, &ask(ToolChoice::Named("time".into()))).unwrap().0.remove(0);
        let (name, arguments) = &choice.calls[0];
        assert_eq!(name, "time");
        // Once, also for who did not forbid more.
        let several = chat::Params {
            parallel_tool_calls: None,
            max_tokens: Some(300),
            ..ask(ToolChoice::Named("time".into()))
        };
        let once = chat(engine, &several).unwrap().0.remove(0);
        assert_eq!((once.calls.len(), once.finish), (1, Some(FinishReason::ToolCalls)), "{once:?}");
        let arguments: Value = serde_json::from_str(arguments).unwrap();
        assert!(arguments["zone"] == "UTC" || arguments["zone"] == "CET", "{arguments}");
        let choice = chat(engine, &ask(ToolChoice::None)).unwrap().0.remove(0);
        assert!(choice.calls.is_empty() && !choice.text.is_empty());
        // Of its own accord a model this small may or may not; whatever it does is well formed.
        let choice = chat(engine, &ask(ToolChoice::Auto)).unwrap().0.remove(0);
        for (_, arguments) in &choice.calls {
            assert!(serde_json::from_str::<Value>(arguments).unwrap().is_object());
        }
        assert_eq!(choice.calls.is_empty(), choice.finish != Some(FinishReason::ToolCalls));
        let error = chat(engine, &ask(ToolChoice::Named("stock".into()))).unwrap_err();
        assert_eq!(error.details["param"], "tool_choice");
    });
}

#[test]
fn a_call_that_is_cut_shows_no_tag_and_what_came_of_its_arguments() {
    with_engine(|engine| {
        let ask = |max_tokens| chat::Params {
            tools: tools(),
            tool_choice: ToolChoice::Named("weather".into()),
            parallel_tool_calls: Some(false),
            ..asks("What is the weather in Paris?", max_tokens)
        };
        let whole = chat(engine, &ask(80)).unwrap().0.remove(0);
        assert_eq!(whole.finish, Some(FinishReason::ToolCalls), "{whole:?}");
        let mut lengths = Vec::new();
        for max_tokens in 1..30 {
            let choice = chat(engine, &ask(max_tokens)).unwrap().0.remove(0);
            assert_eq!(choice.text, "", "{max_tokens}: {choice:?}");
            if choice.finish == Some(FinishReason::ToolCalls) {
                break;
            }
            assert_eq!(choice.finish, Some(FinishReason::Length), "{choice:?}");
            for (name, arguments) in &choice.calls {
                assert!(name == "weather" && whole.calls[0].1.starts_with(arguments.as_str()), "{choice:?}");
                lengths.push(arguments.len());
            }
        }
        assert!(lengths.windows(2).all(|pair| pair[0] <= pair[1]), "{lengths:?}");
        assert!(lengths.iter().any(|&length| 0 < length && length < whole.calls[0].1.len()), "{lengths:?}");
    });
}

/// It forgets the tag that its template asks for.
#[test]
fn a_small_coder_calls_of_its_own_accord() {
    let loaded = Loaded::open(&models::qwen_coder(), config()).unwrap();
    let engine = Engine::start(Arc::new(loaded), Arc::new(Unlimited)).unwrap();
    let params = chat::Params { tools: tools(), ..asks("What is the weather in Paris?", 80) };
    let choice = chat(&engine, &params).unwrap().0.remove(0);
    assert_eq!((choice.text.as_str(), choice.finish), ("", Some(FinishReason::ToolCalls)), "{choice:?}");
    let (name, arguments) = &choice.calls[0];
    assert_eq!(
        (name.as_str(), serde_json::from_str(arguments).ok()),
        ("weather", Some(json!({"city": "Paris"})))
    );
}
