//! Requests beside each other and one after the other: slots, the cache, who leaves and who is slow.

use crate::support::{
    Event, Switches, asks, chat, collect, config, continues, greedy, open, reader, says, with_engine,
};
use backplane_llama::engine::{Config, Terms};
use backplane_plugin::Code;
use backplane_plugin::payload::{Sampling, complete};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

#[test]
fn four_requests_run_in_one_batch_and_each_gets_its_own_answer() {
    with_engine(|engine| {
        let capitals =
            [("France", "Paris"), ("Italy", "Rome"), ("Australia", "Canberra"), ("Japan", "Tokyo")];
        let questions =
            capitals.map(|(country, _)| format!("What is the capital of {country}? Answer in one sentence."));
        let readers: Vec<_> = questions
            .iter()
            .map(|question| {
                let (sink, events) = reader(&Switches::default());
                engine.chat(&asks(question, 24), Terms::default(), sink);
                events
            })
            .collect();
        let together: Vec<String> =
            readers.iter().map(|events| collect(events).unwrap().0.remove(0).text).collect();
        assert_eq!(engine.stats().most_answers, 4);
        for ((_, capital), answer) in capitals.iter().zip(&together) {
            assert!(answer.contains(capital), "{together:?}");
        }
        assert_eq!((engine.stats().inflight, engine.stats().slots_busy), (0, 0));
    });
}

#[test]
fn more_requests_than_slots_are_refused_not_queued() {
    let engine = open(Config { slots: 2, ..config() });
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let (sink, events) = reader(&Switches::default());
            engine.chat(&asks("Tell me a story.", 48), Terms::default(), sink);
            events
        })
        .collect();
    let results: Vec<_> = readers.iter().map(collect).collect();
    assert!(results[0].is_ok() && results[1].is_ok());
    let error = results[2].as_ref().unwrap_err();
    assert_eq!(error.code, Code::ResourceExhausted);
    assert!(error.retry_after.is_some());
}

#[test]
fn a_conversation_s_next_turn_computes_only_what_is_new() {
    with_engine(|engine| {
        let mut params = asks("Name three animals that live in the sea, with a sentence about each.", 24);
        let (first, usage) = chat(engine, &params).unwrap();
        assert_eq!(usage.cached_tokens, usage.cached_tokens.min(usage.prompt_tokens - 1));
        params.messages.push(says("assistant", &first[0].text));
        params.messages.push(says("user", "And one on land?"));
        let (_, next) = chat(engine, &params).unwrap();
        assert!(next.cached_tokens >= usage.prompt_tokens, "{usage:?} {next:?}");
        assert!(next.prompt_tokens - next.cached_tokens < 40, "{next:?}");
    });
}

#[test]
fn a_cached_prefix_changes_nothing() {
    let engine = open(config());
    let params = asks("Write one sentence about rivers.", 24);
    let cold = chat(&engine, &params).unwrap();
    let warm = chat(&engine, &params).unwrap();
    assert_eq!(cold.1.cached_tokens, 0);
    assert_eq!(warm.1.cached_tokens, warm.1.prompt_tokens - 1);
    assert_eq!(cold.0, warm.0);
}

#[test]
fn a_cancelled_request_leaves_at_once_and_the_others_stay() {
    with_engine(|engine| {
        let params = asks("Tell me a long story about a dragon.", 200);
        let stays = reader(&Switches::default());
        let switches = Switches::default();
        let leaves = reader(&switches);
        engine.chat(&params, Terms::default(), stays.0);
        engine.chat(&asks("Tell me a long story about a ship.", 200), Terms::default(), leaves.0);
        while !matches!(leaves.1.recv().unwrap(), Event::Delta(delta) if !delta.text.is_empty()) {}
        switches.gone.store(true, SeqCst);
        let steps = engine.stats().steps;
        let error = loop {
            if let Event::End(result) = leaves.1.recv_timeout(Duration::from_secs(10)).unwrap() {
                break result.unwrap_err();
            }
        };
        // The step that was running when the switch was set, and at most one more.
        assert!(engine.stats().steps <= steps + 2);
        assert_eq!(error.code, Code::Cancelled);
        assert!(error.details["completion_tokens"].as_u64().unwrap() > 0);
        let (choices, _) = collect(&stays.1).unwrap();
        assert!(!choices[0].text.is_empty() && choices[0].finish.is_some());
    });
}

#[test]
fn a_prompt_is_cancelled_between_its_pieces() {
    with_engine(|engine| {
        let switches = Switches::default();
        let (sink, events) = reader(&switches);
        let long = format!("Summarise: {}", "the quick brown fox jumps over the lazy dog. ".repeat(80));
        engine.chat(&asks(&long, 8), Terms::default(), sink);
        let began = Instant::now();
        while engine.stats().slots_busy == 0 && began.elapsed() < Duration::from_secs(10) {
            std::thread::yield_now();
        }
        switches.gone.store(true, SeqCst);
        assert_eq!(collect(&events).unwrap_err().code, Code::Cancelled);
    });
}

#[test]
fn a_passed_deadline_ends_an_answer_with_what_there_is() {
    with_engine(|engine| {
        let (sink, events) = reader(&Switches::default());
        let terms = Terms { deadline: Some(Instant::now() + Duration::from_millis(600)), ..Terms::default() };
        let params = complete::Params {
            sampling: Sampling { ignore_eos: true, ..greedy() },
            ..continues("One two", 900)
        };
        engine.complete(&params, terms, sink);
        let mut text = String::new();
        let error = loop {
            match events.recv_timeout(Duration::from_secs(20)).unwrap() {
                Event::Delta(delta) => text.push_str(&delta.text),
                Event::End(result) => break result.unwrap_err(),
            }
        };
        assert_eq!(error.code, Code::DeadlineExceeded);
        assert!(!text.is_empty());
    });
}

#[test]
fn a_slow_reader_waits_alone_and_loses_nothing() {
    with_engine(|engine| {
        let params = asks("What is the capital of France? Answer in one sentence.", 24);
        let expected = chat(engine, &params).unwrap().0.remove(0).text;
        let switches = Switches::default();
        let slow = reader(&switches);
        switches.full.store(true, SeqCst);
        engine.chat(&params, Terms::default(), slow.0);
        let (choices, _) = chat(engine, &asks("Name a color.", 12)).unwrap();
        assert!(choices[0].finish.is_some());
        assert!(slow.1.try_recv().is_err());
        switches.full.store(false, SeqCst);
        assert_eq!(collect(&slow.1).unwrap().0[0].text, expected);
    });
}
