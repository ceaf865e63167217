//! However a request ends, its key is charged once, for what it was worth: told by the host while it runs, and by its
//! store after it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod support;

use backplane::auth::{KeyLimits, NewKey, Role, TokenBudget};
use backplane::limiter::Period;
use backplane::{CacheOutcome, CacheUse, Caller, Config, ErrorCode, Host, Next, Request};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::json;
use std::time::{Duration, Instant};
use support::{echo, host};

const BUDGET: u64 = 1_000_000;

/// How a request may end.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    /// The plugin reports what it consumed.
    Ok(u64),
    /// The same question as before.
    Cached,
    /// More than the whole budget.
    Refused,
    /// No such model.
    Unknown,
    /// The caller leaves after the first piece.
    Leaves,
    /// The deadline passes while the plugin works.
    Late,
    /// The deadline passed before it began.
    TooLate,
    /// The plugin fails after so many pieces.
    Fails(u64),
    /// The plugin refuses the parameters.
    Bad,
    Panics,
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        (1..500_u64).prop_map(Outcome::Ok),
        Just(Outcome::Cached),
        Just(Outcome::Refused),
        Just(Outcome::Unknown),
        Just(Outcome::Leaves),
        Just(Outcome::Late),
        Just(Outcome::TooLate),
        (0..4_u64).prop_map(Outcome::Fails),
        Just(Outcome::Bad),
        Just(Outcome::Panics),
    ]
}

/// Words of every prompt here, as echo counts them.
const WORDS: u64 = 3;

/// Asks for the outcome, checks that it came, and says what it has to cost.
async fn ask(host: &Host, caller: &Caller, outcome: Outcome) -> u64 {
    // A panic takes along what else its instance has at that time, so it gets a model of its own.
    let model = if matches!(outcome, Outcome::Panics) { "echo-continuous" } else { "echo" };
    let request = |params: serde_json::Value| {
        let mut request = of(caller, echo(params).model(model));
        request.cache = CacheUse::Bypass;
        request
    };
    let text = "one two three";
    match outcome {
        Outcome::Ok(tokens) => {
            // An answer has as many bytes.
            let usage = json!({"prompt_tokens": tokens, "completion_tokens": tokens % 16});
            let asked = request(json!({"text": text, "usage": usage}));
            let answer = host.serve(asked).await.unwrap().collect().await.unwrap();
            answer.done.usage.prompt_tokens + answer.done.usage.completion_tokens
        }
        Outcome::Cached => {
            let mut asked = request(json!({"text": text, "usage": {"prompt_tokens": 7}}));
            asked.cache = CacheUse::Default;
            let answer = host.serve(asked).await.unwrap().collect().await.unwrap();
            assert_eq!(answer.cache, CacheOutcome::Hit);
            0
        }
        Outcome::Refused => {
            let asked = request(json!({"text": "word ".repeat(BUDGET as usize + 1)}));
            let error = host.serve(asked).await.err().unwrap();
            assert_eq!(error.reason, "limit_too_small");
            0
        }
        Outcome::Unknown => {
            let error = host.serve(request(json!({})).model("nobody")).await.err().unwrap();
            assert_eq!(error.reason, "model_not_found");
            0
        }
        Outcome::Leaves => {
            let params = json!({"text": text, "chunks": 2, "chunk_delay_ms": 60_000});
            let mut reply = host.serve(request(params).streamed()).await.unwrap();
            assert!(matches!(reply.next().await.unwrap(), Next::Chunk(_)));
            drop(reply);
            WORDS + 1
        }
        Outcome::Late => {
            let asked = request(json!({"text": text, "delay_ms": 60_000})).within(Duration::from_millis(300));
            let error = host.serve(asked).await.unwrap().collect().await.unwrap_err();
            assert_eq!(error.code, ErrorCode::DeadlineExceeded);
            WORDS
        }
        Outcome::TooLate => {
            let asked = request(json!({"text": text, "delay_ms": 60_000})).within(Duration::ZERO);
            let error = host.serve(asked).await.unwrap().collect().await.unwrap_err();
            assert_eq!(error.code, ErrorCode::DeadlineExceeded);
            0
        }
        Outcome::Fails(pieces) => {
            let fail = json!({"code": "data_loss", "after": pieces});
            let asked = request(json!({"text": text, "chunks": 4, "fail": fail}));
            let error = host.serve(asked).await.unwrap().collect().await.unwrap_err();
            assert_eq!(error.code, ErrorCode::DataLoss);
            if pieces == 0 { 0 } else { WORDS + pieces }
        }
        Outcome::Bad => {
            let error = host.serve(request(json!({"text": text, "txet": 1}))).await.err().unwrap();
            assert_eq!(error.code, ErrorCode::InvalidArgument);
            0
        }
        Outcome::Panics => {
            let asked = request(json!({"text": text, "panic": true}));
            let error = host.serve(asked).await.unwrap().collect().await.unwrap_err();
            assert!(matches!(error.code, ErrorCode::Internal | ErrorCode::Unavailable), "{error}");
            0
        }
    }
}

fn of(caller: &Caller, mut request: Request) -> Request {
    request.caller = caller.clone();
    request
}

fn user(limits: KeyLimits) -> NewKey {
    NewKey { name: "tests".to_owned(), role: Role::User, limits, lifetime: None }
}

fn spent(host: &Host, caller: &Caller) -> u64 {
    BUDGET - host.limits(caller).iter().find(|limit| limit.dimension == "tokens").unwrap().remaining
}

fn in_flight(host: &Host) -> bool {
    !host.metrics().render().lines().any(|line| line == "backplane_requests_in_flight 0")
}

#[test]
fn every_outcome_is_charged_once_and_the_store_says_the_same() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut running = host(|config| {
        config.cache.capabilities.push("echo".to_owned());
        config.models.max_queue = 64;
    });
    let budget = TokenBudget { tokens: BUDGET, window: Period::Total };
    let key = user(KeyLimits { requests_per_minute: None, tokens: Some(budget) });
    let secret = runtime.block_on(running.host.create_key(key)).unwrap().secret;
    let caller = running.host.identify(Some(&secret)).unwrap();
    let mut expected = runtime.block_on(async {
        for model in ["echo", "echo-continuous"] {
            running.host.load(model, None).await.unwrap();
        }
        // What `Cached` finds.
        let first = of(&caller, echo(json!({"text": "one two three", "usage": {"prompt_tokens": 7}})));
        running.host.serve(first).await.unwrap().collect().await.unwrap();
        7
    });

    let mut runner = TestRunner::new(ProptestConfig { cases: 12, ..ProptestConfig::default() });
    let cases = proptest::collection::vec(outcome(), 1..24);
    let total = std::cell::Cell::new(expected);
    runner
        .run(&cases, |outcomes| {
            let charged: u64 = runtime.block_on(async {
                let asked = outcomes.iter().map(|outcome| ask(&running.host, &caller, *outcome));
                futures::future::join_all(asked).await.into_iter().sum()
            });
            total.set(total.get() + charged);
            // Who left is settled when the plugin has noticed.
            let deadline = Instant::now() + Duration::from_secs(10);
            while in_flight(&running.host) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            prop_assert!(!in_flight(&running.host));
            prop_assert_eq!(spent(&running.host, &caller), total.get());
            Ok(())
        })
        .unwrap();
    expected = total.get();

    // The same host again, from what it has stored.
    let state = std::mem::replace(&mut running.state, tempfile::tempdir().unwrap());
    runtime.block_on(running.host.shutdown(Duration::from_secs(5)));
    drop(running);
    let again = Host::builder()
        .config(Config::for_tests())
        .state_dir(state.path())
        .plugin_dir(support::plugins())
        .start()
        .unwrap();
    let caller = again.identify(Some(&secret)).unwrap();
    assert_eq!(spent(&again, &caller), expected);
}

#[tokio::test]
async fn what_waits_in_vain_costs_nothing() {
    let running = host(|config| {
        config.models.max_queue = 1;
        config.limits.tokens = Some(BUDGET);
    });
    let key = user(KeyLimits::default());
    let secret = running.host.create_key(key).await.unwrap().secret;
    let caller = running.host.identify(Some(&secret)).unwrap();
    let request = || of(&caller, echo(json!({"text": "a b", "delay_ms": 60_000})).model("echo-serial"));
    running.host.load("echo-serial", None).await.unwrap();
    let runs = running.host.serve(request()).await.unwrap();
    let busy = || running.host.model("echo-serial").unwrap().running.unwrap().busy;
    while busy() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let waits = running.host.serve(request()).await.unwrap();
    let error = running.host.serve(request()).await.err().unwrap();
    assert_eq!(error.reason, "overloaded");
    drop(waits);
    let late = running.host.serve(request().within(Duration::from_millis(20))).await;
    if let Ok(late) = late {
        assert_eq!(late.collect().await.unwrap_err().code, ErrorCode::DeadlineExceeded);
    }
    drop(runs);
    let deadline = Instant::now() + Duration::from_secs(10);
    while in_flight(&running.host) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(spent(&running.host, &caller), 2, "the one that ran is charged for its prompt");
}

#[tokio::test]
async fn a_model_that_cannot_take_it_hands_the_reservation_to_the_next() {
    let running = host(|config| {
        config.models.max_queue = 1;
        config.limits.tokens = Some(BUDGET);
        let models = vec!["echo-serial".to_owned(), "echo".to_owned()];
        let route = backplane::config::RouteConfig { models, escalate_below: 0.5 };
        config.models.routes.insert("steps".to_owned(), route);
    });
    let key = user(KeyLimits { requests_per_minute: Some(4), tokens: None });
    let secret = running.host.create_key(key).await.unwrap().secret;
    let caller = running.host.identify(Some(&secret)).unwrap();
    let slow = || echo(json!({"text": "x", "delay_ms": 60_000})).model("echo-serial");
    let runs = running.host.serve(slow()).await.unwrap();
    while running.host.model("echo-serial").unwrap().running.unwrap().busy == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let waits = running.host.serve(slow()).await.unwrap();
    for stream in [true, false] {
        let mut asked = of(&caller, echo(json!({"text": "a b c", "confidence": 0.9})).model("steps"));
        asked.stream = stream;
        let answer = running.host.serve(asked).await.unwrap().collect().await.unwrap();
        assert_eq!(&*answer.route.model, "echo", "the other one is full");
    }
    let requests = running.host.limits(&caller);
    let requests = requests.iter().find(|limit| limit.dimension == "requests").unwrap();
    assert_eq!(requests.remaining, 2, "each counted as one request, whoever took it");
    assert_eq!(spent(&running.host, &caller), 2 * (3 + 1));
    drop((runs, waits));
}

/// The first waits for itself, by way of a call; what the one that answers calls is charged as well.
#[tokio::test]
async fn a_model_that_took_it_and_failed_is_not_charged_beside_the_one_that_answers() {
    let running = host(|config| config.limits.tokens = Some(BUDGET));
    let key = user(KeyLimits { requests_per_minute: Some(6), tokens: None });
    let secret = running.host.create_key(key).await.unwrap().secret;
    let caller = running.host.identify(Some(&secret)).unwrap();
    let call = json!({"capability": "echo", "model": "echo", "params": {"text": "a b"}});
    let params = json!({"text": "a b c", "call": call}).to_string();
    let left = || {
        let limits = running.host.limits(&caller);
        limits.iter().find(|limit| limit.dimension == "requests").unwrap().remaining
    };
    let mut costs = Vec::new();
    for model in [Some("echo-serial".to_owned()), None] {
        let before = (left(), spent(&running.host, &caller));
        let mut asked = Request::new(caller.clone(), "echo", params.clone());
        asked.model = model;
        let answer = running.host.serve(asked).await.unwrap().collect().await.unwrap();
        assert_eq!(&*answer.route.model, "echo-serial");
        costs.push((before.0 - left(), spent(&running.host, &caller) - before.1));
    }
    assert_eq!(costs[0], costs[1], "requests and tokens");
    assert!(0 < costs[1].0 && 0 < costs[1].1);
}
