//! Upgrades of a plugin that holds state, while the host serves: in-process and in workers.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod support;
// Compiles a plugin in C that remembers, of whatever version.
#[path = "../../runtime/tests/support/library.rs"]
#[allow(dead_code, reason = "a part of it is used")]
mod library;

use backplane::config::Isolation;
use backplane::{Caller, Config, Host, Request, UpgradeState};
use backplane_registry::package::{Level, PackOptions, Plugins, Trust, open, pack};
use backplane_registry::trust::{Role, SecretKey, Timestamp, TrustStore, TrustedKey};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const ID: &str = "com.example.remembers";
const PIECES: usize = 5;
const ROUNDS: usize = 20;
const STREAMS: usize = 32;

/// A state directory that trusts who signs here.
fn trusting() -> tempfile::TempDir {
    let state = tempfile::tempdir().unwrap();
    let key = TrustedKey::new(SecretKey::of_seed(&[7; 32]).public(), "acme", &[Role::Plugin]);
    TrustStore::at(state.path()).add(key).unwrap();
    state
}

fn trust(state: &Path) -> Trust {
    Trust::load(state, Level::Org, Timestamp::now()).unwrap()
}

/// Builds, packs, signs and installs a version.
fn install(state: &Path, version: &str) {
    let pieces = format!("PIECES={PIECES}");
    install_with(state, version, &[&pieces, "WORK_MS=3", "INFLIGHT=32", "STATE=1"]);
}

fn build(folder: &Path, version: &str, settings: &[&str]) {
    let version = format!("VERSION=\"{version}\"");
    library::slow(folder, "lib.so", ID, &[&[version.as_str()], settings].concat());
}

fn install_with(state: &Path, version: &str, settings: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    build(folder.path(), version, settings);
    let package = state.join("remembers.plg");
    let packed = pack(&folder.path().join("lib.so"), &PackOptions::default()).unwrap();
    packed.write(&package, &[&SecretKey::of_seed(&[7; 32])]).unwrap();
    let trust = trust(state);
    Plugins::at(state).install(&open(&package, &trust).unwrap(), &trust, "test").unwrap();
}

/// What all streams together were given: of each opening of the model, the numbers of its pieces.
type Given = Arc<Mutex<BTreeMap<String, Vec<u64>>>>;

async fn stream(host: &Host, given: &Given) -> Result<String, String> {
    stream_of(host, given, "{}").await
}

async fn stream_of(host: &Host, given: &Given, params: &str) -> Result<String, String> {
    let mut request = Request::new(Caller::internal("tests"), "slow.answer", params).model(ID);
    request.stream = true;
    let reply = host.serve(request).await.map_err(|error| error.message)?;
    let answer = reply.collect().await.map_err(|error| error.message)?;
    let pieces: Vec<Value> = answer.json().map_err(|error| error.message)?;
    let opening = pieces[0]["opening"].as_str().unwrap().to_owned();
    let numbers: Vec<u64> = pieces.iter().filter_map(|piece| piece["given"].as_u64()).collect();
    if pieces.len() != PIECES || numbers.len() != PIECES || pieces.iter().any(|one| one["opening"] != opening)
    {
        return Err(format!("not one answer of one opening: {pieces:?}"));
    }
    given.lock().unwrap().entry(opening).or_default().extend(numbers);
    Ok(pieces[0]["text"].as_str().unwrap().to_owned())
}

/// No request fails, each answer is of one opening, and nothing that an opening remembers is lost or comes twice: the
/// numbers of its pieces are all there.
async fn twenty_upgrades(isolation: Isolation) {
    let state = trusting();
    install(state.path(), "1.0.0");
    let mut config = Config::for_tests();
    config.plugins.isolation = [(ID.to_owned(), isolation)].into();
    (config.plugins.upgrade.share, config.plugins.upgrade.requests) = (0.25, 8);
    config.plugins.upgrade.hold = Duration::from_secs(20);
    config.models.max_queue = 2 * STREAMS;
    config.cache.enabled = false;
    let host = Host::builder().config(config).state_dir(state.path()).start().unwrap();
    let given = Given::default();
    assert_eq!(stream(&host, &given).await.as_deref(), Ok("1.0.0"));

    let (stop, failures) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let clients: Vec<_> = (0..STREAMS)
        .map(|_| {
            let (host, given) = (host.clone(), given.clone());
            let (stop, failures) = (stop.clone(), failures.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    if let Err(why) = stream(&host, &given).await {
                        failures.lock().unwrap().push(why);
                    }
                }
            })
        })
        .collect();
    install(state.path(), "2.0.0");
    for round in 0..ROUNDS {
        if 0 < round {
            Plugins::at(state.path()).rollback(ID, None, &trust(state.path())).unwrap();
        }
        let upgrade = host.upgrade_plugin(ID).await.unwrap();
        assert_eq!((upgrade.state, &upgrade.problem), (UpgradeState::Done, &None), "{upgrade:?}");
        let to = if round % 2 == 0 { "2.0.0" } else { "1.0.0" };
        assert_eq!(stream(&host, &given).await.as_deref(), Ok(to));
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    assert_eq!(*failures.lock().unwrap(), [""; 0]);
    let mut given = std::mem::take(&mut *given.lock().unwrap());
    assert_eq!(given.len(), ROUNDS + 1, "one opening for each version that served: {:?}", given.keys());
    for (opening, numbers) in &mut given {
        numbers.sort_unstable();
        let all: Vec<u64> = (1..=numbers.len() as u64).collect();
        assert!(*numbers == all, "{opening} gave {} pieces, and not each once", numbers.len());
    }
    let processes = given.keys().filter_map(|opening| opening.split(" in ").nth(1)?.split(',').next());
    let processes: std::collections::BTreeSet<_> = processes.collect();
    let expected = if isolation == Isolation::InProcess { 1 } else { ROUNDS + 1 };
    assert_eq!(processes.len(), expected, "a worker for each");
    host.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_upgrades_of_a_plugin_that_holds_state() {
    twenty_upgrades(Isolation::InProcess).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_upgrades_of_a_plugin_that_holds_state_in_workers() {
    twenty_upgrades(Isolation::Worker).await;
}

/// Who puts a library in the place of another was shown nothing, as who put the first one there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_library_that_takes_over_from_a_folder_has_nothing_that_it_asks_for() {
    let (state, folder, theirs) = (trusting(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let note = theirs.path().join("note");
    let asks = format!("MORE=\"resources = {{ write = ['{}'] }}\\n\"", theirs.path().display());
    let settings = [asks, format!("WRITES=\"{}\"", note.display())];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    build(folder.path(), "1.0.0", &settings);
    let host = |folder: &Path| {
        let mut config = Config::for_tests();
        config.plugins.isolation = [(ID.to_owned(), Isolation::Worker)].into();
        config.plugins.upgrade.hold = Duration::from_millis(50);
        Host::builder().config(config).state_dir(state.path()).plugin_dir(folder).start().unwrap()
    };
    let serving = host(folder.path());
    build(folder.path(), "2.0.0", &settings);
    let upgrade = serving.upgrade_plugin(ID).await.unwrap();
    assert_eq!((upgrade.state, &upgrade.problem), (UpgradeState::Done, &None), "{upgrade:?}");
    let [info] = &serving.plugins()[..] else { panic!("one plugin") };
    assert_eq!(info.version, "2.0.0");
    assert!(info.problem.as_ref().unwrap().contains("it asks for writing"), "{info:?}");
    assert!(!note.exists(), "nobody agreed to it");
    serving.shutdown(Duration::from_secs(5)).await;
    drop(serving);

    // Of a package somebody was.
    install_with(state.path(), "3.0.0", &settings);
    let serving = host(&state.path().join("nothing"));
    assert_eq!(serving.plugins()[0].problem, None);
    assert!(note.exists());
    serving.shutdown(Duration::from_secs(5)).await;
}

/// The trial is passed before anybody asks, and then it crashes with every request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_ends_in_quarantine_soon_after_gives_way_to_the_one_before() {
    let state = trusting();
    install(state.path(), "1.0.0");
    let mut config = Config::for_tests();
    config.plugins.isolation = [(ID.to_owned(), Isolation::Worker)].into();
    config.plugins.upgrade.hold = Duration::from_millis(50);
    config.cache.enabled = false;
    let host = Host::builder().config(config).state_dir(state.path()).start().unwrap();
    let given = Given::default();
    assert_eq!(stream(&host, &given).await.as_deref(), Ok("1.0.0"));
    install_with(state.path(), "2.0.0", &["CRASH=1"]);
    let upgrade = host.upgrade_plugin(ID).await.unwrap();
    assert_eq!(upgrade.state, UpgradeState::Done, "{upgrade:?}");
    let began = std::time::Instant::now();
    // One request alone would be found to be what it crashes of.
    for number in 0.. {
        let answer = stream_of(&host, &given, &format!("{{\"number\":{number}}}")).await;
        if answer.as_deref() == Ok("1.0.0") {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{answer:?}: {:?}", host.plugin_upgrade(ID));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let back = host.plugin_upgrade(ID).unwrap();
    assert_eq!((back.from.as_str(), back.to.as_str()), ("2.0.0", "1.0.0"));
    while host.plugin_upgrade(ID).unwrap().problem.is_none() {
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", host.plugin_upgrade(ID));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let back = host.plugin_upgrade(ID).unwrap();
    assert_eq!(back.state, UpgradeState::Done);
    assert!(back.problem.as_ref().unwrap().contains("is in quarantine"), "{back:?}");
    let packages = Plugins::at(state.path());
    assert_eq!(packages.in_use(ID).unwrap().version, "1.0.0", "a restart starts it too");
    let failed = packages.versions(ID).unwrap().into_iter().find(|one| one.version == "2.0.0").unwrap();
    assert!(packages.why_failed(ID, &failed.digest).unwrap().is_some());
    host.shutdown(Duration::from_secs(5)).await;
}
