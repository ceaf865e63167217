//! The one request function: from an identified caller to an answer on its way. HTTP, the command line, embedders and
//! plugins that call plugins all come through here.
//!
//! ```text
//! resolve → reserve → cache → open → dispatch → (score → accept or escalate) → settle
//! ```
//!
//! Nothing here sends a message to an actor, but for a model that has to be opened first.

mod attempt;
mod cascade;
mod limit;

use crate::cache::{CacheHandle, Identity, Key};
use crate::catalog::{CatalogHandle, Entry};
use crate::config::Config;
use crate::error::{Error, ErrorCode, Result};
use crate::job::{CacheOutcome, CacheUse, Candidate, Reply, Request, Route, Source, Timing};
use crate::limiter::{LimiterHandle, Reservation};
use crate::metrics::{Metrics, Stage};
use crate::router::{Choice, RouterHandle, Scored};
use crate::timer::Timer;
use arc_swap::ArcSwap;
use attempt::attempt;
use cascade::cascade;
use serde::Deserialize;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

/// Assumed length of an answer, in tokens, when neither the request nor the model limits it.
const DEFAULT_MAX_TOKENS: u64 = 4096;

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

/// A request that its caller's limits let through. Dropped, it costs nothing: no model has it.
struct Admitted {
    /// Goes along with the request to the model that takes it.
    reservation: Option<Reservation>,
    /// Tokens of the prompt, or a bound of them.
    prompt: u64,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Some(reservation) = self.reservation.take() {
            reservation.settle(0);
        }
    }
}

/// Serves a request.
pub(crate) async fn serve(parts: &Parts, request: Request) -> Result<Reply> {
    let started = Instant::now();
    let refused = |request: &Request, model: Option<&str>, error: &Error| {
        parts.metrics.request_refused(&request.capability, model, error.code);
    };
    let mut request = request;
    check(parts, &request).inspect_err(|error| refused(&request, None, error))?;
    let config = parts.config.load();
    request.deadline.get_or_insert_with(|| started + config.models.default_deadline);

    let trail: Vec<Arc<str>> =
        request.parent.as_ref().map(|parent| parent.models.clone()).unwrap_or_default();
    let choice = parts
        .router
        .choose(request.model.as_deref(), &request.capability, request.params.len() as u64, &trail)
        .inspect_err(|error| refused(&request, None, error))?;
    let escalates = choice.escalate_below.is_some() && !request.stream;

    let first = choice.candidates.first().map(|candidate| candidate.entry.clone());
    let first = first.ok_or_else(|| Error::internal("the router chose nothing"))?;
    let admitted = reserve(parts, &request, &first, &request.id)
        .inspect_err(|error| refused(&request, Some(&first.name()), error))?;
    let mut limits = parts.limiter.snapshot(&request.caller);

    let key =
        cache_key(parts, &config, &request, &first, escalates).filter(|_| licensed(parts, &request, &first));
    drop(config);
    if let Some(key) = &key
        && request.cache == CacheUse::Default
        && let Some(entry) = parts.cache.get(key)
    {
        // A hit costs no tokens: what is left is told without what was put by for an answer.
        drop(admitted);
        limits = parts.limiter.snapshot(&request.caller);
        let listed = first.listed();
        let plugin = listed.plugins.first().cloned().unwrap_or_default();
        let admit = started.elapsed();
        parts.metrics.request_cached(&request.capability, &listed.name, admit);
        return Ok(Reply {
            route: route(&request, &choice, &listed.name, plugin, vec![]),
            cache: CacheOutcome::Hit,
            limits,
            source: Source::Ready {
                chunks: entry.chunks.clone().into_iter(),
                done: Some(entry.done.clone()),
            },
            timing: Timing { admit, ..Timing::default() },
        });
    }
    let outcome = if key.is_some() { CacheOutcome::Miss } else { CacheOutcome::Bypass };
    let admit = started.elapsed();
    parts.metrics.stage(Stage::Admit, admit);

    let mut reply = if escalates {
        cascade(parts, &request, &choice, admitted, &trail).await?
    } else {
        first_that_takes_it(parts, &request, &choice, admitted, &trail).await?
    };
    reply.cache = outcome;
    reply.limits = limits;
    reply.timing.admit = admit;
    // The key names the first candidate: what another said in its place is not its answer.
    if let Some(key) = key
        && reply.route.model == first.name()
    {
        reply.source = fill_cache(reply.source, &parts.cache, key);
    }
    Ok(reply)
}

/// What must hold for every capability. After this no shape is in doubt.
fn check(parts: &Parts, request: &Request) -> Result<()> {
    if parts.stopping.load(Ordering::Relaxed) {
        return Err(Error::shutting_down());
    }
    let name = request.capability.as_str();
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || 128 < name.len() || !name.chars().all(good) {
        return Err(Error::invalid("a capability's name is 1 to 128 letters, digits, `.`, `_` or `-`")
            .with_param("capability"));
    }
    if !request.params.trim_start().starts_with('{') {
        return Err(Error::invalid("the parameters must be a JSON object").with_param("params"));
    }
    // A set: somebody may send a hundred thousand of them.
    let mut names = HashSet::with_capacity(request.tensors.len());
    if let Some(twice) = request.tensors.iter().find(|tensor| !names.insert(&tensor.name)) {
        let name = &twice.name;
        return Err(Error::invalid(format!("tensor `{name}` is given twice")).with_param(name.clone()));
    }
    Ok(())
}

/// Takes what the request may cost from every limit of its caller, or nothing from any.
fn reserve(parts: &Parts, request: &Request, entry: &Entry, id: &str) -> Result<Admitted> {
    let counts = parts.limiter.counts_tokens(&request.caller);
    let (prompt, answer) = if counts { estimate(request, entry)? } else { (0, 0) };
    let reserved = parts.limiter.reserve(&request.caller, id, prompt.saturating_add(answer));
    let decided = |dimension, outcome| parts.metrics.limiter_decision(dimension, outcome);
    match &reserved {
        Ok(reservation) => reservation.dimensions().for_each(|dimension| decided(dimension, "allowed")),
        Err(error) => decided(error.dimension(), "refused"),
    }
    Ok(Admitted { reservation: Some(reserved?), prompt })
}

/// Tokens a request may take: its prompt, counted by the model where it is open and can, else bounded by its bytes;
/// and the longest answer it allows.
fn estimate(request: &Request, entry: &Entry) -> Result<(u64, u64)> {
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
        (None, true) => {
            let most = entry.listed().limits.output_tokens.map_or(DEFAULT_MAX_TOKENS, u64::from);
            let context = backend.and_then(|backend| backend.model().description().context);
            context.map_or(most, |context| u64::from(context).saturating_sub(prompt).min(most))
        }
    };
    Ok((prompt, answer.saturating_mul(peek.n.unwrap_or(1).max(1))))
}

/// Whether an answer may be given without asking the model: what is kept is of a plugin that may need a licence.
fn licensed(parts: &Parts, request: &Request, entry: &Entry) -> bool {
    match entry.backend() {
        Some(backend) => {
            backend.model().licence().is_none_or(|gate| gate.admits(&request.caller.tenant).is_ok())
        }
        None => parts.catalog.shelf().unlicensed(&entry.listed()).is_none(),
    }
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
    let model = Identity {
        name: if listed.id.is_empty() { &listed.name } else { &listed.id },
        files: &listed.files,
        plugin: &entry.made_by(&listed),
        settings: &listed.model_json,
    };
    Some(Key::of(&request.caller.tenant, &model, request))
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
    mut admitted: Admitted,
    trail: &[Arc<str>],
) -> Result<Reply> {
    let mut tried = Vec::new();
    let last = choice.candidates.len().saturating_sub(1);
    for (place, candidate) in choice.candidates.iter().enumerate() {
        match attempt(parts, request, candidate, &mut admitted, trail, request.confidence).await {
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
    ) || error.reason.starts_with("plugin_license_")
}

fn tried_and(candidate: &Scored, confidence: Option<f64>, why: String) -> Candidate {
    Candidate { model: candidate.entry.name(), score: candidate.score, confidence, why }
}

fn plugin_of(candidate: &Scored) -> Arc<str> {
    candidate.entry.plugin().map(|plugin| plugin.id().clone()).unwrap_or_default()
}

/// Copies an answer into the cache when it has ended well.
fn fill_cache(source: Source, cache: &CacheHandle, key: Key) -> Source {
    match source {
        Source::Live(live) => Source::Filling { live, recording: Some(cache.record(key)) },
        ready => ready,
    }
}
