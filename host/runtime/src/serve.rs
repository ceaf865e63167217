//! The one request function: from an identified caller to an answer on its way. HTTP, the command line, embedders and
//! plugins that call plugins all come through here.
//!
//! ```text
//! resolve → reserve → cache → open → dispatch → (score → accept or escalate) → settle
//! ```
//!
//! Nothing here sends a message to an actor, but for a model that has to be opened first.

use crate::cache::{CacheHandle, Key};
use crate::catalog::{CatalogHandle, Entry};
use crate::config::Config;
use crate::error::{Error, ErrorCode, Result};
use crate::job::{
    CacheOutcome, CacheUse, Candidate, Chunk, Done, LiveReply, Next, Reply, Request, Route, Source, Timing,
};
use crate::limiter::{LimiterHandle, Reservation};
use crate::loader::{End, Exchange, ExchangeSpec};
use crate::metrics::Metrics;
use crate::router::{Choice, RouterHandle, Scored, confidence};
use crate::timer::Timer;
use arc_swap::ArcSwap;
use serde::Deserialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

/// Assumed length of an answer, in tokens, when neither the request nor the model limits it.
const DEFAULT_MAX_TOKENS: u64 = 4096;
/// Attempts at a model that is being closed and reopened under us.
const MAX_REOPENS: usize = 4;

/// What the request path reads.
pub(crate) struct Parts {
    pub config: ArcSwap<Config>,
    pub limiter: LimiterHandle,
    pub cache: CacheHandle,
    pub router: RouterHandle,
    pub catalog: CatalogHandle,
    pub metrics: Metrics,
    pub timer: Timer,
    /// Requests that are not settled yet.
    pub open: Arc<AtomicUsize>,
    pub stopping: AtomicBool,
}

/// The members of a request's parameters that matter to admission, whatever the capability.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Peek {
    max_tokens: Option<u64>,
    n: Option<u64>,
}

/// Serves a request.
pub(crate) async fn serve(parts: &Parts, request: Request) -> Result<Reply> {
    let started = Instant::now();
    if parts.stopping.load(Ordering::Relaxed) {
        return Err(Error::shutting_down());
    }
    let mut request = check(request)?;
    let config = parts.config.load();
    request.deadline.get_or_insert_with(|| started + config.models.default_deadline);

    let trail: Vec<Arc<str>> =
        request.parent.as_ref().map(|parent| parent.models.clone()).unwrap_or_default();
    let choice = parts.router.choose(
        request.model.as_deref(),
        &request.capability,
        request.params.len() as u64,
        &trail,
    )?;
    let escalates = choice.escalate_below.is_some() && !request.stream;

    let first = choice.candidates.first().map(|candidate| candidate.entry.clone());
    let first = first.ok_or_else(|| Error::internal("the router chose nothing"))?;
    let reservation = reserve(parts, &request, &first, &request.id)?;
    let limits = parts.limiter.snapshot(&request.caller);

    let key = cache_key(parts, &config, &request, &first, escalates);
    if let Some(key) = &key
        && request.cache == CacheUse::Default
        && let Some(entry) = parts.cache.get(key)
    {
        reservation.settle(0);
        let listed = first.listed();
        return Ok(Reply {
            route: route(
                &request,
                &choice,
                &listed.name,
                listed.plugins.first().cloned().unwrap_or_default(),
                vec![],
            ),
            cache: CacheOutcome::Hit,
            limits,
            source: Source::Ready {
                chunks: entry.chunks.clone().into_iter(),
                done: Some(entry.done.clone()),
            },
            timing: Timing { admit: started.elapsed(), ..Timing::default() },
        });
    }
    let outcome = if key.is_some() { CacheOutcome::Miss } else { CacheOutcome::Bypass };
    let admit = started.elapsed();

    let mut reply = if escalates {
        cascade(parts, &request, &choice, reservation, &trail).await?
    } else {
        first_that_takes_it(parts, &request, &choice, reservation, &trail).await?
    };
    reply.cache = outcome;
    reply.limits = limits;
    reply.timing.admit = admit;
    if let (Some(key), true) = (key, request.cache != CacheUse::Bypass) {
        reply.source = fill_cache(reply.source, parts.cache.clone(), key);
    }
    Ok(reply)
}

/// What must hold for every capability. After this no shape is in doubt.
fn check(request: Request) -> Result<Request> {
    let name = request.capability.as_str();
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || 128 < name.len() || !name.chars().all(good) {
        return Err(Error::invalid("a capability's name is 1 to 128 letters, digits, `.`, `_` or `-`")
            .with_param("capability"));
    }
    if !request.params.trim_start().starts_with('{') {
        return Err(Error::invalid("the parameters must be a JSON object").with_param("params"));
    }
    if let Some(twice) = request
        .tensors
        .iter()
        .enumerate()
        .find(|(place, tensor)| request.tensors[..*place].iter().any(|other| other.name == tensor.name))
    {
        let name = &twice.1.name;
        return Err(Error::invalid(format!("tensor `{name}` is given twice")).with_param(name.clone()));
    }
    Ok(request)
}

/// Takes what the request may cost from every limit of its caller, or nothing from any.
fn reserve(parts: &Parts, request: &Request, entry: &Entry, id: &str) -> Result<Reservation> {
    let estimate = if parts.limiter.counts_tokens(&request.caller) { estimate(request, entry)? } else { 0 };
    Ok(parts.limiter.reserve(&request.caller, id, estimate)?)
}

/// Tokens a request may take: its prompt, counted by the model where it is open and can, else bounded by its bytes;
/// and the longest answer it allows.
fn estimate(request: &Request, entry: &Entry) -> Result<u64> {
    let backend = entry.backend();
    let counted = match &backend {
        Some(backend) => backend.model().count_tokens(&request.capability, &request.params)?,
        None => None,
    };
    let prompt = counted.unwrap_or(request.params.len() as u64);
    let peek: Peek = serde_json::from_str(&request.params).unwrap_or_default();
    let generates = matches!(&*request.capability, "chat" | "complete");
    let answer = match (peek.max_tokens, generates) {
        (Some(max), _) => max,
        (None, false) => 0,
        (None, true) => backend
            .and_then(|backend| backend.model().description().context)
            .map_or(DEFAULT_MAX_TOKENS, |context| {
                u64::from(context).saturating_sub(prompt).min(DEFAULT_MAX_TOKENS)
            }),
    };
    Ok(prompt.saturating_add(answer.saturating_mul(peek.n.unwrap_or(1).max(1))))
}

fn cache_key(
    parts: &Parts,
    config: &Config,
    request: &Request,
    entry: &Entry,
    escalates: bool,
) -> Option<Key> {
    if request.cache == CacheUse::Bypass
        || escalates
        || !parts.cache.accepts(&request.capability, &request.params, &config.cache)
    {
        return None;
    }
    let listed = entry.listed();
    let model = if listed.id.is_empty() { &*listed.name } else { &listed.id };
    Some(Key::of(&request.caller.tenant, model, &listed.model_json, request))
}

fn route(
    request: &Request,
    choice: &Choice,
    model: &Arc<str>,
    plugin: Arc<str>,
    tried: Vec<Candidate>,
) -> Route {
    let mut candidates = tried;
    for candidate in &choice.candidates {
        let name = candidate.entry.name();
        if !candidates.iter().any(|other| other.model == name) {
            candidates.push(Candidate {
                why: if name == *model { "chosen".to_owned() } else { candidate.why.clone() },
                model: name,
                score: candidate.score,
                confidence: None,
            });
        }
    }
    Route {
        asked: request.model.clone(),
        model: model.clone(),
        plugin,
        why: choice.why.clone(),
        candidates,
        confidence: None,
    }
}

/// Hands the request to the first candidate that takes it.
async fn first_that_takes_it(
    parts: &Parts,
    request: &Request,
    choice: &Choice,
    reservation: Reservation,
    trail: &[Arc<str>],
) -> Result<Reply> {
    let mut reservation = Some(reservation);
    let mut tried = Vec::new();
    let last = choice.candidates.len().saturating_sub(1);
    for (place, candidate) in choice.candidates.iter().enumerate() {
        match run(parts, request, candidate, &mut reservation, trail, request.confidence).await {
            Ok((live, timing)) => {
                let plugin = plugin_of(candidate);
                return Ok(Reply {
                    route: route(request, choice, &candidate.entry.name(), plugin, tried),
                    cache: CacheOutcome::Miss,
                    limits: Vec::new(),
                    source: Source::Live(live),
                    timing,
                });
            }
            Err(error) if place < last && choice.may_replace && can_stand_in(&error) => {
                tried.push(tried_and(candidate, None, error.message));
            }
            Err(error) => return Err(error),
        }
    }
    Err(Error::internal("the router chose nothing"))
}

/// Whether another model may be asked after this failure: nothing was answered yet, and it was not the request's fault.
fn can_stand_in(error: &Error) -> bool {
    matches!(
        error.code,
        ErrorCode::Unavailable | ErrorCode::ResourceExhausted | ErrorCode::FailedPrecondition
    )
}

fn tried_and(candidate: &Scored, confidence: Option<f64>, why: String) -> Candidate {
    Candidate { model: candidate.entry.name(), score: candidate.score, confidence, why }
}

fn plugin_of(candidate: &Scored) -> Arc<str> {
    candidate.entry.plugin().map(|plugin| plugin.id().clone()).unwrap_or_default()
}

/// A whole answer of one model.
struct Attempt {
    model: Arc<str>,
    plugin: Arc<str>,
    chunks: Vec<Chunk>,
    done: Done,
    timing: Timing,
}

/// Asks one model after the other until one is sure enough. Keeps the best answer there is when the deadline or a
/// limit forbids another attempt.
async fn cascade(
    parts: &Parts,
    request: &Request,
    choice: &Choice,
    reservation: Reservation,
    trail: &[Arc<str>],
) -> Result<Reply> {
    let threshold = choice.escalate_below.unwrap_or_default();
    let mut reservation = Some(reservation);
    let mut tried: Vec<Candidate> = Vec::new();
    let mut best: Option<Attempt> = None;
    let mut failure = None;
    for (place, candidate) in choice.candidates.iter().enumerate() {
        let name = candidate.entry.name();
        if reservation.is_none() {
            // The last attempt settled its own; another one is paid for by itself.
            match reserve(parts, request, &candidate.entry, &format!("{}#{}", request.id, place + 1)) {
                Ok(again) => reservation = Some(again),
                Err(error) => {
                    tried.push(tried_and(candidate, None, format!("not tried: {}", error.message)));
                    break;
                }
            }
        }
        if request.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            tried.push(tried_and(candidate, None, "not tried: the deadline has passed".to_owned()));
            break;
        }
        let answer = match run(parts, request, candidate, &mut reservation, trail, true).await {
            Ok((live, timing)) => collect(live).await.map(|(chunks, done)| (chunks, done, timing)),
            Err(error) => Err(error),
        };
        match answer {
            Ok((chunks, mut done, timing)) => {
                done.confidence = confidence(done.confidence, &done.usage);
                let sure = done.confidence.is_none_or(|confidence| threshold <= confidence);
                let why = match done.confidence {
                    None => "accepted: it says nothing of its confidence".to_owned(),
                    Some(c) if sure => format!("accepted: {c:.3} is not below {threshold}"),
                    Some(c) => format!("escalated: {c:.3} is below {threshold}"),
                };
                tried.push(tried_and(candidate, done.confidence, why));
                let better = best.as_ref().is_none_or(|best| best.done.confidence <= done.confidence);
                if better || sure {
                    best = Some(Attempt { model: name, plugin: plugin_of(candidate), chunks, done, timing });
                }
                if sure {
                    break;
                }
                if place + 1 < choice.candidates.len() {
                    parts.metrics.count_escalation();
                }
            }
            Err(error) => {
                tried.push(tried_and(candidate, None, error.message.clone()));
                let gives_up = !can_stand_in(&error);
                failure = Some(error);
                if gives_up {
                    break;
                }
            }
        }
    }
    let Some(Attempt { model, plugin, chunks, done, timing }) = best else {
        return Err(failure.unwrap_or_else(|| Error::deadline("no model had been asked")));
    };
    let mut route = route(request, choice, &model, plugin, tried);
    route.confidence = done.confidence;
    Ok(Reply {
        route,
        cache: CacheOutcome::Bypass,
        limits: Vec::new(),
        source: Source::Ready { chunks: chunks.into_iter(), done: Some(done) },
        timing,
    })
}

async fn collect(mut live: LiveReply) -> Result<(Vec<Chunk>, Done)> {
    let mut chunks = Vec::new();
    loop {
        match std::future::poll_fn(|context| live.poll_next(context)).await? {
            Next::Chunk(chunk) => chunks.push(chunk),
            Next::Done(done) => return Ok((chunks, done)),
        }
    }
}

/// Opens the model if need be and hands it the request. The reservation goes along, and settles at its end; it stays
/// with the caller when the model did not take the request.
async fn run(
    parts: &Parts,
    request: &Request,
    candidate: &Scored,
    reservation: &mut Option<Reservation>,
    trail: &[Arc<str>],
    confidence: bool,
) -> Result<(LiveReply, Timing)> {
    let entry = &candidate.entry;
    let opening = Instant::now();
    let mut exchange: Option<Arc<Exchange>> = None;
    for _ in 0..MAX_REOPENS {
        let backend = match entry.backend() {
            Some(backend) => {
                entry.touch(request.keep_alive);
                backend
            }
            None => {
                let open = parts.catalog.ensure(entry, request.keep_alive);
                parts
                    .timer
                    .by(request.deadline, open, || Error::deadline("the model was being opened"))
                    .await?
            }
        };
        let this = match &exchange {
            Some(exchange) => exchange.clone(),
            None => {
                let Some(reservation) = reservation.take() else {
                    return Err(Error::internal("the request lost its reservation"));
                };
                exchange.insert(make(parts, request, entry, &backend, reservation, trail, confidence)).clone()
            }
        };
        match backend.dispatch(this.clone()) {
            Ok(()) => {
                let timing = Timing { open: opening.elapsed(), ..Timing::default() };
                return Ok((LiveReply { exchange: this, ended: false }, timing));
            }
            Err(crate::backend::Refusal::Closed) => continue,
            Err(crate::backend::Refusal::Full(error)) => {
                this.end(Err(error.clone()), None);
                return Err(error);
            }
        }
    }
    let error = Error::unavailable(format!("model `{}` keeps being closed; retry", entry.name()))
        .with_reason("overloaded");
    if let Some(exchange) = exchange {
        exchange.end(Err(error.clone()), None);
    }
    Err(error)
}

/// The exchange of a request, with what has to happen at its end, whoever ends it.
fn make(
    parts: &Parts,
    request: &Request,
    entry: &Arc<Entry>,
    backend: &Arc<crate::backend::Backend>,
    reservation: Reservation,
    trail: &[Arc<str>],
    confidence: bool,
) -> Arc<Exchange> {
    let open = parts.open.clone();
    open.fetch_add(1, Ordering::Relaxed);
    let (metrics, entry, capability) = (parts.metrics.clone(), entry.clone(), request.capability.clone());
    let (keep_alive, id, model) = (request.keep_alive, request.id.clone(), entry.name());
    // Weak: an exchange that is stuck in a plugin must not keep its backend, and so its memory, alive.
    let backend = Arc::downgrade(backend);
    let mut models = trail.to_vec();
    models.push(model.clone());
    let hook = Box::new(move |end: &End| {
        settle(reservation, end);
        let timing = end.result.as_ref().map(|done| done.timing).unwrap_or_default();
        if let Some(backend) = backend.upgrade() {
            backend.count_end(end.result.is_err(), timing.queue, timing.run);
        }
        metrics.request_ended(&capability, &model, end);
        if let Err(error) = &end.result
            && !matches!(
                error.code,
                ErrorCode::Cancelled | ErrorCode::InvalidArgument | ErrorCode::OutOfRange
            )
        {
            tracing::warn!(request = id, model = &*model, code = %error.code, error = error.message, "request failed");
        }
        entry.touch(keep_alive);
        open.fetch_sub(1, Ordering::Relaxed);
    });
    Exchange::new(ExchangeSpec {
        capability: request.capability.clone(),
        capability_version: 1,
        params: request.params.clone(),
        tensors: request.tensors.clone(),
        id: request.id.clone(),
        traceparent: request.traceparent.clone().unwrap_or_default(),
        caller: request.caller.clone(),
        trail: models,
        deadline: request.deadline,
        stream: request.stream,
        confidence,
        priority: request.priority,
        hook,
    })
}

/// Charges what was consumed. A plugin that reports nothing is charged by what was seen of it: a request that never
/// reached it costs nothing, one that ended well what it reported, one that broke off at least its chunks.
fn settle(reservation: Reservation, end: &End) {
    let reported = end.usage.as_ref().map(|usage| usage.prompt_tokens + usage.completion_tokens);
    match (&end.result, reported) {
        (Ok(_), Some(tokens)) => reservation.settle(tokens.max(end.chunks.min(tokens))),
        (Ok(_), None) => reservation.settle(end.chunks),
        (Err(_), Some(tokens)) => reservation.settle(tokens),
        (Err(error), None) if end.chunks == 0 && never_ran(error) => reservation.settle(0),
        // Broken off, and nobody knows at what cost: Drop charges the estimate.
        (Err(_), None) => drop(reservation),
    }
}

/// Whether a failure means that no model worked on the request.
fn never_ran(error: &Error) -> bool {
    matches!(
        error.code,
        ErrorCode::InvalidArgument
            | ErrorCode::OutOfRange
            | ErrorCode::NotFound
            | ErrorCode::ResourceExhausted
            | ErrorCode::FailedPrecondition
            | ErrorCode::Unimplemented
            | ErrorCode::Unavailable
    )
}

/// Copies an answer into the cache when it has ended well.
fn fill_cache(source: Source, cache: CacheHandle, key: Key) -> Source {
    match source {
        Source::Live(live) => Source::Filling { live, chunks: Vec::new(), cache, key: Some(key) },
        ready => ready,
    }
}
