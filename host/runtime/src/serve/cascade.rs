//! The cascade: one model after the other, until one is sure enough.

use super::attempt::attempt;
use super::budget::{Admitted, admit};
use super::{Parts, can_stand_in, failed, plugin_of, route, with_route};
use crate::error::{Error, Result};
use crate::job::{CacheOutcome, Candidate, Chunk, Done, LiveReply, Next, Reply, Request, Source, Timing};
use crate::router::{Choice, Scored, confidence};
use std::sync::Arc;
use std::time::Instant;

/// A whole answer of one model.
struct Whole {
    model: Arc<str>,
    plugin: Arc<str>,
    chunks: Vec<Chunk>,
    done: Done,
    timing: Timing,
}

/// Asks one model after the other until one is sure enough. Keeps the best answer there is when the deadline or a
/// limit forbids another attempt.
pub(super) async fn cascade(
    parts: &Parts,
    request: &Request,
    choice: &Choice,
    admitted: &mut Admitted,
    trail: &[Arc<str>],
) -> Result<Reply> {
    let threshold = choice.escalate_below.unwrap_or_default();
    let mut tried: Vec<Candidate> = Vec::new();
    let mut best: Option<Whole> = None;
    let mut failure: Option<(Error, &Scored)> = None;
    for (place, candidate) in choice.candidates.iter().enumerate() {
        let name = candidate.entry.name();
        if admitted.used {
            // The last attempt settled its own; another one is paid for by itself.
            match admit(parts, request, format!("{}#{}", request.id, place + 1)) {
                Ok(again) => *admitted = again,
                Err(error) => {
                    let message = format!("not tried: {}", error.message);
                    tried.push(failed(candidate, Error { message, ..error }));
                    break;
                }
            }
        }
        if request.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            tried.push(failed(candidate, Error::deadline("another model was asked")));
            break;
        }
        let answer = match attempt(parts, request, candidate, admitted, trail, true).await {
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
                tried.push(Candidate {
                    model: name.clone(),
                    score: candidate.score,
                    confidence: done.confidence,
                    refused: (!sure).then_some("low_confidence".into()),
                    why,
                });
                let better = best.as_ref().is_none_or(|best| best.done.confidence <= done.confidence);
                if better || sure {
                    best = Some(Whole { model: name, plugin: plugin_of(candidate), chunks, done, timing });
                }
                if sure {
                    break;
                }
                if place + 1 < choice.candidates.len() {
                    parts.metrics.count_escalation();
                }
            }
            Err(error) => {
                tried.push(failed(candidate, error.clone()));
                let gives_up = !can_stand_in(&error);
                failure = Some((error, candidate));
                if gives_up {
                    break;
                }
                if admitted.used {
                    admitted.again(format!("{}#{}", request.id, place + 2));
                }
            }
        }
    }
    let Some(Whole { model, plugin, chunks, done, timing }) = best else {
        return Err(match failure {
            Some((error, candidate)) => with_route(error, request, choice, candidate, tried),
            None => Error::deadline("no model had been asked"),
        });
    };
    // The best there was, if none was sure: it is refused no more.
    tried.iter_mut().filter(|candidate| candidate.model == model).for_each(|best| best.refused = None);
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
