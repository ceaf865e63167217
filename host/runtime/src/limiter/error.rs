//! Why a request was not admitted.

use super::budget::Estimate;
use super::journal::JournalError;
use crate::error::{Error, ErrorCode};
use std::sync::Arc;
use std::time::Duration;

/// A limit that a request ran into. Every message says whose it is, what it counts, and the numbers.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum LimitError {
    /// Too many requests.
    #[error("key `{key}` may make {limit} requests a minute, and has made them; retry in {}", shown(*.retry_after))]
    RateExceeded {
        /// Whose limit.
        key: Arc<str>,
        /// Requests a minute.
        limit: u64,
        /// Exactly how long to wait.
        retry_after: Duration,
    },
    /// The budget is used up.
    #[error(
        "key `{key}` may spend {limit} tokens ({window}), {remaining} are left{}, and this request {}; {}, or {}",
        beside(*reserved), cost(*estimate), less(*estimate),
        match resets_in {
            Some(wait) => format!("wait {} for the next window", shown(*wait)),
            None => "use a key with a larger budget".to_owned(),
        }
    )]
    BudgetExceeded {
        /// Whose limit.
        key: Arc<str>,
        /// Tokens in a window.
        limit: u64,
        /// The window's period.
        window: super::Period,
        /// What is left.
        remaining: u64,
        /// What is set aside for requests that are open: what they do not use comes back when they end.
        reserved: u64,
        /// What the request may cost.
        estimate: Estimate,
        /// When the window ends; `None`: never.
        resets_in: Option<Duration>,
    },
    /// More than a whole budget: no waiting helps.
    #[error(
        "this request {} tokens, and key `{key}` may spend {limit} in all ({window}); {}, or use a key with a larger budget",
        cost(*estimate), less(*estimate),
    )]
    TooLargeForLimit {
        /// Whose limit.
        key: Arc<str>,
        /// Tokens in a window.
        limit: u64,
        /// The window's period.
        window: super::Period,
        /// What the request may cost.
        estimate: Estimate,
    },
    /// The journal cannot be written, so no token can be spent.
    #[error(
        "the token budget of key `{key}` cannot be kept now, for its journal cannot be written; retry later"
    )]
    StoreUnavailable {
        /// Whose limit.
        key: Arc<str>,
        /// For the log.
        source: JournalError,
    },
}

/// Where the request sets no `max_tokens`, its prompt and one token of each answer have to fit.
fn cost(estimate: Estimate) -> String {
    let needs = if estimate.least == estimate.most { "may cost" } else { "costs at least" };
    format!("{needs} {}", estimate.least)
}

/// What other requests hold, which a person would else look for in vain among what was spent.
fn beside(reserved: u64) -> String {
    match reserved {
        0 => String::new(),
        tokens => format!(" beside {tokens} that are set aside for its open requests"),
    }
}

fn less(estimate: Estimate) -> &'static str {
    if estimate.least == estimate.most { "ask for less with `max_tokens`" } else { "shorten it" }
}

/// Rounded up to what a person reads; the exact figure is in the headers.
fn shown(wait: Duration) -> humantime::FormattedDuration {
    let unit = if wait < Duration::from_secs(1) { 1 } else { 1000 };
    let millis = u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX / unit);
    humantime::format_duration(Duration::from_millis(millis.max(1).div_ceil(unit) * unit))
}

impl LimitError {
    /// What a caller can act on.
    pub fn code(&self) -> ErrorCode {
        match self {
            LimitError::RateExceeded { .. } | LimitError::BudgetExceeded { .. } => {
                ErrorCode::ResourceExhausted
            }
            LimitError::TooLargeForLimit { .. } => ErrorCode::InvalidArgument,
            LimitError::StoreUnavailable { .. } => ErrorCode::Unavailable,
        }
    }

    /// What the limit counts: `"requests"` or `"tokens"`.
    pub fn dimension(&self) -> &'static str {
        match self {
            LimitError::RateExceeded { .. } => "requests",
            LimitError::BudgetExceeded { .. }
            | LimitError::TooLargeForLimit { .. }
            | LimitError::StoreUnavailable { .. } => "tokens",
        }
    }
}

impl From<LimitError> for Error {
    fn from(error: LimitError) -> Self {
        let out = Error::new(error.code(), error.to_string()).with_detail("scope", "key");
        match error {
            LimitError::RateExceeded { limit, retry_after, .. } => out
                .with_reason("rate_limit_exceeded")
                .with_detail("dimension", "requests")
                .with_detail("limit", limit)
                .with_retry_after(retry_after),
            // No time to come back: a client that retries would only be refused again, for hours.
            LimitError::BudgetExceeded { limit, remaining, reserved, estimate, .. } => out
                .with_reason("insufficient_quota")
                .with_detail("dimension", "tokens")
                .with_detail("limit", limit)
                .with_detail("remaining", remaining)
                .with_detail("reserved", reserved)
                .with_detail("estimate", estimate.least),
            LimitError::TooLargeForLimit { limit, estimate, .. } => out
                .with_reason("limit_too_small")
                .with_param("max_tokens")
                .with_detail("dimension", "tokens")
                .with_detail("limit", limit)
                .with_detail("estimate", estimate.least),
            LimitError::StoreUnavailable { source, .. } => {
                tracing::error!(error = %source, "the journal cannot be written; keys with a token budget are refused");
                out.with_reason("quota_store_unavailable").with_retry_after(Duration::from_secs(5))
            }
        }
    }
}
