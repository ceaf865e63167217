//! What a plugin in a worker asks of another, through the host: it is the caller's, for the caller's account and until the
//! caller's deadline, ends with the caller, and its failures have names. In-process all of it is the same.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod support;

use backplane::auth::{KeyLimits, NewKey, Role, TokenBudget};
use backplane::config::Isolation;
use backplane::limiter::Period;
use backplane::{Caller, Config, Error, ErrorCode, Host, Request};
use serde_json::{Value, json};
use std::process::Command;
use std::time::{Duration, Instant};
use support::{FAULTY, LONG, echo_library, faulty};

const MODES: [Isolation; 3] = [Isolation::InProcess, Isolation::Worker, Isolation::WorkerPerInstance];

/// A host in which all plugins run so: echo, which asks, and faulty, which is asked.
struct Scene {
    host: Host,
    _state: tempfile::TempDir,
}

fn start(isolation: Isolation) -> Scene {
    let state = tempfile::tempdir().unwrap();
    let plugins = state.path().join("plugins");
    std::fs::create_dir(&plugins).unwrap();
    std::fs::copy(echo_library(), plugins.join("libecho.so")).unwrap();
    std::fs::copy(faulty(None).1, plugins.join("libfaulty.so")).unwrap();
    let mut config = Config::for_tests();
    config.plugins.isolation = [("*".to_owned(), isolation)].into();
    let host = Host::builder().config(config).state_dir(state.path()).start().unwrap();
    for plugin in host.plugins() {
        assert!(plugin.ready && plugin.isolation == isolation.name(), "{:?}", plugin.problem);
    }
    Scene { host, _state: state }
}

fn echo(params: &Value) -> Request {
    Request::new(Caller::internal("tests"), "echo", params.to_string()).model("echo")
}

/// What echo is to ask of faulty.
fn asks_faulty(does: &str) -> Value {
    json!({"call": {"capability": "com.example.faulty.do", "model": "faulty", "params": {"do": does}}})
}

impl Scene {
    async fn ask(&self, request: Request) -> Result<Value, Error> {
        let answer = self.host.serve(request.within(LONG)).await?.collect().await?;
        Ok(answer.json::<Value>().unwrap()[0].take())
    }

    fn busy(&self, model: &str) -> u32 {
        self.host.model(model).unwrap().running.map_or(0, |running| running.busy)
    }

    async fn until(&self, what: &str, is: impl Fn() -> bool) {
        let deadline = Instant::now() + LONG;
        while !is() {
            assert!(Instant::now() < deadline, "{what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Ends the youngest worker of this plugin.
    fn kill_worker(&self, plugin: &str) {
        let own = std::process::id().to_string();
        let output = Command::new("ps").args(["-o", "pid=,args=", "--ppid", &own]).output().unwrap();
        let output = String::from_utf8(output.stdout).unwrap();
        let mut ours =
            output.lines().filter(|line| line.contains("backplane-worker") && line.ends_with(plugin));
        let pid = ours.next_back().unwrap().split_whitespace().next().unwrap();
        assert!(Command::new("kill").args(["-9", pid]).status().unwrap().success());
    }

    async fn end(self) {
        self.host.shutdown(Duration::from_secs(5)).await;
    }
}

/// One at a time: they end workers of this process.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test]
async fn it_ends_when_the_caller_leaves() {
    let _alone = ALONE.lock().await;
    for isolation in MODES {
        let scene = start(isolation);
        let slow = json!({"call": {"capability": "echo", "model": "echo-continuous",
            "params": {"text": "late", "delay_ms": 600_000}}});
        for _ in 0..5 {
            let reply = scene.host.serve(echo(&slow)).await.unwrap();
            scene.until("the inner request runs", || scene.busy("echo-continuous") == 1).await;
            drop(reply);
            let idle = || scene.busy("echo") + scene.busy("echo-continuous") == 0;
            scene.until("both are gone", idle).await;
        }
        scene.end().await;
    }
}

#[tokio::test]
async fn it_has_the_deadline_of_the_caller() {
    let _alone = ALONE.lock().await;
    for isolation in MODES {
        let scene = start(isolation);
        let left = |answer: &Value| answer["answer"][0]["errno"].as_i64().unwrap();
        let request = echo(&asks_faulty("time-left")).within(Duration::from_secs(300));
        let answer = scene.host.serve(request).await.unwrap().collect().await.unwrap();
        let left = left(&answer.json::<Value>().unwrap()[0]);
        assert!((1..=300_000).contains(&left), "{isolation:?}: {left} ms");

        let slow = json!({"call": {"capability": "echo", "model": "echo-continuous",
            "params": {"text": "late", "delay_ms": 600_000}}});
        let request = echo(&slow).within(Duration::from_millis(500));
        let error = scene.host.serve(request).await.unwrap().collect().await.unwrap_err();
        assert_eq!(error.code, ErrorCode::DeadlineExceeded, "{isolation:?}: {error}");
        let idle = || scene.busy("echo") + scene.busy("echo-continuous") == 0;
        scene.until("both are gone", idle).await;
        scene.end().await;
    }
}

const BUDGET: u64 = 1_000_000;

#[tokio::test]
async fn it_is_charged_to_the_key_of_the_caller() {
    let _alone = ALONE.lock().await;
    for isolation in MODES {
        let scene = start(isolation);
        let tokens = Some(TokenBudget { tokens: BUDGET, window: Period::Total });
        let limits = KeyLimits { requests_per_minute: None, tokens };
        let key = NewKey { name: "tests".to_owned(), role: Role::User, limits, lifetime: None };
        let secret = scene.host.create_key(key).await.unwrap().secret;
        let caller = scene.host.identify(Some(&secret)).unwrap();
        let spent = || {
            let limits = scene.host.limits(&caller);
            BUDGET - limits.iter().find(|limit| limit.dimension == "tokens").unwrap().remaining
        };
        for model in ["echo", "echo-serial"] {
            scene.host.load(model, None).await.unwrap();
        }
        let mut costs = Vec::new();
        let inner = json!({"text": "what is asked of another one"});
        let call = json!({"capability": "echo", "model": "echo-serial", "params": inner});
        for params in [json!({"text": "one two"}), inner, json!({"text": "one two", "call": call})] {
            let before = spent();
            let mut request = echo(&params);
            request.caller = caller.clone();
            scene.ask(request).await.unwrap();
            // Its reader may know before the ledger does.
            let open = || {
                !scene.host.metrics().render().lines().any(|line| line == "backplane_requests_in_flight 0")
            };
            scene.until("all is settled", || !open()).await;
            costs.push(spent() - before);
        }
        let [outer, inner, both] = costs[..] else { panic!("three") };
        assert!(0 < outer && outer < inner, "{isolation:?}: {costs:?}");
        assert_eq!(both, outer + inner, "{isolation:?}: each once");
        scene.end().await;
    }
}

#[tokio::test]
async fn a_worker_that_dies_in_an_answer_is_named_to_who_asked_its_plugin() {
    let _alone = ALONE.lock().await;
    for isolation in [Isolation::Worker, Isolation::WorkerPerInstance] {
        let scene = start(isolation);
        let asked = tokio::spawn({
            let host = scene.host.clone();
            let request = echo(&asks_faulty("stream")).within(LONG);
            async move { host.serve(request).await?.collect().await }
        });
        scene.until("the inner request runs", || scene.busy("faulty") == 1).await;
        scene.kill_worker(FAULTY);
        let error = asked.await.unwrap().unwrap_err();
        assert_eq!(
            (error.code, &*error.reason),
            (ErrorCode::Unavailable, "worker_crashed"),
            "{isolation:?}: {error}"
        );
        assert!(error.message.contains(FAULTY) && error.message.contains("SIGKILL"), "{error}");
        assert_eq!(scene.ask(echo(&asks_faulty("nothing"))).await.unwrap()["answer"][0]["errno"], -1);
        scene.end().await;
    }
}

#[tokio::test]
async fn what_a_worker_that_died_had_asked_is_cancelled() {
    let _alone = ALONE.lock().await;
    for isolation in [Isolation::Worker, Isolation::WorkerPerInstance] {
        let scene = start(isolation);
        let asked = tokio::spawn({
            let host = scene.host.clone();
            let request = echo(&asks_faulty("stream")).within(LONG);
            async move { host.serve(request).await?.collect().await }
        });
        scene.until("the inner request runs", || scene.busy("faulty") == 1).await;
        scene.kill_worker("dev.backplane.echo");
        let error = asked.await.unwrap().unwrap_err();
        assert_eq!(error.reason, "worker_crashed", "{isolation:?}: {error}");
        scene.until("nobody computes for it", || scene.busy("faulty") == 0).await;
        scene.end().await;
    }
}

#[tokio::test]
async fn a_circle_is_refused_by_its_name() {
    let _alone = ALONE.lock().await;
    for isolation in MODES {
        let scene = start(isolation);
        let call = |model: &str, params: Value| json!({"call": {"capability": "echo", "model": model, "params": params}});
        let text = json!({"text": "x"});
        let two = call("echo-serial", call("echo", text.clone()));
        let three = call("echo-serial", call("echo-continuous", text));
        for circle in [call("echo", json!({})), two] {
            let error = scene.ask(echo(&circle)).await.unwrap_err();
            assert_eq!(
                (error.code, &*error.reason),
                (ErrorCode::FailedPrecondition, "call_cycle"),
                "{isolation:?}: {error}"
            );
            assert!(error.message.contains("`echo`"), "{error}");
        }
        assert_eq!(scene.ask(echo(&three)).await.unwrap()["answer"][0]["answer"][0]["text"], "x");
        scene.end().await;
    }
}

/// A host's functions may be called from inside a callback: what a worker asks from there is answered.
#[tokio::test]
async fn a_callback_may_ask_the_next() {
    let _alone = ALONE.lock().await;
    for isolation in MODES {
        let scene = start(isolation);
        for _ in 0..20 {
            let chain = Request::new(Caller::internal("tests"), "com.example.faulty.do", r#"{"do":"chain"}"#);
            let answer = scene.ask(chain.model("faulty")).await;
            assert_eq!(answer.unwrap_or_else(|error| panic!("{isolation:?}: {error}"))["errno"], 0);
        }
        scene.end().await;
    }
}
