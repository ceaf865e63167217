//! Embeddings: a thread and a small context of their own, made when first asked for.
//!
//! Tokens' vectors are pooled here and not by llama.cpp, so that an input longer than a batch can be worked through
//! in pieces. Always `decode`: `encode` on a decoder-only model is a segmentation fault, and `decode` finds its own
//! way on an encoder.

use super::Permits;
use super::loaded::Loaded;
use super::stats::Stats;
use crate::sys::Threads;
use backplane_plugin::payload::Usage;
use backplane_plugin::{Error, Result};
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::{LlamaContextParams, LlamaPoolingType};
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::token::LlamaToken;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

/// Where vectors go. Called by the embedding thread only; must not block.
pub trait EmbedSink: Send {
    /// Whether nobody waits any more; asked before every batch.
    fn is_gone(&self) -> bool;
    /// The end, exactly once.
    fn finish(self: Box<Self>, result: Result<(Embeddings, Usage)>);
}

/// Vectors of unit length, one an input, in their order.
#[derive(Clone, Debug, PartialEq)]
pub struct Embeddings {
    /// All of them, one after the other.
    pub values: Vec<f32>,
    /// Length of each.
    pub dimensions: usize,
}

/// Texts to embed, as tokens.
pub struct EmbedJob {
    pub inputs: Vec<Vec<i32>>,
    /// Cut the vectors to this length.
    pub dimensions: Option<usize>,
    pub deadline: Option<Instant>,
}

/// What to embed, and for whom.
pub type EmbedTask = (EmbedJob, Box<dyn EmbedSink>);

/// How a text's vector comes of its tokens' vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    Mean,
    First,
    Last,
}

/// What the embedding context is made with.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Tokens an input may have.
    pub context: u32,
    /// Whether tokens see only what is before them. Where not, an input must be one batch.
    pub causal: bool,
    pub pooling: Pooling,
}

/// Inputs in one batch.
const SEQUENCES: usize = 8;

/// Serves until the sender is gone.
pub fn run(loaded: &Loaded, permits: &Arc<dyn Permits>, stats: &Stats, inbox: &Receiver<EmbedTask>) {
    let mut embedder = None;
    while let Ok((job, sink)) = inbox.recv() {
        let result = match &mut embedder {
            Some(embedder) => Ok(embedder),
            None => Embedder::new(loaded, permits.clone()).map(|new| embedder.insert(new)),
        }
        .and_then(|embedder| embedder.embed(&job, sink.as_ref(), stats));
        stats.leave();
        sink.finish(result);
    }
}

struct Embedder<'m> {
    context: LlamaContext<'m>,
    threads: Option<Threads>,
    want: u32,
    permits: Arc<dyn Permits>,
    batch: LlamaBatch<'static>,
    capacity: usize,
    width: usize,
    shape: Shape,
}

impl<'m> Embedder<'m> {
    fn new(loaded: &'m Loaded, permits: Arc<dyn Permits>) -> Result<Self> {
        let (model, config, shape) = (&*loaded.model, &loaded.config, loaded.shape);
        let capacity = if shape.causal { config.batch.min(shape.context) } else { shape.context };
        let threads = i32::try_from(config.threads()).unwrap_or(1);
        let params = LlamaContextParams::default()
            .with_n_ctx(NonZeroU32::new(shape.context.max(capacity)))
            .with_n_batch(capacity)
            .with_n_ubatch(capacity)
            .with_n_seq_max(SEQUENCES as u32)
            .with_kv_unified(true)
            .with_n_threads(threads)
            .with_n_threads_batch(threads)
            .with_embeddings(true)
            .with_pooling_type(LlamaPoolingType::None);
        let context = super::backend::new_context(loaded.backend, model, params)?;
        Ok(Self {
            threads: Threads::of(&context, config.threads()),
            want: config.prompt_threads(),
            permits,
            batch: LlamaBatch::new(capacity as usize, 1),
            capacity: capacity as usize,
            width: usize::try_from(model.n_embd_out()).unwrap_or(0),
            context,
            shape,
        })
    }

    fn embed(&mut self, job: &EmbedJob, sink: &dyn EmbedSink, stats: &Stats) -> Result<(Embeddings, Usage)> {
        let dimensions = job.dimensions.unwrap_or(self.width);
        let mut values = Vec::with_capacity(job.inputs.len() * dimensions);
        let mut group = Vec::new();
        let mut tokens = 0;
        for (i, input) in job.inputs.iter().enumerate() {
            group.push(input.as_slice());
            tokens += input.len();
            let next = job.inputs.get(i + 1).map_or(usize::MAX, Vec::len);
            if group.len() < SEQUENCES && next <= self.capacity.saturating_sub(tokens) {
                continue;
            }
            if sink.is_gone() {
                return Err(Error::cancelled());
            }
            if job.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                let what = "the deadline passed before all inputs were embedded";
                return Err(Error::new(backplane_plugin::Code::DeadlineExceeded, what));
            }
            for vector in self.group(&group)? {
                values.extend(unit(&vector[..dimensions]));
            }
            stats.add_embedded(tokens);
            group.clear();
            tokens = 0;
        }
        let prompt_tokens = job.inputs.iter().map(|input| input.len() as u64).sum();
        Ok((Embeddings { values, dimensions }, Usage { prompt_tokens, ..Usage::default() }))
    }

    /// Vectors of a group: several inputs that fit one batch, or one of any length.
    fn group(&mut self, inputs: &[&[i32]]) -> Result<Vec<Vec<f32>>> {
        self.context.clear_kv_cache();
        let mut pools: Vec<Pool> = inputs.iter().map(|_| Pool::new(self.shape.pooling, self.width)).collect();
        let tokens = inputs.iter().enumerate().flat_map(|(sequence, input)| {
            input.iter().enumerate().map(move |(position, &token)| (sequence, position, token))
        });
        let tokens: Vec<_> = tokens.collect();
        for piece in tokens.chunks(self.capacity) {
            self.batch.clear();
            for &(sequence, position, token) in piece {
                self.batch
                    .add(LlamaToken(token), position as i32, &[sequence as i32], true)
                    .map_err(|error| Error::internal(format!("the batch is too small: {error}")))?;
            }
            let grant = self.permits.acquire(self.want);
            if let Some(threads) = &mut self.threads {
                threads.set(&mut self.context, grant.threads);
            }
            self.context.decode(&mut self.batch).map_err(|error| {
                Error::internal(format!("the model failed on a batch of {}: {error}", piece.len()))
            })?;
            self.context.synchronize();
            drop(grant);
            for (i, &(sequence, _, _)) in piece.iter().enumerate() {
                let vector = self
                    .context
                    .embeddings_ith(i as i32)
                    .map_err(|error| Error::internal(format!("the model gave no vector: {error}")))?;
                pools[sequence].add(vector);
            }
        }
        Ok(pools.into_iter().map(Pool::vector).collect())
    }
}

/// A text's vector in the making.
struct Pool {
    pooling: Pooling,
    sum: Vec<f32>,
    count: usize,
}

impl Pool {
    fn new(pooling: Pooling, width: usize) -> Self {
        Self { pooling, sum: vec![0.0; width], count: 0 }
    }

    fn add(&mut self, vector: &[f32]) {
        match self.pooling {
            Pooling::Mean => self.sum.iter_mut().zip(vector).for_each(|(sum, x)| *sum += x),
            Pooling::First if self.count > 0 => {}
            Pooling::First | Pooling::Last => self.sum.iter_mut().zip(vector).for_each(|(sum, x)| *sum = *x),
        }
        self.count += 1;
    }

    /// Not divided by the count: it is made unit length anyway.
    fn vector(self) -> Vec<f32> {
        self.sum
    }
}

/// The vector scaled to length 1; zero stays zero.
fn unit(vector: &[f32]) -> impl Iterator<Item = f32> {
    let length = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    let scale = if length > 0.0 { (1.0 / length) as f32 } else { 0.0 };
    vector.iter().map(move |x| x * scale)
}
