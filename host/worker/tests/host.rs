//! The real host with a plugin in a worker, by one line of configuration.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod support;

use backplane::auth::{KeyLimits, NewKey, Role as KeyRole, TokenBudget};
use backplane::config::Isolation;
use backplane::limiter::Period;
use backplane::{Answer, Caller, Config, ErrorCode, Host, Next, Request};
use backplane_registry::license::{Licence, Licences, Machine};
use backplane_registry::package::{Level, PackOptions, Plugins, Trust, open, pack};
use backplane_registry::trust::{Role, SecretKey, Timestamp, TrustStore, TrustedKey};
use backplane_testkit::library;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use support::{LONG, echo_library, faulty};

/// A host with echo in a worker, and its state directory.
fn host() -> (tempfile::TempDir, Host) {
    host_with(|state| {
        let plugins = state.join("plugins");
        std::fs::create_dir(&plugins).unwrap();
        std::fs::copy(echo_library(), plugins.join("libecho.so")).unwrap();
    })
}

fn host_with(put: impl FnOnce(&Path)) -> (tempfile::TempDir, Host) {
    let state = tempfile::tempdir().unwrap();
    put(state.path());
    let host = Host::builder().config(config()).state_dir(state.path()).start().unwrap();
    (state, host)
}

fn config() -> Config {
    let mut config = Config::for_tests();
    config.plugins.isolation = [("*".to_owned(), Isolation::Auto)].into();
    config
}

fn kill(pid: u32) {
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
}

const CRASH: &str = r#"backplane_plugin_faults_total{kind="SIGKILL",plugin="dev.backplane.echo"} 1"#;

fn echo(params: Value) -> Request {
    Request::new(Caller::internal("tests"), "echo", params.to_string()).model("echo")
}

async fn ask(host: &Host, text: &str) -> Answer {
    host.serve(echo(json!({"text": text}))).await.unwrap().collect().await.unwrap()
}

/// One at a time: they count the workers of this process.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Workers of this process.
fn workers() -> Vec<u32> {
    let own = std::process::id().to_string();
    let output = Command::new("ps").args(["-o", "pid=,args=", "--ppid", &own]).output().unwrap();
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|line| line.contains("backplane-worker"))
        .filter_map(|line| line.split_whitespace().next()?.parse().ok())
        .collect()
}

#[tokio::test]
async fn it_is_served_killed_and_served_again() {
    let _alone = ALONE.lock().await;
    let (_state, host) = host();
    let plugin = host.plugins().into_iter().find(|plugin| plugin.id == "dev.backplane.echo").unwrap();
    assert_eq!((plugin.isolation, plugin.ready), ("worker", true), "{:?}", plugin.problem);

    let answer = ask(&host, "hello").await;
    assert_eq!(answer.json::<Value>().unwrap()[0]["text"], "hello");
    let before = workers();
    assert_eq!(before.len(), 1);
    let group = Command::new("ps").args(["-o", "pgid=", "-p", &before[0].to_string()]).output().unwrap();
    let group = String::from_utf8(group.stdout).unwrap();
    assert_eq!(group.trim(), before[0].to_string(), "Ctrl+C at the host's terminal would end it");

    // In the middle of a stream.
    let mut reply =
        host.serve(echo(json!({"text": "slowly", "chunks": 100_000, "chunk_delay_ms": 20}))).await.unwrap();
    for _ in 0..3 {
        assert!(matches!(reply.next().await.unwrap(), Next::Chunk(_)));
    }
    kill(before[0]);
    let error = loop {
        match reply.next().await {
            Ok(Next::Chunk(_)) => {}
            Ok(Next::Done(_)) => panic!("it ended as if nothing had happened"),
            Err(error) => break error,
        }
    };
    assert_eq!((error.code, &*error.reason), (ErrorCode::Unavailable, "worker_crashed"), "{error}");

    let asked = Instant::now();
    let answer = ask(&host, "again").await;
    assert_eq!(answer.json::<Value>().unwrap()[0]["text"], "again");
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    assert!(host.metrics().render().contains(CRASH));
    let after = workers();
    assert!(after.len() == 1 && after != before, "{before:?} {after:?}");
    host.shutdown(Duration::from_secs(5)).await;
    drop(host);
    let deadline = Instant::now() + LONG;
    while !workers().is_empty() {
        assert!(Instant::now() < deadline, "a worker outlives its host");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A model may take longer to open than its callers wait: who gives up meanwhile must not take the new worker with him.
#[tokio::test]
async fn who_leaves_while_a_worker_starts_again_does_not_end_it() {
    let _alone = ALONE.lock().await;
    let state = tempfile::tempdir().unwrap();
    std::fs::create_dir(state.path().join("plugins")).unwrap();
    std::fs::copy(echo_library(), state.path().join("plugins/libecho.so")).unwrap();
    std::fs::write(state.path().join("weights"), "none").unwrap();
    let card = "name = 'slow'\nformat = 'echo'\nplugin = 'dev.backplane.echo'\ncapabilities = ['echo']\n\
                [parameters]\nopen_ms = 6500\n[[files]]\nrole = 'model'\npath = 'weights'\n";
    std::fs::write(state.path().join("slow.toml"), card).unwrap();
    let mut config = config();
    config.models.cards.push(state.path().join("slow.toml"));
    let host = Host::builder().config(config).state_dir(state.path()).start().unwrap();
    let slow = |text: &str| echo(json!({"text": text})).model("slow");
    host.serve(slow("first").within(LONG)).await.unwrap().collect().await.unwrap();
    let before = workers();
    kill(before[0]);
    // The first is given to the instance, which waits for the worker that it needs.
    for _ in 0..3 {
        let leaves = slow("leaves").within(Duration::from_millis(100));
        let error = match host.serve(leaves).await {
            Ok(reply) => reply.collect().await.unwrap_err(),
            Err(error) => error,
        };
        assert!(
            matches!(error.code, ErrorCode::DeadlineExceeded | ErrorCode::Unavailable),
            "it may meet the worker's end: {error}"
        );
    }
    let deadline = Instant::now() + LONG;
    let served = loop {
        let asked = match host.serve(slow("stays").within(LONG)).await {
            Ok(reply) => reply.collect().await,
            Err(error) => Err(error),
        };
        match asked {
            Ok(answer) => break answer,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(served.json::<Value>().unwrap()[0]["text"], "stays");
    let faults = host.metrics().render();
    assert!(
        faults.contains(CRASH) && !faults.contains(r#"kind="stuck""#),
        "only the one that was killed has ended"
    );
    assert_eq!(workers().len(), 1);
    host.shutdown(Duration::from_secs(5)).await;
}

/// What one instance's worker takes with it is that instance's, and nobody else's.
#[tokio::test]
async fn with_a_worker_for_each_instance_the_others_do_not_notice() {
    let _alone = ALONE.lock().await;
    let state = tempfile::tempdir().unwrap();
    std::fs::create_dir(state.path().join("plugins")).unwrap();
    std::fs::copy(echo_library(), state.path().join("plugins/libecho.so")).unwrap();
    let mut config = config();
    config.plugins.isolation = [("*".to_owned(), Isolation::WorkerPerInstance)].into();
    config.models.overrides.insert(
        "echo-serial".to_owned(),
        backplane::config::Override { instances: Some(3), ..Default::default() },
    );
    let host = Host::builder().config(config).state_dir(state.path()).start().unwrap();
    let plugin = host.plugins().remove(0);
    assert_eq!((plugin.isolation, plugin.ready), ("worker-per-instance", true), "{:?}", plugin.problem);
    host.load("echo-serial", None).await.unwrap();
    let before = workers();
    assert_eq!(before.len(), 4, "three, and the plugin's own");

    let mut streams = Vec::new();
    for _ in 0..3 {
        let slowly = json!({"text": "slowly", "chunks": 200, "chunk_delay_ms": 20});
        let mut reply = host.serve(echo(slowly).model("echo-serial").streamed()).await.unwrap();
        assert!(matches!(reply.next().await.unwrap(), Next::Chunk(_)));
        streams.push(reply);
    }
    // The last one started is an instance's.
    kill(*before.iter().max().unwrap());
    let ended = futures::future::join_all(streams.into_iter().map(backplane::Reply::collect)).await;
    let (served, failed): (Vec<_>, Vec<_>) = ended.into_iter().partition(Result::is_ok);
    let lost: Vec<_> = failed.into_iter().filter_map(Result::err).collect();
    assert!(served.len() == 2 && lost.len() == 1, "{lost:?}");
    assert_eq!(lost[0].reason, "worker_crashed");
    for served in served {
        assert_eq!(served.unwrap().chunks.len(), 199, "and the first one");
    }
    for _ in 0..6 {
        let again = echo(json!({"text": "again"})).model("echo-serial");
        host.serve(again).await.unwrap().collect().await.unwrap();
    }
    host.unload("echo-serial").await.unwrap();
    let deadline = Instant::now() + LONG;
    while workers().len() != 1 {
        assert!(Instant::now() < deadline, "{:?}: a closed instance's worker is there", workers());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    host.shutdown(Duration::from_secs(5)).await;
}

/// Who holds a lock of the model store has everybody wait who pulls or removes a model.
#[tokio::test]
async fn a_worker_reads_models_and_not_what_lies_beside_them() {
    let _alone = ALONE.lock().await;
    let (_built, library) = faulty(None);
    let (state, host) = host_with(|state| {
        for file in [
            "plugins/libfaulty.so",
            "models/blobs/sha256/00",
            "models/cards/m.toml",
            "models/locks/cards",
            "plugins/other",
        ] {
            let file = state.join(file);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, "").unwrap();
        }
        std::fs::copy(&library, state.join("plugins/libfaulty.so")).unwrap();
    });
    let lock = |file: &str| {
        let params = json!({"do": "lock", "path": state.path().join(file)}).to_string();
        let request =
            Request::new(Caller::internal("tests"), "com.example.faulty.do", params).model("faulty");
        let host = host.clone();
        async move {
            let answer = host.serve(request).await.unwrap().collect().await.unwrap();
            answer.json::<Value>().unwrap()[0]["errno"].as_i64().unwrap()
        }
    };
    assert_eq!(lock("models/blobs/sha256/00").await, 0, "what it serves it reads");
    for beside in ["models/locks/cards", "models/cards/m.toml", "plugins/other"] {
        assert_eq!(lock(beside).await, i64::from(libc::EACCES), "{beside}");
    }
    host.shutdown(Duration::from_secs(5)).await;
}

/// Packs echo, signs it, and installs it in a state directory that trusts the key.
fn install(state: &Path) {
    let key = SecretKey::of_seed(&[7; 32]);
    TrustStore::at(state).add(TrustedKey::new(key.public(), "acme", &[Role::Plugin])).unwrap();
    let package = state.join("echo.plg");
    pack(&echo_library(), &PackOptions::default()).unwrap().write(&package, &[&key]).unwrap();
    let trust = Trust::load(state, Level::Org, Timestamp::now()).unwrap();
    Plugins::at(state).install(&open(&package, &trust).unwrap(), &trust, "test").unwrap();
}

/// What was verified is what runs, also when the worker is started again after somebody has changed the file.
#[tokio::test]
async fn a_signed_package_runs_in_a_worker_from_its_sealed_copy() {
    let _alone = ALONE.lock().await;
    let (state, host) = host_with(install);
    let plugin = host.plugins().into_iter().find(|plugin| plugin.id == "dev.backplane.echo").unwrap();
    assert_eq!(
        (plugin.isolation, plugin.level, plugin.ready),
        ("worker", "org", true),
        "{:?}",
        plugin.problem
    );
    assert_eq!(ask(&host, "sealed").await.json::<Value>().unwrap()[0]["text"], "sealed");

    let package = Plugins::at(state.path()).in_use("dev.backplane.echo").unwrap();
    let name = echo_library().file_name().unwrap().to_owned();
    std::fs::remove_file(package.folder.join(&name)).unwrap();
    std::fs::write(package.folder.join(&name), "not what was verified").unwrap();
    let before = workers();
    kill(before[0]);
    let start = Instant::now();
    while workers() == before {
        assert!(start.elapsed() < LONG);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(ask(&host, "again").await.json::<Value>().unwrap()[0]["text"], "again");
    host.shutdown(Duration::from_secs(5)).await;
}

const BUDGET: u64 = 1_000_000;

fn spent(host: &Host, caller: &Caller) -> u64 {
    BUDGET - host.limits(caller).iter().find(|limit| limit.dimension == "tokens").unwrap().remaining
}

/// The key pays for its prompt and for the pieces that it got, once, and the store says the same.
#[tokio::test]
async fn what_a_crash_broke_off_is_charged_once() {
    let _alone = ALONE.lock().await;
    let (state, host) = host();
    let tokens = Some(TokenBudget { tokens: BUDGET, window: Period::Total });
    let limits = KeyLimits { requests_per_minute: None, tokens };
    let key = NewKey { name: "tests".to_owned(), role: KeyRole::User, limits, lifetime: None };
    let secret = host.create_key(key).await.unwrap().secret;
    let caller = host.identify(Some(&secret)).unwrap();
    // It counts the prompt itself, once it is open.
    host.load("echo", None).await.unwrap();
    let mut expected = 0;
    for crash in 0..2 {
        let params = json!({"text": format!("one two {crash}"), "chunks": 100_000, "chunk_delay_ms": 20});
        let mut request = echo(params);
        request.caller = caller.clone();
        let mut reply = host.serve(request).await.unwrap();
        let mut pieces = 0;
        while pieces < 3 {
            assert!(matches!(reply.next().await.unwrap(), Next::Chunk(_)));
            pieces += 1;
        }
        kill(workers()[0]);
        while let Ok(next) = reply.next().await {
            assert!(matches!(next, Next::Chunk(_)));
            pieces += 1;
        }
        expected += 3 + pieces;
        // Its reader may know before the ledger does.
        let start = Instant::now();
        let open = || !host.metrics().render().lines().any(|line| line == "backplane_requests_in_flight 0");
        while open() && start.elapsed() < LONG {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(spent(&host, &caller), expected, "after crash {crash}");
        // The second start again takes half a second.
        let deadline = Instant::now() + LONG;
        loop {
            let again = host.serve(echo(json!({"text": "again"}))).await;
            let ended = match again {
                Ok(reply) => reply.collect().await.map(drop),
                Err(error) => Err(error),
            };
            match ended {
                Ok(()) => break,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    host.shutdown(Duration::from_secs(5)).await;
    drop(host);
    let again = Host::builder().config(config()).state_dir(state.path()).start().unwrap();
    let caller = again.identify(Some(&secret)).unwrap();
    assert_eq!(spent(&again, &caller), expected, "as the store has it");
    again.shutdown(Duration::from_secs(5)).await;
}

/// Over HTTP: the pieces that came, then an event with the error, and the connection ends well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_whose_stream_lost_its_worker_is_told_so() {
    let _alone = ALONE.lock().await;
    let (_state, host) = host();
    let server = backplane_server::Server::start(host.clone(), config().server).unwrap();
    let url = format!("http://{}/v1/capabilities/echo", server.address());
    let key = host.create_key(NewKey {
        name: "tests".to_owned(),
        role: KeyRole::User,
        limits: KeyLimits::default(),
        lifetime: None,
    });
    let secret = key.await.unwrap().secret;
    let client = reqwest::Client::new();
    let post = |body: Value| client.post(&url).bearer_auth(&secret).json(&body).send();
    let params = json!({"text": "slowly", "chunks": 100_000, "chunk_delay_ms": 20});
    let mut answer = post(json!({"model": "echo", "params": params, "stream": true})).await.unwrap();
    assert_eq!(answer.status(), 200);
    let mut text = String::new();
    let mut killed = false;
    while let Some(bytes) = answer.chunk().await.unwrap() {
        text.push_str(&String::from_utf8_lossy(&bytes));
        if !killed && text.matches("data:").count() >= 3 {
            kill(workers()[0]);
            killed = true;
        }
    }
    let last = text.trim_end().rsplit("data:").next().unwrap_or_default().trim();
    let last: Value = serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {last}"));
    assert_eq!(last["error"]["code"], "worker_crashed", "{last}");
    assert!(!last.to_string().contains("/proc") && !last.to_string().contains("memfd"), "{last}");

    let asked = Instant::now();
    let answer = post(json!({"model": "echo", "params": {"text": "again"}})).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.json::<Value>().await.unwrap()["result"]["text"], "again");
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    server.stop(Duration::from_secs(1)).await;
    host.shutdown(Duration::from_secs(5)).await;
}

/// The licence that the vendor of `metered-echo` gives: its README says how everybody can.
fn license(state: &Path) {
    let vendor = SecretKey::of_seed(&[7; 32]);
    TrustStore::at(state).add(TrustedKey::new(vendor.public(), "example", &[Role::License])).unwrap();
    let now = Timestamp::now();
    let licence: Licence = serde_json::from_value(json!({
        "v": 1, "id": "lic_1", "serial": 1, "issuer": "example", "licensee": {"id": "c", "name": "C"},
        "product": {"plugin": "dev.backplane.metered-echo"}, "features": {"shout": true},
        "iat": now, "nbf": now.plus(-60), "exp": now.plus_days(30),
        "bind": {"kind": "install", "ids": [Machine::install_id(state).unwrap()]},
    }))
    .unwrap();
    Licences::at(state).install("lic_1", licence.seal(&[&vendor]).unwrap().as_bytes()).unwrap();
}

#[tokio::test]
async fn a_plugin_reads_its_licence_in_a_worker_as_in_the_host_and_notices_a_new_one() {
    let _alone = ALONE.lock().await;
    let library = library("backplane-metered-echo").unwrap();
    for (isolation, name) in [(Isolation::InProcess, "in-process"), (Isolation::Worker, "worker")] {
        let state = tempfile::tempdir().unwrap();
        std::fs::create_dir(state.path().join("plugins")).unwrap();
        std::fs::copy(&library, state.path().join("plugins/libmetered.so")).unwrap();
        let mut config = Config::for_tests();
        config.plugins.isolation = [("*".to_owned(), isolation)].into();
        let host = Host::builder().config(config).state_dir(state.path()).start().unwrap();
        assert_eq!(host.plugins()[0].isolation, name, "{:?}", host.plugins()[0].problem);
        let ask = |shout: bool| {
            let params = json!({"text": "hello", "shout": shout}).to_string();
            let request = Request::new(Caller::internal("tests"), "metered.echo", params);
            let host = host.clone();
            async move { host.serve(request).await?.collect().await }
        };
        assert_eq!(ask(false).await.unwrap().json::<Value>().unwrap()[0]["text"], "hello");
        let error = ask(true).await.unwrap_err();
        assert_eq!(
            (error.code, &*error.reason),
            (ErrorCode::PermissionDenied, "feature_not_licensed"),
            "{error}"
        );

        license(state.path());
        let deadline = Instant::now() + LONG;
        let answer = loop {
            match ask(true).await {
                Ok(answer) => break answer,
                Err(error) => assert!(Instant::now() < deadline, "{name}: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_eq!(answer.json::<Value>().unwrap()[0]["text"], "HELLO", "{name}");

        Licences::at(state.path()).remove("lic_1").unwrap();
        while ask(true).await.is_ok() {
            assert!(Instant::now() < deadline, "{name}: the licence is gone");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        ask(false).await.unwrap();
        host.shutdown(Duration::from_secs(5)).await;
    }
}
