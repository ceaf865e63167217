//! The engine: a GGUF model, served to several requests at once by one thread.
//!
//! It knows nothing of the plugin's ABI: parameters are the SDK's payload types, answers go to a [`Sink`].
//!
//! | file | does |
//! |---|---|
//! | `gguf`, `plan` | checks a file and says what memory it will take, without llama.cpp |
//! | `backend`, `loaded` | starts llama.cpp, loads models |
//! | `prompt`, `template`, `tools` | a request's text and tokens |
//! | `job` | a request, checked |
//! | `scheduler`, `slots`, `choice` | batches, caches, answers |
//! | `sampling`, `logprobs`, `rating`, `grammar`, `stop`, `json_scan` | one token's way from logits to text |
//! | `schema`, `all_of`, `apart`, `values`, `pattern` | what an answer can be held to, checked before llama.cpp makes a grammar of it |
//! | `gbnf`, `matcher`, `vocabulary` | a grammar, read and followed |
//! | `embed` | embeddings, on a thread of their own |

mod all_of;
mod apart;
mod backend;
pub mod bench;
mod budget;
mod choice;
mod embed;
mod far;
mod format;
mod gbnf;
mod gguf;
mod grammar;
#[cfg(test)]
mod held;
mod job;
mod json_scan;
mod loaded;
mod logprobs;
mod matcher;
mod pattern;
mod plan;
mod prompt;
mod rating;
mod rules;
mod sampling;
mod scheduler;
mod schema;
mod slots;
mod stats;
mod stop;
mod template;
mod tools;
mod values;
mod vocabulary;

pub use embed::{EmbedSink, Embeddings};
pub use gguf::Header;
pub use job::{Delta, Push, Sink, Terms};
pub use loaded::Loaded;
pub use plan::Plan;
pub use prompt::PARSE_SPECIAL;
pub use sampling::Defaults;
pub use stats::Snapshot;

use backplane_plugin::Code;
use backplane_plugin::payload::{chat, complete, embed as embed_payload};
use backplane_plugin::{Error, Result};
use embed::EmbedTask;
use job::Job;
use llama_cpp_2::context::params::{KvCacheType, LlamaContextParams};
use scheduler::{Message, Scheduler};
use serde::Deserialize;
use stats::Stats;
use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};
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
    /// Most tokens of an answer to a request that does not say. By default until the context is full.
    pub max_tokens: Option<u32>,
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
            max_tokens: None,
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
        range("max_tokens", self.max_tokens.unwrap_or(1), 1, 1 << 24)?;
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

/// A running copy of a model: answers several requests at once.
pub struct Engine {
    loaded: Arc<Loaded>,
    stats: Arc<Stats>,
    permits: Arc<dyn Permits>,
    /// Made with the first embedding.
    embedder: Mutex<Option<Worker<SyncSender<EmbedTask>>>>,
    /// None for a model that only embeds.
    generator: Option<Worker<Sender<Message>>>,
}

struct Worker<S> {
    sender: S,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts a copy. Blocks while its memory is taken.
    ///
    /// # Errors
    /// `ResourceExhausted` when memory does not suffice.
    pub fn start(loaded: Arc<Loaded>, permits: Arc<dyn Permits>) -> Result<Self> {
        let stats = Arc::new(Stats::default());
        let generator = loaded.can_complete().then(|| generator(&loaded, &permits, &stats)).transpose()?;
        Ok(Self { loaded, stats, permits, embedder: Mutex::new(None), generator })
    }

    /// The model it runs.
    pub fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    /// The counters.
    pub fn stats(&self) -> Snapshot {
        self.stats.snapshot()
    }

    /// Whether a thread of it has ended by a panic; it then refuses everything.
    pub fn has_failed(&self) -> bool {
        self.stats.has_failed()
    }

    /// Answers a conversation.
    pub fn chat(&self, params: &chat::Params, terms: Terms, sink: Box<dyn Sink>) {
        self.submit(sink, |gone| Job::chat(&self.loaded, params, terms, gone));
    }

    /// Continues a text.
    pub fn complete(&self, params: &complete::Params, terms: Terms, sink: Box<dyn Sink>) {
        self.submit(sink, |gone| Job::complete(&self.loaded, params, terms, gone));
    }

    /// Embeds texts.
    pub fn embed(&self, params: &embed_payload::Params, terms: Terms, sink: Box<dyn EmbedSink>) {
        let entered = self.stats.enter(u64::from(self.loaded.max_inflight()));
        let sent = entered.and_then(|()| {
            self.loaded
                .prepare_embed(params, terms)
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

    fn submit(&self, sink: Box<dyn Sink>, prepare: impl FnOnce(&dyn Fn() -> bool) -> Result<Job>) {
        let Some(generator) = &self.generator else {
            let what = "this model only embeds; it has no decoder to generate with";
            return sink.finish(Err(Error::new(Code::Unimplemented, what)));
        };
        if let Err(error) = self.stats.enter(u64::from(self.loaded.max_inflight())) {
            return sink.finish(Err(error));
        }
        match prepare(&|| sink.is_gone()) {
            Err(error) => {
                self.stats.leave();
                // What was not finished for want of a reader says something else.
                let error = if sink.is_gone() { Error::cancelled() } else { error };
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

    /// The embedding thread, started when first needed.
    fn embedder(&self) -> Result<SyncSender<EmbedTask>> {
        let mut embedder = self.embedder.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(worker) = &*embedder {
            return Ok(worker.sender.clone());
        }
        let (sender, inbox) = sync_channel(self.loaded.max_inflight() as usize);
        let (loaded, permits, stats) = (self.loaded.clone(), self.permits.clone(), self.stats.clone());
        let thread = std::thread::Builder::new()
            .name("llama-embed".into())
            .spawn(move || {
                let served = AssertUnwindSafe(|| embed::run(&loaded, &permits, &stats, &inbox));
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
        f.debug_struct("Engine").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

fn stopped() -> Error {
    Error::internal("the engine has stopped after a failure; open the model again").poisons()
}

/// Starts the thread that generates; returns once its context is made.
fn generator(
    loaded: &Arc<Loaded>,
    permits: &Arc<dyn Permits>,
    stats: &Arc<Stats>,
) -> Result<Worker<Sender<Message>>> {
    let (sender, inbox) = channel();
    let (ready, is_ready) = channel();
    let (loaded, permits, stats) = (loaded.clone(), permits.clone(), stats.clone());
    let serve = move || {
        let config = &loaded.config;
        let threads = i32::try_from(config.threads()).unwrap_or(1);
        let cache = match config.cache_type {
            CacheType::F16 => KvCacheType::F16,
            CacheType::Q8_0 => KvCacheType::Q8_0,
        };
        let params = LlamaContextParams::default()
            .with_n_ctx(NonZeroU32::new(loaded.plan.context.saturating_mul(config.slots)))
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
        let context = match backend::new_context(loaded.backend, &loaded.model, params) {
            Ok(context) => context,
            Err(error) => {
                let _ = ready.send(Err(error));
                return;
            }
        };
        let mut scheduler = Scheduler::new(&loaded, context, permits, stats.clone(), inbox);
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
