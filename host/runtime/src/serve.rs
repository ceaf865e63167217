//! The one request function: from an identified caller to an answer on its way. HTTP, the command line, embedders and
//! plugins that call plugins all come through here.
//!
//! ```text
//! resolve → admit → cache → open → reserve → dispatch → (score → accept or escalate) → settle
//! ```
//!
//! Nothing here sends a message to an actor, but for a model that has to be opened first.

mod attempt;
mod budget;
mod cascade;
mod count;
mod limit;
mod tab;

pub(crate) use count::Counting;
pub(crate) use tab::SecondChance;

use crate::cache::{CacheHandle, Identity, Key};
use crate::catalog::{CatalogHandle, Entry};
use crate::config::Config;
use crate::error::{Error, ErrorCode, Result};
use crate::job::{CacheOutcome, CacheUse, Candidate, Reply, Request, Route, Source, Timing};
use crate::limiter::LimiterHandle;
use crate::metrics::{Metrics, Stage};
use crate::router::{Choice, RouterHandle, Scored};
use crate::timer::Timer;
use arc_swap::ArcSwap;
use attempt::attempt;
use budget::{Admitted, admit};
use cascade::cascade;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

/// What the request path reads.
pub(crate) struct Parts {
    pub config: ArcSwap<Config>,
    pub limiter: LimiterHandle,
    pub cache: CacheHandle,
    pub router: RouterHandle,
    pub catalog: CatalogHandle,
    pub metrics: Metrics,
    pub timer: Timer,
    pub counting: Counting,
    /// Requests that are not settled yet.
    pub open: Arc<AtomicUsize>,
    pub stopping: AtomicBool,
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
    let choice = parts.router.choose(&request, &trail).inspect_err(|error| refused(&request, None, error))?;
    let escalates = choice.escalate_below.is_some() && !request.stream;

    let first = choice.candidates.first().map(|candidate| candidate.entry.clone());
    let first = first.ok_or_else(|| Error::internal("the router chose nothing"))?;
    let mut admitted = admit(parts, &request, request.id.clone())
        .inspect_err(|error| refused(&request, Some(&first.name()), error))?;

    let key =
        cache_key(parts, &config, &request, &first, escalates).filter(|_| licensed(parts, &request, &first));
    drop(config);
    if let Some(key) = &key
        && request.cache == CacheUse::Default
        && let Some(entry) = parts.cache.get(key)
    {
        let listed = first.listed();
        let plugin = listed.plugins.first().cloned().unwrap_or_default();
        let admit = started.elapsed();
        parts.metrics.request_cached(&request.capability, &listed.name, admit);
        return Ok(Reply {
            route: route(&request, &choice, &listed.name, plugin, vec![]),
            cache: CacheOutcome::Hit,
            // A hit costs no tokens.
            limits: parts.limiter.snapshot(&request.caller),
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
        cascade(parts, &request, &choice, &mut admitted, &trail).await?
    } else {
        first_that_takes_it(parts, &request, &choice, &mut admitted, &trail).await?
    };
    reply.cache = outcome;
    reply.limits = parts.limiter.snapshot(&request.caller);
    reply.timing.admit = admit;
    // The key names the first candidate: what another said in its place is not its answer. Nor is one that this caller's
    // budget cut off.
    if let Some(key) = key
        && !admitted.cut
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
        let error = Error::invalid("the parameters must be a JSON object").with_reason("invalid_type");
        return Err(error.with_param("params"));
    }
    // A set: somebody may send a hundred thousand of them.
    let mut names = HashSet::with_capacity(request.tensors.len());
    if let Some(twice) = request.tensors.iter().find(|tensor| !names.insert(&tensor.name)) {
        let name = &twice.name;
        return Err(Error::invalid(format!("tensor `{name}` is given twice")).with_param(name.clone()));
    }
    Ok(())
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
                refused: None,
            });
        }
    }
    candidates.extend(choice.refused.iter().cloned());
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
    admitted: &mut Admitted,
    trail: &[Arc<str>],
) -> Result<Reply> {
    let mut tried = Vec::new();
    let last = choice.candidates.len().saturating_sub(1);
    let replaces = choice.may_replace && 0 < last;
    let mut first: Option<(Error, &Scored)> = None;
    for (place, candidate) in choice.candidates.iter().enumerate() {
        if admitted.used {
            admitted.again(format!("{}#{}", request.id, place + 1));
        }
        let mut answer = attempt(parts, request, candidate, admitted, trail, request.confidence).await;
        // Who has taken it may still fail before it answers.
        if replaces
            && let Ok((live, _)) = &mut answer
            && let Err(error) = live.begin().await
        {
            answer = Err(error);
        }
        match answer {
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
            Err(error) if !replaces => return Err(error),
            Err(error) => {
                tried.push(failed(candidate, error.clone()));
                if place == last || !can_stand_in(&error) {
                    // Who stands in may not have what was asked for at all: why it was to stand in says more.
                    let (error, candidate) = match first {
                        Some(first) if error.code == ErrorCode::NotFound => first,
                        _ => (error, candidate),
                    };
                    return Err(with_route(error, request, choice, candidate, tried));
                }
                first.get_or_insert((error, candidate));
            }
        }
    }
    Err(Error::internal("the router chose nothing"))
}

/// The failure of this candidate, after which no other is asked, with those that were tried.
fn with_route(
    mut error: Error,
    request: &Request,
    choice: &Choice,
    candidate: &Scored,
    tried: Vec<Candidate>,
) -> Error {
    let plugin = plugin_of(candidate);
    error.route = Some(Box::new(route(request, choice, &candidate.entry.name(), plugin, tried)));
    error
}

/// Whether another model may be asked after this failure: nothing was answered yet, and it was neither the request's
/// fault nor a want of tokens.
fn can_stand_in(error: &Error) -> bool {
    let fails_here = matches!(
        error.code,
        ErrorCode::Unavailable
            | ErrorCode::ResourceExhausted
            | ErrorCode::FailedPrecondition
            | ErrorCode::Unimplemented
    );
    let no_tokens = matches!(&*error.reason, "insufficient_quota" | "quota_store_unavailable");
    (fails_here && !no_tokens) || error.reason.starts_with("plugin_license_")
}

/// A candidate that failed, or was not tried for this.
fn failed(candidate: &Scored, error: Error) -> Candidate {
    let code = if error.reason.is_empty() { error.code.name().into() } else { error.reason };
    Candidate {
        model: candidate.entry.name(),
        score: candidate.score,
        confidence: None,
        refused: Some(code),
        why: error.message,
    }
}

fn plugin_of(candidate: &Scored) -> Arc<str> {
    candidate.entry.plugin().map(|plugin| plugin.id().clone()).unwrap_or_default()
}

/// Copies an answer into the cache when it has ended well.
fn fill_cache(source: Source, cache: &CacheHandle, key: Key) -> Source {
    match source {
        // A version on trial answers for itself only: the key names the version before.
        Source::Live(live) if !live.on_trial => Source::Filling { live, recording: Some(cache.record(key)) },
        other => other,
    }
}
