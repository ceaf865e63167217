//! One attempt: a request handed to one model, and what has to happen at its end, whoever ends it.

use super::Parts;
use super::budget::{Admitted, BYTES_OF_A_TOKEN, Price, reserve};
use super::limit::{output_tokens, within_context};
use super::tab::{SecondChance, Tab};
use crate::backend::{Backend, Refusal};
use crate::catalog::{Canary, Entry};
use crate::error::{Error, ErrorCode, Result};
use crate::job::{LiveReply, Request, Timing};
use crate::license;
use crate::loader::{End, Exchange, ExchangeSpec};
use crate::metrics::Stage;
use crate::router::Scored;
use crate::upgrade::trial::{Side, Trial};
use backplane_registry::license::Pass;
use serde_json::Value;
use std::sync::Arc;
use std::time::Instant;

/// Attempts at a model that is being closed and reopened under us.
const MAX_REOPENS: usize = 4;

/// Opens the model if need be, sets aside what the request may cost and hands it over. The reservation goes along, and
/// settles at its end; it is given back when the model did not take the request.
pub(super) async fn attempt(
    parts: &Parts,
    request: &Request,
    candidate: &Scored,
    admitted: &mut Admitted,
    trail: &[Arc<str>],
    confidence: bool,
) -> Result<(LiveReply, Timing)> {
    let entry = &candidate.entry;
    let opening = Instant::now();
    let most = entry.listed().limits.output_tokens;
    let given = [most, request.default_max_tokens].into_iter().flatten().min();
    let refused = |error: &Error| {
        parts.metrics.request_refused(&request.capability, Some(&entry.name()), error.code);
    };
    let params = output_tokens(&request.capability, &request.params, most, request.default_max_tokens)
        .inspect_err(refused)?;
    let _hold = entry.hold();
    let attempt = Attempt { parts, request, entry, trail, confidence };
    let mut waiting: Option<(LiveReply, Arc<Tab>)> = None;
    for _ in 0..MAX_REOPENS {
        let backend = match open(parts, request, entry).await {
            Ok(backend) => backend,
            Err(error) => {
                match waiting {
                    Some((live, tab)) => give_back(live, &tab, &error),
                    None => refused(&error),
                }
                return Err(error);
            }
        };
        let (live, tab) = match waiting {
            Some(waiting) => waiting,
            None => {
                let context = backend.model().description().context;
                within_context(&request.capability, &request.params, context).inspect_err(refused)?;
                let pass = enter(parts, request, entry, &backend)?.map(Arc::new);
                let purse = reserve(parts, request, &backend, given, admitted).await.inspect_err(refused)?;
                let tab = Tab::open(purse.reservation, &parts.open);
                let paid = Paid {
                    params: purse.params.as_deref().unwrap_or(&params),
                    price: purse.price,
                    tab: &tab,
                };
                let canary = entry.canary();
                if let Some(canary) = canary.as_ref().filter(|canary| canary.trial.takes())
                    && let Some(live) = attempt.on_trial(canary, &backend, &paid, pass.as_ref())
                {
                    admitted.used = true;
                    return Ok((live, Timing { open: opening.elapsed(), ..Timing::default() }));
                }
                let beside = canary.map(|canary| (canary.trial.clone(), Side::Old));
                (LiveReply::of(Exchange::new(attempt.spec(&backend, &paid, pass, beside))), tab)
            }
        };
        match backend.dispatch(live.exchange.clone()) {
            Ok(()) => {
                admitted.used = true;
                return Ok((live, Timing { open: opening.elapsed(), ..Timing::default() }));
            }
            Err(Refusal::Closed) => waiting = Some((live, tab)),
            Err(Refusal::Full(error)) => {
                give_back(live, &tab, &error);
                return Err(error);
            }
        }
    }
    let error = Error::unavailable(format!("model `{}` keeps being closed; retry", entry.name()))
        .with_reason("overloaded");
    if let Some((live, tab)) = waiting {
        give_back(live, &tab, &error);
    }
    Err(error)
}

/// The backend of a model: at once when it is open, else after it was opened.
async fn open(parts: &Parts, request: &Request, entry: &Arc<Entry>) -> Result<Arc<Backend>> {
    if let Some(backend) = entry.backend() {
        entry.touch(request.keep_alive);
        return Ok(backend);
    }
    // Without trying: that would fail the model for a while, and the licence may come any moment.
    if let Some(error) = parts.catalog.shelf().unlicensed(&entry.listed()) {
        return Err(error);
    }
    let began = Instant::now();
    let open = parts.catalog.ensure(entry, request.keep_alive);
    let opened =
        parts.timer.by(request.deadline, open, || Error::deadline("the model was being opened")).await;
    parts.metrics.stage(Stage::Open, began.elapsed());
    opened
}

/// Lets the request in by the licence of the plugin, if it needs one.
fn enter(parts: &Parts, request: &Request, entry: &Entry, backend: &Backend) -> Result<Option<Pass>> {
    let Some(gate) = backend.model().licence() else { return Ok(None) };
    gate.enter(&request.caller.tenant).map(Some).map_err(|denial| {
        let error = license::refusal(backend.plugin(), denial);
        parts.metrics.request_refused(&request.capability, Some(&entry.name()), error.code);
        error
    })
}

/// Ends an exchange that no model took: it cost nothing.
fn give_back(mut live: LiveReply, tab: &Tab, error: &Error) {
    if let Some(reservation) = tab.take() {
        reservation.settle(0);
    }
    live.ended = true;
    live.exchange.end(Err(error.clone()), None);
}

/// A request at one model.
struct Attempt<'a> {
    parts: &'a Parts,
    request: &'a Request,
    entry: &'a Arc<Entry>,
    trail: &'a [Arc<str>],
    confidence: bool,
}

/// What it has to pay with.
struct Paid<'a> {
    params: &'a str,
    price: Price,
    tab: &'a Arc<Tab>,
}

impl Attempt<'_> {
    /// Hands the request to the new version of the model's plugin, which is on trial. Nothing has happened when that one
    /// has no place for it.
    fn on_trial(
        &self,
        canary: &Canary,
        old: &Arc<Backend>,
        paid: &Paid<'_>,
        for_old: Option<&Arc<Pass>>,
    ) -> Option<LiveReply> {
        let tenant = &self.request.caller.tenant;
        // It is one request, whichever of the two answers it.
        let for_new = match (canary.backend.model().licence(), for_old) {
            (None, _) => None,
            (Some(gate), Some(pass)) => gate.carries(tenant).ok().map(|()| Some(pass.clone()))?,
            (Some(gate), None) => Some(Arc::new(gate.enter(tenant).ok()?)),
        };
        let for_old = for_old.cloned();
        let side = |side| Some((canary.trial.clone(), side));
        let again = self.spec(old, paid, for_old, side(Side::Old));
        let exchange = Exchange::new(self.spec(&canary.backend, paid, for_new, side(Side::New)));
        let second = SecondChance::new(paid.tab.clone(), again, self.entry.hold(), canary.trial.clone());
        let mut live = LiveReply::on_trial(exchange, second);
        if canary.backend.dispatch(live.exchange.clone()).is_ok() {
            return Some(live);
        }
        // Nobody hears of it, for there is a second chance; which is not used, but the tab.
        live.exchange.end(Err(Error::unavailable("the new version has no place")), None);
        live.ended = true;
        paid.tab.keep();
        None
    }

    /// What its exchange with a backend is made of. `trial`: the upgrade under way, and which of the two this is.
    fn spec(
        &self,
        backend: &Arc<Backend>,
        paid: &Paid<'_>,
        pass: Option<Arc<Pass>>,
        trial: Option<(Arc<Trial>, Side)>,
    ) -> ExchangeSpec {
        let Self { parts, request, entry, .. } = *self;
        let (metrics, entry, capability) = (parts.metrics.clone(), entry.clone(), request.capability.clone());
        let (keep_alive, id, model) = (request.keep_alive, request.id.clone(), entry.name());
        // Weak: an exchange that is stuck in a plugin must not keep its backend, and so its memory, alive.
        let (backend, tab, price) = (Arc::downgrade(backend), paid.tab.clone(), paid.price);
        let mut models = self.trail.to_vec();
        models.push(model.clone());
        let hook = Box::new(move |end: &End| {
            if let Some((trial, side)) = &trial
                && end.submitted
            {
                trial.count(*side, end.result.as_ref().err());
            }
            let timing = end.result.as_ref().map(|done| done.timing).unwrap_or_default();
            let backend = backend.upgrade();
            if let Some(backend) = &backend {
                backend.count_end(end.result.is_err(), timing.queue, timing.run);
            }
            let Some(mut closed) = tab.close(end) else {
                let error = end.result.as_ref().err().map(|error| error.message.as_str());
                let model = &*model;
                tracing::warn!(request = id, model, error, "the new version failed it; the old one is asked");
                return;
            };
            let Cost { tokens, overstated } = cost(end, price);
            if let (Some(reported), Some(backend)) = (overstated, &backend) {
                backend.overstates(reported, tokens);
            }
            closed.settle(tokens);
            if let Some(pass) = pass.as_ref().filter(|_| end.submitted) {
                pass.used(tokens);
            }
            metrics.request_ended(&capability, &model, end);
            // What is the caller's doing is told to the caller, and an overload must not fill the disk.
            let quiet = [ErrorCode::Cancelled, ErrorCode::InvalidArgument, ErrorCode::OutOfRange];
            if let Err(error) = &end.result
                && !quiet.contains(&error.code)
                && error.reason != "overloaded"
            {
                tracing::warn!(request = id, model = &*model, code = %error.code, error = error.message, "request failed");
            }
            entry.touch(keep_alive);
        });
        ExchangeSpec {
            capability: request.capability.clone(),
            capability_version: 1,
            params: paid.params.to_owned(),
            tensors: request.tensors.clone(),
            id: request.id.clone(),
            traceparent: request.traceparent.clone().unwrap_or_default(),
            caller: request.caller.clone(),
            trail: models,
            deadline: request.deadline,
            device: request.device,
            stream: request.stream,
            confidence: self.confidence,
            priority: request.priority,
            hook,
        }
    }
}

/// What a request cost.
#[derive(Debug, PartialEq, Eq)]
struct Cost {
    tokens: u64,
    /// What the plugin reported, where that is more than can be.
    overstated: Option<u64>,
}

/// Bytes of a piece that are no text: `{"content":""}` and the like.
const FRAME: u64 = 32;

/// What a request cost, in tokens.
///
/// What the plugin reports counts, in its usage or in the details of its error, as far as it can be: no more tokens of an
/// answer than were set aside for it or than it has bytes, and of a prompt accordingly. Where it reports nothing: what no
/// plugin had is free, and so is a failure that was not the caller's doing and that produced nothing; everything else
/// costs its prompt and what was produced, its pieces or by its bytes.
fn cost(end: &End, price: Price) -> Cost {
    let believed = |prompt: u64, answer: u64| {
        let tokens = prompt.min(price.most.0).saturating_add(answer.min(price.most.1.max(end.bytes)));
        let reported = prompt.saturating_add(answer);
        Cost { tokens, overstated: (tokens < reported).then_some(reported) }
    };
    let just = |tokens| Cost { tokens, overstated: None };
    if let Some(usage) = &end.usage {
        return believed(usage.prompt_tokens, usage.completion_tokens);
    }
    let text = end.json.saturating_sub(end.chunks.saturating_mul(FRAME));
    let produced = end.chunks.max(text / BYTES_OF_A_TOKEN);
    let error = match &end.result {
        Ok(_) => return just(price.prompt.saturating_add(produced)),
        Err(_) if !end.submitted => return just(0),
        Err(error) => error,
    };
    let [prompt, answer] =
        ["prompt_tokens", "completion_tokens"].map(|name| error.details.get(name).and_then(Value::as_u64));
    let left = matches!(error.code, ErrorCode::Cancelled | ErrorCode::DeadlineExceeded);
    match (prompt, answer) {
        (None, None) if end.chunks == 0 && !left => just(0),
        (None, None) => just(price.prompt.saturating_add(produced)),
        (prompt, answer) => believed(prompt.unwrap_or(0), answer.unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Done;
    use backplane_abi::payload::Usage;

    const PRICE: Price = Price { prompt: 100, most: (500, 50) };

    fn end(result: Result<Done>, chunks: u64) -> End {
        End { result, usage: None, chunks, bytes: 0, json: 0, submitted: true }
    }

    fn tokens(end: &End) -> u64 {
        let cost = cost(end, PRICE);
        assert_eq!(cost.overstated, None);
        cost.tokens
    }

    fn reported(mut end: End, prompt_tokens: u64, completion_tokens: u64) -> End {
        end.usage = Some(Usage { prompt_tokens, completion_tokens, ..Usage::default() });
        end
    }

    #[test]
    fn what_a_request_costs() {
        let failed = |code| end(Err(Error::new(code, "no")), 0);
        assert_eq!(tokens(&reported(end(Ok(Done::default()), 3), 5, 7)), 12, "what the plugin says");
        assert_eq!(tokens(&reported(failed(ErrorCode::Internal), 5, 7)), 12, "also when it fails");
        assert_eq!(tokens(&end(Ok(Done::default()), 3)), 103, "else the prompt and the pieces");
        let whole = End { bytes: 1 << 20, json: 20_000, ..end(Ok(Done::default()), 1) };
        assert_eq!(tokens(&whole), 5092, "or their bytes, when they are large");
        let pieces = End { json: 3000, ..end(Ok(Done::default()), 100) };
        assert_eq!(tokens(&pieces), 200, "but not the JSON around a word");
        for free in [ErrorCode::InvalidArgument, ErrorCode::Unavailable, ErrorCode::Internal] {
            assert_eq!(tokens(&failed(free)), 0, "{free}: nothing came of it");
        }
        for left in [ErrorCode::Cancelled, ErrorCode::DeadlineExceeded] {
            assert_eq!(tokens(&failed(left)), 100, "{left}: the model worked for it");
            assert_eq!(tokens(&End { submitted: false, ..failed(left) }), 0, "{left}: no model had it");
        }
        assert_eq!(tokens(&End { chunks: 4, ..failed(ErrorCode::Internal) }), 104, "what was produced");
        let told = Error::cancelled().with_detail("prompt_tokens", 9).with_detail("completion_tokens", 2);
        assert_eq!(tokens(&end(Err(told), 1)), 11, "what the error says");
    }

    #[test]
    fn a_plugin_is_believed_as_far_as_it_can_be() {
        let overstated = |tokens, reported| Cost { tokens, overstated: Some(reported) };
        let done = || End { bytes: 30, ..end(Ok(Done::default()), 3) };
        assert_eq!(cost(&reported(done(), 500, 50), PRICE), Cost { tokens: 550, overstated: None });
        assert_eq!(cost(&reported(done(), 5, u64::MAX), PRICE), overstated(55, u64::MAX));
        assert_eq!(cost(&reported(done(), u64::MAX, 7), PRICE), overstated(507, u64::MAX));
        let long = End { bytes: 90, ..done() };
        assert_eq!(cost(&reported(long, 5, 91), PRICE), overstated(95, 96), "a token has a byte");
        let told = Error::cancelled().with_detail("completion_tokens", u64::MAX);
        assert_eq!(cost(&end(Err(told), 1), PRICE), overstated(50, u64::MAX), "also in an error");
    }
}
