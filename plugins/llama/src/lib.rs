//! Language models in GGUF, served by llama.cpp: `chat`, `complete`, `embed`.
//!
//! [`engine`] does the work and knows nothing of the host; this file, [`caller`] and [`prepare`] connect the two. `[parameters]`
//! of a model's card are an [`engine::Config`].

mod caller;
pub mod engine;
mod prepare;
pub mod sys;

use backplane_plugin::payload::{chat, complete, embed};
use backplane_plugin::prelude::*;
use backplane_plugin::{BidReason, Health};
use caller::{Caller, Reader};
use engine::{Config, Engine, Grant, Header, Loaded, PARSE_SPECIAL, Permits, Plan, Terms};
use prepare::Preparer;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};
use sys::LogLevel;

/// The library.
struct LlamaPlugin {
    /// Plans of files that were bid for: reading a header takes longer than a bid may.
    plans: Mutex<HashMap<PathBuf, (SystemTime, Header)>>,
}

impl Plugin for LlamaPlugin {
    const ID: &'static str = "dev.backplane.llama";

    fn init(host: Host, _config: &Value) -> Result<Self> {
        sys::route_log(Box::new(move |level, line| {
            let level = match level {
                LogLevel::Error => Level::Error,
                LogLevel::Warn => Level::Warn,
                LogLevel::Info => Level::Debug,
            };
            host.log(level, line);
        }));
        Ok(Self { plans: Mutex::default() })
    }

    fn bid(&self, query: &Query<'_>) -> Bid {
        if !matches!(query.capability, "" | chat::CAPABILITY | complete::CAPABILITY | embed::CAPABILITY) {
            return Bid::no(BidReason::Format, format!("llama does not serve `{}`", query.capability));
        }
        let model = query.model();
        if model.as_ref().is_ok_and(|model| model.name.is_empty() && model.files.is_empty()) {
            return Bid::default(); // asked about the plugin, not about a model: nothing is missing here
        }
        let model = match model {
            Ok(model) if model.format.is_empty() || model.format == FORMAT => model,
            Ok(model) => {
                let message = format!("llama opens `{FORMAT}`, not `{}`", model.format);
                return Bid::no(BidReason::Format, message);
            }
            Err(error) => return Bid::no(BidReason::Format, error.message),
        };
        match self.plan(&model) {
            Ok(plan) => Bid { host_bytes: plan.total(), ..Bid::default() },
            // Opening it says by what code it cannot be: a damaged file, a parameter that there is not.
            Err(error) if model.format == FORMAT => Bid { text: error.message, ..Bid::default() },
            Err(error) => Bid::no(BidReason::Format, error.message),
        }
    }

    fn open(&self, model: &ModelSpec) -> Result<Box<dyn Model>> {
        let config: Config = model.parameters()?;
        let loaded = Arc::new(Loaded::open(model.file("model")?, config)?);
        Ok(Box::new(LlamaModel { loaded, engines: Mutex::default() }))
    }
}

/// Of the models it opens.
const FORMAT: &str = "gguf";

impl LlamaPlugin {
    /// The memory a model would take.
    fn plan(&self, model: &ModelSpec) -> Result<Plan> {
        let config: Config = model.parameters()?;
        let path = model.file("model")?;
        let changed = |path: &Path| path.metadata().and_then(|data| data.modified());
        let changed = changed(path).unwrap_or(SystemTime::UNIX_EPOCH);
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, header)) = plans.get(path).filter(|(when, _)| *when == changed) {
            return Plan::new(header, &config);
        }
        let header = Header::read(path)?;
        let plan = Plan::new(&header, &config);
        if plans.len() >= 64 {
            plans.clear();
        }
        plans.insert(path.to_owned(), (changed, header));
        plan
    }
}

/// An opened model.
struct LlamaModel {
    loaded: Arc<Loaded>,
    engines: Mutex<Vec<Weak<Engine>>>,
}

impl Model for LlamaModel {
    fn execution(&self) -> Execution {
        Execution::Continuous { max_inflight: self.loaded.max_inflight() }
    }

    fn describe(&self) -> Description {
        let mut extra = serde_json::Map::new();
        extra.insert("slots".into(), self.loaded.max_inflight().into());
        extra.insert("chat_template".into(), self.loaded.can_chat().into());
        Description {
            platform: Some("llama".to_owned()),
            context: Some(self.loaded.plan().context),
            dimensions: Some(self.loaded.dimensions()),
            extra,
            ..Description::default()
        }
    }

    fn instance(&self, seat: &Seat) -> Result<Box<dyn Instance>> {
        let engine = Arc::new(Engine::start(self.loaded.clone(), Arc::new(Pool(*seat)))?);
        let mut engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        engines.retain(|engine| engine.strong_count() > 0);
        engines.push(Arc::downgrade(&engine));
        Ok(Box::new(LlamaInstance { preparer: Preparer::start(engine.clone())?, engine }))
    }

    fn count_tokens(&self, capability: &str, params_json: &str) -> Result<Option<u64>> {
        Ok(Some(match capability {
            chat::CAPABILITY => self.loaded.count_chat(&serde_json::from_str(params_json)?)?,
            complete::CAPABILITY => self.loaded.count_complete(&serde_json::from_str(params_json)?)?,
            embed::CAPABILITY => self.loaded.count_embed(&serde_json::from_str(params_json)?)?,
            _ => return Ok(None),
        }))
    }

    fn stats(&self, each: &mut dyn FnMut(&str, f64)) {
        let engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        let all: Vec<_> = engines.iter().filter_map(Weak::upgrade).map(|engine| engine.stats()).collect();
        let sum = |get: fn(&engine::Snapshot) -> f64| all.iter().map(get).sum::<f64>();
        each("slots", f64::from(self.loaded.max_inflight()) * all.len() as f64);
        each("slots_busy", sum(|s| s.slots_busy as f64));
        each("requests_open", sum(|s| s.inflight as f64));
        each("steps_total", sum(|s| s.steps as f64));
        each("step_tokens_total", sum(|s| s.step_tokens as f64));
        each("step_answers_total", sum(|s| s.step_answers as f64));
        each("step_answers_most", all.iter().map(|s| s.most_answers as f64).fold(0.0, f64::max));
        each("prompt_tokens_total", sum(|s| s.prompt_tokens as f64));
        each("cached_tokens_total", sum(|s| s.cached_tokens as f64));
        each("generated_tokens_total", sum(|s| s.generated_tokens as f64));
        each("embedded_tokens_total", sum(|s| s.embedded_tokens as f64));
        each("prefill_seconds_total", sum(|s| s.prompt_seconds));
        each("decode_seconds_total", sum(|s| s.answer_seconds));
    }
}

/// A running copy.
struct LlamaInstance {
    preparer: Preparer,
    engine: Arc<Engine>,
}

impl Instance for LlamaInstance {
    fn submit(&self, requests: Vec<Request>) {
        requests.into_iter().for_each(|request| self.preparer.push(request));
    }

    fn health(&self) -> Health {
        if self.engine.has_failed() {
            return Health::Failed("the thread that owns the model ended by a panic".to_owned());
        }
        if self.preparer.has_failed() {
            return Health::Failed("the thread that prepares requests ended by a panic".to_owned());
        }
        Health::Ready
    }

    fn quiesce(&self, deadline: Option<Instant>) -> bool {
        while !self.preparer.is_idle() || self.engine.stats().inflight > 0 {
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }
}

/// Reads a request's parameters and hands it to the engine.
fn serve(engine: &Engine, request: Request) {
    let terms = Terms { deadline: request.deadline(), confidence: request.wants_confidence() };
    match request.capability() {
        chat::CAPABILITY => match chat_params(&request) {
            Ok(params) => engine.chat(&params, terms, Caller::boxed(request, Reader::Chat)),
            Err(error) => request.finish(Err(error)),
        },
        complete::CAPABILITY => match complete_params(&request) {
            Ok(params) => engine.complete(&params, terms, Caller::boxed(request, Reader::Complete)),
            Err(error) => request.finish(Err(error)),
        },
        embed::CAPABILITY => match embed_params(&request) {
            Ok(params) => engine.embed(&params, terms, Caller::boxed(request, Reader::Embed)),
            Err(error) => request.finish(Err(error)),
        },
        other => {
            let error = Error::new(Code::Unimplemented, format!("llama does not serve `{other}`"));
            request.finish(Err(error));
        }
    }
}

fn chat_params(request: &Request) -> Result<chat::Params> {
    let params: chat::Params = request.params()?;
    refuse_unknown::<chat::Params>(&params.extra)?;
    Ok(params)
}

fn complete_params(request: &Request) -> Result<complete::Params> {
    let params: complete::Params = request.params()?;
    let mut unknown = params.extra.clone();
    unknown.remove(PARSE_SPECIAL);
    refuse_unknown::<complete::Params>(&unknown)?;
    Ok(params)
}

fn embed_params(request: &Request) -> Result<embed::Params> {
    let params: embed::Params = request.params()?;
    refuse_unknown::<embed::Params>(&params.extra)?;
    Ok(params)
}

/// The host's CPU threads, through the instance's seat.
struct Pool(Seat);

impl Permits for Pool {
    fn acquire(&self, want: u32) -> Grant {
        match self.0.threads(want, None) {
            Ok(permit) => Grant::new(permit.threads(), Some(Box::new(permit))),
            // Without a deadline there is no reason to be refused; one thread is always safe.
            Err(_) => Grant::new(1, None),
        }
    }
}

export_plugin!(LlamaPlugin, include_str!("../plugin.toml"));
