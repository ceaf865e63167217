//! A configuration that is read again: put into force whole, or refused with the old one in force.

#![allow(clippy::unwrap_used, reason = "in a test a failure is the test's")]

mod support;

use backplane::auth::{KeyLimits, NewKey, Role};
use backplane::config::LoadOptions;
use backplane::{Answer, Config, Host, Next, Request};
use serde_json::json;
use std::path::PathBuf;
use support::{echo, text};

/// A host that reads its configuration from a file.
struct Configured {
    host: Host,
    file: PathBuf,
    _dir: tempfile::TempDir,
}

impl Configured {
    fn with(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("backplane.toml");
        std::fs::write(&file, text).unwrap();
        let overrides = vec![("plugins.isolation.\"*\"".to_owned(), "in-process".to_owned())];
        let options = LoadOptions { file: Some(file.clone()), overrides, ..LoadOptions::default() };
        let host = Host::builder()
            .config(Config::load(options.clone()).unwrap())
            .config_source(move || Config::load(options.clone()))
            .state_dir(dir.path().join("state"))
            .plugin_dir(support::plugins())
            .start()
            .unwrap();
        Self { host, file, _dir: dir }
    }

    fn write(&self, text: &str) {
        std::fs::write(&self.file, text).unwrap();
    }

    async fn ask(&self, request: Request) -> backplane::Result<Answer> {
        self.host.serve(request).await?.collect().await
    }
}

#[tokio::test]
async fn what_changed_is_in_force_and_what_needs_a_restart_is_named_until_there_was_one() {
    let one = Configured::with("[server]\naddress = '127.0.0.1:1'\n[models.aliases]\nold = 'echo'\n");
    let key = NewKey { name: "k".to_owned(), role: Role::User, limits: KeyLimits::default(), lifetime: None };
    let secret = one.host.create_key(key).await.unwrap().secret;
    let caller = one.host.identify(Some(&secret)).unwrap();
    assert!(one.host.limits(&caller).is_empty());
    assert!(one.host.identify(None).is_err());
    let (again, twice) = (echo(json!({"text": "x"})), echo(json!({"text": "x"})));
    one.ask(again).await.unwrap();

    let new = "[server]\naddress = '127.0.0.1:2'\n[compute]\nthreads = 1\n[auth]\nenabled = false\n\
               [limits]\nrequests_per_minute = 7\n[cache]\ncapabilities = ['echo']\n\
               [models.aliases]\nnew = 'echo-serial'\n[models.override.echo]\ninstances = 2\n";
    one.write(new);
    let report = one.host.reload().await.unwrap();
    let changed = [
        "auth.enabled",
        "cache.capabilities",
        "compute.threads",
        "limits.requests_per_minute",
        "models.aliases.new",
        "models.aliases.old",
        "models.override.echo.instances",
        "server.address",
    ];
    assert_eq!(report.changed, changed);
    assert_eq!(report.needs_restart, ["compute.threads", "server.address"]);

    assert!(one.host.identify(None).is_ok(), "auth");
    assert_eq!(one.host.limits(&caller)[0].limit, 7, "limits, of keys that were there before");
    let answer = one.ask(echo(json!({"text": "y"})).model("new")).await.unwrap();
    assert_eq!(&*answer.route.model, "echo-serial", "aliases");
    assert_eq!(one.ask(echo(json!({})).model("old")).await.unwrap_err().reason, "model_not_found");
    one.ask(twice).await.unwrap();
    let running = one.host.model("echo").unwrap().running.unwrap();
    assert_eq!(running.instances, 2, "an open model is opened again, as it is to be now");
    let answer = one.ask(echo(json!({"text": "x"}))).await.unwrap();
    assert_eq!(answer.cache, backplane::CacheOutcome::Hit, "the cache");

    let report = one.host.reload().await.unwrap();
    assert_eq!(report.changed, [""; 0]);
    assert_eq!(report.needs_restart, ["compute.threads", "server.address"], "there was no restart yet");
    one.write(&new.replace("127.0.0.1:2", "127.0.0.1:1").replace("threads = 1", "threads = 0"));
    let report = one.host.reload().await.unwrap();
    assert_eq!(report.changed, ["compute.threads", "server.address"]);
    assert_eq!(report.needs_restart, [""; 0], "it runs with these");
}

#[tokio::test]
async fn a_configuration_with_a_mistake_changes_nothing_and_every_mistake_is_named() {
    let one = Configured::with("[models.aliases]\nmine = 'echo'\n");
    let before = one.host.config();
    for (wrong, named) in [
        (
            "[models.aliases]\nmine = 'echo-serial'\n[cache]\nttl = 'ten'\n[auth]\nenable = false\n",
            ["cache.ttl", "`auth.enabled`"],
        ),
        ("[models.aliases]\nmine = 'echo-serial'\n[models\n", ["the old one is in force", "not reloaded"]),
        (
            "[models.routes.r]\nmodels = []\nescalate_below = 2.0\n",
            ["models.routes.r.models", "escalate_below"],
        ),
    ] {
        one.write(wrong);
        let error = one.host.reload().await.unwrap_err();
        assert_eq!(error.reason, "config_invalid");
        for name in named {
            assert!(error.message.contains(name), "{name} is not in: {error}");
        }
        assert_eq!(one.host.config(), before);
        assert!(one.host.identify(None).is_err());
        let answer = one.ask(echo(json!({"text": "x"})).model("mine")).await.unwrap();
        assert_eq!(&*answer.route.model, "echo");
    }
    std::fs::remove_file(&one.file).unwrap();
    let error = one.host.reload().await.unwrap_err();
    assert!(error.message.contains("backplane.toml"), "{error}");
    assert_eq!(one.host.config(), before);
}

#[tokio::test]
async fn requests_under_way_do_not_notice() {
    let one = Configured::with("");
    let slow = echo(json!({"text": "ab", "chunks": 2, "chunk_delay_ms": 400})).streamed();
    let mut reply = one.host.serve(slow).await.unwrap();
    assert!(matches!(reply.next().await.unwrap(), Next::Chunk(_)));
    one.write("[models.override.echo]\ninstances = 2\nmax_queue = 3\n");
    one.host.reload().await.unwrap();
    let meanwhile = one.ask(echo(json!({"text": "other"}))).await.unwrap();
    assert_eq!(text(&meanwhile), "other");
    assert_eq!(text(&reply.collect().await.unwrap()), "b");
}
