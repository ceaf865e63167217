//! Answers: what they say, how they end, what is given back with them.

use crate::logprobs::{rates, text_of};
use crate::models;
use crate::support::{asks, chat, complete, config, continues, model_file, open, with_engine};
use backplane_llama::engine::{Config, Engine, Loaded, Unlimited, bench};
use backplane_plugin::Code;
use backplane_plugin::payload::{FinishReason, Sampling, chat, complete};
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::sampling::LlamaSampler;
use serde_json::json;
use std::num::NonZeroU32;
use std::sync::Arc;

#[test]
fn it_answers() {
    let (choices, usage) = with_engine(|engine| {
        chat(engine, &asks("What is the capital of France? Answer in one sentence.", 32))
    })
    .unwrap();
    assert!(choices[0].text.contains("Paris"), "{choices:?}");
    assert_eq!(choices[0].finish, Some(FinishReason::Stop));
    assert!(choices[0].pieces > 3, "it comes in pieces");
    assert!(usage.prompt_tokens > 20 && usage.completion_tokens > 3, "{usage:?}");
    assert!(usage.prefill_seconds.is_some() && usage.mean_logprob.is_none());
}

#[test]
fn greedy_is_token_for_token_what_llama_cpp_gives_by_hand() {
    let text = "The history of bread begins";
    let through = with_engine(|engine| complete(engine, &continues(text, 48))).unwrap().0.remove(0);
    let backend = bench::backend().unwrap();
    let model = LlamaModel::load_from_file(backend, model_file(), &LlamaModelParams::default()).unwrap();
    let params = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(512))
        .with_n_threads(1)
        .with_n_threads_batch(1);
    let mut context = model.new_context(backend, params).unwrap();
    let mut batch = LlamaBatch::new(64, 1);
    let tokens = model.vocab().tokenize(text.as_bytes(), true, false);
    for (i, &token) in tokens.iter().enumerate() {
        batch.add(token, i as i32, &[0], i + 1 == tokens.len()).unwrap();
    }
    let mut sampler = LlamaSampler::greedy();
    let mut bytes = Vec::new();
    for n in 0..48 {
        context.decode(&mut batch).unwrap();
        let token = sampler.sample(&context, batch.n_tokens() - 1);
        if model.vocab().is_eog(token) {
            break;
        }
        bytes.extend(model.vocab().token_to_piece(token, false, None));
        batch.clear();
        batch.add(token, (tokens.len() + n) as i32, &[0], true).unwrap();
    }
    assert_eq!(through.text, String::from_utf8_lossy(&bytes));
}

/// On an engine in the same state: what is in the cache and what runs beside changes the last bits of the sums, and
/// with them, now and then, a draw.
#[test]
fn the_same_seed_gives_the_same_answer() {
    let ask = |seed| {
        let sampling = Sampling { temperature: Some(1.2), seed: Some(seed), ..Sampling::default() };
        let params = chat::Params { sampling, ..asks("Tell me something surprising.", 32) };
        chat(&open(config()), &params).unwrap().0.remove(0).text
    };
    let first = ask(1);
    assert_eq!(ask(1), first);
    assert_ne!(ask(2), first);
}

#[test]
fn several_choices_share_the_prompt() {
    with_engine(|engine| {
        let before = engine.stats();
        let sampling = Sampling { temperature: Some(1.2), seed: Some(3), ..Sampling::default() };
        let question = "Write the opening sentence of a novel that is set in a lighthouse, in the voice of its keeper, who \
                        has not spoken to anybody for seven years.";
        let params = chat::Params { n: Some(6), sampling, ..asks(question, 16) };
        let (choices, usage) = chat(engine, &params).unwrap();
        assert_eq!(choices.len(), 6);
        assert!(choices.iter().all(|choice| choice.finish.is_some() && !choice.text.is_empty()));
        assert!(choices[1..].iter().any(|choice| choice.text != choices[0].text));
        let decoded = engine.stats().step_tokens - before.step_tokens;
        // The prompt once, at most 16 of its tokens for each other choice, and the answers.
        assert!(decoded <= usage.prompt_tokens + 5 * 16 + usage.completion_tokens, "{decoded} {usage:?}");
    });
}

#[test]
fn a_stop_string_ends_the_answer_before_it() {
    with_engine(|engine| {
        let params = asks("What is the capital of France? Answer in one sentence.", 32);
        let whole = chat(engine, &params).unwrap().0.remove(0).text;
        let stop = "of Fra".to_owned();
        assert!(whole.contains(&stop), "{whole}");
        let cut = chat(engine, &chat::Params { stop: vec![stop.clone()], ..params }).unwrap().0.remove(0);
        assert_eq!(cut.text, whole.split(&stop).next().unwrap());
        assert_eq!(cut.finish, Some(FinishReason::Stop));
    });
}

#[test]
fn a_stop_token_ends_the_answer_before_it() {
    let backend = bench::backend().unwrap();
    let vocabulary = LlamaModel::load_from_file(backend, model_file(), &LlamaModelParams::default()).unwrap();
    let number = |text: &str| {
        let tokens = vocabulary.vocab().tokenize(text.as_bytes(), false, false);
        assert_eq!(tokens.len(), 1, "`{text}` is one token");
        u32::try_from(tokens[0].0).unwrap()
    };
    with_engine(|engine| {
        let params = asks("What is the capital of France? Answer in one sentence.", 32);
        let whole = chat(engine, &params).unwrap().0.remove(0).text;
        assert!(whole.contains(" France"), "{whole}");
        let asked = |ids: Vec<u32>| chat::Params {
            sampling: Sampling { stop_token_ids: ids, ..params.sampling.clone() },
            ..params.clone()
        };
        let cut = chat(engine, &asked(vec![number(" guitar"), number(" France")])).unwrap().0.remove(0);
        assert_eq!(
            (&*cut.text, cut.finish),
            (whole.split(" France").next().unwrap(), Some(FinishReason::Stop))
        );
        let unmet = chat(engine, &asked(vec![number(" guitar")])).unwrap().0.remove(0);
        assert_eq!(unmet.text, whole);
        let error = chat(engine, &asked(vec![u32::MAX])).unwrap_err();
        assert_eq!((error.code, &error.details["param"]), (Code::InvalidArgument, &json!("stop_token_ids")));
    });
}

#[test]
fn a_request_for_no_tokens_gets_none() {
    with_engine(|engine| {
        let (choices, usage) = chat(engine, &asks("What is the capital of France?", 0)).unwrap();
        assert_eq!((choices[0].text.as_str(), choices[0].finish), ("", Some(FinishReason::Length)));
        assert!(usage.prompt_tokens > 5 && usage.completion_tokens == 0, "{usage:?}");
    });
}

#[test]
fn an_answer_to_a_request_that_does_not_say_has_the_model_s_own_limit() {
    let engine = open(Config { max_tokens: Some(5), ..config() });
    let unsaid = chat::Params { max_tokens: None, ..asks("Tell me a long story.", 0) };
    let (choices, usage) = chat(&engine, &unsaid).unwrap();
    assert_eq!((choices[0].finish, usage.completion_tokens), (Some(FinishReason::Length), 5));
    let (_, usage) = chat(&engine, &asks("Tell me a long story.", 7)).unwrap();
    assert_eq!(usage.completion_tokens, 7, "what a request says counts");
    let error = Loaded::open(&model_file(), Config { max_tokens: Some(0), ..config() }).unwrap_err();
    assert_eq!((error.code, &error.details["param"]), (Code::InvalidArgument, &"max_tokens".into()));
}

#[test]
fn completions_take_text_and_tokens_and_echo() {
    with_engine(|engine| {
        let (plain, usage) = complete(engine, &continues("The capital of France is", 6)).unwrap();
        let echoed =
            complete(engine, &complete::Params { echo: true, ..continues("The capital of France is", 6) })
                .unwrap()
                .0;
        assert_eq!(echoed[0].text, format!("The capital of France is{}", plain[0].text));
        assert_eq!(usage.completion_tokens, 6);
        let nothing = complete(engine, &complete::Params { echo: true, ..continues("Hello", 0) }).unwrap();
        assert_eq!((nothing.0[0].text.as_str(), nothing.1.completion_tokens), ("Hello", 0));
        assert_eq!(engine.stats().inflight, 0);
    });
}

#[test]
fn a_model_that_cannot_fill_in_says_what_would() {
    with_engine(|engine| {
        let params = complete::Params { suffix: Some("b".into()), ..continues("a", 4) };
        let error = complete(engine, &params).unwrap_err();
        assert!(error.message.contains("qwen2.5-coder:0.5b"), "{error}");
        assert_eq!((error.code, &error.details["param"]), (Code::InvalidArgument, &json!("suffix")));
    });
}

#[test]
fn a_gap_is_filled_in() {
    let config = Config { slots: 1, ..config() };
    let loaded = Loaded::open(&models::qwen_coder(), config).expect("the model opens");
    let engine = Engine::start(Arc::new(loaded), Arc::new(Unlimited)).expect("the engine starts");
    let prompt = "def add(a, b):\n    return ";
    let params = complete::Params {
        suffix: Some("\n\nprint(add(1, 2))  # 3\n".into()),
        stop: vec!["\n".into()],
        ..rates(complete::Prompt::Text(prompt.into()), 12)
    };
    let (choices, usage) = complete(&engine, &params).unwrap();
    let choice = &choices[0];
    let filled = choice.text.strip_prefix(prompt).expect("the prompt in front");
    assert!(filled.trim() == "a + b", "{choice:?}");
    // Of what the model was given only what was given back is reported; even its first token has something before it.
    assert_eq!(text_of(&choice.prompt), prompt);
    assert!(choice.prompt.iter().all(|entry| entry.logprob.is_some()), "{choice:?}");
    assert!(usage.prompt_tokens > choice.prompt.len() as u64 + 10);
}
