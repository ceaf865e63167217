//! Figures about everything, for Prometheus and for people.
//!
//! Requests count with atomics along the way ([`Metrics`]); figures that others keep already (models, queues, the
//! cache, the process) are read when somebody looks ([`Metrics::on_render`]). No label holds a key, a tenant or
//! anything else without a bound.

mod actor;
pub mod disk;
pub mod memory;
mod process;
mod recorder;
mod render;

pub use render::Renderer;

use crate::error::ErrorCode;
use crate::job::Timing;
use crate::loader::End;
use actix::{Addr, Supervisor};
use actor::MetricsActor;
use arc_swap::ArcSwap;
use parking_lot::RwLock;
use recorder::Recorder;
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The recorder. Clones count into the same figures.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

type Callback = Box<dyn Fn(&mut Renderer) + Send + Sync>;

struct Inner {
    recorder: Recorder,
    callbacks: RwLock<Vec<Callback>>,
    resources: ArcSwap<Resources>,
    actor: OnceLock<Addr<MetricsActor>>,
}

/// What the process takes, as of a few seconds ago.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Resources {
    /// Memory now.
    pub resident_bytes: u64,
    /// The most memory that was seen.
    pub peak_resident_bytes: u64,
    /// CPU time a second, over the last few: 1.5 is one core and a half.
    pub busy_cores: f64,
    /// Threads.
    pub threads: u64,
}

/// A part of a request's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Deciding: limits, cache, route.
    Admit,
    /// Opening the model.
    Open,
    /// Waiting for an instance.
    Queue,
    /// From the plugin taking it to its first piece.
    First,
    /// From the plugin taking it to its end.
    Run,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A recorder that nobody feeds but its callers.
    pub fn new() -> Self {
        let recorder = match Recorder::new() {
            Ok(recorder) => recorder,
            Err(error) => unreachable!("the instruments are fixed, and tests make them: {error}"),
        };
        Self(Arc::new(Inner {
            recorder,
            callbacks: RwLock::default(),
            resources: ArcSwap::default(),
            actor: OnceLock::new(),
        }))
    }

    /// Starts to look at the process every few seconds, on the current actix system. `restarts` counts how often the
    /// actor came back. Once for a recorder.
    pub fn start_sampling(&self, restarts: Arc<AtomicU64>) {
        let inner = self.0.clone();
        self.0.actor.get_or_init(|| Supervisor::start(move |_| MetricsActor::new(inner, restarts)));
    }

    /// Makes the actor panic.
    #[cfg(test)]
    pub(crate) async fn panic(&self) {
        if let Some(actor) = self.0.actor.get() {
            actor.send(actor::Panic).await.ok();
        }
    }

    /// Lets the actor look now; whether it did.
    #[cfg(test)]
    pub(crate) async fn look(&self) -> bool {
        match self.0.actor.get() {
            Some(actor) => actor.send(actor::Look).await.is_ok_and(|looked| looked.is_ok()),
            None => false,
        }
    }

    /// Whether the actor takes messages.
    pub fn is_alive(&self) -> bool {
        self.0.actor.get().is_some_and(Addr::connected)
    }

    /// What the process took at the last look; zeros before the first.
    pub fn resources(&self) -> Resources {
        **self.0.resources.load()
    }

    /// A request that a plugin worked on has ended: counts it by its code, with its tokens and times.
    pub fn request_ended(&self, capability: &str, model: &str, end: &End) {
        let series = self.0.recorder.series(capability, model);
        match &end.result {
            Ok(done) => {
                let Timing { queue, first, run, .. } = done.timing;
                series.ok.inc();
                series.duration.observe((queue + run).as_secs_f64());
                self.stage(Stage::Queue, queue);
                self.stage(Stage::First, first);
                self.stage(Stage::Run, run);
            }
            Err(error) => self.count(&series.capability, &series.model, error.code),
        }
        if let Some(usage) = &end.usage {
            series.prompt_tokens.inc_by(usage.prompt_tokens);
            series.completion_tokens.inc_by(usage.completion_tokens);
            series.cached_tokens.inc_by(usage.cached_tokens);
        }
    }

    /// A request was answered from the cache.
    pub fn request_cached(&self, capability: &str, model: &str, took: Duration) {
        let series = self.0.recorder.series(capability, model);
        series.ok.inc();
        series.duration.observe(took.as_secs_f64());
        self.stage(Stage::Admit, took);
    }

    /// A request ended before any model had it: refused by a limit, no such model. `model` is a model that exists.
    pub fn request_refused(&self, capability: &str, model: Option<&str>, code: ErrorCode) {
        // What was asked for may be anything; what is not served is not worth a label.
        let Some(model) = model else { return self.count("", "", code) };
        let series = self.0.recorder.series(capability, model);
        self.count(&series.capability, &series.model, code);
    }

    fn count(&self, capability: &str, model: &str, code: ErrorCode) {
        self.0.recorder.requests.with_label_values(&[capability, model, code.name()]).inc();
    }

    /// The time of a stage.
    pub fn stage(&self, stage: Stage, took: Duration) {
        self.0.recorder.stages[stage as usize].observe(took.as_secs_f64());
    }

    /// A plugin was called with this many requests at once.
    pub fn batch(&self, capability: &str, model: &str, rows: usize) {
        self.0.recorder.series(capability, model).batch_rows.observe(rows as f64);
    }

    /// An answer was not sure enough and went to the next model.
    pub fn count_escalation(&self) {
        self.0.recorder.escalations.inc();
    }

    /// A model was closed to make room.
    pub fn count_eviction(&self) {
        self.0.recorder.evictions.inc();
    }

    /// A plugin broke down: `"instance"`, when one was stuck or panicked and was replaced, or how its worker ended.
    pub fn count_fault(&self, plugin: &str, kind: &str) {
        let recorder = &self.0.recorder;
        recorder.faults.with_label_values(&[recorder.plugins.label(plugin), kind]).inc();
    }

    /// The limiter decided: `"requests"` or `"tokens"`, `"allowed"` or `"refused"`.
    pub fn limiter_decision(&self, dimension: &'static str, outcome: &'static str) {
        self.0.recorder.limiter.with_label_values(&[dimension, outcome]).inc();
    }

    /// An HTTP request began. Dropping what is returned ends it.
    pub fn http_began(&self) -> InFlight {
        self.0.recorder.http_in_flight.inc();
        InFlight(self.clone())
    }

    /// An HTTP request was answered. `route` is the pattern (`"/v1/models/{id}"`), never the path.
    pub fn http_ended(&self, method: &str, route: &str, status: u16, took: Duration) {
        const METHODS: [&str; 7] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];
        let method = METHODS.into_iter().find(|known| *known == method).unwrap_or("other");
        let recorder = &self.0.recorder;
        let route = recorder.routes.label(route);
        recorder.http_requests.with_label_values(&[method, route, &status.to_string()]).inc();
        recorder.http_durations.with_label_values(&[route]).observe(took.as_secs_f64());
    }

    /// An HTTP connection was opened.
    pub fn connection_opened(&self) {
        self.0.recorder.http_connections.inc();
    }

    /// An HTTP connection was closed.
    pub fn connection_closed(&self) {
        self.0.recorder.http_connections.dec();
    }

    /// Asks for figures at every rendering. What is called must not block and must change nothing.
    pub fn on_render(&self, callback: Callback) {
        self.0.callbacks.write().push(callback);
    }

    /// Everything, in Prometheus' text format 0.0.4.
    pub fn render(&self) -> String {
        let mut out = Renderer::default();
        out.gauge(
            "backplane_build_info",
            "1, with what was built",
            &[("version", env!("CARGO_PKG_VERSION"))],
            1.0,
        );
        process::render(&mut out);
        for callback in self.0.callbacks.read().iter() {
            callback(&mut out);
        }
        out.text(self.0.recorder.registry.gather())
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

/// An HTTP request that is being answered.
#[derive(Debug)]
pub struct InFlight(Metrics);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.0.recorder.http_in_flight.dec();
    }
}

#[cfg(test)]
mod tests;
