//! What is asked of the host and what it answers: [`Request`] in, [`Reply`] out.

use crate::auth::Caller;
use crate::cache::Recording;
use crate::error::{Error, Result};
use crate::limiter::LimitStatus;
use crate::loader::Exchange;
use crate::router::confidence;
use crate::serve::SecondChance;
use crate::tensor::Tensor;
use backplane_abi::payload::{Usage, chat};
use bytes::Bytes;
use std::borrow::Cow;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

/// A request to a capability.
#[derive(Clone, Debug)]
pub struct Request {
    /// Who asks: from [`crate::Host::identify`], or [`Caller::internal`].
    pub caller: Caller,
    /// What is asked for: `"chat"`, `"acme.speech.tts"`.
    pub capability: String,
    /// Which model, by name, alias or route; `None` lets the router choose among those that offer the capability.
    pub model: Option<String>,
    /// The parameters: the text of a JSON object, per the capability's schema.
    pub params: String,
    /// Most tokens of an answer where the parameters say nothing of it. Nobody asked for as many: where a model gives less,
    /// or a budget has less left, it is less.
    pub default_max_tokens: Option<u32>,
    /// Its tensors.
    pub tensors: Vec<Tensor>,
    /// Names it in logs and headers. Unique among the requests that are open.
    pub id: String,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// When the answer is of no use any more.
    pub deadline: Option<Instant>,
    /// Whether the answer is read piece by piece. A stream never escalates.
    pub stream: bool,
    /// What the cache may do.
    pub cache: CacheUse,
    /// How long the model stays open after this request; `None`: as configured.
    pub keep_alive: Option<KeepAlive>,
    /// Whether a confidence is wanted.
    pub confidence: bool,
    /// Higher first.
    pub priority: i32,
    /// Whether tensors of the answer may stay on a device: a plugin asks, and hands them on.
    pub(crate) device: bool,
    /// The request of a plugin that this one serves.
    pub(crate) parent: Option<Parent>,
}

/// Where a call from a plugin comes from.
#[derive(Clone, Debug)]
pub(crate) struct Parent {
    /// Models on the way here, outermost first: none may be asked again, it would wait for itself.
    pub models: Vec<Arc<str>>,
}

impl Request {
    /// A request with everything at its default and an id of its own.
    pub fn new(caller: Caller, capability: impl Into<String>, params: impl Into<String>) -> Self {
        Self::named(uuid::Uuid::now_v7().to_string(), caller, capability, params)
    }

    /// The same with an id that somebody has already.
    pub fn named(
        id: String,
        caller: Caller,
        capability: impl Into<String>,
        params: impl Into<String>,
    ) -> Self {
        Self {
            caller,
            capability: capability.into(),
            model: None,
            params: params.into(),
            default_max_tokens: None,
            tensors: Vec::new(),
            id,
            traceparent: None,
            deadline: None,
            stream: false,
            cache: CacheUse::Default,
            keep_alive: None,
            confidence: false,
            priority: 0,
            device: false,
            parent: None,
        }
    }

    /// Whether there are pictures in its messages, which only a model that sees takes.
    pub(crate) fn has_pictures(&self) -> bool {
        self.capability == chat::CAPABILITY && !self.tensors.is_empty()
    }

    /// For this model.
    pub fn model(mut self, model: impl Into<String>) -> Self {
        self.model = Some(model.into());
        self
    }

    /// With this tensor too.
    pub fn tensor(mut self, tensor: Tensor) -> Self {
        self.tensors.push(tensor);
        self
    }

    /// To be answered within this time from now.
    pub fn within(mut self, time: Duration) -> Self {
        self.deadline = Some(Instant::now() + time);
        self
    }

    /// To be read piece by piece.
    pub fn streamed(mut self) -> Self {
        self.stream = true;
        self
    }
}

/// What the cache may do for a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheUse {
    /// As configured.
    #[default]
    Default,
    /// Answer from the model, and store the answer: `cache-control: no-cache`.
    Refresh,
    /// Neither read nor store: `cache-control: no-store`.
    Bypass,
}

/// How long a model stays open after its last request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepAlive {
    /// This long; zero closes it at once.
    For(Duration),
    /// Until it is closed by hand or evicted.
    Forever,
}

/// How the cache took part in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheOutcome {
    /// The answer came from the cache.
    Hit,
    /// It did not, and may have been stored.
    Miss,
    /// The cache was not asked.
    Bypass,
}

impl CacheOutcome {
    /// As in `x-cache`.
    pub fn name(self) -> &'static str {
        match self {
            CacheOutcome::Hit => "exact",
            CacheOutcome::Miss => "miss",
            CacheOutcome::Bypass => "bypass",
        }
    }
}

/// Which model answers and why.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Route {
    /// What the caller asked for.
    pub asked: Option<String>,
    /// The model that answers.
    pub model: Arc<str>,
    /// Its plugin.
    pub plugin: Arc<str>,
    /// Why: for people.
    pub why: String,
    /// Every model that was considered, the chosen one included.
    pub candidates: Vec<Candidate>,
    /// Confidence of the chosen answer, uncalibrated, when known.
    pub confidence: Option<f64>,
}

/// A model that was considered.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Candidate {
    /// Its name.
    pub model: Arc<str>,
    /// Its plugin's bid, 0..=1000.
    pub score: u16,
    /// Confidence of its answer, when it was tried.
    pub confidence: Option<f64>,
    /// Where it did not, or could not, give the answer: the code of that.
    pub refused: Option<Cow<'static, str>>,
    /// Why it was not chosen, or what it said.
    pub why: String,
}

/// A piece of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chunk {
    /// The text of a JSON object, or empty.
    pub json: Bytes,
    /// Its tensors.
    pub tensors: Vec<Tensor>,
}

/// How an answer ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Done {
    /// What it consumed, as the plugin reported it.
    pub usage: Usage,
    /// Probability that it is right, uncalibrated, 0..=1.
    pub confidence: Option<f64>,
    /// Where the time went.
    pub timing: Timing,
}

/// Where the time of a request went.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timing {
    /// Deciding: limits, cache, route.
    pub admit: Duration,
    /// Opening the model.
    pub open: Duration,
    /// Waiting for an instance.
    pub queue: Duration,
    /// From the plugin taking it to its first piece.
    pub first: Duration,
    /// From the plugin taking it to its end.
    pub run: Duration,
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Its pieces, in order.
    pub chunks: Vec<Chunk>,
    /// How it ended.
    pub done: Done,
    /// Which model gave it.
    pub route: Route,
    /// How the cache took part.
    pub cache: CacheOutcome,
    /// The caller's limits after it was admitted.
    pub limits: Vec<LimitStatus>,
}

/// An answer on its way. Dropping it before its end cancels the request: its slot is free within one step of the
/// engine, and what was consumed until then is charged.
pub struct Reply {
    /// Which model answers.
    pub route: Route,
    /// How the cache took part.
    pub cache: CacheOutcome,
    /// The caller's limits after it was admitted.
    pub limits: Vec<LimitStatus>,
    pub(crate) source: Source,
    pub(crate) timing: Timing,
}

/// Where the pieces come from.
pub(crate) enum Source {
    /// A plugin that is at work.
    Live(LiveReply),
    /// The same, and the answer goes into the cache when it has ended well.
    Filling { live: LiveReply, recording: Option<Recording> },
    /// The cache, or an answer that had to be whole before it was let out.
    Ready { chunks: std::vec::IntoIter<Chunk>, done: Option<Done> },
}

/// The reading end of an exchange: cancels it when it is dropped before its end.
#[derive(Debug)]
pub(crate) struct LiveReply {
    pub exchange: Arc<Exchange>,
    pub ended: bool,
    /// What was read to see whether it answers at all.
    first: Option<Next>,
    /// While no piece was read of one that is on trial at a new version.
    second: Option<SecondChance>,
    /// Whether it is on trial at a new version, or was.
    pub on_trial: bool,
}

impl LiveReply {
    pub fn of(exchange: Arc<Exchange>) -> Self {
        Self { exchange, ended: false, first: None, second: None, on_trial: false }
    }

    /// Of one that is on trial at a new version.
    pub fn on_trial(exchange: Arc<Exchange>, second: SecondChance) -> Self {
        let mut live = Self::of(exchange);
        (live.second, live.on_trial) = (Some(second), true);
        live
    }

    /// Waits until the answer begins. What is read for that comes again.
    ///
    /// # Errors
    /// What failed before the first piece.
    pub async fn begin(&mut self) -> Result<()> {
        self.first = Some(std::future::poll_fn(|context| self.poll_next(context)).await?);
        Ok(())
    }

    pub fn poll_next(&mut self, context: &mut std::task::Context<'_>) -> Poll<Result<Next>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Ok(first));
        }
        if self.ended {
            return Poll::Ready(Ok(Next::Done(Done::default())));
        }
        let mut next = self.exchange.poll_read(context);
        if let Poll::Ready(outcome) = &next
            && let Some(second) = self.second.take()
            && let Err(failure) = outcome
            && let Some(exchange) = second.instead(failure)
        {
            self.exchange = exchange;
            next = self.exchange.poll_read(context);
        }
        self.ended = matches!(next, Poll::Ready(Ok(Next::Done(_)) | Err(_)));
        next
    }
}

impl Drop for LiveReply {
    fn drop(&mut self) {
        if !self.ended {
            self.exchange.cancel();
        }
    }
}

/// What comes next of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// A piece.
    Chunk(Chunk),
    /// The end. Nothing comes after it.
    Done(Done),
}

impl Reply {
    /// The next piece, or the end. After the end or an error: `Done` with nothing in it. Of a request that is not
    /// [`Request::streamed`] the pieces come together, once it has ended or there are many.
    ///
    /// Cancel-safe: a call that is dropped loses nothing.
    ///
    /// # Errors
    /// The plugin's failure, or `DeadlineExceeded`; nothing comes after an error.
    pub async fn next(&mut self) -> Result<Next> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// As [`Reply::next`], for hand-written futures.
    pub fn poll_next(&mut self, context: &mut std::task::Context<'_>) -> Poll<Result<Next>> {
        let next = match &mut self.source {
            Source::Ready { chunks, done } => Poll::Ready(Ok(match chunks.next() {
                Some(chunk) => Next::Chunk(chunk),
                None => Next::Done(done.take().unwrap_or_default()),
            })),
            Source::Live(live) => live.poll_next(context),
            Source::Filling { live, recording } => {
                let next = live.poll_next(context);
                match &next {
                    Poll::Ready(Ok(Next::Chunk(chunk))) => {
                        if let Some(recording) = recording {
                            recording.push(chunk);
                        }
                    }
                    Poll::Ready(Ok(Next::Done(done))) => {
                        if let Some(recording) = recording.take() {
                            recording.end(done.clone());
                        }
                    }
                    // What broke off is nobody's answer, however often it is read again.
                    Poll::Ready(Err(_)) => *recording = None,
                    Poll::Pending => {}
                }
                next
            }
        };
        next.map(|next| {
            let mut done = match next? {
                Next::Done(done) => done,
                chunk => return Ok(chunk),
            };
            done.timing = Timing { admit: self.timing.admit, open: self.timing.open, ..done.timing };
            done.confidence = confidence(done.confidence, &done.usage);
            if done.confidence.is_some() {
                self.route.confidence = done.confidence;
            }
            Ok(Next::Done(done))
        })
    }

    /// Reads to the end.
    ///
    /// # Errors
    /// As [`Reply::next`].
    pub async fn collect(mut self) -> Result<Answer> {
        let mut chunks = Vec::new();
        loop {
            match self.next().await? {
                Next::Chunk(chunk) => chunks.push(chunk),
                Next::Done(done) => {
                    return Ok(Answer {
                        chunks,
                        done,
                        route: self.route,
                        cache: self.cache,
                        limits: self.limits,
                    });
                }
            }
        }
    }
}

impl Answer {
    /// Its pieces as a type; pieces without JSON are left out.
    ///
    /// # Errors
    /// When a piece does not fit: the plugin does not keep to its capability's schema.
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> Result<Vec<T>> {
        self.chunks
            .iter()
            .filter(|chunk| !chunk.json.is_empty())
            .map(|chunk| {
                serde_json::from_slice(&chunk.json).map_err(|error| {
                    Error::internal(format!(
                        "plugin `{}` answered with JSON that its capability does not allow: {error}",
                        self.route.plugin
                    ))
                })
            })
            .collect()
    }

    /// The tensor with this name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.chunks.iter().flat_map(|chunk| &chunk.tensors).find(|tensor| tensor.name == name)
    }
}
