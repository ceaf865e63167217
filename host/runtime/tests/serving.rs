//! What the request function promises, through the echo plugin loaded from its shared library.

#![allow(clippy::unwrap_used, reason = "in a test a failure is the test's")]

mod support;

use backplane::{CacheOutcome, Caller, ErrorCode, KeepAlive, ModelState, Next, Request, Tensor};
use serde_json::{Value, json};
use std::time::Duration;
use support::{echo, host, soon, text};

#[tokio::test]
async fn every_execution_class_answers_whole_and_streamed() {
    let running = host(|_| {});
    for model in ["echo", "echo-serial", "echo-continuous"] {
        let request = echo(json!({"text": "one two three", "chunks": 3})).model(model);
        let answer = running.host.serve(request.clone()).await.unwrap().collect().await.unwrap();
        assert_eq!((text(&answer).as_str(), answer.chunks.len()), ("one two three", 3));
        assert_eq!(&*answer.route.model, model);
        assert_eq!(&*answer.route.plugin, "dev.backplane.echo");
        let mut reply = running.host.serve(request.streamed()).await.unwrap();
        let mut pieces = 0;
        while let Next::Chunk(_) = reply.next().await.unwrap() {
            pieces += 1;
        }
        assert_eq!(pieces, 3);
    }
}

#[tokio::test]
async fn tensors_come_back_as_they_went() {
    let running = host(|_| {});
    let tensor = Tensor::from_f32("x", vec![2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    let large = Tensor::from_f32("large", vec![100_000], &vec![0.5; 100_000]).unwrap();
    let request = echo(json!({"text": "hi"})).tensor(tensor.clone()).tensor(large.clone());
    let answer = running.host.serve(request).await.unwrap().collect().await.unwrap();
    assert_eq!(answer.tensor("x"), Some(&tensor));
    assert_eq!(answer.tensor("large"), Some(&large));
    let twice = echo(json!({})).tensor(tensor.clone()).tensor(tensor);
    let error = running.host.serve(twice).await.err().unwrap();
    assert_eq!((error.code, error.param.as_deref()), (ErrorCode::InvalidArgument, Some("x")));
}

#[tokio::test]
async fn a_capability_the_host_does_not_know_is_found_by_name() {
    let running = host(|_| {});
    let names: Vec<_> = running.host.capabilities().into_iter().map(|capability| capability.name).collect();
    assert_eq!(names, ["echo"]);
    let request = Request::new(Caller::internal("tests"), "echo", r#"{"text":"hi"}"#);
    let answer = running.host.serve(request).await.unwrap().collect().await.unwrap();
    assert_eq!(&*answer.route.model, "echo", "ties go by name");
    assert_eq!(answer.route.candidates.len(), 3, "and every bid is on record");

    let error =
        running.host.serve(Request::new(Caller::internal("t"), "acme.nothing", "{}")).await.err().unwrap();
    assert_eq!(error.reason, "capability_not_found");
    let error = running.host.serve(echo(json!({})).model("ecko")).await.err().unwrap();
    assert_eq!((error.reason.as_ref(), error.message.contains("`echo`")), ("model_not_found", true));
}

#[tokio::test]
async fn a_part_of_a_model_is_asked_by_its_name_alone() {
    let folder = tempfile::tempdir().unwrap();
    let card = folder.path().join("whole.toml");
    let text = "name = 'whole'\nformat = 'x'\nplugin = 'dev.backplane.echo'\ncapabilities = ['echo']\n\
        [graphs]\na = { capabilities = ['echo', 'tensor.infer'] }\n[[files]]\nrole = 'a'\npath = 'weights'\n";
    std::fs::write(&card, text).unwrap();
    std::fs::write(folder.path().join("weights"), "none").unwrap();
    let running = host(|config| config.models.cards.push(card));
    let ask = async |capability: &str, model: Option<&str>| {
        let mut request = Request::new(Caller::internal("tests"), capability, r#"{"text":"x"}"#);
        request.model = model.map(str::to_owned);
        running.host.serve(request).await?.collect().await
    };
    let answer = ask("echo", None).await.unwrap();
    let asked: Vec<_> = answer.route.candidates.iter().map(|one| &*one.model).collect();
    assert_eq!(asked, ["echo", "echo-continuous", "echo-serial", "whole"]);
    let alone = ask("tensor.infer", None).await.unwrap_err();
    assert_eq!((&*alone.reason, alone.param.as_deref()), ("capability_not_served", Some("model")));
    assert!(alone.message.contains("`whole.a`"), "{alone}");
    let named = ask("tensor.infer", Some("whole.a")).await.unwrap_err();
    assert!(named.message.contains("onnx"), "it is a model, which no plugin here opens: {named}");
}

#[tokio::test]
async fn what_the_plugin_refuses_comes_back_by_code_reason_and_time() {
    let running = host(|_| {});
    let request =
        echo(json!({"fail": {"code": "resource_exhausted", "message": "no more", "reason": "acme_full",
        "retry_after_ms": 1500}}));
    let error = running.host.serve(request).await.unwrap().collect().await.unwrap_err();
    assert_eq!((error.code, error.message.as_str()), (ErrorCode::ResourceExhausted, "no more"));
    assert_eq!((error.reason.as_ref(), error.retry_after), ("acme_full", Some(Duration::from_millis(1500))));
    let error = running.host.serve(echo(json!({"txet": 1}))).await.unwrap().collect().await.unwrap_err();
    assert!(error.code == ErrorCode::InvalidArgument && error.message.contains("txet"), "{error}");
    let error = running.host.serve(Request::new(Caller::internal("t"), "echo", "[1]")).await.err().unwrap();
    assert_eq!(error.code, ErrorCode::InvalidArgument);
}

#[tokio::test]
async fn a_caller_that_leaves_frees_its_slot_and_touches_nobody_else() {
    let running = host(|_| {});
    for model in ["echo", "echo-serial", "echo-continuous"] {
        let slow = echo(json!({"text": "x", "delay_ms": 60_000})).model(model);
        let reply = running.host.serve(slow).await.unwrap();
        let busy = || running.host.model(model).unwrap().running.map_or(0, |running| running.busy);
        soon("the request reaches the plugin", || busy() == 1).await;
        drop(reply);
        soon("its slot is free", || busy() == 0).await;
        let answer = running.host.serve(echo(json!({"text": "y"})).model(model)).await.unwrap();
        assert_eq!(text(&answer.collect().await.unwrap()), "y");
        assert_eq!(running.host.model(model).unwrap().running.unwrap().replaced, 0);
    }
}

#[tokio::test]
async fn a_deadline_ends_a_request_that_waits_and_one_that_runs() {
    let running = host(|_| {});
    let slow = |ms| {
        echo(json!({"text": "x", "delay_ms": 2_000})).model("echo-serial").within(Duration::from_millis(ms))
    };
    let first = running.host.serve(slow(400)).await.unwrap();
    let waiting = running.host.serve(slow(100)).await.unwrap();
    let (first, waiting) = tokio::join!(first.collect(), waiting.collect());
    for error in [first.unwrap_err(), waiting.unwrap_err()] {
        assert_eq!((error.code, error.reason.as_ref()), (ErrorCode::DeadlineExceeded, "deadline_exceeded"));
    }
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_says_when_to_retry() {
    let running = host(|config| config.models.max_queue = 1);
    let slow = || echo(json!({"text": "x", "delay_ms": 60_000})).model("echo-serial");
    // One runs (the serial instance batches up to 8 that wait together, so they are sent apart), one waits.
    let runs = running.host.serve(slow()).await.unwrap();
    soon("one runs", || running.host.model("echo-serial").unwrap().running.is_some_and(|r| r.busy == 1))
        .await;
    let waits = running.host.serve(slow()).await.unwrap();
    let error = running.host.serve(slow()).await.err().unwrap();
    assert_eq!((error.code, error.reason.as_ref()), (ErrorCode::Unavailable, "overloaded"));
    assert!(error.retry_after.is_some());
    drop((runs, waits));
}

#[tokio::test]
async fn what_a_stand_in_says_is_not_kept_as_the_first_models_answer() {
    let running = host(|config| {
        let models = vec!["echo-serial".to_owned(), "echo".to_owned()];
        let route = backplane::config::RouteConfig { models, escalate_below: 0.5 };
        config.models.routes.insert("steps".to_owned(), route);
        config.models.max_queue = 1;
        config.cache.capabilities.push("echo".to_owned());
    });
    let ask = async |model: &str| {
        let request = echo(json!({"text": "same"})).model(model).streamed();
        running.host.serve(request).await.unwrap().collect().await.unwrap()
    };
    let slow = || echo(json!({"text": "x", "delay_ms": 60_000})).model("echo-serial");
    let runs = running.host.serve(slow()).await.unwrap();
    soon("one runs", || running.host.model("echo-serial").unwrap().running.is_some_and(|r| r.busy == 1))
        .await;
    let waits = running.host.serve(slow()).await.unwrap();
    assert_eq!(&*ask("steps").await.route.model, "echo", "the first is busy");
    drop((runs, waits));
    let idle = || running.host.model("echo-serial").unwrap().running.is_some_and(|r| r.busy + r.queued == 0);
    soon("the first is idle", idle).await;
    let answer = ask("echo-serial").await;
    assert_eq!((&*answer.route.model, answer.cache), ("echo-serial", CacheOutcome::Miss));
    assert_eq!(ask("echo-serial").await.cache, CacheOutcome::Hit);
}

/// The first waits for itself, by way of a call, and one that is continuous cannot call.
#[tokio::test]
async fn where_no_model_is_named_the_next_answers_for_one_that_took_the_request_and_failed() {
    let running = host(|config| {
        let models = vec!["echo".to_owned(), "echo-serial".to_owned()];
        let route = backplane::config::RouteConfig { models, escalate_below: 0.5 };
        config.models.routes.insert("steps".to_owned(), route);
    });
    let call = json!({"text": "x", "call": {"capability": "echo", "model": "echo", "params": {}}});
    let any = || Request::new(Caller::internal("tests"), "echo", call.to_string());
    running.host.serve(echo(json!({"text": "open"}))).await.unwrap().collect().await.unwrap();
    let route = || any().model("steps");
    for request in [any(), any().streamed(), route(), route().streamed()] {
        let answer = running.host.serve(request).await.unwrap().collect().await.unwrap();
        assert_eq!((text(&answer).as_str(), &*answer.route.model), ("x", "echo-serial"));
        let first = &answer.route.candidates[0];
        assert_eq!((&*first.model, first.refused.as_deref()), ("echo", Some("call_cycle")));
    }
    let named = running.host.serve(any().model("echo")).await.unwrap().collect().await.unwrap_err();
    assert_eq!((&*named.reason, &named.route), ("call_cycle", &None), "who is named is not replaced");
}

#[tokio::test]
async fn an_error_of_all_names_all_and_one_of_the_caller_or_within_an_answer_is_the_first_ones() {
    let running = host(|_| {});
    let ask = async |fail: Value, chunks: u32| {
        let params = json!({"text": "a b", "chunks": chunks, "fail": fail});
        let request = Request::new(Caller::internal("tests"), "echo", params.to_string()).streamed();
        running.host.serve(request).await?.collect().await.map(|_| ())
    };
    let down = ask(json!({"code": "unavailable", "reason": "acme_down"}), 1).await.unwrap_err();
    let route = down.route.unwrap();
    let refused: Vec<_> = route.candidates.iter().map(|one| (&*one.model, one.refused.as_deref())).collect();
    let all = ["echo", "echo-continuous", "echo-serial"].map(|model| (model, Some("acme_down")));
    assert_eq!((&*down.reason, &*route.model, refused.as_slice()), ("acme_down", "echo-serial", &all[..]));
    for (code, reason) in [("invalid_argument", ""), ("resource_exhausted", "insufficient_quota")] {
        let wrong = ask(json!({"code": code, "reason": reason}), 1).await.unwrap_err();
        let refused = wrong.route.unwrap().candidates.iter().filter(|one| one.refused.is_some()).count();
        assert_eq!(refused, 1, "{code}");
    }
    let broken = ask(json!({"code": "unavailable", "after": 1}), 2).await.unwrap_err();
    assert_eq!(broken.route, None, "an answer had begun");
}

#[tokio::test]
async fn what_broke_off_is_not_kept_even_if_read_on() {
    let running = host(|config| config.cache.capabilities.push("echo".to_owned()));
    let request = || {
        let fail = json!({"code": "internal", "after": 1});
        echo(json!({"text": "a b", "chunks": 2, "chunk_delay_ms": 50, "fail": fail})).model("echo")
    };
    for _ in 0..2 {
        let mut reply = running.host.serve(request()).await.unwrap();
        while let Ok(Next::Chunk(_)) = reply.next().await {}
        assert!(matches!(reply.next().await, Ok(Next::Done(_))), "nothing comes after an error");
        assert_eq!(reply.cache, CacheOutcome::Miss);
    }
    assert!(running.host.metrics().render().contains("\nbackplane_cache_entries 0\n"));
}

#[tokio::test]
async fn a_panic_fails_its_request_and_the_instance_is_replaced() {
    let running = host(|_| {});
    for model in ["echo", "echo-serial", "echo-continuous"] {
        let error = running
            .host
            .serve(echo(json!({"panic": true})).model(model))
            .await
            .unwrap()
            .collect()
            .await
            .unwrap_err();
        assert_eq!(error.code, ErrorCode::Internal, "{model}: {error}");
        let answer = running.host.serve(echo(json!({"text": "alive"})).model(model)).await.unwrap();
        assert_eq!(text(&answer.collect().await.unwrap()), "alive", "{model}");
        soon("the replacement is counted", || {
            running.host.model(model).unwrap().running.is_some_and(|running| running.replaced == 1)
        })
        .await;
    }
}

/// All lanes of an instance see that it is poisoned; one replaces it, and none of the others may end.
#[tokio::test]
async fn an_instance_may_panic_again_and_again() {
    let running = host(|_| {});
    for round in 1..=20 {
        let panic = running.host.serve(echo(json!({"panic": true}))).await.unwrap().collect().await;
        assert_eq!(panic.unwrap_err().code, ErrorCode::Internal);
        let answer = running.host.serve(echo(json!({"text": "alive"}))).await.unwrap().collect();
        let answer = tokio::time::timeout(Duration::from_secs(20), answer).await;
        assert_eq!(text(&answer.expect("served after a panic").unwrap()), "alive", "round {round}");
    }
}

#[tokio::test]
async fn a_stuck_instance_is_replaced_and_its_caller_told() {
    let running = host(|_| {});
    // Hangs without looking at its cancel word for longer than its grace of five seconds.
    let stuck =
        echo(json!({"text": "x", "hang_ms": 20_000})).model("echo-serial").within(Duration::from_millis(50));
    let error = running.host.serve(stuck).await.unwrap().collect().await.unwrap_err();
    assert_eq!(error.code, ErrorCode::DeadlineExceeded);
    let answer = running.host.serve(echo(json!({"text": "next"})).model("echo-serial")).await.unwrap();
    assert_eq!(text(&answer.collect().await.unwrap()), "next", "served by the new instance");
    assert_eq!(running.host.model("echo-serial").unwrap().running.unwrap().replaced, 1);
}

#[tokio::test]
async fn plugins_call_plugins_and_cycles_are_refused() {
    let running = host(|_| {});
    let call = json!({"text": "outer", "call": {"capability": "echo", "model": "echo-continuous",
        "params": {"text": "inner"}}});
    let answer = running.host.serve(echo(call)).await.unwrap().collect().await.unwrap();
    let first: Value = serde_json::from_slice(&answer.chunks[0].json).unwrap();
    assert_eq!(first["answer"][0]["text"], "inner");

    let cycle = json!({"text": "x", "call": {"capability": "echo", "model": "echo", "params": {}}});
    let error = running.host.serve(echo(cycle)).await.unwrap().collect().await.unwrap_err();
    assert_eq!(error.code, ErrorCode::FailedPrecondition, "{error}");

    // A caller that leaves takes the inner request along.
    let slow = json!({"text": "x", "call": {"capability": "echo", "model": "echo-continuous",
        "params": {"text": "y", "delay_ms": 60_000}}});
    let reply = running.host.serve(echo(slow)).await.unwrap();
    let busy = |model: &str| running.host.model(model).unwrap().running.map_or(0, |running| running.busy);
    soon("the inner request runs", || busy("echo-continuous") == 1).await;
    drop(reply);
    soon("both are gone", || busy("echo") + busy("echo-continuous") == 0).await;
}

#[tokio::test]
async fn rows_that_wait_together_run_together() {
    let running = host(|_| {});
    let request = |delay: u64| echo(json!({"text": "x", "delay_ms": delay})).model("echo-serial");
    let first = running.host.serve(request(200)).await.unwrap();
    let mut rest = Vec::new();
    // With the first, as many as may wait: its lane may not have woken yet.
    for _ in 0..7 {
        rest.push(running.host.serve(request(0)).await.unwrap());
    }
    first.collect().await.unwrap();
    for reply in rest {
        reply.collect().await.unwrap();
    }
    let running = running.host.model("echo-serial").unwrap().running.unwrap();
    assert!(running.batches < running.rows, "{} calls for {} rows", running.batches, running.rows);
}

#[tokio::test]
async fn models_open_on_first_use_close_when_idle_and_looking_does_neither() {
    let running = host(|config| config.models.keep_alive = KeepAlive::For(Duration::from_millis(300)));
    let state = || running.host.model("echo").unwrap().state;
    assert_eq!(state(), ModelState::Idle);
    running.host.serve(echo(json!({"text": "x"}))).await.unwrap().collect().await.unwrap();
    assert_eq!(state(), ModelState::Ready);
    // Looking all the time does not keep it open.
    soon("it closes", || state() == ModelState::Idle && !running.host.metrics().render().is_empty()).await;
    let mut pinned = echo(json!({"text": "x"}));
    pinned.keep_alive = Some(KeepAlive::Forever);
    running.host.serve(pinned).await.unwrap().collect().await.unwrap();
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(state(), ModelState::Ready, "keep_alive of a request holds");
    running.host.unload("echo").await.unwrap();
    assert_eq!(state(), ModelState::Idle);
}

#[tokio::test]
async fn a_route_escalates_below_its_threshold_and_keeps_the_record() {
    let route = |threshold: f64| {
        host(move |config| {
            let models = vec!["echo".to_owned(), "echo-continuous".to_owned()];
            let route = backplane::config::RouteConfig { models, escalate_below: threshold };
            config.models.routes.insert("steps".to_owned(), route);
        })
    };
    let ask = json!({"text": "x", "confidence": 0.4});
    let running = route(0.5);
    let answer = running.host.serve(echo(ask.clone()).model("steps")).await.unwrap().collect().await.unwrap();
    let tried: Vec<_> = answer
        .route
        .candidates
        .iter()
        .map(|candidate| (&*candidate.model, candidate.confidence, candidate.refused.as_deref()))
        .collect();
    let both = [("echo", Some(0.4), Some("low_confidence")), ("echo-continuous", Some(0.4), None)];
    assert_eq!(tried, both, "none was sure, and one of them answered");
    assert_eq!(answer.done.confidence, Some(0.4));

    let running = route(0.3);
    let answer = running.host.serve(echo(ask).model("steps")).await.unwrap().collect().await.unwrap();
    assert_eq!(&*answer.route.model, "echo", "sure enough: nobody else is asked");
    assert!(running.host.model("echo-continuous").unwrap().running.is_none());
}

#[tokio::test]
async fn shutdown_lets_open_requests_finish_and_refuses_new_ones() {
    let running = host(|_| {});
    let reply = running.host.serve(echo(json!({"text": "late", "delay_ms": 300}))).await.unwrap();
    let host = running.host.clone();
    let down = tokio::spawn(async move { host.shutdown(Duration::from_secs(10)).await });
    soon("it refuses", || !running.host.health().ready).await;
    let error = running.host.serve(echo(json!({"text": "x"}))).await.err().unwrap();
    assert_eq!(error.reason, "shutting_down");
    assert_eq!(text(&reply.collect().await.unwrap()), "late");
    down.await.unwrap();
}

#[test]
fn two_hosts_live_in_one_process_and_end_with_their_last_clone() {
    let (one, two) = (host(|_| {}), host(|_| {}));
    for running in [&one, &two] {
        let answer = futures::executor::block_on(async {
            running.host.serve(echo(json!({"text": "x"}))).await.unwrap().collect().await.unwrap()
        });
        assert_eq!(text(&answer), "x");
    }
    let clone = one.host.clone();
    drop(one.host);
    assert!(clone.health().ready);
    drop(clone);
    // Its state directory is free again: the lock went with the last clone.
    backplane::Host::builder()
        .config(backplane::Config::for_tests())
        .state_dir(one.state.path())
        .start()
        .unwrap();
}

#[test]
fn a_second_host_on_a_state_directory_is_refused_by_name() {
    let running = host(|_| {});
    let error = backplane::Host::builder()
        .config(backplane::Config::for_tests())
        .state_dir(running.state.path())
        .start()
        .err()
        .unwrap();
    assert!(error.to_string().contains("another backplane"), "{error}");
}

#[test]
fn files_that_are_no_plugins_are_named_and_the_host_serves() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("libtext.so"), "not a library").unwrap();
    let echo_file = std::fs::read(support::plugins().join("libecho.so")).unwrap();
    std::fs::write(dir.path().join("libcut.so"), &echo_file[..echo_file.len() / 2]).unwrap();
    let mut other = echo_file.clone();
    other[18] = 0xB7; // e_machine: AArch64
    std::fs::write(dir.path().join("libother.so"), other).unwrap();
    let state = tempfile::tempdir().unwrap();
    let host = backplane::Host::builder()
        .config(backplane::Config::for_tests())
        .state_dir(state.path())
        .plugin_dir(dir.path())
        .plugin_dir(support::plugins())
        .start()
        .unwrap();
    let plugins = host.plugins();
    let problem = |file: &str| {
        plugins
            .iter()
            .find(|plugin| plugin.file == file)
            .unwrap()
            .problem
            .clone()
            .unwrap_or_default()
            .to_lowercase()
    };
    assert!(problem("libtext.so").contains("elf"), "{}", problem("libtext.so"));
    assert!(!problem("libcut.so").is_empty());
    assert!(problem("libother.so").contains("aarch64"), "{}", problem("libother.so"));
    assert!(plugins.iter().any(|plugin| plugin.id == "dev.backplane.echo" && plugin.ready));
    assert!(host.health().ready);
}
