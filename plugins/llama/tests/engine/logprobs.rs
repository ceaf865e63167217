//! Probabilities: of an answer, and of a prompt that is rated.

use crate::support::{
    Event, Switches, asks, collect, collect_end, complete, continues, greedy, model_file, reader, with_engine,
};
use backplane_llama::engine::{Terms, bench};
use backplane_plugin::Code;
use backplane_plugin::payload::complete::{self, PromptLogprob};
use backplane_plugin::payload::{FinishReason, Sampling, chat};
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

#[test]
fn log_probabilities_are_those_of_the_model() {
    with_engine(|engine| {
        let (sink, events) = reader(&Switches::default());
        let params = chat::Params {
            logprobs: Some(20),
            ..asks("What is the capital of France? Answer in one sentence.", 16)
        };
        engine.chat(&params, Terms { confidence: true, ..Terms::default() }, sink);
        let (choices, usage) = collect(&events).unwrap();
        let choice = &choices[0];
        assert_eq!(choice.logprobs.len() as u64, usage.completion_tokens);
        let bytes: Vec<u8> = choice.logprobs.iter().flat_map(|entry| entry.bytes.clone()).collect();
        assert_eq!(String::from_utf8(bytes).unwrap(), choice.text);
        for entry in &choice.logprobs {
            assert_eq!(entry.top.len(), 20);
            assert!(entry.top.windows(2).all(|pair| pair[0].logprob >= pair[1].logprob));
            // Greedy: the chosen token is the likeliest.
            assert_eq!((&entry.top[0].token, entry.top[0].logprob), (&entry.token, entry.logprob));
            let sum: f64 = entry.top.iter().map(|top| f64::from(top.logprob).exp()).sum();
            assert!((0.05..=1.0 + 1e-4).contains(&sum), "{sum}");
        }
        let mean = choice.logprobs.iter().map(|entry| f64::from(entry.logprob)).sum::<f64>()
            / choice.logprobs.len() as f64;
        assert!((usage.mean_logprob.unwrap() - mean).abs() < 1e-6);
        let all = complete(engine, &complete::Params { logprobs: Some(0), ..continues("One, two,", 4) })
            .unwrap()
            .0
            .remove(0);
        assert!(
            all.logprobs.len() == 4
                && all.logprobs.iter().all(|entry| entry.top.is_empty() && entry.logprob <= 0.0)
        );
    });
}

/// A prompt given back with its probabilities.
pub fn rates(prompt: complete::Prompt, max_tokens: u32) -> complete::Params {
    complete::Params { prompt, echo: true, logprobs: Some(2), ..continues("", max_tokens) }
}

pub fn text_of(entries: &[PromptLogprob]) -> String {
    String::from_utf8(entries.iter().flat_map(|entry| entry.bytes.clone()).collect()).unwrap()
}

#[test]
fn a_prompt_s_log_probabilities_are_those_of_generating_it() {
    with_engine(|engine| {
        // 60 tokens step by step, so that rating the same text takes several pieces of several tokens.
        let text = "The history of bread begins";
        let params = complete::Params {
            logprobs: Some(2),
            sampling: Sampling { ignore_eos: true, ..greedy() },
            ..continues(text, 60)
        };
        let stepped = complete(engine, &params).unwrap().0.remove(0);
        let whole = format!("{text}{}", stepped.text);
        // As tokens, since a text may be cut into others than the model wrote.
        let vocab =
            LlamaModel::load_from_file(bench::backend().unwrap(), model_file(), &LlamaModelParams::default())
                .unwrap();
        let numbers = |text: &str| -> Vec<u32> {
            vocab
                .vocab()
                .tokenize(text.as_bytes(), false, false)
                .into_iter()
                .map(|token| token.0 as u32)
                .collect()
        };
        let prompt = numbers(text).len();
        let tokens: Vec<u32> = numbers(text)
            .into_iter()
            .chain(stepped.logprobs.iter().map(|entry| numbers(&entry.token)[0]))
            .collect();
        let before = engine.stats();
        let (choices, usage) = complete(engine, &rates(complete::Prompt::Tokens(tokens), 0)).unwrap();
        let rated = &choices[0];
        assert_eq!((rated.text.as_str(), rated.finish), (whole.as_str(), Some(FinishReason::Length)));
        assert_eq!((usage.cached_tokens, usage.completion_tokens), (0, 0), "{usage:?}");
        assert_eq!(engine.stats().generated_tokens, before.generated_tokens);
        assert_eq!((rated.prompt.len(), rated.logprobs.len()), (prompt + 60, 0));
        assert_eq!(text_of(&rated.prompt), whole);
        assert_eq!((rated.prompt[0].logprob, rated.prompt[0].top.len()), (None, 0));
        let mut sums = (0.0, 0.0);
        for (rated, stepped) in rated.prompt[prompt..].iter().zip(&stepped.logprobs) {
            assert_eq!(rated.token, stepped.token);
            let logprob = rated.logprob.unwrap();
            // llama.cpp multiplies a batch by other kernels than a single token, which shows in quantised models.
            assert!((logprob - stepped.logprob).abs() < 0.3, "{rated:?} {stepped:?}");
            assert_eq!(rated.top.len(), 2);
            sums = (sums.0 + f64::from(logprob), sums.1 + f64::from(stepped.logprob));
        }
        assert!((sums.0 - sums.1).abs() < 60.0 * 0.03, "{sums:?}");
        // The cache that rating leaves is as good as any other's, and rating again does not use it.
        let again = complete(engine, &rates(complete::Prompt::Text(whole.clone()), 0)).unwrap();
        assert_eq!(again.1.cached_tokens, 0);
        let (_, usage) = complete(engine, &continues(&whole, 1)).unwrap();
        assert_eq!(usage.cached_tokens, usage.prompt_tokens - 1);
    });
}

#[test]
fn a_rated_prompt_goes_on_and_every_choice_has_it() {
    with_engine(|engine| {
        let text = "Grüße aus Köln 😀, wo der Rhein";
        let params = complete::Params {
            n: Some(6),
            sampling: Sampling { temperature: Some(1.0), seed: Some(5), ..Sampling::default() },
            ..rates(complete::Prompt::Text(text.into()), 4)
        };
        let (choices, usage) = complete(engine, &params).unwrap();
        assert_eq!(choices.len(), 6);
        for choice in &choices {
            assert_eq!(choice.prompt.len() as u64, usage.prompt_tokens);
            assert_eq!(choice.prompt, choices[0].prompt);
            assert_eq!(text_of(&choice.prompt), text);
            assert!(choice.text.starts_with(text) && choice.finish.is_some(), "{choice:?}");
            let bytes: Vec<u8> = choice.logprobs.iter().flat_map(|entry| entry.bytes.clone()).collect();
            assert_eq!(format!("{text}{}", String::from_utf8_lossy(&bytes)), choice.text);
        }
        // A character in several tokens is there.
        assert!(choices[0].prompt.iter().any(|entry| std::str::from_utf8(&entry.bytes).is_err()));
        let alone = complete(
            engine,
            &complete::Params { n: Some(3), ..rates(complete::Prompt::Text("Hi".into()), 0) },
        );
        let (choices, _) = alone.unwrap();
        assert!(choices.len() == 3 && choices.iter().all(|choice| choice.text == "Hi"), "{choices:?}");
    });
}

#[test]
fn the_token_that_ends_a_completion_is_reported_as_openai_does() {
    with_engine(|engine| {
        let text = "<|im_start|>user\nSay yes.<|im_end|>\n<|im_start|>assistant\nYes.";
        let mut params = complete::Params { logprobs: Some(1), ..continues(text, 40) };
        params.extra.insert("parse_special".into(), true.into());
        let (choices, usage) = complete(engine, &params).unwrap();
        let choice = &choices[0];
        assert_eq!(choice.finish, Some(FinishReason::Stop), "{choice:?}");
        let last = choice.logprobs.last().unwrap();
        assert_eq!((last.token.as_str(), last.bytes.len()), ("<|im_end|>", 0));
        assert_eq!(choice.logprobs.len() as u64, usage.completion_tokens + 1);
    });
}

#[test]
fn rating_a_long_prompt_leaves_room_for_others_and_ends_when_cancelled() {
    with_engine(|engine| {
        let text = "the quick brown fox jumps over the lazy dog. ".repeat(80);
        let switches = Switches::default();
        let (sink, events) = reader(&switches);
        engine.complete(&rates(complete::Prompt::Text(text), 0), Terms::default(), sink);
        // The first token has no probability, the second comes with the first step.
        let mut rated = 0;
        while rated < 2 {
            match events.recv_timeout(Duration::from_secs(20)).unwrap() {
                Event::Delta(delta) => rated += delta.prompt_logprobs.len(),
                Event::End(result) => panic!("{result:?}"),
            }
        }
        // Another is answered while most of it is still to come.
        let (choices, _) = complete(engine, &continues("One, two,", 2)).unwrap();
        assert!(choices[0].finish.is_some());
        while let Ok(Event::Delta(delta)) = events.try_recv() {
            rated += delta.prompt_logprobs.len();
        }
        assert!(rated < 700, "{rated} were rated first");
        switches.gone.store(true, SeqCst);
        let steps = engine.stats().steps;
        assert_eq!(collect_end(&events).unwrap_err().code, Code::Cancelled);
        assert!(engine.stats().steps <= steps + 2);
    });
}

#[test]
fn a_reader_that_is_behind_holds_a_rated_prompt_back() {
    with_engine(|engine| {
        let params =
            rates(complete::Prompt::Text("the quick brown fox jumps over the lazy dog. ".repeat(60)), 0);
        let switches = Switches::default();
        let slow = reader(&switches);
        switches.full.store(true, SeqCst);
        engine.complete(&params, Terms::default(), slow.0);
        let before = engine.stats().step_tokens;
        // The same prompt beside it does not wait for what stands still.
        let (choices, _) = complete(
            engine,
            &complete::Params { echo: false, logprobs: None, max_tokens: Some(1), ..params },
        )
        .unwrap();
        assert!(choices[0].finish.is_some());
        assert!(engine.stats().step_tokens - before < 800, "{:?}", engine.stats());
        switches.full.store(false, SeqCst);
        let (choices, usage) = collect(&slow.1).unwrap();
        assert_eq!(choices[0].prompt.len() as u64, usage.prompt_tokens);
    });
}
