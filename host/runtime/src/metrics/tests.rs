//! Through [`Metrics::render`], as Prometheus meets it.

use super::*;
use crate::error::Error;
use crate::job::Done;
use backplane_abi::payload::Usage;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

fn ended(code: Option<ErrorCode>) -> End {
    let timing =
        Timing { queue: Duration::from_micros(30), run: Duration::from_micros(170), ..Timing::default() };
    let usage = Usage { prompt_tokens: 5, completion_tokens: 7, cached_tokens: 2, ..Usage::default() };
    let done = Done { usage: usage.clone(), timing, ..Done::default() };
    End {
        result: code.map_or(Ok(done), |code| Err(Error::new(code, "no"))),
        usage: Some(usage),
        chunks: 1,
        bytes: 10,
        json: 10,
        submitted: true,
    }
}

/// One of everything.
fn everything() -> Metrics {
    let metrics = Metrics::new();
    metrics.request_ended("chat", "a \"quoted\" \\ model\nof two lines", &ended(None));
    metrics.request_ended("chat", "m", &ended(Some(ErrorCode::Internal)));
    metrics.request_cached("chat", "m", Duration::from_micros(3));
    metrics.request_refused("chat", Some("m"), ErrorCode::ResourceExhausted);
    metrics.request_refused("anything at all", None, ErrorCode::NotFound);
    metrics.batch("embed", "m", 8);
    metrics.count_escalation();
    metrics.count_eviction();
    metrics.count_fault("dev.x", "instance");
    metrics.limiter_decision("tokens", "refused");
    metrics.http_ended("GET", "/v1/models/{id}", 200, Duration::from_millis(1));
    metrics.connection_opened();
    metrics.on_render(Box::new(|out| {
        out.gauge("backplane_model_slots", "Slots", &[("model", "m")], 4.0);
        out.gauge("backplane_model_slots", "Slots", &[("model", "n")], 2.0);
        out.counter("backplane_model_rows_total", "Rows", &[], 9.0);
    }));
    metrics
}

/// A sample's name and labels, and its value.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            line.rsplit_once(' ').map(|(name, value)| (name.to_owned(), value.parse().unwrap())).unwrap()
        })
        .collect()
}

#[track_caller]
fn check(metrics: &Metrics, sample: &str, value: f64) {
    let found = samples(&metrics.render());
    assert_eq!(found.get(sample), Some(&value), "{sample} in {:#?}", found.keys());
}

/// What `promtool check metrics` looks at.
fn lint(text: &str) {
    let name = |name: &str| {
        !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    assert!(text.ends_with('\n'));
    let (mut kinds, mut helped, mut seen) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (family, help) = rest.split_once(' ').expect("a help has a text");
            assert!(helped.insert(family), "{family} has two helps");
            assert!(!help.is_empty());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (family, kind) = rest.split_once(' ').unwrap();
            assert!(helped.contains(family), "{family} has no help before its type");
            assert!(kinds.insert(family, kind).is_none(), "{family} has two types");
            match kind {
                "counter" => assert!(family.ends_with("_total"), "{family}"),
                "gauge" => assert!(!family.ends_with("_total"), "{family}"),
                "histogram" => assert!(family.ends_with("_seconds") || family.ends_with("_rows"), "{family}"),
                other => panic!("{family} is a {other}"),
            }
            assert!(
                !["_ms", "_micros", "_ns", "_kb", "_mb"].iter().any(|unit| family.contains(unit)),
                "{family}"
            );
        } else {
            let at = line.find(['{', ' ']).unwrap();
            let (full, mut rest) = line.split_at(at);
            assert!(name(full), "{line}");
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| full.strip_suffix(end));
            let family = family.filter(|family| kinds.get(family) == Some(&"histogram")).unwrap_or(full);
            assert!(kinds.contains_key(family), "{full} comes before its type");
            let mut labels = BTreeSet::new();
            if let Some(mut inner) = rest.strip_prefix('{') {
                while !inner.starts_with('}') {
                    let (label, value) = inner.split_once("=\"").unwrap();
                    assert!(name(label) && labels.insert(label), "{line}");
                    // To the quote that is not escaped.
                    let mut escaped = false;
                    let end = value.find(|c| {
                        let ends = c == '"' && !escaped;
                        escaped = c == '\\' && !escaped;
                        ends
                    });
                    inner = value[end.unwrap() + 1..].trim_start_matches(',');
                }
                rest = &inner[1..];
            }
            assert!(rest.trim().parse::<f64>().is_ok(), "{line}");
            assert!(seen.insert(line.rsplit_once(' ').unwrap().0), "{line} is there twice");
            for secret in ["key", "tenant", "user"] {
                assert!(!labels.contains(secret), "{line}: has no bound");
            }
        }
    }
    assert!(seen.len() > 10);
}

#[test]
fn the_text_is_what_prometheus_reads() {
    lint(&everything().render());
    let fresh = Metrics::new().render();
    lint(&fresh);
    assert!(fresh.contains("process_cpu_seconds_total ") && fresh.contains("backplane_build_info{version="));
}

#[test]
fn requests_are_counted_by_how_they_ended() {
    let metrics = everything();
    check(&metrics, r#"backplane_requests_total{capability="chat",code="ok",model="m"}"#, 1.0);
    check(&metrics, r#"backplane_requests_total{capability="chat",code="internal",model="m"}"#, 1.0);
    check(
        &metrics,
        r#"backplane_requests_total{capability="chat",code="resource_exhausted",model="m"}"#,
        1.0,
    );
    check(&metrics, r#"backplane_requests_total{capability="",code="not_found",model=""}"#, 1.0);
    check(&metrics, r#"backplane_tokens_total{kind="completion",model="m"}"#, 7.0);
    check(&metrics, r#"backplane_tokens_total{kind="cached",model="m"}"#, 2.0);
    let quoted = r#"backplane_requests_total{capability="chat",code="ok",model="a \"quoted\" \\ model\nof two lines"}"#;
    check(&metrics, quoted, 1.0);
}

#[test]
fn times_below_a_millisecond_are_told_apart() {
    let metrics = Metrics::new();
    metrics.request_ended("chat", "m", &ended(None));
    let bucket =
        |le| format!(r#"backplane_request_duration_seconds_bucket{{capability="chat",model="m",le="{le}"}}"#);
    check(&metrics, &bucket("0.0001"), 0.0);
    check(&metrics, &bucket("0.00025"), 1.0);
    check(&metrics, r#"backplane_stage_duration_seconds_bucket{stage="queue",le="0.000025"}"#, 0.0);
    check(&metrics, r#"backplane_stage_duration_seconds_bucket{stage="queue",le="0.00005"}"#, 1.0);
    check(&metrics, r#"backplane_stage_duration_seconds_count{stage="run"}"#, 1.0);
    assert_eq!(recorder::STAGES[Stage::Admit as usize], "admit");
    assert_eq!(recorder::STAGES[Stage::Run as usize], "run");
}

#[test]
fn http_is_counted_by_route() {
    let metrics = everything();
    check(
        &metrics,
        r#"backplane_http_requests_total{method="GET",route="/v1/models/{id}",status="200"}"#,
        1.0,
    );
    metrics.http_ended("BREW", "/", 405, Duration::ZERO);
    check(&metrics, r#"backplane_http_requests_total{method="other",route="/",status="405"}"#, 1.0);
    let request = metrics.http_began();
    check(&metrics, "backplane_http_requests_in_flight", 1.0);
    drop(request);
    check(&metrics, "backplane_http_requests_in_flight", 0.0);
    metrics.connection_closed();
    check(&metrics, "backplane_http_connections", 0.0);
}

#[test]
fn whatever_is_asked_for_the_labels_are_bounded() {
    let metrics = Metrics::new();
    for n in 0..2000 {
        metrics.request_ended(&format!("capability{n}"), "m", &ended(None));
        metrics.request_ended("chat", &format!("model{n}"), &ended(None));
        metrics.count_fault(&format!("plugin{n}"), "instance");
        metrics.http_ended("GET", &format!("/path/{n}"), 404, Duration::ZERO);
    }
    let text = metrics.render();
    let lines = |family: &str| text.lines().filter(|line| line.starts_with(family)).count();
    assert!(lines("backplane_requests_total{") < 600, "{}", lines("backplane_requests_total{"));
    assert!(lines("backplane_plugin_faults_total{") < 300);
    assert!(lines("backplane_http_requests_total{") < 300);
    let total: f64 = samples(&text)
        .iter()
        .filter(|(name, _)| name.starts_with("backplane_requests_total"))
        .map(|(_, v)| v)
        .sum();
    assert_eq!(total, 4000.0, "none is lost");
}

#[test]
fn a_figure_that_would_spoil_the_text_is_left_out() {
    let metrics = everything();
    metrics.on_render(Box::new(|out| {
        out.gauge("backplane_model_slots", "Slots", &[("model", "m")], 99.0);
        out.counter("backplane_model_slots", "Slots", &[], 1.0);
        out.gauge("has a space", "x", &[], 1.0);
        out.gauge("backplane_things", "x", &[("la-bel", "x")], 1.0);
        out.counter("backplane_no_unit", "x", &[], 1.0);
        out.gauge("backplane_http_connections", "x", &[], 77.0);
    }));
    let text = metrics.render();
    lint(&text);
    for name in ["has a space", "backplane_things", "backplane_no_unit"] {
        assert!(!text.contains(name), "{name}");
    }
    check(&metrics, "backplane_http_connections", 1.0);
    check(&metrics, r#"backplane_model_slots{model="m"}"#, 4.0);
}

#[actix::test]
async fn the_actor_looks_at_the_process_and_comes_back_after_a_panic() {
    let (metrics, restarts) = (Metrics::new(), Arc::new(AtomicU64::new(0)));
    assert!(!metrics.is_alive());
    metrics.start_sampling(restarts.clone());
    let actor = metrics.0.actor.get().unwrap();
    actor.send(actor::Look).await.unwrap().unwrap();
    let before = metrics.resources();
    assert!(before.resident_bytes > 0 && before.threads > 0 && before.busy_cores >= 0.0);

    assert!(actor.send(actor::Panic).await.unwrap().is_err());
    metrics.request_cached("chat", "m", Duration::ZERO);
    assert_eq!(metrics.resources(), before, "what was published stands meanwhile");
    actor.send(actor::Look).await.unwrap().unwrap();
    assert_eq!(restarts.load(Ordering::Relaxed), 1);
    assert!(metrics.is_alive());
    assert!(metrics.resources().peak_resident_bytes >= before.peak_resident_bytes);
    check(&metrics, r#"backplane_requests_total{capability="chat",code="ok",model="m"}"#, 1.0);
}

/// `cargo test --release -p backplane metrics -- --ignored --nocapture`
#[test]
#[ignore = "prints a time and asserts none"]
fn time_of_a_request() {
    let (metrics, end) = (Metrics::new(), ended(None));
    let batch = || {
        let began = std::time::Instant::now();
        for _ in 0..1000 {
            metrics.request_ended("chat", "model", std::hint::black_box(&end));
        }
        began.elapsed() / 1000
    };
    println!("request_ended, best of 200: {:?}", (0..200).map(|_| batch()).min().unwrap());
}
