//! The instruments: what is counted along the way, registered once, with labels from bounded sets.

use parking_lot::RwLock;
use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    exponential_buckets,
};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// From 10 µs, since a host's own part of a request is tens of them, to the longest deadlines.
const SECONDS: [f64; 22] = [
    1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 30.0, 120.0, 600.0,
];

/// Label values of one kind beyond this many become [`OTHER`]: memory stays bounded whatever is asked for.
const MOST: usize = 256;
const OTHER: &str = "other";

/// Stages of a request, in their order.
pub(super) const STAGES: [&str; 5] = ["admit", "open", "queue", "first", "run"];

pub(super) struct Recorder {
    pub registry: Registry,
    pub requests: IntCounterVec,
    durations: HistogramVec,
    tokens: IntCounterVec,
    batches: HistogramVec,
    pub stages: [Histogram; 5],
    pub limiter: IntCounterVec,
    pub escalations: IntCounter,
    pub evictions: IntCounter,
    pub faults: IntCounterVec,
    pub http_requests: IntCounterVec,
    pub http_durations: HistogramVec,
    pub http_connections: IntGauge,
    pub http_in_flight: IntGauge,
    series: RwLock<ByCapability>,
    pub plugins: Bounded,
    pub routes: Bounded,
}

type ByCapability = HashMap<Box<str>, HashMap<Box<str>, Arc<Series>>>;

/// Label values that were seen, as long as there are few.
#[derive(Default)]
pub(super) struct Bounded(RwLock<HashSet<Box<str>>>);

impl Bounded {
    /// `value`, or [`OTHER`] when there are too many already.
    pub(super) fn label<'a>(&self, value: &'a str) -> &'a str {
        if self.0.read().contains(value) {
            return value;
        }
        let mut seen = self.0.write();
        if seen.len() < MOST || seen.contains(value) {
            seen.insert(value.into());
            value
        } else {
            OTHER
        }
    }
}

/// The instruments of one capability of one model, found once: a request touches nothing but atomics.
pub(super) struct Series {
    pub capability: Box<str>,
    pub model: Box<str>,
    pub ok: IntCounter,
    pub duration: Histogram,
    pub prompt_tokens: IntCounter,
    pub completion_tokens: IntCounter,
    pub cached_tokens: IntCounter,
    pub batch_rows: Histogram,
}

impl Recorder {
    /// # Errors
    /// When two instruments have the same name, or one has an invalid name: tests see to it that this never happens.
    pub(super) fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, IntCounterVec::new(Opts::new(name, help), labels)?)
        };
        let histograms = |name: &str, help: &str, buckets: Vec<f64>, labels: &[&str]| {
            register(&registry, HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), labels)?)
        };
        let seconds = || SECONDS.to_vec();
        let stages = histograms(
            "backplane_stage_duration_seconds",
            "Time of a request's stages",
            seconds(),
            &["stage"],
        )?;
        let by_model = ["capability", "model"];
        Ok(Self {
            requests: counters(
                "backplane_requests_total",
                "Requests by how they ended",
                &["capability", "model", "code"],
            )?,
            durations: histograms(
                "backplane_request_duration_seconds",
                "Time of a request, from its admission to its end",
                seconds(),
                &by_model,
            )?,
            tokens: counters("backplane_tokens_total", "Tokens that plugins reported", &["model", "kind"])?,
            batches: histograms(
                "backplane_batch_rows",
                "Requests in one call of a plugin",
                exponential_buckets(1.0, 2.0, 9)?,
                &["model"],
            )?,
            stages: STAGES.map(|stage| stages.with_label_values(&[stage])),
            limiter: counters(
                "backplane_limiter_decisions_total",
                "Decisions of the limiter",
                &["dimension", "outcome"],
            )?,
            escalations: register(
                &registry,
                IntCounter::new(
                    "backplane_escalations_total",
                    "Answers that were not sure enough, and asked of the next model",
                )?,
            )?,
            evictions: register(
                &registry,
                IntCounter::new("backplane_model_evictions_total", "Models that were closed to make room")?,
            )?,
            faults: counters(
                "backplane_plugin_faults_total",
                "Instances that were stuck or panicked, and workers that ended",
                &["plugin", "kind"],
            )?,
            http_requests: counters(
                "backplane_http_requests_total",
                "HTTP requests",
                &["method", "route", "status"],
            )?,
            http_durations: histograms(
                "backplane_http_request_duration_seconds",
                "Time of an HTTP request",
                seconds(),
                &["route"],
            )?,
            http_connections: register(
                &registry,
                IntGauge::new("backplane_http_connections", "Open HTTP connections")?,
            )?,
            http_in_flight: register(
                &registry,
                IntGauge::new("backplane_http_requests_in_flight", "HTTP requests being answered")?,
            )?,
            series: RwLock::default(),
            plugins: Bounded::default(),
            routes: Bounded::default(),
            registry,
        })
    }

    /// The instruments of a capability and a model. Both are labels only as long as there are few.
    pub(super) fn series(&self, capability: &str, model: &str) -> Arc<Series> {
        if let Some(series) = self.series.read().get(capability).and_then(|models| models.get(model)) {
            return series.clone();
        }
        let mut all = self.series.write();
        let capability = if all.len() < MOST || all.contains_key(capability) { capability } else { OTHER };
        let models = all.entry(capability.into()).or_default();
        let model = if models.len() < MOST || models.contains_key(model) { model } else { OTHER };
        let make = || {
            let tokens = |kind| self.tokens.with_label_values(&[model, kind]);
            Arc::new(Series {
                capability: capability.into(),
                model: model.into(),
                ok: self.requests.with_label_values(&[capability, model, "ok"]),
                duration: self.durations.with_label_values(&[capability, model]),
                prompt_tokens: tokens("prompt"),
                completion_tokens: tokens("completion"),
                cached_tokens: tokens("cached"),
                batch_rows: self.batches.with_label_values(&[model]),
            })
        };
        models.entry(model.into()).or_insert_with(make).clone()
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> prometheus::Result<C> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}
