//! Plugins that need a licence: what is loaded and who is served, as licences come, end, and are taken back.

#![allow(clippy::unwrap_used, reason = "in a test a failure is the test's")]

#[path = "support/licensed.rs"]
mod licensed;
mod support;

use backplane::config::Isolation;
use backplane::{Answer, CacheOutcome, Caller, Error, ErrorCode, Host, PartState, Request};
use backplane_registry::license::{Clock, Licence, Licences, Machine, TimeToken, UsageLog};
use backplane_registry::trust::{Envelope, Role, SecretKey, TrustStore, TrustedKey};
use licensed::{FREE, PLUGIN, Site, days, seconds};
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};
use support::{soon, text};

fn question(model: &str) -> Request {
    Request::new(Caller::internal("tests"), "slow.answer", "{}").model(model)
}

async fn ask(host: &Host, request: Request) -> backplane::Result<Answer> {
    host.serve(request).await?.collect().await
}

/// The refusal of the paid plugin, whose model is there all the same.
async fn refused(host: &Host) -> Error {
    assert!(host.model(PLUGIN).is_some(), "its model is listed");
    let error = ask(host, question(PLUGIN)).await.unwrap_err();
    assert!(error.message.starts_with(&format!("plugin `{PLUGIN}`: ")), "{error}");
    assert!(!error.message.contains('/'), "no folder is told: {error}");
    error
}

async fn until_served(host: &Host) -> Answer {
    until(host, |result| result.is_ok()).await.unwrap()
}

async fn until_refused(host: &Host, reason: &str) -> Error {
    until(host, |result| result.as_ref().is_err_and(|error| error.reason == reason)).await.unwrap_err()
}

async fn until(host: &Host, is: impl Fn(&backplane::Result<Answer>) -> bool) -> backplane::Result<Answer> {
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let result = ask(host, question(PLUGIN)).await;
        if is(&result) {
            return result;
        }
        assert!(Instant::now() < deadline, "it did not come true; the last answer: {result:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How the plugin list says it stands.
fn state(host: &Host) -> &'static str {
    let info = host.plugins().into_iter().find(|plugin| plugin.id == PLUGIN).unwrap();
    info.license.unwrap().state
}

async fn free_serves(host: &Host) {
    assert_eq!(text(&ask(host, question(FREE)).await.unwrap()), "9.0.0");
}

fn figure(host: &Host, begins: &str) -> Option<f64> {
    let rendered = host.metrics().render();
    let line = rendered.lines().find(|line| line.starts_with(begins))?;
    line.rsplit_once(' ').unwrap().1.parse().ok()
}

#[tokio::test]
async fn a_licence_comes_and_goes_while_the_host_runs() {
    let site = Site::new(&[]);
    let host = site.host(|_| {});
    let error = refused(&host).await;
    assert_eq!((error.code, &*error.reason), (ErrorCode::PermissionDenied, "plugin_license_missing"));
    assert!(error.message.contains("backplane license install"), "{error}");
    free_serves(&host).await;
    let info = || host.plugins().into_iter().find(|plugin| plugin.id == PLUGIN).unwrap();
    assert!(!info().ready && info().problem.unwrap().contains("`file`: there is none"), "{:?}", info());
    assert_eq!(info().license.unwrap().state, "missing");

    site.license("lic_1", 1, json!({}));
    assert_eq!(text(&until_served(&host).await), "1.0.0");
    let license = info().license.unwrap();
    assert_eq!(
        (license.state, license.id.as_deref(), license.days_left),
        ("valid", Some("lic_1"), Some(364))
    );
    assert!(info().ready);
    let labels = format!("{{plugin=\"{PLUGIN}\",version=\"1.0.0\"");
    assert_eq!(figure(&host, &format!("backplane_license_state{labels},state=\"valid\"}}")), Some(1.0));
    assert_eq!(figure(&host, &format!("backplane_license_expires_days{labels}}}")), Some(364.0));
    assert!(
        figure(&host, &format!("backplane_license_refusals_total{{plugin=\"{PLUGIN}\",state=\"missing\"}}"))
            .is_some_and(|count| count >= 1.0)
    );

    site.revoke("lic_1");
    let error = until_refused(&host, "plugin_license_revoked").await;
    assert!(error.message.contains("licence `lic_1` (`lic_1.lic`): `id`: `acme-ai` took it back"), "{error}");
    assert_eq!(error.details["licence"], "lic_1");
    free_serves(&host).await;

    site.license("lic_2", 2, json!({}));
    until_served(&host).await;
    Licences::at(site.state.path()).remove("lic_2").unwrap();
    until_refused(&host, "plugin_license_revoked").await;
}

/// It has a licence and is not loaded, and no waiting helps: who asks is not told that it is being loaded.
#[tokio::test]
async fn one_in_quarantine_is_told_of_that_and_not_to_retry() {
    let site = Site::new(&[]);
    site.license("lic_1", 1, json!({}));
    let host = site.host(|_| {});
    until_served(&host).await;
    let build = host.plugins().into_iter().find(|plugin| plugin.id == PLUGIN).unwrap().sha256;
    host.shutdown(Duration::from_secs(5)).await;
    drop(host);
    let notes = site.state.path().join("quarantine");
    std::fs::create_dir_all(&notes).unwrap();
    std::fs::write(notes.join(format!("{PLUGIN}-{}", &build[..16])), "it crashed again and again").unwrap();

    let host = site.host(|config| {
        config.plugins.isolation.insert(PLUGIN.to_owned(), Isolation::Worker);
    });
    let error = ask(&host, question(PLUGIN)).await.unwrap_err();
    assert_eq!(&*error.reason, "plugin_quarantined", "{error}");
    assert!(error.retry_after.is_none() && error.message.contains("unquarantine"), "{error}");
    let info = host.plugins().into_iter().find(|plugin| plugin.id == PLUGIN).unwrap();
    assert!(!info.ready && info.problem.as_ref().unwrap().contains("quarantine"), "{info:?}");
    assert_eq!(info.license.unwrap().state, "valid");
    free_serves(&host).await;
}

#[tokio::test]
async fn who_names_no_model_is_told_of_the_licence_too() {
    let site = Site::new(&[]);
    std::fs::remove_file(site.plugins.path().join("libfree.so")).unwrap();
    let host = site.host(|_| {});
    let any = || Request::new(Caller::internal("tests"), "slow.answer", "{}");
    let error = ask(&host, any()).await.unwrap_err();
    assert_eq!((error.code, &*error.reason), (ErrorCode::PermissionDenied, "plugin_license_missing"));
    site.license("lic_1", 1, json!({}));
    until_served(&host).await;
    let deadline = Instant::now() + Duration::from_secs(15);
    while ask(&host, any()).await.is_err() {
        assert!(Instant::now() < deadline, "the licence has come");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn an_expired_licence_ends_no_running_request_and_a_renewal_reopens_no_model() {
    let site = Site::new(&["WORK_MS=6000"]);
    site.license("lic_1", 1, json!({"exp": seconds(3)}));
    let host = site.host(|_| {});
    let running = tokio::spawn({
        let host = host.clone();
        async move { ask(&host, question(PLUGIN)).await }
    });
    // Nobody asks meanwhile: a request that is left would take the instance with it.
    soon("the end of the licence", || state(&host) == "expired").await;
    let error = refused(&host).await;
    assert_eq!(&*error.reason, "plugin_license_expired");
    assert!(error.message.contains("`exp`: it was valid until"), "{error}");
    assert!(!running.is_finished(), "the request was under way when the licence ended");
    free_serves(&host).await;
    assert_eq!(text(&running.await.unwrap().unwrap()), "1.0.0");
    assert!(host.health().ready, "a licence stops no host");

    site.license("lic_2", 2, json!({}));
    until_served(&host).await;
    assert_eq!(
        figure(&host, "backplane_model_loads_total{outcome=\"opened\"}"),
        Some(2.0),
        "this one and the free one"
    );
}

#[tokio::test]
async fn each_state_loads_a_plugin_or_refuses_it_and_says_why() {
    let site = Site::new(&[]);
    let here = Machine::install_id(site.state.path()).unwrap();
    let cases = [
        (json!({"exp": days(10)}), Ok("expiring")),
        (json!({"exp": days(-1), "grace_days": 14}), Ok("grace")),
        (json!({"mode": "trial"}), Ok("trial")),
        (json!({"bind": {"kind": "install", "ids": [here]}}), Ok("valid")),
        (json!({"exp": days(-1)}), Err(("plugin_license_expired", "`exp`"))),
        (json!({"nbf": days(1)}), Err(("plugin_license_not_yet_valid", "`nbf`"))),
        (
            json!({"bind": {"kind": "install", "ids": ["ins_other"]}}),
            Err(("plugin_license_bind_mismatch", "`bind.ids`")),
        ),
        (
            json!({"product": {"plugin": PLUGIN, "versions": ">=2"}}),
            Err(("plugin_license_invalid", "`product.versions`")),
        ),
        // It ended, and what is known of no build is covered by no updates.
        (
            json!({"exp": days(-1), "on_expiry": "updates_only",
                   "product": {"plugin": PLUGIN, "updates_until": "2099-01-01"}}),
            Err(("plugin_license_expired", "`exp`")),
        ),
        (json!({"tenants": {"other": {}}}), Err(("plugin_license_tenant", "`tenants`"))),
    ];
    for (members, expected) in cases {
        site.license("lic_1", 1, members.clone());
        let host = site.host(|_| {});
        match expected {
            Ok(state) => {
                ask(&host, question(PLUGIN)).await.unwrap();
                let info = host.plugins().into_iter().find(|plugin| plugin.id == PLUGIN).unwrap();
                assert_eq!(info.license.unwrap().state, state, "{members}");
                let health = host.health();
                let part = health.parts.iter().find(|part| part.part == "licenses").unwrap();
                let degraded = part.state == PartState::Degraded;
                assert_eq!(degraded, state == "grace", "{members}: {part:?}");
            }
            Err((reason, field)) => {
                let error = refused(&host).await;
                assert_eq!((&*error.reason, error.code), (reason, ErrorCode::PermissionDenied), "{members}");
                assert!(error.message.contains(field), "{members}: {error}");
            }
        }
        free_serves(&host).await;
    }
    // Another key than the plugin names, which the operator trusts.
    let other = SecretKey::of_seed(&[2; 32]);
    TrustStore::at(site.state.path())
        .add(TrustedKey::new(other.public(), "acme-ai", &[Role::License]))
        .unwrap();
    site.license("lic_1", 1, json!({}));
    let path = site.state.path().join("licenses/lic_1.lic");
    let licence = backplane_registry::license::Licences::at(site.state.path());
    assert!(licence.folder().is_dir());
    resign(&path, &other);
    let host = site.host(|_| {});
    let error = refused(&host).await;
    assert!(error.message.contains("which `com.acme.slow` does not name"), "{error}");
    // And one byte of it changed.
    site.license("lic_1", 1, json!({}));
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] = if bytes[middle] == b'A' { b'B' } else { b'A' };
    std::fs::write(&path, bytes).unwrap();
    drop(host);
    // A file that nobody can believe is no licence, and is told by its name.
    let error = refused(&site.host(|_| {})).await;
    assert_eq!(&*error.reason, "plugin_license_invalid", "{error}");
    assert!(error.message.contains("licence file `lic_1.lic`"), "{error}");
}

/// Signs what a licence file says with another key.
fn resign(path: &Path, key: &SecretKey) {
    let text = std::fs::read_to_string(path).unwrap();
    let body = backplane_registry::trust::armour::read("LICENSE", &text).unwrap().body;
    let envelope = Envelope::parse(&body, 64 << 10).unwrap();
    let licence: Licence = serde_json::from_slice(envelope.unverified_payload()).unwrap();
    std::fs::write(path, licence.seal(&[key]).unwrap()).unwrap();
}

#[tokio::test]
async fn what_is_used_is_written_down_and_bounded_after_a_restart_too() {
    let site = Site::new(&[]);
    // What says nothing of tokens costs its pieces: one a request.
    site.license("lic_1", 1, json!({"limits": {"tokens_month": 3}}));
    let host = site.host(|_| {});
    for _ in 0..2 {
        ask(&host, question(PLUGIN)).await.unwrap();
    }
    host.shutdown(Duration::from_secs(5)).await;
    drop(host);
    let written = UsageLog::at(site.state.path()).read().unwrap();
    let [entry] = &written[..] else { panic!("{written:?}") };
    assert_eq!((&*entry.plugin, &*entry.licence, entry.tokens, entry.requests), (PLUGIN, "lic_1", 2, 2));
    assert_eq!(entry.tenant, "tests");

    let host = site.host(|_| {});
    ask(&host, question(PLUGIN)).await.unwrap();
    let error = refused(&host).await;
    assert_eq!(&*error.reason, "plugin_license_over_limit");
    assert!(error.message.contains("`limits.tokens_month`: 3 are allowed"), "{error}");
    let info = host.plugins().into_iter().find(|plugin| plugin.id == PLUGIN).unwrap();
    assert_eq!(info.license.unwrap().state, "over_limit");
    free_serves(&host).await;
}

#[tokio::test]
async fn instances_and_requests_under_way_are_bounded() {
    let site = Site::new(&["WORK_MS=500"]);
    site.license("lic_1", 1, json!({"limits": {"instances": 1, "concurrency": 1}}));
    let host = site.host(|_| {});
    let first = host.serve(question(PLUGIN)).await.unwrap();
    let error = host.serve(question(PLUGIN)).await.err().unwrap();
    assert_eq!((error.code, &*error.reason), (ErrorCode::ResourceExhausted, "plugin_license_over_limit"));
    assert!(error.retry_after.is_some());
    first.collect().await.unwrap();
    ask(&host, question(PLUGIN)).await.unwrap();
    drop(host);

    let host = site.host(|config| {
        config.models.overrides.entry(PLUGIN.to_owned()).or_default().instances = Some(2);
    });
    let error = refused(&host).await;
    assert!(error.message.contains("`limits.instances`: 1 are allowed"), "{error}");
}

#[tokio::test]
async fn what_is_kept_in_the_cache_needs_a_licence_too() {
    let site = Site::new(&[]);
    site.license("lic_1", 1, json!({"exp": seconds(3)}));
    let host = site.host(|config| config.cache.capabilities.push("slow.answer".to_owned()));
    ask(&host, question(PLUGIN)).await.unwrap();
    assert_eq!(ask(&host, question(PLUGIN)).await.unwrap().cache, CacheOutcome::Hit);
    until_refused(&host, "plugin_license_expired").await;
}

#[tokio::test]
async fn a_clock_that_was_set_back_gives_nothing() {
    let site = Site::new(&[]);
    site.license("lic_1", 1, json!({"exp": days(30)}));
    // As a host that ran until a month later would have left it.
    let (seen, confirmed) = (days(-10), days(40));
    let clock = json!({
        "first_seen": seen, "running": 90_000, "confirmed": confirmed, "candidate": [confirmed, 90_000], "last": confirmed,
    });
    serde_json::from_value::<Clock>(clock).unwrap().write(site.state.path()).unwrap();
    let host = site.host(|_| {});
    assert_eq!(&*refused(&host).await.reason, "plugin_license_expired");
    free_serves(&host).await;

    // The vendor says what time it is at this installation: its licences go by that, while the host runs.
    let install = Machine::install_id(site.state.path()).unwrap();
    let now = backplane_registry::trust::Timestamp::now();
    let token = TimeToken::new("acme-ai", &install, now);
    let sealed = token.seal(&SecretKey::of_seed(&[1; 32])).unwrap();
    Licences::at(site.state.path()).install_token(&token, sealed.as_bytes()).unwrap();
    until_served(&host).await;
    drop(host);
    until_served(&site.host(|_| {})).await;
}

#[tokio::test]
async fn a_licence_that_cannot_be_read_is_told_and_stops_no_other() {
    let site = Site::new(&[]);
    site.license("lic_1", 1, json!({}));
    // A file that everybody may open, and nobody can read from its beginning.
    let broken = site.state.path().join("licenses/broken.lic");
    std::os::unix::fs::symlink("/proc/self/mem", &broken).unwrap();
    let host = site.host(|_| {});
    until_served(&host).await;
    let part = || host.health().parts.into_iter().find(|part| part.part == "licenses").unwrap();
    soon("the report", || part().state == PartState::Degraded).await;
    assert!(part().detail.contains("broken.lic"), "{:?}", part());
    std::fs::remove_file(broken).unwrap();
    soon("the end of it", || part().state == PartState::Ok).await;
}

#[tokio::test]
async fn a_time_to_live_does_not_begin_anew_with_the_file() {
    let site = Site::new(&[]);
    let install = || site.license("lic_1", 1, json!({"ttl_days": 2}));
    let came = |days: i64| {
        let file = std::fs::File::options().write(true).open(site.state.path().join("licenses/lic_1.lic"));
        let age = Duration::from_secs(days as u64 * 86_400 + 60);
        file.unwrap().set_modified(std::time::SystemTime::now() - age).unwrap();
    };
    install();
    came(1);
    let host = site.host(|_| {});
    until_served(&host).await;
    came(3);
    until_refused(&host, "plugin_license_expired").await;
    drop(host);
    let touch = || came(0);
    let ways: [&dyn Fn(); 2] = [&install, &touch];
    for again in ways {
        again();
        assert_eq!(&*refused(&site.host(|_| {})).await.reason, "plugin_license_expired");
    }
    // What somebody wrote into is not believed: it counts from its day of issue, and that is told.
    let record = site.state.path().join("licenses/first-had.dsse");
    std::fs::write(&record, "{}").unwrap();
    let host = site.host(|_| {});
    assert_eq!(&*refused(&host).await.reason, "plugin_license_expired");
    let part = host.health().parts.into_iter().find(|part| part.part == "licenses").unwrap();
    assert!(part.detail.contains("first-had.dsse"), "{part:?}");
    // Another of the same id has its own time.
    std::fs::remove_file(&record).unwrap();
    site.license("lic_1", 2, json!({"ttl_days": 2}));
    until_served(&host).await;
}

#[tokio::test]
async fn a_record_of_the_clock_that_somebody_wrote_is_told_and_stops_nobody() {
    let site = Site::new(&[]);
    site.license("lic_1", 1, json!({"exp": days(30)}));
    std::fs::write(site.state.path().join("licenses/clock.dsse"), "{}").unwrap();
    let host = site.host(|_| {});
    until_served(&host).await;
    let health = host.health();
    let part = health.parts.iter().find(|part| part.part == "licenses").unwrap();
    assert_eq!(part.state, PartState::Degraded, "{part:?}");
    assert!(part.detail.contains("clock.dsse"), "{part:?}");
}
