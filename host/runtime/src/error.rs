//! What went wrong, in terms a caller can act on.

use crate::job::Route;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::time::Duration;

pub use backplane_abi::code::Code as ErrorCode;

/// A failure, of whatever part. `server/error.rs` alone turns it into an HTTP status.
///
/// Messages are lower case without a full stop, name the thing in backticks, and say what would fix it. They never
/// hold a path of this machine, a secret, or another tenant's name: causes go to the log under the request's id.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What a caller can act on.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
    /// For machines: a stable word such as `model_not_found`; empty where the code says it all.
    pub reason: Cow<'static, str>,
    /// The parameter at fault.
    pub param: Option<String>,
    /// Figures: `{"n_prompt": 5000, "n_ctx": 4096}`.
    pub details: Map<String, Value>,
    /// When it is worth trying again; `None` for never or not known.
    pub retry_after: Option<Duration>,
    /// The models that were tried, where several stood to choose from and none answered. Its model is the one whose
    /// failure this is.
    pub route: Option<Box<Route>>,
}

/// The result of what the host does.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A failure with this code and message.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            reason: Cow::Borrowed(""),
            param: None,
            details: Map::new(),
            retry_after: None,
            route: None,
        }
    }

    /// The request is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }

    /// A bug of ours. The message goes to the caller, so it must not tell of the inside.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Internal, message)
    }

    /// Transient.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Unavailable, message)
    }

    /// Adds a word for machines.
    pub fn with_reason(mut self, reason: impl Into<Cow<'static, str>>) -> Self {
        self.reason = reason.into();
        self
    }

    /// Names the parameter at fault.
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// Adds a figure.
    pub fn with_detail(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.details.insert(name.to_owned(), value.into());
        self
    }

    /// Says when it is worth trying again.
    pub fn with_retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// The caller left before the answer was there.
    pub fn cancelled() -> Self {
        Self::new(ErrorCode::Cancelled, "the caller has left")
    }

    /// The deadline passed.
    pub fn deadline(what: &str) -> Self {
        Self::new(ErrorCode::DeadlineExceeded, format!("the deadline passed while {what}"))
            .with_reason("deadline_exceeded")
    }

    /// The host is on its way down.
    pub fn shutting_down() -> Self {
        Self::unavailable("the host is shutting down").with_reason("shutting_down")
    }
}
