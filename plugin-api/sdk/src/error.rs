//! How a plugin says what went wrong.

use backplane_abi::code::Code;
use serde_json::{Map, Value};
use std::time::Duration;

/// The result of everything a plugin does.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure: a [`Code`] the caller can act on, a message for people, and figures for machines.
///
/// Messages say what was wrong, with what, and what would fix it; lower case, names in backticks.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    /// What a caller can act on.
    pub code: Code,
    /// For people.
    pub message: String,
    /// For machines: a stable word such as `context_length_exceeded`.
    pub reason: Option<String>,
    /// Figures: `{"n_prompt": 5000}`. Boxed, since every result of a plugin is as large as its error.
    pub details: Box<Map<String, Value>>,
    /// When it is worth trying again.
    pub retry_after: Option<Duration>,
    /// Whether the instance that failed can serve no more; the host replaces it.
    pub poisons: bool,
    pub(crate) panicked: bool,
}

impl Error {
    /// A failure with this code and message.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            reason: None,
            details: Box::default(),
            retry_after: None,
            poisons: false,
            panicked: false,
        }
    }

    /// The request is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    /// A bug in the plugin.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    /// Something is not there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, message)
    }

    /// A model file is corrupt or not what it says; the reason is `model_invalid`.
    pub fn model_invalid(message: impl Into<String>) -> Self {
        Self::new(Code::DataLoss, message).with_reason("model_invalid")
    }

    /// The caller left.
    pub fn cancelled() -> Self {
        Self::new(Code::Cancelled, "the caller has left")
    }

    /// Adds a word for machines.
    pub fn with_reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// Names the parameter at fault.
    pub fn with_param(self, param: impl Into<String>) -> Self {
        self.with_detail("param", param.into())
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

    /// Says that the instance can serve no more.
    pub fn poisons(mut self) -> Self {
        self.poisons = true;
        self
    }

    pub(crate) fn panic(message: String) -> Self {
        Self { panicked: true, poisons: true, ..Self::internal(format!("the plugin panicked: {message}")) }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Error::invalid(format!("the parameters are not what this capability takes: {error}"))
    }
}
