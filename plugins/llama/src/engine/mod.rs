//! The engine: a GGUF model, served to several requests at once by one thread.
//!
//! It knows nothing of the plugin's ABI: parameters are the SDK's payload types, answers go to a [`Sink`].
//!
//! | file | does |
//! |---|---|
//! | `gguf`, `plan` | checks a file and says what memory it will take, without llama.cpp |
//! | `backend` | starts llama.cpp, loads models |
//! | `prompt`, `template`, `tools` | a request's text and tokens |
//! | `job` | a request, checked |
//! | `scheduler`, `slots`, `choice` | batches, caches, answers |
//! | `sampling`, `logprobs`, `grammar`, `stop`, `json_scan` | one token's way from logits to text |
//! | `embed` | embeddings, on a thread of their own |

mod backend;
pub mod bench;
mod choice;
mod embed;
mod gguf;
mod grammar;
mod job;
mod json_scan;
mod logprobs;
mod plan;
mod prompt;
mod sampling;
mod scheduler;
mod slots;
mod stats;
mod stop;
mod template;
mod tools;

pub use embed::{EmbedSink, Embeddings};
pub use gguf::Header;
pub use job::{Delta, Push, Sink, Terms};
pub use plan::Plan;
pub use sampling::Defaults;
pub use stats::Snapshot;

use backplane_plugin::Code;
use backplane_plugin::payload::{chat, complete, embed as embed_payload};
use backplane_plugin::{Error, Result};
use embed::{EmbedJob, Pooling, Shape};
use job::Job;
use llama_cpp_2::context::params::{KvCacheType, LlamaContextParams};
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use prompt::Prompter;
use scheduler::{Message, Scheduler};
use serde::Deserialize;
use stats::Stats;
use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// How a model is opened: `[parameters]` of its card.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Tokens one request may take in all, prompt and answer. By default what the model was trained for, at most
    /// 4096.
    pub context: Option<u32>,
    /// Answers made at the same time.
    pub slots: u32,
    /// Threads for a step that makes answers; 0: one less than there are, at most 8. More than are idle make every
    /// step several times slower.
    pub threads: u32,
    /// Threads for a step with a prompt; 0: all.
    pub prompt_threads: u32,
    /// Most tokens in one step.
    pub batch: u32,
    /// How keys and values are kept.
    pub cache_type: CacheType,
    /// Layers on a GPU.
    pub gpu_layers: u32,
    /// Map the file into memory instead of reading it.
    pub memory_map: bool,
    /// How tokens are chosen where a request does not say.
    pub sampling: Defaults,
}

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheType {
    /// Two bytes a number.
    #[default]
    F16,
    /// About one byte a number, a little slower.
    Q8_0,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            context: None,
            slots: 4,
            threads: 0,
            prompt_threads: 0,
            batch: 256,
            cache_type: CacheType::F16,
            gpu_layers: 0,
            memory_map: true,
            sampling: Defaults::default(),
        }
    }
}

impl Config {
    fn check(&self) -> Result<()> {
        let range = |name: &str, value: u32, low: u32, high: u32| {
            if (low..=high).contains(&value) {
                return Ok(());
            }
            Err(Error::invalid(format!("`{name}` is {value}; it goes from {low} to {high}")).with_param(name))
        };
        range("slots", self.slots, 1, 64)?;
        range("batch", self.batch, 64.max(self.slots), 4096)?;
        range("context", self.context.unwrap_or(64), 64, 1 << 24)?;
        range("threads", self.threads, 0, 512)?;
        range("prompt_threads", self.prompt_threads, 0, 512)
    }

    fn threads(&self) -> u32 {
        if self.threads != 0 { self.threads } else { (cores() - 1).clamp(1, 8) }
    }

    fn prompt_threads(&self) -> u32 {
        if self.prompt_threads != 0 { self.prompt_threads } else { cores() }
    }
}

fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| n.get() as u32)
}

/// Grants threads for each step, so that engines of different kinds share the machine.
pub trait Permits: Send + Sync {
    /// Asks for 1..=`want` threads, and waits for at least one. They are given back when the grant is dropped.
    fn acquire(&self, want: u32) -> Grant;
}

/// Threads that may be used until this is dropped.
pub struct Grant {
    /// How many, at least one.
    pub threads: u32,
    _held: Option<Box<dyn std::any::Any>>,
}

impl Grant {
    /// `held` is dropped with the grant.
    pub fn new(threads: u32, held: Option<Box<dyn std::any::Any>>) -> Self {
        Self { threads: threads.max(1), _held: held }
    }
}

/// Grants everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unlimited;

impl Permits for Unlimited {
    fn acquire(&self, want: u32) -> Grant {
        Grant::new(want, None)
    }
}

/// An opened model.
pub struct Engine {
    model: Arc<LlamaModel>,
    prompter: Prompter,
    config: Config,
    plan: Plan,
    stats: Arc<Stats>,
    permits: Arc<dyn Permits>,
    kind: Kind,
    shape: Shape,
    /// Made with the first embedding.
    embedder: Mutex<Option<Worker<SyncSender<(EmbedJob, Box<dyn EmbedSink>)>>>>,
    generator: Option<Worker<Sender<Message>>>,
}

/// What a model can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Decoder-only: generates and embeds.
    Decoder,
    /// Encoder-only: embeds.
    Encoder,
}

struct Worker<S> {
    sender: S,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Opens the model in the file at `path`. Blocks while it is loaded.
    ///
    /// # Errors
    /// `model_invalid` for a bad file; `InvalidArgument` for a bad configuration; `ResourceExhausted` when memory
    /// does not suffice; `FailedPrecondition` when this machine lacks what was asked for.
    pub fn open(path: &Path, config: Config, permits: Arc<dyn Permits>) -> Result<Self> {
        config.check()?;
        let header = Header::read(path)?;
        let plan = Plan::new(&header, &config)?;
        let (kind, shape) = kind_and_shape(&header, plan.context)?;
        let backend = backend::get()?;
        if config.gpu_layers > 0 && !backend.supports_gpu_offload() {
            let what = "`gpu_layers` asks for a GPU, and this build of the llama plugin has no GPU support";
            return Err(Error::new(Code::FailedPrecondition, what).with_param("gpu_layers"));
        }
        let params =
            LlamaModelParams::default().with_n_gpu_layers(config.gpu_layers).with_use_mmap(config.memory_map);
        let model = Arc::new(backend::load(backend, path, &params)?);
        let prompter = Prompter::new(model.clone(), plan.context)?;
        let stats = Arc::new(Stats::default());
        let generator = match kind {
            Kind::Decoder => Some(generator(backend, &model, plan.context, &config, &permits, &stats)?),
            Kind::Encoder => None,
        };
        Ok(Self {
            embedder: Mutex::new(None),
            model,
            prompter,
            config,
            plan,
            stats,
            permits,
            kind,
            shape,
            generator,
        })
    }

    /// Requests that may be open at once.
    pub fn max_inflight(&self) -> u32 {
        self.config.slots
    }

    /// The memory it was planned to take.
    pub fn plan(&self) -> Plan {
        self.plan
    }

    /// Length of its vectors.
    pub fn dimensions(&self) -> u32 {
        u32::try_from(self.model.n_embd_out()).unwrap_or(0)
    }

    /// Whether it can `chat`.
    pub fn can_chat(&self) -> bool {
        self.kind == Kind::Decoder && self.prompter.has_template()
    }

    /// Whether it can `complete`.
    pub fn can_complete(&self) -> bool {
        self.kind == Kind::Decoder
    }

    /// The counters.
    pub fn stats(&self) -> Snapshot {
        self.stats.snapshot()
    }

    /// Whether its thread still serves.
    pub fn has_failed(&self) -> bool {
        self.stats.has_failed()
    }

    /// Answers a conversation.
    pub fn chat(&self, params: &chat::Params, terms: Terms, sink: Box<dyn Sink>) {
        self.submit(sink, || Job::chat(&self.model, &self.prompter, &self.config.sampling, params, terms));
    }

    /// Continues a text.
    pub fn complete(&self, params: &complete::Params, terms: Terms, sink: Box<dyn Sink>) {
        self.submit(sink, || {
            Job::complete(&self.model, &self.prompter, &self.config.sampling, params, terms)
        });
    }

    /// Embeds texts.
    pub fn embed(&self, params: &embed_payload::Params, terms: Terms, sink: Box<dyn EmbedSink>) {
        let entered = self.stats.enter(u64::from(self.max_inflight()));
        let sent = entered.and_then(|()| {
            self.prepare_embed(params, terms)
                .and_then(|job| Ok((job, self.embedder()?)))
                .inspect_err(|_| self.stats.leave())
        });
        match sent {
            Ok((job, sender)) => {
                if let Err(error) = sender.send((job, sink)) {
                    self.stats.leave();
                    error.0.1.finish(Err(stopped()));
                }
            }
            Err(error) => sink.finish(Err(error)),
        }
    }

    /// Prompt tokens of a conversation.
    ///
    /// # Errors
    /// As the request would fail.
    pub fn count_chat(&self, params: &chat::Params) -> Result<u64> {
        Ok(self.prompter.count_chat(params)? as u64)
    }

    /// Prompt tokens of a completion.
    ///
    /// # Errors
    /// As the request would fail.
    pub fn count_complete(&self, params: &complete::Params) -> Result<u64> {
        Ok(self.prompter.complete_any_length(params)?.len() as u64)
    }

    /// Tokens of the inputs.
    ///
    /// # Errors
    /// As the request would fail.
    pub fn count_embed(&self, params: &embed_payload::Params) -> Result<u64> {
        Ok(self.embed_inputs(params)?.iter().map(|input| input.len() as u64).sum())
    }

    fn submit(&self, sink: Box<dyn Sink>, prepare: impl FnOnce() -> Result<Job>) {
        let Some(generator) = &self.generator else {
            let what = "this model only embeds; it has no decoder to generate with";
            return sink.finish(Err(Error::new(Code::Unimplemented, what)));
        };
        if let Err(error) = self.stats.enter(u64::from(self.max_inflight())) {
            return sink.finish(Err(error));
        }
        match prepare() {
            Err(error) => {
                self.stats.leave();
                sink.finish(Err(error));
            }
            Ok(job) => {
                if let Err(error) = generator.sender.send(Message::Job(Box::new(job), sink)) {
                    self.stats.leave();
                    if let Message::Job(_, sink) = error.0 {
                        sink.finish(Err(stopped()));
                    }
                }
            }
        }
    }

    fn embed_inputs(&self, params: &embed_payload::Params) -> Result<Vec<Vec<i32>>> {
        params
            .input
            .iter()
            .enumerate()
            .map(|(i, input)| match input {
                embed_payload::Input::Text(text) => Ok(self.prompter.text(text)),
                embed_payload::Input::Tokens(tokens) => {
                    self.prompter.check_tokens(tokens, &format!("input[{i}]"))
                }
            })
            .collect()
    }

    fn prepare_embed(&self, params: &embed_payload::Params, terms: Terms) -> Result<EmbedJob> {
        let refuse =
            |param: &str, what: String| Err(Error::invalid(format!("`{param}` {what}")).with_param(param));
        if params.input.is_empty() {
            return refuse("input", "is empty".into());
        }
        let width = self.dimensions();
        if let Some(n) = params.dimensions.filter(|n| !(1..=width).contains(n)) {
            return refuse("dimensions", format!("is {n}; this model's vectors have {width}"));
        }
        let mut inputs = self.embed_inputs(params)?;
        for (i, input) in inputs.iter_mut().enumerate() {
            let most = self.shape.context as usize;
            if input.is_empty() {
                return refuse(&format!("input[{i}]"), "has no tokens".into());
            }
            if input.len() > most && params.truncate {
                input.truncate(most);
            }
            if input.len() > most {
                let n = input.len();
                return Err(Error::new(
                    Code::OutOfRange,
                    format!("`input[{i}]` has {n} tokens and the model takes {most}: {} too many", n - most),
                )
                .with_reason("context_length_exceeded")
                .with_detail("n_prompt", n)
                .with_detail("n_ctx", most)
                .with_detail("n_over", n - most));
            }
        }
        Ok(EmbedJob { inputs, dimensions: params.dimensions.map(|n| n as usize), deadline: terms.deadline })
    }

    /// The embedding thread, started when first needed.
    fn embedder(&self) -> Result<SyncSender<(EmbedJob, Box<dyn EmbedSink>)>> {
        let mut embedder = self.embedder.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(worker) = &*embedder {
            return Ok(worker.sender.clone());
        }
        let backend = backend::get()?;
        let (sender, inbox) = sync_channel(self.max_inflight() as usize);
        let (model, shape, config) = (self.model.clone(), self.shape, self.config.clone());
        let (permits, stats) = (self.permits.clone(), self.stats.clone());
        let thread = std::thread::Builder::new()
            .name("llama-embed".into())
            .spawn(move || {
                let served = AssertUnwindSafe(|| {
                    embed::run(backend, &model, shape, &config, &permits, &stats, &inbox)
                });
                if catch_unwind(served).is_err() {
                    stats.fail();
                }
            })
            .map_err(|error| Error::internal(format!("no thread can be started: {error}")))?;
        *embedder = Some(Worker { sender: sender.clone(), thread: Some(thread) });
        Ok(sender)
    }
}

impl Drop for Engine {
    /// Ends what is open, and waits for the threads: memory is back when this returns.
    fn drop(&mut self) {
        let embedder = self.embedder.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Worker { sender, thread }) = embedder {
            drop(sender);
            let _ = thread.map(JoinHandle::join);
        }
        if let Some(Worker { sender, thread }) = self.generator.take() {
            let _ = sender.send(Message::Stop);
            let _ = thread.map(JoinHandle::join);
        }
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("plan", &self.plan)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

fn stopped() -> Error {
    Error::internal("the engine has stopped after a failure; open the model again").poisons()
}

/// Starts the thread that generates; returns once its context is made.
fn generator(
    backend: &'static LlamaBackend,
    model: &Arc<LlamaModel>,
    room: u32,
    config: &Config,
    permits: &Arc<dyn Permits>,
    stats: &Arc<Stats>,
) -> Result<Worker<Sender<Message>>> {
    let (sender, inbox) = channel();
    let (ready, is_ready) = channel();
    let (model, config, permits, stats) = (model.clone(), config.clone(), permits.clone(), stats.clone());
    let serve = move || {
        let threads = i32::try_from(config.threads()).unwrap_or(1);
        let cache = match config.cache_type {
            CacheType::F16 => KvCacheType::F16,
            CacheType::Q8_0 => KvCacheType::Q8_0,
        };
        let params = LlamaContextParams::default()
            .with_n_ctx(NonZeroU32::new(room.saturating_mul(config.slots)))
            .with_n_batch(config.batch)
            .with_n_ubatch(config.batch)
            .with_n_seq_max(config.slots)
            // One cache for all slots: a prefix is shared by name, without a copy.
            .with_kv_unified(true)
            .with_type_k(cache)
            .with_type_v(cache)
            .with_n_threads(threads)
            .with_n_threads_batch(threads)
            .with_no_perf(true);
        let context = match backend::new_context(backend, &model, params) {
            Ok(context) => context,
            Err(error) => {
                let _ = ready.send(Err(error));
                return;
            }
        };
        let mut scheduler = Scheduler::new(&model, context, room, config, permits, stats.clone(), inbox);
        let _ = ready.send(Ok(()));
        if catch_unwind(AssertUnwindSafe(|| scheduler.run())).is_err() {
            stats.fail();
            let _ = catch_unwind(AssertUnwindSafe(|| scheduler.fail_all(&stopped())));
        }
    };
    let thread = std::thread::Builder::new()
        .name("llama".into())
        .spawn(serve)
        .map_err(|error| Error::internal(format!("no thread can be started: {error}")))?;
    is_ready.recv().unwrap_or_else(|_| Err(stopped()))?;
    Ok(Worker { sender, thread: Some(thread) })
}

/// What the model can do, and how it embeds.
fn kind_and_shape(header: &Header, context: u32) -> Result<(Kind, Shape)> {
    let architecture = header.architecture();
    if architecture.starts_with("t5") && architecture != "t5encoder" {
        let what = format!("architecture `{architecture}` is an encoder with a decoder, which is not served");
        return Err(Error::new(Code::Unimplemented, what));
    }
    let causal = header.flag(&format!("{architecture}.attention.causal")).unwrap_or(true);
    let encoder = !causal || architecture.contains("bert") || architecture.ends_with("encoder");
    // `enum llama_pooling_type`; models without one were not made to embed, and the mean serves them best.
    let pooling = match header.of_architecture("pooling_type") {
        Some(2) => Pooling::First,
        Some(3) => Pooling::Last,
        _ => Pooling::Mean,
    };
    let kind = if encoder { Kind::Encoder } else { Kind::Decoder };
    Ok((kind, Shape { context, causal: !encoder, pooling }))
}
