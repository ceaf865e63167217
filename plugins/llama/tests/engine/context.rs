//! What fits into the context, and what is done with the rest.

use crate::embeddings::embed;
use crate::support::{
    Event, Switches, asks, chat, complete, config, continues, greedy, open, reader, says, with_engine,
};
use backplane_llama::engine::{Config, Terms};
use backplane_plugin::payload::{FinishReason, Sampling, chat, complete, embed};
use backplane_plugin::{Code, Error};
use serde_json::json;
use std::time::Duration;

#[test]
fn a_prompt_one_token_too_long_is_refused_with_the_counts() {
    with_engine(|engine| {
        let tokens = |n: usize| complete::Params {
            prompt: complete::Prompt::Tokens(vec![100; n]),
            ..continues("", 1)
        };
        let (choices, usage) = complete(engine, &tokens(1023)).unwrap();
        assert_eq!((usage.prompt_tokens, usage.completion_tokens), (1023, 1));
        assert_eq!(choices[0].finish, Some(FinishReason::Length));
        let error = complete(engine, &tokens(1024)).unwrap_err();
        assert_eq!(error.code, Code::OutOfRange);
        assert_eq!(error.reason.as_deref(), Some("context_length_exceeded"));
        assert_eq!(
            (&error.details["n_prompt"], &error.details["n_ctx"], &error.details["n_over"]),
            (&json!(1024), &json!(1024), &json!(1))
        );
    });
}

#[test]
fn an_answer_ends_where_the_context_does() {
    let engine = open(Config { context: Some(64), ..config() });
    let params = complete::Params {
        sampling: Sampling { ignore_eos: true, ..greedy() },
        max_tokens: None,
        ..continues("One, two, three", 1)
    };
    let (choices, usage) = complete(&engine, &params).unwrap();
    assert_eq!(choices[0].finish, Some(FinishReason::Length));
    // The last token needs no place: nothing follows it.
    assert_eq!(usage.prompt_tokens + usage.completion_tokens, 65);
}

#[test]
fn a_caller_may_let_old_messages_go() {
    with_engine(|engine| {
        let mut params = asks("What is the capital of France? Answer in one sentence.", 24);
        let filler = "The quick brown fox jumps over the lazy dog, and then it does so once more. ".repeat(8);
        let mut messages = vec![params.messages.remove(0)];
        for _ in 0..8 {
            messages.push(says("user", &filler));
            messages.push(says("assistant", "Noted."));
        }
        messages.append(&mut params.messages);
        params.messages = messages;
        assert_eq!(chat(engine, &params).unwrap_err().code, Code::OutOfRange);
        params.truncate = Some(chat::Truncate::OldestMessages);
        let (sink, events) = reader(&Switches::default());
        engine.chat(&params, Terms::default(), sink);
        let mut dropped = 0;
        loop {
            match events.recv_timeout(Duration::from_secs(60)).unwrap() {
                Event::Delta(delta) => dropped = dropped.max(delta.dropped),
                Event::End(result) => break drop(result.unwrap()),
            }
        }
        assert!((1..16).contains(&dropped), "{dropped}");
    });
}

/// Without a bound from below each of these would take many seconds and gigabytes.
#[test]
fn what_is_far_too_long_costs_no_more_than_what_just_fits() {
    let megabytes = "many words that say nothing at all ".repeat(300_000);
    with_engine(|engine| {
        let refused = |error: Error| {
            assert_eq!(
                (error.code, error.reason.as_deref()),
                (Code::OutOfRange, Some("context_length_exceeded"))
            );
            assert_eq!(error.details["n_ctx"], json!(1024));
        };
        let mut params = asks(&megabytes, 8);
        refused(chat(engine, &params).unwrap_err());
        refused(engine.loaded().count_chat(&params).unwrap_err());
        params.truncate = Some(chat::Truncate::OldestMessages);
        refused(chat(engine, &params).unwrap_err());
        refused(complete(engine, &continues(&megabytes, 1)).unwrap_err());
        let embedded =
            embed::Params { input: vec![embed::Input::Text(megabytes.clone())], ..Default::default() };
        refused(embed(engine, &embedded).unwrap_err());
        let cut = embed::Params { truncate: true, ..embedded };
        assert_eq!(embed(engine, &cut).unwrap().1.prompt_tokens, 1024);

        // Of very many messages the newest stay, as of few.
        let question = "What is the capital of France? Answer in one sentence.";
        let mut params = asks(question, 24);
        let old = (0..40_000).map(|i| says(if i % 2 == 0 { "user" } else { "assistant" }, "So it is said."));
        params.messages.splice(1..1, old);
        refused(chat(engine, &params).unwrap_err());
        params.truncate = Some(chat::Truncate::OldestMessages);
        assert!(engine.loaded().count_chat(&params).unwrap() < 4 * 1024);
        let (choices, usage) = chat(engine, &params).unwrap();
        assert!(usage.prompt_tokens > 512 && !choices[0].text.is_empty(), "{usage:?}");
    });
}

#[test]
fn counting_needs_no_slot() {
    with_engine(|engine| {
        let params = asks("What is the capital of France? Answer in one sentence.", 4);
        let counted = engine.loaded().count_chat(&params).unwrap();
        assert_eq!(counted, chat(engine, &params).unwrap().1.prompt_tokens);
        let params = continues("One two three", 4);
        assert_eq!(
            engine.loaded().count_complete(&params).unwrap(),
            complete(engine, &params).unwrap().1.prompt_tokens
        );
    });
}
