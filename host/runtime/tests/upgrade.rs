//! Upgrades of plugins while the host serves: two builds of one plugin, as signed packages.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

#[path = "support/licensed.rs"]
mod licensed;
mod support;

use backplane::auth::{KeyLimits, NewKey, Role, TokenBudget};
use backplane::limiter::Period;
use backplane::{Caller, Config, ErrorCode, Host, PluginUpgrade, Request, UpgradeState};
use backplane_registry::package::{Level, PackOptions, Plugins, Trust, open, pack};
use backplane_registry::trust::{Role as Signs, SecretKey, Timestamp, TrustStore, TrustedKey};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use support::{slow, soon};

const ID: &str = "com.example.answers";

/// A state directory in which versions are installed, and the host that serves it.
struct Scene {
    state: tempfile::TempDir,
    host: Option<Host>,
    /// Of its library: copies in memory are called so too.
    file: &'static str,
}

impl Scene {
    fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let key = TrustedKey::new(SecretKey::of_seed(&[7; 32]).public(), "acme", &[Signs::Plugin]);
        TrustStore::at(state.path()).add(key).unwrap();
        Self { state, host: None, file: "libanswers.so" }
    }

    /// Starts a host on which a trial is over after eight requests.
    fn start(&mut self, change: impl FnOnce(&mut Config)) -> Host {
        let mut config = Config::for_tests();
        config.plugins.upgrade.share = 0.25;
        config.plugins.upgrade.requests = 8;
        config.plugins.upgrade.hold = Duration::from_secs(20);
        config.cache.enabled = false;
        change(&mut config);
        let host = Host::builder().config(config).state_dir(self.state.path()).start().unwrap();
        self.host.insert(host).clone()
    }

    fn trust(&self) -> Trust {
        Trust::load(self.state.path(), Level::Org, Timestamp::now()).unwrap()
    }

    fn plugins(&self) -> Plugins {
        Plugins::at(self.state.path())
    }

    /// Builds, packs, signs and installs a version.
    fn install(&self, version: &str, settings: &[&str]) {
        let dir = tempfile::tempdir().unwrap();
        let version = format!("VERSION=\"{version}\"");
        slow(dir.path(), self.file, ID, &[&[version.as_str()], settings].concat());
        self.install_library(&dir.path().join(self.file));
    }

    fn install_library(&self, library: &Path) {
        let package = self.state.path().join("answers.plg");
        let packed = pack(library, &PackOptions { files: BTreeMap::new(), built: Some(1) }).unwrap();
        packed.write(&package, &[&SecretKey::of_seed(&[7; 32])]).unwrap();
        let trust = self.trust();
        self.plugins().install(&open(&package, &trust).unwrap(), &trust, "test").unwrap();
    }

    /// The version in use on disk.
    fn on_disk(&self) -> String {
        self.plugins().in_use(ID).unwrap().version
    }

    fn digest(&self, version: &str) -> String {
        self.plugins().versions(ID).unwrap().into_iter().find(|one| one.version == version).unwrap().digest
    }

    /// Which versions the host has loaded.
    fn loaded(&self) -> Vec<String> {
        let plugins = self.host.as_ref().unwrap().plugins();
        plugins.into_iter().filter(|plugin| plugin.ready).map(|plugin| plugin.version).collect()
    }
}

fn request() -> Request {
    let mut request = Request::new(Caller::internal("tests"), "slow.answer", "{}").model(ID);
    request.stream = true;
    request
}

/// Asks once: how many pieces the answer has, and of which version they all are.
async fn ask(host: &Host) -> Result<(usize, String), backplane::Error> {
    let answer = host.serve(request()).await?.collect().await?;
    let pieces: Vec<serde_json::Value> = answer.json()?;
    let version = pieces[0]["text"].as_str().unwrap().to_owned();
    assert!(pieces.iter().all(|piece| piece["text"] == version), "one answer, one version: {pieces:?}");
    Ok((pieces.len(), version))
}

/// Asks from many at once until it is stopped.
struct Load {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    answers: parking_lot::Mutex<BTreeMap<String, u64>>,
    failures: parking_lot::Mutex<Vec<String>>,
    broken_off: AtomicU64,
}

impl Load {
    fn of(host: &Host, clients: usize, pieces: usize) -> Self {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Seen::default()));
        let client = |_| {
            let (host, stop, seen) = (host.clone(), stop.clone(), seen.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    match ask(&host).await {
                        Ok((got, version)) if got == pieces => {
                            *seen.answers.lock().entry(version).or_default() += 1;
                        }
                        Ok(_) => drop(seen.broken_off.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => seen.failures.lock().push(error.message),
                    }
                }
            })
        };
        Self { tasks: (0..clients).map(client).collect(), stop, seen }
    }

    async fn end(self) -> Arc<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        self.seen
    }
}

fn is_done(upgrade: &PluginUpgrade) {
    assert_eq!((upgrade.state, &upgrade.problem), (UpgradeState::Done, &None), "{upgrade:?}");
}

/// Mapped copies of a library in memory.
fn mapped(file: &str) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains(&format!("memfd:{file}")) && line.contains("r-xp")).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_upgrades_under_thirty_two_streams_fail_no_request() {
    let (mut scene, pieces) = (Scene::new(), 5);
    scene.file = "libtwenty.so";
    let settings = ["PIECES=5", "WORK_MS=3", "INFLIGHT=32"];
    scene.install("1.0.0", &settings);
    let host = scene.start(|config| config.models.max_queue = 64);
    assert_eq!(ask(&host).await.unwrap(), (pieces, "1.0.0".to_owned()));
    let load = Load::of(&host, 32, pieces);
    scene.install("2.0.0", &settings);
    let mut mapped_after_two = 0;
    for round in 0..20 {
        if round > 0 {
            scene.plugins().rollback(ID, None, &scene.trust()).unwrap();
        }
        let upgrade = host.upgrade_plugin(ID).await.unwrap();
        is_done(&upgrade);
        let to = if round % 2 == 0 { "2.0.0" } else { "1.0.0" };
        assert_eq!((upgrade.to.as_str(), scene.on_disk().as_str()), (to, to));
        assert!(upgrade.requests >= 8 && upgrade.old_requests > upgrade.requests, "{upgrade:?}");
        assert!(upgrade.models[0].beside, "{upgrade:?}");
        assert_eq!(ask(&host).await.unwrap().1, to, "all new requests are for it");
        assert_eq!(scene.loaded(), [to]);
        match round {
            1 => mapped_after_two = mapped(scene.file),
            19 => assert_eq!(
                mapped(scene.file),
                mapped_after_two,
                "going back leaves no further copy of a library"
            ),
            _ => {}
        }
    }
    let seen = load.end().await;
    assert_eq!(*seen.failures.lock(), Vec::<String>::new());
    assert_eq!(seen.broken_off.load(Ordering::Relaxed), 0);
    let answers = seen.answers.lock();
    assert!(answers["1.0.0"] > 100 && answers["2.0.0"] > 100, "{answers:?}");
    let metrics = host.metrics().render();
    assert!(metrics.contains("backplane_plugin_upgrades_total{outcome=\"done\"} 20"), "{metrics}");
    assert!(metrics.contains("backplane_requests_in_flight 0"), "every request was settled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_fails_its_share_is_rolled_back_and_no_client_sees_it() {
    let (mut scene, pieces) = (Scene::new(), 2);
    let settings = ["PIECES=2", "WORK_MS=2", "INFLIGHT=16"];
    scene.install("1.0.0", &settings);
    let host = scene.start(|config| config.models.max_queue = 64);
    ask(&host).await.unwrap();
    let load = Load::of(&host, 8, pieces);
    scene.install("2.0.0", &[&settings[..], &["FAIL_EVERY=2"]].concat());
    host.refresh().await.unwrap();
    assert_eq!(host.plugins().len(), 2, "one is not used yet");
    let upgrade = host.upgrade_plugin(ID).await.unwrap();
    assert_eq!(upgrade.state, UpgradeState::RolledBack, "{upgrade:?}");
    assert!(upgrade.problem.as_deref().unwrap().contains("this version fails"), "{upgrade:?}");
    assert_eq!(host.plugins().len(), 1);
    assert!(upgrade.failures > 0 && upgrade.retried >= upgrade.failures, "{upgrade:?}");
    assert_eq!(scene.on_disk(), "1.0.0");
    let why = scene.plugins().why_failed(ID, &scene.digest("2.0.0")).unwrap();
    assert!(why.is_some_and(|why| why.contains("requests failed")));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let seen = load.end().await;
    assert_eq!(*seen.failures.lock(), Vec::<String>::new());
    assert_eq!(seen.broken_off.load(Ordering::Relaxed), 0);
    assert!(seen.answers.lock()["2.0.0"] > 0, "it had its share");
    assert_eq!(ask(&host).await.unwrap().1, "1.0.0");
    assert_eq!(scene.loaded(), ["1.0.0"]);
    let metrics = host.metrics().render();
    assert!(metrics.contains("backplane_plugin_upgrades_total{outcome=\"rolled_back\"} 1"), "{metrics}");
    assert!(metrics.contains("backplane_requests_in_flight 0"), "every request was settled");
    assert!(!metrics.contains("code=\"internal\""), "what nobody saw is counted nowhere: {metrics}");
    // The way back from 1.0.0 does not lead to what has failed; who asks for it by name gets it.
    assert!(scene.plugins().rollback(ID, None, &scene.trust()).is_err());
    scene.plugins().rollback(ID, Some("2.0.0"), &scene.trust()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_breaks_off_is_seen_by_the_canarys_share_and_nobody_else() {
    let mut scene = Scene::new();
    let settings = ["PIECES=3", "WORK_MS=2", "INFLIGHT=16"];
    scene.install("1.0.0", &settings);
    let host = scene.start(|config| config.models.max_queue = 64);
    ask(&host).await.unwrap();
    let load = Load::of(&host, 4, 3);
    scene.install("2.0.0", &[&settings[..], &["FAIL_EVERY=1", "FAIL_LATE=1"]].concat());
    let upgrade = host.upgrade_plugin(ID).await.unwrap();
    assert_eq!(upgrade.state, UpgradeState::RolledBack, "{upgrade:?}");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let seen = load.end().await;
    let failures = seen.failures.lock().len() as u64;
    assert!(failures > 0 && failures == upgrade.failures, "{failures} of {upgrade:?}");
    assert!(seen.answers.lock()["1.0.0"] > 2 * failures);
    assert!(host.metrics().render().contains("code=\"internal\""), "what somebody saw is counted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_both_versions_had_is_charged_once() {
    let mut scene = Scene::new();
    scene.install("1.0.0", &["PIECES=3"]);
    let host = scene.start(|config| {
        config.auth.enabled = true;
        config.plugins.upgrade.share = 1.0;
        config.plugins.upgrade.requests = 1_000_000;
        config.plugins.upgrade.failures = 1.0;
    });
    ask(&host).await.unwrap();
    let budget = TokenBudget { tokens: 1000, window: Period::Total };
    let limits = KeyLimits { requests_per_minute: None, tokens: Some(budget) };
    let key = NewKey { name: "k".to_owned(), role: Role::User, limits, lifetime: None };
    let caller = host.identify(Some(&host.create_key(key).await.unwrap().secret)).unwrap();
    scene.install("2.0.0", &["FAIL_EVERY=1"]);
    host.begin_upgrade(ID).await.unwrap();
    soon("the trial", || host.plugin_upgrade(ID).unwrap().share == 1.0).await;
    let theirs = || {
        let mut request = request();
        request.caller = caller.clone();
        request
    };
    let answer = host.serve(theirs()).await.unwrap().collect().await.unwrap();
    assert_eq!(answer.chunks.len(), 3, "the old version's");
    assert_eq!(host.plugin_upgrade(ID).unwrap().retried, 1);
    let left = || host.limits(&caller).iter().find(|limit| limit.dimension == "tokens").unwrap().remaining;
    assert_eq!(left(), 996, "three pieces, and a prompt of two bytes");
    // Who leaves before the answer costs nothing where nothing came of it, and holds nothing.
    for _ in 0..10 {
        drop(host.serve(theirs()).await.unwrap());
    }
    soon("all settled", || host.metrics().render().contains("backplane_requests_in_flight 0")).await;
    assert!(left() >= 997 - 10 * 5, "a prompt and three pieces each at most: {}", left());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_does_not_start_or_answer_is_never_sent_anybody() {
    let mut scene = Scene::new();
    scene.install("1.0.0", &[]);
    let host = scene.start(|config| config.plugins.upgrade.hold = Duration::from_millis(50));
    ask(&host).await.unwrap();
    let rules: [(&str, &[&str], &str); 3] = [
        ("2.0.0", &["INIT_FAILS=1"], "failed to start"),
        (
            "2.0.1",
            &["EXAMPLE=1", "FAIL_EVERY=1"],
            "a first request to `slow.answer` failed: this version fails",
        ),
        ("2.0.2", &["CAPABILITY=\"slow.other\""], "serves `slow.answer`, which it does not offer"),
    ];
    for (version, settings, why) in rules {
        scene.install(version, settings);
        let upgrade = host.upgrade_plugin(ID).await.unwrap();
        assert_eq!(upgrade.state, UpgradeState::RolledBack, "{upgrade:?}");
        assert!(upgrade.problem.as_deref().unwrap().contains(why), "{upgrade:?}");
        assert_eq!((upgrade.requests, scene.on_disk().as_str()), (0, "1.0.0"), "{version}");
        assert_eq!(ask(&host).await.unwrap().1, "1.0.0");
        assert_eq!(scene.loaded(), ["1.0.0"]);
    }
    // One that mends it.
    scene.install("2.1.0", &["EXAMPLE=1"]);
    is_done(&host.upgrade_plugin(ID).await.unwrap());
    assert_eq!(ask(&host).await.unwrap().1, "2.1.0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_does_not_fit_twice_is_switched_when_its_requests_are_done() {
    let (mut scene, pieces) = (Scene::new(), 4);
    let settings = ["PIECES=4", "WORK_MS=10", "INFLIGHT=8", "BID_MB=600"];
    scene.install("1.0.0", &settings);
    let host = scene.start(|config| {
        config.models.memory_budget = backplane::config::MemoryBudget::Bytes(1000 << 20);
        config.models.max_queue = 64;
    });
    ask(&host).await.unwrap();
    let load = Load::of(&host, 8, pieces);
    scene.install("2.0.0", &settings);
    let upgrade = host.upgrade_plugin(ID).await.unwrap();
    is_done(&upgrade);
    assert!(!upgrade.models[0].beside, "it says so: {upgrade:?}");
    assert_eq!(ask(&host).await.unwrap().1, "2.0.0");
    let seen = load.end().await;
    assert_eq!(*seen.failures.lock(), Vec::<String>::new());
    assert_eq!(seen.broken_off.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_versions_are_seen_meanwhile_and_who_asks_for_nothing_is_told() {
    let mut scene = Scene::new();
    scene.install("1.0.0", &[]);
    let host = scene.start(|config| {
        config.plugins.upgrade.hold = Duration::from_secs(60);
        config.plugins.upgrade.requests = 1_000_000;
    });
    let reason = async |id: &str| {
        let error = host.upgrade_plugin(id).await.unwrap_err();
        (error.code, error.reason.to_string())
    };
    assert_eq!(reason(ID).await, (ErrorCode::AlreadyExists, "nothing_to_upgrade".to_owned()));
    assert_eq!(reason("com.example.none").await, (ErrorCode::NotFound, "plugin_not_found".to_owned()));
    ask(&host).await.unwrap();
    scene.install("2.0.0", &[]);
    host.refresh().await.unwrap();
    let begun = host.begin_upgrade(ID).await.unwrap();
    assert_eq!((begun.from.as_str(), begun.to.as_str()), ("1.0.0", "2.0.0"));
    assert_eq!(reason(ID).await, (ErrorCode::Aborted, "upgrade_under_way".to_owned()));
    soon("the trial", || host.plugin_upgrade(ID).unwrap().state == UpgradeState::Trial).await;
    let shares = || -> Vec<(String, Option<f64>)> {
        host.plugins().into_iter().filter(|p| p.ready).map(|p| (p.version, p.share)).collect()
    };
    soon("the share", || shares() == [("1.0.0".into(), Some(0.75)), ("2.0.0".into(), Some(0.25))]).await;
    assert_eq!(host.plugins().len(), 2);
    let metrics = host.metrics().render();
    let share = |version: &str| format!("backplane_plugin_share{{plugin=\"{ID}\",version=\"{version}\"}}");
    assert!(metrics.contains(&format!("{} 0.75", share("1.0.0"))), "{metrics}");
    assert!(metrics.contains(&format!("{} 0.25", share("2.0.0"))), "{metrics}");
    let mut versions = BTreeMap::<String, u32>::new();
    for _ in 0..16 {
        *versions.entry(ask(&host).await.unwrap().1).or_default() += 1;
    }
    assert!((4..=5).contains(&versions["2.0.0"]), "a quarter: {versions:?}");
    // A look at what is installed changes nothing, nor does closing the model.
    host.refresh().await.unwrap();
    host.unload(ID).await.unwrap();
    assert_eq!(ask(&host).await.unwrap().1, "1.0.0", "opened by the version that serves");
    assert_eq!(scene.on_disk(), "1.0.0", "were the host to die now, this is what starts");
    // A host that stops goes back, and holds nothing against the version.
    host.shutdown(Duration::from_secs(1)).await;
    soon("the end", || host.plugin_upgrade(ID).unwrap().state == UpgradeState::RolledBack).await;
    assert_eq!(scene.plugins().why_failed(ID, &scene.digest("2.0.0")).unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_library_whose_file_was_replaced_takes_over_too() {
    let (state, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    slow(folder.path(), "libanswers.so", ID, &["VERSION=\"1.0.0\""]);
    let mut config = Config::for_tests();
    config.plugins.upgrade.hold = Duration::from_millis(50);
    let host =
        Host::builder().config(config).state_dir(state.path()).plugin_dir(folder.path()).start().unwrap();
    assert_eq!(ask(&host).await.unwrap().1, "1.0.0");
    slow(folder.path(), "libanswers.so", ID, &["VERSION=\"2.0.0\""]);
    assert_eq!(ask(&host).await.unwrap().1, "1.0.0");
    is_done(&host.upgrade_plugin(ID).await.unwrap());
    assert_eq!(ask(&host).await.unwrap().1, "2.0.0");
    host.refresh().await.unwrap();
    let all = host.plugins();
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!((all[0].version.as_str(), &all[0].problem), ("2.0.0", &None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_is_known_takes_over_without_a_trial() {
    let mut scene = Scene::new();
    scene.install("1.0.0", &[]);
    let host = scene.start(|config| {
        config.plugins.upgrade.hold = Duration::from_secs(600);
        config.plugins.upgrade.requests = 1_000_000;
    });
    ask(&host).await.unwrap();
    scene.install("2.0.0", &[]);
    host.begin_upgrade_now(ID).await.unwrap();
    soon("the end", || host.plugin_upgrade(ID).unwrap().state == UpgradeState::Done).await;
    assert_eq!(ask(&host).await.unwrap().1, "2.0.0");
    // It is probed all the same.
    scene.install("3.0.0", &["EXAMPLE=1", "FAIL_EVERY=1"]);
    host.begin_upgrade_now(ID).await.unwrap();
    soon("the end", || host.plugin_upgrade(ID).unwrap().state == UpgradeState::RolledBack).await;
    assert_eq!(ask(&host).await.unwrap().1, "2.0.0");
}

/// As a setting: it needs a licence, and has these lines in its manifest.
fn commercial(lines: &str) -> String {
    format!("MORE=\"licence_class = 'commercial'\\n{lines}\\n\"")
}

impl Scene {
    /// Version 1 of a plugin that needs a licence, and one for it with these members.
    fn licensed(lines: &str, members: Value) -> Self {
        let scene = Self::new();
        licensed::trust(scene.state.path());
        scene.install("1.0.0", &[&commercial(lines)]);
        scene.license(1, members);
        scene
    }

    fn license(&self, serial: u64, members: Value) {
        licensed::license(self.state.path(), &format!("lic_{serial}"), serial, members);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_the_licence_does_not_cover_never_takes_over() {
    let key = format!("vendor_keys = ['{}']", licensed::vendor().public());
    let other = format!("vendor_keys = ['{}']", SecretKey::of_seed(&[9; 32]).public());
    let cases = [
        (json!({"plugin": ID, "versions": "<2"}), "", "", "`product.versions`"),
        (
            json!({"plugin": ID, "updates_until": "2026-06-01"}),
            "built = '2026-01-01'",
            "built = '2026-12-31'",
            "`product.updates_until`",
        ),
        (json!({"plugin": ID}), key.as_str(), other.as_str(), "does not name"),
    ];
    for (product, before, after, why) in cases {
        let mut scene = Scene::licensed(before, json!({ "product": product }));
        let host = scene.start(|config| config.plugins.upgrade.hold = Duration::from_millis(50));
        assert_eq!(ask(&host).await.unwrap().1, "1.0.0");
        scene.install("2.0.0", &[&commercial(after)]);
        for _ in 0..2 {
            let upgrade = host.upgrade_plugin(ID).await.unwrap();
            assert_eq!(upgrade.state, UpgradeState::RolledBack, "{upgrade:?}");
            assert!(upgrade.problem.as_ref().unwrap().contains(why), "{upgrade:?}");
            assert_eq!((ask(&host).await.unwrap().1.as_str(), scene.on_disk().as_str()), ("1.0.0", "1.0.0"));
            assert_eq!(scene.loaded(), ["1.0.0"]);
            scene.plugins().rollback(ID, Some("2.0.0"), &scene.trust()).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_whose_licence_is_lost_on_trial_does_not_take_over() {
    let mut scene = Scene::licensed("", json!({"product": {"plugin": ID}}));
    let host = scene.start(|config| {
        config.plugins.upgrade.hold = Duration::from_secs(600);
        config.plugins.upgrade.requests = 1_000_000;
    });
    ask(&host).await.unwrap();
    scene.install("2.0.0", &[&commercial("")]);
    host.begin_upgrade(ID).await.unwrap();
    soon("the trial", || host.plugin_upgrade(ID).unwrap().state == UpgradeState::Trial).await;
    scene.license(2, json!({"product": {"plugin": ID, "versions": "<2"}}));
    backplane_registry::license::Licences::at(scene.state.path()).remove("lic_1").unwrap();
    soon("the end", || host.plugin_upgrade(ID).unwrap().state.is_over()).await;
    let upgrade = host.plugin_upgrade(ID).unwrap();
    assert_eq!(upgrade.state, UpgradeState::RolledBack, "{upgrade:?}");
    assert!(upgrade.problem.as_ref().unwrap().contains("`product.versions`"), "{upgrade:?}");
    assert_eq!(ask(&host).await.unwrap().1, "1.0.0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_instances_of_a_new_version_are_counted_and_its_licence_is_shown() {
    let mut scene = Scene::licensed("", json!({"product": {"plugin": ID}, "limits": {"instances": 1}}));
    let host = scene.start(|config| config.plugins.upgrade.hold = Duration::from_millis(50));
    ask(&host).await.unwrap();
    scene.install("2.0.0", &[&commercial("")]);
    let upgrade = host.upgrade_plugin(ID).await.unwrap();
    is_done(&upgrade);
    assert!(!upgrade.models[0].beside, "one instance is licensed: {upgrade:?}");
    let metrics = host.metrics().render();
    assert!(!metrics.contains("version=\"1.0.0\",state="), "what is retired is told no more: {metrics}");
    assert_eq!(ask(&host).await.unwrap().1, "2.0.0");
    let license = || host.plugins()[0].license.clone().map(|license| (license.state, license.id));
    assert_eq!(license(), Some(("valid", Some("lic_1".to_owned()))));

    scene.license(2, json!({"product": {"plugin": ID}, "limits": {"instances": 2}}));
    soon("the new licence", || license().unwrap().1.as_deref() == Some("lic_2")).await;
    scene.install("3.0.0", &[&commercial("")]);
    let upgrade = host.upgrade_plugin(ID).await.unwrap();
    is_done(&upgrade);
    assert!(upgrade.models[0].beside, "{upgrade:?}");
    // It counts as long as it is open, and no longer: as many fit again.
    scene.install("4.0.0", &[&commercial("")]);
    let upgrade = host.upgrade_plugin(ID).await.unwrap();
    assert!(upgrade.models[0].beside, "{upgrade:?}");
    scene.license(3, json!({"product": {"plugin": ID}, "limits": {"instances": 1}}));
    soon("the last licence", || license().unwrap().1.as_deref() == Some("lic_3")).await;
    scene.install("5.0.0", &[&commercial("")]);
    let upgrade = host.upgrade_plugin(ID).await.unwrap();
    assert!(!upgrade.models[0].beside, "the instance of 4.0.0 is counted: {upgrade:?}");
}

/// How many pieces it got, or why it ended before.
type Stream = tokio::task::JoinHandle<Result<usize, String>>;

/// A stream of four seconds at version 1, which has begun; version 2 is installed.
async fn long_stream(scene: &mut Scene, change: impl FnOnce(&mut Config)) -> (Host, Stream) {
    scene.install("1.0.0", &["PIECES=40", "WORK_MS=100"]);
    let host = scene.start(|config| {
        config.server.drain = Duration::from_millis(200);
        config.plugins.upgrade.hold = Duration::from_millis(50);
        change(config);
    });
    host.load(ID, None).await.unwrap();
    scene.install("2.0.0", &[]);
    let mut reply = host.serve(request()).await.unwrap();
    assert!(matches!(reply.next().await, Ok(backplane::Next::Chunk(_))), "it has begun");
    let pieces = tokio::spawn(async move {
        let answer = reply.collect().await.map_err(|error| error.message)?;
        Ok(answer.chunks.len() + 1)
    });
    (host, pieces)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_the_version_before_ends_by_itself() {
    let mut scene = Scene::new();
    let (host, stream) = long_stream(&mut scene, |_| {}).await;
    host.begin_upgrade(ID).await.unwrap();
    soon("the switch", || host.plugin_upgrade(ID).unwrap().state == UpgradeState::Draining).await;
    soon("the disk", || scene.on_disk() == "2.0.0").await;
    assert_eq!(ask(&host).await.unwrap(), (1, "2.0.0".to_owned()));
    assert_eq!(stream.await.unwrap(), Ok(40), "it took longer than `server.drain`");
    soon("the end", || host.plugin_upgrade(ID).unwrap().state == UpgradeState::Done).await;
    assert_eq!(scene.loaded(), ["2.0.0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_the_version_before_ends_when_its_time_is_over() {
    let mut scene = Scene::new();
    let drain = Duration::from_millis(300);
    let (host, stream) = long_stream(&mut scene, |config| config.plugins.upgrade.drain = drain).await;
    is_done(&host.upgrade_plugin(ID).await.unwrap());
    assert!(stream.await.unwrap().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_goes_back_waits_for_no_stream_of_the_version_before() {
    let mut scene = Scene::new();
    let (host, stream) = long_stream(&mut scene, |_| {}).await;
    host.begin_upgrade(ID).await.unwrap();
    soon("the switch", || scene.on_disk() == "2.0.0").await;
    // The host may still have the lock.
    soon("the way back", || scene.plugins().rollback(ID, None, &scene.trust()).is_ok()).await;
    let back = loop {
        match host.begin_upgrade_now(ID).await {
            Ok(begun) => break begun,
            Err(error) => assert_eq!(error.reason, "upgrade_under_way"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(back.to, "1.0.0");
    soon("the end", || host.plugin_upgrade(ID).unwrap().state == UpgradeState::Done).await;
    assert!(!stream.is_finished());
    assert_eq!((scene.loaded(), scene.on_disk().as_str()), (vec!["1.0.0".to_owned()], "1.0.0"));
    assert_eq!(stream.await.unwrap(), Ok(40));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let upgrade = host.plugin_upgrade(ID).unwrap();
    assert_eq!(
        (upgrade.to.as_str(), upgrade.state),
        ("1.0.0", UpgradeState::Done),
        "the first says nothing more"
    );
    assert_eq!(ask(&host).await.unwrap().1, "1.0.0");
    let metrics = host.metrics().render();
    assert!(metrics.contains("backplane_plugin_upgrades_total{outcome=\"done\"} 2"), "{metrics}");
}
