//! What the host shows of itself is what `docs/metrics.md` says: no metric more, none less, with the same type and labels.

#![allow(clippy::unwrap_used, reason = "in a test a failure is the test's")]

#[path = "support/licensed.rs"]
mod licensed;
mod support;

use backplane::auth::{KeyLimits, NewKey, Role};
use backplane::config::RouteConfig;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use support::{echo, host};

/// Type and labels of a metric.
type Metrics = BTreeMap<String, (String, BTreeSet<String>)>;

/// The rows of the tables: `name`, type, labels, unit, meaning.
fn documented() -> Metrics {
    let text =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, labels, _unit, meaning] = cells[..] else {
            unreachable!("a row has five cells: {row}")
        };
        assert!(!meaning.is_empty(), "{row}");
        let labels = labels.split(',').map(|label| label.trim().trim_matches('`').to_owned());
        let labels = labels.filter(|label| label != "–").collect();
        (name.trim_matches('`').to_owned(), (kind.to_owned(), labels))
    })
    .collect()
}

/// The families of a rendering. A histogram's `le` is its own.
fn rendered(text: &str) -> Metrics {
    let mut all = Metrics::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            all.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let family = if all.contains_key(name) { name } else { of_histogram.unwrap() };
            let labels = line.split_once('{').map_or("", |(_, rest)| rest.rsplit_once('}').unwrap().0);
            // No value here holds `="`.
            let names = labels.split("=\"").filter_map(|part| part.rsplit(['"', ',']).next());
            let names = names.filter(|name| !name.is_empty() && *name != "le").map(str::to_owned);
            all.get_mut(family).unwrap().1.extend(names);
        }
    }
    all
}

#[tokio::test]
async fn every_metric_is_documented_and_every_documented_metric_is_there() {
    let site = licensed::Site::new(&[]);
    let running = host(|config| {
        config.plugins.dirs.push(site.plugins.path().to_owned());
        let models = vec!["echo".to_owned(), "echo-continuous".to_owned()];
        config.models.routes.insert("steps".to_owned(), RouteConfig { models, escalate_below: 0.5 });
        config.limits.tokens = Some(1000);
        config.limits.requests_per_minute = Some(1000);
    });
    let host = &running.host;
    let limits = KeyLimits::default();
    let key = NewKey { name: "tests".to_owned(), role: Role::User, limits, lifetime: None };
    let secret = host.create_key(key).await.unwrap().secret;
    let caller = host.identify(Some(&secret)).unwrap();

    let mut asked = echo(json!({"text": "x", "confidence": 0.4})).model("steps");
    asked.caller = caller;
    host.serve(asked).await.unwrap().collect().await.unwrap();
    for model in ["echo-serial", "echo-continuous"] {
        let panics = echo(json!({"panic": true})).model(model);
        host.serve(panics).await.unwrap().collect().await.unwrap_err();
    }
    host.serve(echo(json!({})).model("nobody")).await.err().unwrap();
    // A plugin that was refused without a licence, and one that ends.
    licensed::trust(running.state.path());
    licensed::license(running.state.path(), "lic_1", 1, json!({}));
    host.refresh().await.unwrap();
    // What the server tells the recorder.
    host.metrics().http_ended("GET", "/v1/models", 200, Duration::from_millis(1));
    // Its instance is replaced when it has come back.
    let deadline = Instant::now() + Duration::from_secs(10);
    while !host.metrics().render().contains("backplane_plugin_faults_total{") && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    let (documented, rendered) = (documented(), rendered(&host.metrics().render()));
    let missing: Vec<_> = documented.keys().filter(|name| !rendered.contains_key(*name)).collect();
    let undocumented: Vec<_> = rendered.iter().filter(|(name, _)| !documented.contains_key(*name)).collect();
    assert!(
        missing.is_empty() && undocumented.is_empty(),
        "missing: {missing:?}; undocumented: {undocumented:#?}"
    );
    assert_eq!(documented, rendered);
}

#[tokio::test]
async fn requests_are_counted_where_they_end() {
    let running = host(|config| config.cache.capabilities.push("echo".to_owned()));
    let ask = |params: serde_json::Value| running.host.serve(echo(params));
    for _ in 0..2 {
        ask(json!({"text": "a b"})).await.unwrap().collect().await.unwrap();
    }
    ask(json!({"text": "a", "fail": {"code": "data_loss"}})).await.unwrap().collect().await.unwrap_err();
    let unknown = echo(json!({})).model("nobody");
    running.host.serve(unknown).await.err().unwrap();
    let text = running.host.metrics().render();
    for line in [
        r#"backplane_requests_total{capability="echo",code="ok",model="echo"} 2"#,
        r#"backplane_requests_total{capability="echo",code="data_loss",model="echo"} 1"#,
        r#"backplane_requests_total{capability="",code="not_found",model=""} 1"#,
        r#"backplane_tokens_total{kind="prompt",model="echo"} 2"#,
        r#"backplane_cache_lookups_total{outcome="hit"} 1"#,
        r#"backplane_batch_rows_count{model="echo"} 2"#,
        r#"backplane_stage_duration_seconds_count{stage="open"} 1"#,
        r#"backplane_stage_duration_seconds_count{stage="admit"} 3"#,
        r#"backplane_model_loads_total{outcome="opened"} 1"#,
        "backplane_requests_in_flight 0",
    ] {
        assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
    }
}
