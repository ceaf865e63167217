//! What a request may cost its key: the tokens of its prompt and of the longest answer it allows.
//!
//! Only an open model can count a prompt, so the tokens are set aside when the model is open, whether it was before or
//! not: a request is refused or let through for what it asks, never for what happens to be open.
//!
//! | `max_tokens` | what is set aside | where it does not fit |
//! |---|---|---|
//! | given | prompt + `max_tokens` · `n` | refused |
//! | absent | prompt + what the model gives at the most · `n`, or all that is left | refused without room for a token |
//!
//! In the second row the answer is cut where the tokens end.

use super::Parts;
use super::count::count;
use super::limit::with;
use crate::backend::Backend;
use crate::error::Result;
use crate::job::Request;
use crate::limiter::{Estimate, LimitError, Reservation};
use serde::Deserialize;

/// Assumed length of an answer, in tokens, of a model that says neither how much it gives nor how much it reads.
const DEFAULT_MAX_TOKENS: u64 = 4096;

/// The members of a request's parameters that matter to its price, whatever the capability.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Peek {
    max_tokens: Option<u64>,
    n: Option<u64>,
}

/// How long an answer a request allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    /// Tokens of each choice; `None`: as many as the model gives.
    most: Option<u64>,
    choices: u64,
}

impl Asked {
    fn of(request: &Request) -> Self {
        // What cannot be read is the plugin's to refuse.
        let peek: Peek = serde_json::from_str(&request.params).unwrap_or_default();
        let generates = matches!(&*request.capability, "chat" | "complete");
        Self { most: peek.max_tokens.or((!generates).then_some(0)), choices: peek.n.unwrap_or(1).max(1) }
    }

    /// With a prompt of so many tokens, and a model that gives so many at the most.
    fn cost(self, prompt: u64, gives: u64) -> Estimate {
        let with = |each: u64| prompt.saturating_add(each.saturating_mul(self.choices));
        match self.most {
            Some(most) => Estimate::exactly(with(most)),
            None => Estimate { least: with(1), most: with(gives) },
        }
    }
}

/// A request that its caller's limits let through: it has its place in the rate, and its tokens are there as far as can
/// be known without a model.
#[derive(Debug)]
pub(super) struct Admitted {
    /// Names it in the journal.
    id: String,
    /// `None` where no token is counted.
    asked: Option<Asked>,
    /// A model has taken it. Another attempt is another request.
    pub used: bool,
    /// The budget made the answer shorter than the model would have.
    pub cut: bool,
}

impl Admitted {
    /// For another model, in place of one that failed before it answered. It is the same request and counts once; what is
    /// set aside for it has a name of its own.
    pub fn again(&mut self, id: String) {
        (self.id, self.used) = (id, false);
    }
}

/// What a request can have cost, by what is known of it without its plugin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Price {
    /// Tokens of the prompt: as the model counts them, else by its bytes; 0 where no token is counted.
    pub prompt: u64,
    /// Tokens that the prompt can have at the most, and the answer: more of it if it has more bytes.
    pub most: (u64, u64),
}

/// Bytes of a token, where nobody counts.
pub(super) const BYTES_OF_A_TOKEN: u64 = 4;
/// Tokens that a prompt may have beyond its bytes: a model's template adds to it, and a picture may be named by its
/// address.
const ADDED: u64 = 4096;

/// What a request has to pay with, at one model.
pub(super) struct Purse {
    pub reservation: Reservation,
    /// What is charged where the plugin does not say what it consumed, and how much of what it says is believed.
    pub price: Price,
    /// The parameters, where the answer has to be shorter than they say.
    pub params: Option<String>,
}

/// Takes the request's place in the rate. Refuses what no model could do within the budget that is left.
pub(super) fn admit(parts: &Parts, request: &Request, id: String) -> Result<Admitted> {
    let asked = parts.limiter.counts_tokens(&request.caller).then(|| Asked::of(request));
    // A prompt may be empty, and what a model gives is not known here.
    let least = asked.map_or(Estimate::exactly(0), |asked| asked.cost(0, u64::MAX));
    match parts.limiter.admit(&request.caller, least) {
        Ok(rated) => {
            if rated {
                parts.metrics.limiter_decision("requests", "allowed");
            }
            Ok(Admitted { id, asked, used: false, cut: false })
        }
        Err(error) => Err(refused(parts, error)),
    }
}

/// Sets aside what the request may cost at this model. `gives`: tokens of an answer where the request says nothing of it, by
/// the model's card or the route's default.
pub(super) async fn reserve(
    parts: &Parts,
    request: &Request,
    backend: &Backend,
    gives: Option<u32>,
    admitted: &mut Admitted,
) -> Result<Purse> {
    // A token has a byte at least.
    let bytes = request.params.len() as u64;
    let sent = request.tensors.iter().fold(bytes, |sum, tensor| sum.saturating_add(tensor.size() as u64));
    let Some(asked) = admitted.asked else {
        let price = Price { prompt: 0, most: (sent.saturating_add(ADDED), DEFAULT_MAX_TOKENS) };
        return Ok(Purse { reservation: Reservation::free(), price, params: None });
    };
    let counted = count(parts, request, backend.model()).await?;
    let prompt = counted.unwrap_or(bytes);
    let context = backend.model().description().context.map(u64::from);
    let room = context.map(|context| context.saturating_sub(prompt).max(1));
    let known = [gives.map(u64::from), room].into_iter().flatten().min();
    let gives = known.unwrap_or(DEFAULT_MAX_TOKENS);
    let reserved = parts.limiter.reserve(&request.caller, &admitted.id, asked.cost(prompt, gives));
    let reservation = reserved.map_err(|error| refused(parts, error))?;
    parts.metrics.limiter_decision("tokens", "allowed");
    let each = reservation.tokens().saturating_sub(prompt) / asked.choices;
    // A model that does not say when it ends is told.
    admitted.cut = asked.most.is_none() && (each < gives || known.is_none());
    let params = admitted.cut.then(|| with(&request.params, each));
    let price = Price {
        prompt: counted.unwrap_or(bytes.div_ceil(BYTES_OF_A_TOKEN)),
        most: (sent.saturating_add(ADDED).max(prompt), reservation.tokens().saturating_sub(prompt)),
    };
    Ok(Purse { reservation, price, params })
}

fn refused(parts: &Parts, error: LimitError) -> crate::error::Error {
    parts.metrics.limiter_decision(error.dimension(), "refused");
    error.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Caller;

    fn asked(capability: &str, params: &str) -> Asked {
        Asked::of(&Request::new(Caller::internal("tests"), capability, params))
    }

    #[test]
    fn who_says_how_much_needs_all_of_it_and_who_does_not_takes_what_there_is() {
        assert_eq!(asked("chat", r#"{"max_tokens":16}"#).cost(100, 4000), Estimate::exactly(116));
        assert_eq!(asked("chat", r#"{"max_tokens":16,"n":4}"#).cost(100, 4000), Estimate::exactly(164));
        assert_eq!(asked("chat", "{}").cost(100, 4000), Estimate { least: 101, most: 4100 });
        assert_eq!(asked("complete", r#"{"n":3}"#).cost(100, 50), Estimate { least: 103, most: 250 });
        assert_eq!(asked("embed", "{}").cost(100, 4000), Estimate::exactly(100));
        assert_eq!(asked("acme.tts", r#"{"max_tokens":7}"#).cost(0, 9), Estimate::exactly(7));
        let far = asked("chat", r#"{"max_tokens":18446744073709551615,"n":8}"#).cost(1, 1);
        assert_eq!(far, Estimate::exactly(u64::MAX));
    }
}
