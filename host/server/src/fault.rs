//! Failures that are a plugin's: it did not keep to its capability's schema.

use backplane::{Error, ErrorCode};

const REASON: &str = "plugin_fault";

/// A piece is not of the capability's schema.
pub(crate) fn schema(plugin: &str, error: &serde_json::Error) -> Error {
    Error::internal(format!(
        "plugin `{plugin}` answered with JSON that its capability does not allow: {error}"
    ))
    .with_reason(REASON)
}

/// The answer ended before it was complete: passing it on as complete would be a lie.
pub(crate) fn unfinished(plugin: &str) -> Error {
    Error::internal(format!("plugin `{plugin}` ended its answer without a `finish_reason`"))
        .with_reason(REASON)
}

/// A tensor is not there, or not what the capability says it is.
pub(crate) fn tensor(plugin: &str, what: &str) -> Error {
    Error::internal(format!("plugin `{plugin}` answered without {what}")).with_reason(REASON)
}

/// A piece that JSON has no words for.
pub(crate) fn unwritable(error: &serde_json::Error) -> Error {
    Error::new(ErrorCode::Internal, format!("the answer cannot be written as JSON: {error}"))
}

/// A handler of ours panicked. Its words are for the log.
pub(crate) fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    let words = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    tracing::error!(panic = words, "a handler panicked");
    Error::internal("the server made a mistake; its log has more under this answer's `x-request-id`")
        .with_reason("panic")
}
