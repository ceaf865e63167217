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

/// More texts in a request than are taken.
pub(crate) fn too_many(size: usize, limit: usize) -> Error {
    let message = format!("Invalid request: request ({size}) exceeds text limit ({limit})");
    Error::new(ErrorCode::OutOfRange, message).with_reason("invalid_value").with_param("q")
}

pub(crate) fn at_most(name: &str, limit: u32) -> Error {
    let message = format!("Invalid request: {name} parameter must be <= {limit}");
    Error::new(ErrorCode::OutOfRange, message).with_reason("invalid_value").with_param(name)
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

/// What failed while it was translated. The capability's `text` is `q` here.
pub(crate) fn failed(mut error: Error) -> Error {
    let is_text = |rest: &str| rest.is_empty() || rest.starts_with('[');
    if let Some(rest) =
        error.param.as_deref().and_then(|param| param.strip_prefix("text")).filter(|rest| is_text(rest))
    {
        let (text, q) = (format!("`text{rest}`"), format!("q{rest}"));
        error.message = error.message.replace(&text, &format!("`{q}`"));
        error.param = Some(q);
    }
    match error.code {
        ErrorCode::ResourceExhausted => error.message = format!("Slowdown: {}", error.message),
        ErrorCode::InvalidArgument
        | ErrorCode::OutOfRange
        | ErrorCode::Cancelled
        | ErrorCode::PermissionDenied => {}
        _ => error.message = format!("Cannot translate text: {}", error.message),
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_said_as_libretranslate_says_it() {
        let said = |code, message: &str| failed(Error::new(code, message)).message;
        assert_eq!(said(ErrorCode::ResourceExhausted, "3 per minute"), "Slowdown: 3 per minute");
        for code in
            [ErrorCode::Internal, ErrorCode::Unavailable, ErrorCode::DeadlineExceeded, ErrorCode::NotFound]
        {
            assert_eq!(said(code, "it broke"), "Cannot translate text: it broke", "{code:?}");
        }
        // What is wrong with the request is said as it is, by the name that the caller gave it.
        let out = failed(Error::new(ErrorCode::OutOfRange, "`text` has 9 texts").with_param("text"));
        assert_eq!((&*out.message, out.param.as_deref()), ("`q` has 9 texts", Some("q")));
        let second = failed(Error::invalid("`text[1]` has no subtitle").with_param("text[1]"));
        assert_eq!((&*second.message, second.param.as_deref()), ("`q[1]` has no subtitle", Some("q[1]")));
        assert_eq!(said(ErrorCode::InvalidArgument, "`glossary` is wrong"), "`glossary` is wrong");
    }

    #[test]
    fn a_pair_that_is_not_there_is_named_as_libretranslate_names_it() {
        let language = |code: &str, name: &str| Language {
            code: code.to_owned(),
            name: name.to_owned(),
            ..Language::default()
        };
        assert_eq!(
            no_such_pair(&language("en", "English"), &language("ja", "Japanese")).message,
            "Japanese (ja) is not available as a target language from English (en)"
        );
    }
}
