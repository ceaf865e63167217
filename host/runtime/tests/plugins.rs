//! Plugins that are slow where they must not be, that come, and that take each other's place.

#![allow(clippy::unwrap_used, reason = "in a test a failure is the test's")]

mod support;

use backplane::{Answer, CacheOutcome, Caller, Config, Host, Request};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use support::{slow, text, threads};

fn host(plugins: &Path, change: impl FnOnce(&mut Config)) -> (Host, tempfile::TempDir) {
    let state = tempfile::tempdir().unwrap();
    let mut config = Config::for_tests();
    change(&mut config);
    let host = Host::builder().config(config).state_dir(state.path()).plugin_dir(plugins).start().unwrap();
    (host, state)
}

fn question() -> Request {
    Request::new(Caller::internal("tests"), "slow.answer", "{}")
}

async fn ask(host: &Host, request: Request) -> backplane::Result<Answer> {
    host.serve(request).await?.collect().await
}

/// A model of the plugins here, with more for its card.
fn card(dir: &Path, more: &str) -> PathBuf {
    std::fs::write(dir.join("weights"), "none").unwrap();
    let card = dir.join("model.toml");
    let text = format!(
        "name = 'mine'\nformat = 'slow'\ncapabilities = ['slow.answer', 'chat']\n{more}\n\
         [[files]]\nrole = 'model'\npath = 'weights'\n"
    );
    std::fs::write(&card, text).unwrap();
    card
}

#[tokio::test]
async fn a_plugin_that_bids_late_holds_up_nobody_for_long_and_another_answers() {
    let dir = tempfile::tempdir().unwrap();
    slow(dir.path(), "liblate.so", "bids.late", &["BID_MS=20000"]);
    let (host, _state) = host(dir.path(), |_| {});
    let began = Instant::now();
    let alone = ask(&host, question()).await.unwrap_err();
    assert!(alone.message.contains("plugin `bids.late` did not answer within"), "{alone}");
    for _ in 0..50 {
        ask(&host, question()).await.unwrap_err();
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(threads("ask bids.late"), 1, "one thread is in it, not one for each request");

    slow(dir.path(), "libnow.so", "bids.now", &["VERSION=\"7.0.0\""]);
    host.refresh().await.unwrap();
    let answer = ask(&host, question()).await.unwrap();
    assert_eq!(text(&answer), "7.0.0");
    assert_eq!(answer.route.why, "best of 1 bids");
    let told = answer.route.candidates.iter().map(|one| (&*one.model, one.refused.as_deref()));
    assert_eq!(told.collect::<Vec<_>>(), [("bids.now", None), ("bids.late", Some("load_failed"))]);
    let late = &answer.route.candidates[1];
    assert!(
        late.why.ends_with("plugin `bids.late` has not answered an earlier question yet"),
        "{}",
        late.why
    );
    // Who asks for it by name is served: its bids are late, and it is not.
    assert_eq!(text(&ask(&host, question().model("bids.late")).await.unwrap()), "1.0.0");
}

#[tokio::test]
async fn a_bid_stands_in_for_one_that_comes_late() {
    let dir = tempfile::tempdir().unwrap();
    slow(dir.path(), "libonce.so", "bids.once", &["BID_ONCE=1", "BID_MS=20000"]);
    let (host, _state) = host(dir.path(), |_| {});
    for _ in 0..3 {
        let answer = ask(&host, question()).await.unwrap();
        assert_eq!((&*answer.route.model, answer.route.candidates[0].score), ("bids.once", 900));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(threads("ask bids.once"), 1, "it is asked again, and has not answered");
}

#[tokio::test]
async fn a_plugin_that_hangs_when_it_is_told_of_a_cancel_holds_up_no_deadline() {
    let dir = tempfile::tempdir().unwrap();
    slow(dir.path(), "liba.so", "to.tell", &["CANCEL_MS=20000", "WORK_MS=20000"]);
    let (host, _state) = host(dir.path(), |_| {});
    host.load("to.tell", None).await.unwrap();
    let began = Instant::now();
    let late = [100, 400, 700].map(|ms| ask(&host, question().within(Duration::from_millis(ms))));
    for answer in futures::future::join_all(late).await {
        assert_eq!(answer.unwrap_err().code, backplane::ErrorCode::DeadlineExceeded);
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(threads("cancel to.tell"), 1, "one thread is in it, and the rest waits for that");
}

#[tokio::test]
async fn an_engine_that_gives_its_figures_late_shows_its_last_ones() {
    let dir = tempfile::tempdir().unwrap();
    slow(dir.path(), "liba.so", "figures.late", &["STATS_MS=20000"]);
    let (host, _state) = host(dir.path(), |_| {});
    ask(&host, question()).await.unwrap();
    let figure = "backplane_engine{model=\"figures.late\",figure=\"first_reading\"} 1";
    let late = |n| format!("backplane_model_late_stats_total{{model=\"figures.late\"}} {n}");
    let began = Instant::now();
    for n in 0..20 {
        let rendered = host.metrics().render();
        assert!(rendered.contains(figure) && rendered.contains(&late(n)), "{n}: {rendered}");
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(threads("ask figures.lat"), 1, "the kernel keeps 15 letters");
}

#[tokio::test]
async fn a_plugin_never_answers_from_what_another_said_to_the_same_model() {
    let (dir, model) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let card = card(model.path(), "");
    slow(dir.path(), "libold.so", "z.old", &[]);
    let (host, _state) = host(dir.path(), |config| {
        config.models.cards.push(card);
        config.cache.capabilities.push("slow.answer".to_owned());
    });
    let mine = || question().model("mine");
    assert_eq!(text(&ask(&host, mine()).await.unwrap()), "1.0.0");
    let again = ask(&host, mine()).await.unwrap();
    assert_eq!((again.cache, text(&again).as_str()), (CacheOutcome::Hit, "1.0.0"));

    // Bids the same, and its id comes first: it opens the model from now on.
    slow(dir.path(), "libnew.so", "a.new", &["VERSION=\"2.0.0\""]);
    host.refresh().await.unwrap();
    let open = ask(&host, mine()).await.unwrap();
    assert_eq!(open.cache, CacheOutcome::Hit, "what has it open is what answered");
    host.unload("mine").await.unwrap();
    assert_eq!(text(&ask(&host, mine()).await.unwrap()), "2.0.0");
    let other = ask(&host, mine()).await.unwrap();
    assert_eq!(text(&other), "2.0.0");

    // The same for the file: a local model has no digest.
    let hit = ask(&host, mine()).await.unwrap();
    assert_eq!(hit.cache, CacheOutcome::Hit);
    let opened = || {
        host.metrics()
            .render()
            .lines()
            .find(|l| l.contains("loads_total{outcome=\"opened\""))
            .unwrap()
            .to_owned()
    };
    let before = opened();
    std::fs::write(model.path().join("other"), "some").unwrap();
    std::fs::rename(model.path().join("other"), model.path().join("weights")).unwrap();
    host.refresh().await.unwrap();
    let fresh = ask(&host, mine()).await.unwrap();
    assert_eq!(fresh.cache, CacheOutcome::Miss);
    assert_ne!(opened(), before, "and it was opened anew");
}

#[tokio::test]
async fn a_reload_says_which_plugins_came_and_which_did_not() {
    let dir = tempfile::tempdir().unwrap();
    let (host, _state) = host(dir.path(), |_| {});
    assert_eq!(host.reload().await.unwrap(), backplane::ReloadReport::default());
    slow(dir.path(), "liba.so", "came.late", &[]);
    std::fs::write(dir.path().join("libb.so"), "text").unwrap();
    let plugins = host.reload().await.unwrap().plugins;
    assert_eq!(plugins.loaded, ["came.late"]);
    assert_eq!(plugins.refused[0].file, "libb.so");
    assert!(plugins.refused[0].problem.contains("not an ELF file"), "{:?}", plugins.refused);
    slow(dir.path(), "liba.so", "came.late", &["VERSION=\"2.0.0\""]);
    let plugins = host.reload().await.unwrap().plugins;
    assert_eq!((plugins.loaded.len(), plugins.replaced.as_slice()), (0, &["came.late".to_owned()][..]));
}

#[tokio::test]
async fn what_is_shadowed_or_turned_off_is_told_and_is_no_fault() {
    let dir = tempfile::tempdir().unwrap();
    slow(dir.path(), "liba.so", "same.id", &[]);
    slow(dir.path(), "libb.so", "same.id", &["VERSION=\"2.0.0\""]);
    slow(dir.path(), "libc.so", "off.id", &[]);
    let (host, _state) = host(dir.path(), |config| config.plugins.disabled.push("off.id".to_owned()));
    let part = || host.health().parts.into_iter().find(|part| part.part == "plugins").unwrap();
    assert_eq!((part().state, part().detail.as_str()), (backplane::PartState::Ok, "1 loaded"));
    let plugins = host.plugins();
    let shadowed = plugins.iter().find(|plugin| plugin.file == "libb.so").unwrap();
    assert_eq!((shadowed.shadowed_by.as_deref(), &shadowed.problem), (Some("liba.so"), &None));
}

#[tokio::test]
async fn what_a_model_needed_only_to_open_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    slow(dir.path(), "liba.so", "opens.large", &["OPEN_MB=256"]);
    let (host, _state) = host(dir.path(), |_| {});
    let memory = host.load("opens.large", None).await.unwrap().running.unwrap().memory_bytes;
    assert!(memory < 128 << 20, "{memory} bytes are still here");
}

#[tokio::test]
async fn the_limits_of_a_card_hold_where_the_configuration_says_nothing() {
    let (dir, model) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    slow(dir.path(), "liba.so", "has.limits", &["ECHO=1", "WORK_MS=1000"]);
    let path = card(model.path(), "[limits]\nconcurrency = 2\nqueue = 1\noutput_tokens = 7\n");
    let state = tempfile::tempdir().unwrap();
    let mut silent = Config::default();
    silent.plugins.isolation = [("*".to_owned(), backplane::config::Isolation::InProcess)].into();
    silent.models.cards.push(path.clone());
    let one = Host::builder().config(silent).state_dir(state.path()).plugin_dir(dir.path()).start().unwrap();
    let chat = |params: &str| Request::new(Caller::internal("tests"), "chat", params).model("mine");
    let json = |answer: Answer| answer.json::<serde_json::Value>().unwrap()[0]["max_tokens"].clone();
    assert_eq!(json(ask(&one, chat("{}")).await.unwrap()), 7);
    assert_eq!(json(ask(&one, chat(r#"{"max_tokens":3}"#)).await.unwrap()), 3);
    for (default, given) in [(5, 5), (16, 7)] {
        let mut defaulted = chat("{}");
        defaulted.default_max_tokens = Some(default);
        assert_eq!(json(ask(&one, defaulted).await.unwrap()), given, "a default is no request");
    }
    assert_eq!(one.reload().await.unwrap().models, []);
    // Only the card: other weights would be another change.
    let seven = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, seven.replace("output_tokens = 7", "output_tokens = 6")).unwrap();
    let report = one.reload().await.unwrap();
    assert_eq!((&*report.models[0].model, report.models.len()), ("mine", 1));
    assert_eq!(report.models[0].changed, ["limits.output_tokens"]);
    assert_eq!(report.changed, [""; 0], "of the configuration");
    assert_eq!(json(ask(&one, chat("{}")).await.unwrap()), 6);
    std::fs::write(&path, seven).unwrap();
    one.reload().await.unwrap();
    let error = ask(&one, chat(r#"{"max_tokens":8}"#)).await.unwrap_err();
    assert_eq!(
        (error.code, error.param.as_deref()),
        (backplane::ErrorCode::InvalidArgument, Some("max_tokens"))
    );
    assert_eq!(one.model("mine").unwrap().running.unwrap().slots, 2, "the plugin would take 4");
    let mut open = Vec::new();
    for n in 0..3 {
        open.push(one.serve(question().model("mine")).await.unwrap());
        // The lanes have taken the first two before the third comes.
        support::soon("it runs", || one.model("mine").unwrap().running.unwrap().busy == (n + 1).min(2)).await;
    }
    let full = ask(&one, question().model("mine")).await.unwrap_err();
    assert_eq!(full.reason, "overloaded", "two run and one waits: {full}");
    for reply in open {
        reply.collect().await.unwrap();
    }

    // Here it says how many may wait: more than the card does.
    let (other, _state) = host(dir.path(), |config| config.models.cards.push(path));
    assert_eq!(other.config().models.max_queue, 8);
    let all = futures::future::join_all((0..5).map(|_| ask(&other, question().model("mine")))).await;
    assert!(all.into_iter().all(|answer| answer.is_ok()), "the configuration goes first");
}
