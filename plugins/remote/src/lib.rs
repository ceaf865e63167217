//! Remote: models of other servers as models of this host.
//!
//! An upstream is anything that speaks OpenAI's API (OpenAI itself, vLLM, llama.cpp's server, Ollama, another Backplane) or the
//! Open Inference Protocol (Triton, MLServer, another Backplane). A card with `format = "openai"` or `"oip"` names one
//! and what it calls the model; from then on the model has this host's keys, limits, cache, routes and log.
//! `README.md` lists what a card can say.
//!
//! - `settings`, `secret`: what a card and the configuration say; keys by reference.
//! - `client`: keys in turn, breaker, what is tried again. `keys` and `breaker` are pure. `transport`: connections.
//! - `memory`: how much of it answers may take.
//! - `wire`: between our payloads and the upstream's API, pure. `events`: the pieces of a stream.
//! - `serve`: one request. `instance`: many, as tasks of one runtime. `threads`: how many it has,
//!   and what is not done on them.
//! - `infer`: a graph, looked up once and asked with tensors.
//! - `load`: how busy an upstream is, which lowers its bids.
//! - `discover`: what an upstream says of a model. `fault`: what went wrong at one, in the host's words. `hop`: how a
//!   request is called there.

mod breaker;
mod client;
mod discover;
mod events;
mod fault;
mod hop;
mod infer;
mod instance;
mod keys;
mod load;
mod memory;
mod secret;
mod serve;
mod settings;
mod threads;
mod transport;
mod wire;

use backplane_plugin::prelude::*;
use client::{Client, Servers};
use discover::Found;
use infer::Graph;
use instance::Remote;
use load::Loads;
use serve::Target;
use settings::{Flavour, InferenceParameters, Parameters, Settings};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::runtime::Runtime;

/// The format of a graph's card; any other is OpenAI's.
const INFERENCE: &str = "oip";

struct RemotePlugin {
    host: Host,
    settings: Settings,
    loads: Loads,
    servers: Servers,
    /// `None` only while it is being dropped.
    runtime: Option<Runtime>,
}

impl Plugin for RemotePlugin {
    const ID: &'static str = "dev.backplane.remote";

    fn init(host: Host, config: &Value) -> Result<Self> {
        let settings = backplane_plugin::settings(Self::ID, config)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads::count())
            .thread_name("remote")
            .enable_all()
            .build()
            .map_err(|error| {
                Error::new(Code::ResourceExhausted, format!("no thread could be started: {error}"))
            })?;
        let (loads, servers) = Default::default();
        Ok(Self { host, settings, loads, servers, runtime: Some(runtime) })
    }

    fn bid(&self, query: &Query<'_>) -> Bid {
        // Nothing of the model is here: it takes no memory and no processor.
        if query.model_json.is_empty() || query.model().is_ok_and(|model| model.name.is_empty()) {
            return Bid::default(); // asked about the plugin, not about a model
        }
        let found = query.model().and_then(|spec| {
            let (upstream, model, score) = match &*spec.format {
                INFERENCE => {
                    let card = spec.parameters::<InferenceParameters>()?;
                    (card.upstream, card.model, card.score)
                }
                _ => {
                    let card = spec.parameters::<Parameters>()?;
                    (card.upstream, card.model, card.score)
                }
            };
            Ok((self.settings.resolve(&spec.name, &upstream)?, model.unwrap_or(spec.name), score))
        });
        let (upstream, model, score) = match found {
            Ok(found) => found,
            Err(error) => return Bid::no(BidReason::Format, error.message),
        };
        let mut bid = Bid { score, text: format!("served by `{}`", upstream.url), ..Bid::default() };
        if !matches!(upstream.flavour, Flavour::Openai | Flavour::Ollama) {
            bid.valid_ms = load::EVERY.as_millis() as u32;
        }
        if let Some(load) = self.loads.of(&upstream.url, &model) {
            bid.score = load.lower(bid.score);
            bid.text.push_str(&format!(", {} running and {} waiting there", load.running, load.waiting));
        }
        bid
    }

    fn open(&self, spec: &ModelSpec) -> Result<Box<dyn Model>> {
        let runtime = self.runtime.as_ref().ok_or_else(|| Error::internal("the plugin has ended"))?;
        let (upstream, target, context, mut description) = match &*spec.format {
            INFERENCE => {
                let card: InferenceParameters = spec.parameters()?;
                let upstream = self.settings.resolve(&spec.name, &card.upstream)?;
                let client = Client::new(&upstream, &self.servers)?;
                let model = card.model.clone().unwrap_or_else(|| spec.name.clone());
                let (graph, found) = runtime.block_on(Graph::find(&client, &model, &card))?;
                let description =
                    Description { inputs: found.inputs, outputs: found.outputs, ..Description::default() };
                (upstream, Target::new(client, model, Some(graph)), None, description)
            }
            _ => {
                let card: Parameters = spec.parameters()?;
                let upstream = self.settings.resolve(&spec.name, &card.upstream)?;
                let client = Client::new(&upstream, &self.servers)?;
                let model = card.model.unwrap_or_else(|| spec.name.clone());
                let declared = spec.extra.get("context").and_then(Value::as_u64);
                let declared = declared.and_then(|tokens| u32::try_from(tokens).ok());
                let found = match card.discover {
                    true => runtime.block_on(discover::model(&client, &model))?,
                    false => Found::default(),
                };
                let mut description =
                    Description { context: found.context.or(declared), ..Description::default() };
                if let Some(mut parent) = found.parent {
                    client.redact(&mut parent);
                    description.extra.insert("upstream_parent".to_owned(), parent.into());
                }
                (upstream, Target::new(client, model, None), found.context, description)
            }
        };
        description.platform = Some("remote".to_owned());
        description.extra.insert("upstream".to_owned(), target.client.name.clone().into());
        description.extra.insert("upstream_model".to_owned(), target.model.clone().into());
        let (max_inflight, runtime) = (upstream.max_inflight, runtime.handle().clone());
        let target = Arc::new(target);
        self.loads.watch(&upstream.url, &target, context, self.host, &runtime);
        Ok(Box::new(Opened { target, description, max_inflight, runtime }))
    }
}

impl Drop for RemotePlugin {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

struct Opened {
    target: Arc<Target>,
    description: Description,
    max_inflight: u32,
    runtime: tokio::runtime::Handle,
}

impl Model for Opened {
    fn execution(&self) -> Execution {
        Execution::Continuous { max_inflight: self.max_inflight }
    }

    fn describe(&self) -> Description {
        self.description.clone()
    }

    fn instance(&self, _seat: &Seat) -> Result<Box<dyn Instance>> {
        Ok(Box::new(Remote::new(self.target.clone(), self.runtime.clone())))
    }

    fn stats(&self, each: &mut dyn FnMut(&str, f64)) {
        let counts = &self.target.client.counts;
        let mut counter = |name, counter: &AtomicU64| each(name, counter.load(Ordering::Relaxed) as f64);
        counter("upstream_requests_total", &counts.requests);
        counter("upstream_failures_total", &counts.failures);
        counter("upstream_limited_total", &counts.limited);
        counter("upstream_tried_again_total", &counts.again);
        each("upstream_down", f64::from(u8::from(self.target.client.is_down())));
        if let Some(load) = self.target.load() {
            each("upstream_running", load.running);
            each("upstream_waiting", load.waiting);
        }
    }
}

export_plugin!(RemotePlugin, include_str!("../plugin.toml"));
