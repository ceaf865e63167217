//! Errors as LibreTranslate words them: its clients show them, and some look for them.

use backplane::payload::languages::Language;
use backplane::{Error, ErrorCode};

pub(crate) fn missing(name: &str) -> Error {
    Error::invalid(format!("Invalid request: missing {name} parameter"))
        .with_reason("missing_param")
        .with_param(name)
}

pub(crate) fn unsupported(code: &str, param: &str) -> Error {
    Error::invalid(format!("{code} is not supported")).with_reason("language_not_supported").with_param(param)
}

pub(crate) fn unsupported_format(format: &str) -> Error {
    Error::invalid(format!("{format} format is not supported"))
        .with_reason("invalid_value")
        .with_param("format")
}

pub(crate) fn no_such_pair(from: &Language, to: &Language) -> Error {
    let message = format!(
        "{} ({}) is not available as a target language from {} ({})",
        to.name, to.code, from.name, from.code
    );
    Error::invalid(message).with_reason("language_pair_not_found").with_param("target")
}

/// What a caller's key is refused with.
pub(crate) fn key(error: Error) -> Error {
    match error.reason.as_ref() {
        "missing_api_key" => Error::invalid("Please contact the server operator to get an API key")
            .with_reason("missing_api_key"),
        "invalid_api_key" => {
            Error::new(ErrorCode::PermissionDenied, "Invalid API key").with_reason("invalid_api_key")
        }
        _ => error,
    }
}

/// What failed while it was translated.
pub(crate) fn failed(mut error: Error) -> Error {
    match error.code {
        ErrorCode::ResourceExhausted => error.message = format!("Slowdown: {}", error.message),
        ErrorCode::InvalidArgument | ErrorCode::Cancelled | ErrorCode::PermissionDenied => {}
        _ => error.message = format!("Cannot translate text: {}", error.message),
    }
    error
}
