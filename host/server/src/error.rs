//! The only place that knows HTTP statuses for failures, and the two bodies a failure is told in.

use actix_web::HttpResponse;
use actix_web::body::BoxBody;
use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use backplane::{Error, ErrorCode};
use schemars::JsonSchema;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};
use std::time::Duration;

/// Which protocol a route speaks, and so how it words a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// `{"error": {"message", "type", "param", "code"}}`.
    OpenAi,
    /// `{"error": "…"}`; LibreTranslate has the same.
    Oip,
}

impl Dialect {
    /// The dialect of a path that no route has.
    pub(crate) fn of_path(path: &str) -> Self {
        const LIBRE: [&str; 5] =
            ["/translate", "/detect", "/languages", "/translate_file", "/frontend/settings"];
        let says_error = path == "/v2"
            || path.starts_with("/v2/")
            || LIBRE.contains(&path)
            || path.starts_with("/download_file/");
        if says_error { Dialect::Oip } else { Dialect::OpenAi }
    }
}

/// Reasons of this crate: shapes of a request that only HTTP has.
pub(crate) mod reason {
    pub(crate) const FETCH_DISABLED: &str = "fetch_disabled";
    pub(crate) const FETCH_REFUSED: &str = "fetch_refused";
    pub(crate) const FETCH_FAILED: &str = "fetch_failed";
    pub(crate) const ROUTE_NOT_FOUND: &str = "route_not_found";
    pub(crate) const METHOD_NOT_ALLOWED: &str = "method_not_allowed";
    pub(crate) const BODY_TOO_LARGE: &str = "body_too_large";
    pub(crate) const UNSUPPORTED_MEDIA_TYPE: &str = "unsupported_media_type";
    pub(crate) const IGNORED_PARAMS: &str = "ignored_params";
    pub(crate) const INVALID_TYPE: &str = "invalid_type";
    pub(crate) const UNSUPPORTED_PARAM: &str = "unsupported_param";
    pub(crate) const MALFORMED_REQUEST: &str = "malformed_request";
    pub(crate) const LENGTH_REQUIRED: &str = "length_required";
    pub(crate) const URI_TOO_LONG: &str = "uri_too_long";
    pub(crate) const HEADER_TOO_LARGE: &str = "header_too_large";
    pub(crate) const EXPECTATION_FAILED: &str = "expectation_failed";
    pub(crate) const REQUEST_TIMEOUT: &str = "request_timeout";
    pub(crate) const HTTP_VERSION: &str = "http_version_not_supported";
}

/// Says which member of a request is too long, where the plugin did not: it knows the capability's words, not OpenAI's.
pub(crate) fn too_long(mut error: Error, input: &'static str) -> Error {
    if error.reason == "context_length_exceeded" && error.param.is_none() {
        error.param = Some(input.to_owned());
    }
    error
}

/// The status of a failure: its reason's, where the reason says more than the code, else its code's.
pub(crate) fn status(error: &Error) -> StatusCode {
    match error.reason.as_ref() {
        reason::METHOD_NOT_ALLOWED => StatusCode::METHOD_NOT_ALLOWED,
        reason::BODY_TOO_LARGE => StatusCode::PAYLOAD_TOO_LARGE,
        reason::UNSUPPORTED_MEDIA_TYPE => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        reason::REQUEST_TIMEOUT => StatusCode::REQUEST_TIMEOUT,
        reason::LENGTH_REQUIRED => StatusCode::LENGTH_REQUIRED,
        reason::URI_TOO_LONG => StatusCode::URI_TOO_LONG,
        reason::EXPECTATION_FAILED => StatusCode::EXPECTATION_FAILED,
        reason::HEADER_TOO_LARGE => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        reason::HTTP_VERSION => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
        "model_invalid" => StatusCode::UNPROCESSABLE_ENTITY,
        "limit_too_small" | "context_length_exceeded" => StatusCode::BAD_REQUEST,
        "overloaded" | "no_memory" | "shutting_down" | "load_failed" | "quota_store_unavailable" => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        _ => match error.code {
            ErrorCode::InvalidArgument | ErrorCode::OutOfRange => StatusCode::BAD_REQUEST,
            ErrorCode::Unauthenticated => StatusCode::UNAUTHORIZED,
            ErrorCode::PermissionDenied => StatusCode::FORBIDDEN,
            ErrorCode::NotFound => StatusCode::NOT_FOUND,
            ErrorCode::AlreadyExists | ErrorCode::Aborted => StatusCode::CONFLICT,
            ErrorCode::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            ErrorCode::Cancelled => client_closed_request(),
            ErrorCode::Unknown | ErrorCode::Internal | ErrorCode::DataLoss => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            ErrorCode::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            // The system must change first, so it is not the caller's mistake; see `should_retry`.
            ErrorCode::FailedPrecondition | ErrorCode::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        },
    }
}

/// 499, nginx's: nobody reads it, logs do.
fn client_closed_request() -> StatusCode {
    StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST)
}

/// Whether the same request may succeed later. The OpenAI SDKs retry every 408, 409, 429 and 5xx unless told.
fn should_retry(error: &Error) -> Option<bool> {
    let status = status(error);
    let retried = status.is_server_error() || matches!(status.as_u16(), 408 | 409 | 429);
    retried.then(|| match error.code {
        // The same key is as wrong after the wait as before it.
        _ if matches!(error.reason.as_ref(), "insufficient_quota" | "too_many_invalid_keys") => false,
        _ if error.retry_after.is_some() => true,
        _ if is_the_operators(error) => false,
        ErrorCode::Unavailable | ErrorCode::ResourceExhausted | ErrorCode::Aborted => true,
        _ => false,
    })
}

/// Whether the operator has to mend it: then it is not over soon.
fn is_the_operators(error: &Error) -> bool {
    // To other models and versions, which may stand in, a plugin in quarantine is one that is not there.
    error.code == ErrorCode::FailedPrecondition || error.reason == "plugin_quarantined"
}

/// OpenAI's word for the kind of failure.
fn kind(error: &Error) -> &'static str {
    match status(error).as_u16() {
        _ if error.reason == "insufficient_quota" => "insufficient_quota",
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        429 => "rate_limit_error",
        503 if !is_the_operators(error) => "overloaded",
        status if status < 500 => "invalid_request_error",
        _ => "server_error",
    }
}

/// A failure as OpenAI tells it.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "OpenAiErrorBody")]
pub(crate) struct OpenAiBody<'a> {
    error: OpenAiError<'a>,
}

/// What was wrong.
#[derive(Serialize, JsonSchema)]
struct OpenAiError<'a> {
    /// For people: what was wrong, with what, and what would fix it.
    message: &'a str,
    /// The kind of failure.
    r#type: &'static str,
    /// The member of the request that is at fault.
    param: Option<&'a str>,
    /// For machines.
    code: &'a str,
    /// Figures, beside the four members everybody knows: `n_prompt`, `n_ctx`.
    #[serde(flatten, serialize_with = "beside_the_four")]
    details: &'a Map<String, Value>,
}

/// A plugin names its figures as it likes; one that has the name of a member would make two of it.
fn beside_the_four<S: Serializer>(details: &Map<String, Value>, to: S) -> Result<S::Ok, S::Error> {
    let taken = |name: &str| matches!(name, "message" | "type" | "param" | "code");
    to.collect_map(details.iter().filter(|(name, _)| !taken(name)))
}

/// A failure as the Open Inference Protocol tells it.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "OipErrorBody")]
pub(crate) struct OipBody<'a> {
    /// What was wrong, with what, and what would fix it.
    error: &'a str,
}

/// The JSON text of a failure.
pub(crate) fn body(error: &Error, dialect: Dialect) -> String {
    let text = match dialect {
        Dialect::OpenAi => serde_json::to_string(&OpenAiBody {
            error: OpenAiError {
                message: &error.message,
                r#type: kind(error),
                param: error.param.as_deref(),
                code: if error.reason.is_empty() { error.code.name() } else { &error.reason },
                details: &error.details,
            },
        }),
        Dialect::Oip => serde_json::to_string(&OipBody { error: &error.message }),
    };
    text.unwrap_or_else(|_| r#"{"error":"internal"}"#.to_owned())
}

/// The whole answer of a failure.
pub(crate) fn response(error: &Error, dialect: Dialect) -> HttpResponse {
    let mut response = HttpResponse::with_body(status(error), BoxBody::new(body(error, dialect)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(wait) = error.retry_after.filter(|_| error.reason != "insufficient_quota") {
        retry_headers(wait).into_iter().for_each(|(name, value)| {
            headers.insert(name, value);
        });
    }
    if let Some(retry) = should_retry(error) {
        let value = HeaderValue::from_static(if retry { "true" } else { "false" });
        headers.insert(HeaderName::from_static("x-should-retry"), value);
    }
    if let Some(route) = &error.route {
        crate::head::tried(route, headers);
    }
    if error.code == ErrorCode::Unauthenticated {
        headers.insert(HeaderName::from_static("www-authenticate"), HeaderValue::from_static("Bearer"));
    }
    response
}

/// Whole seconds, rounded up, for everybody; milliseconds for those who read them (the OpenAI SDKs do).
fn retry_headers(wait: Duration) -> [(HeaderName, HeaderValue); 2] {
    let millis = u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    [
        (RETRY_AFTER, HeaderValue::from(millis.div_ceil(1000))),
        (HeaderName::from_static("retry-after-ms"), HeaderValue::from(millis)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_failing_status_and_both_bodies() {
        for code in ErrorCode::ALL {
            let error = Error::new(code, "`x` is wrong");
            assert!(status(&error).as_u16() >= 400, "{code}");
            let body: Value = serde_json::from_str(&body(&error, Dialect::OpenAi)).unwrap();
            assert_eq!(body["error"]["message"], "`x` is wrong");
            assert_eq!(body["error"]["code"], code.name());
            assert_eq!(body["error"]["param"], Value::Null);
            assert!(body["error"]["type"].is_string());
        }
        let error = Error::invalid("no");
        assert_eq!(super::body(&error, Dialect::Oip), r#"{"error":"no"}"#);
    }

    #[test]
    fn reasons_speak_louder_than_codes() {
        let status_of =
            |code, reason: &'static str| status(&Error::new(code, "x").with_reason(reason)).as_u16();
        assert_eq!(status_of(ErrorCode::ResourceExhausted, "rate_limit_exceeded"), 429);
        assert_eq!(status_of(ErrorCode::ResourceExhausted, "overloaded"), 503);
        assert_eq!(status_of(ErrorCode::InvalidArgument, "model_invalid"), 422);
        assert_eq!(status_of(ErrorCode::OutOfRange, "context_length_exceeded"), 400);
        assert_eq!(status_of(ErrorCode::ResourceExhausted, "no_memory"), 503);
        assert_eq!(status_of(ErrorCode::InvalidArgument, reason::METHOD_NOT_ALLOWED), 405);
    }

    #[test]
    fn waiting_is_exact_and_a_spent_quota_is_not_retried() {
        let header = |error: &Error, name: &str| {
            response(error, Dialect::OpenAi)
                .headers()
                .get(name)
                .map(|value| value.to_str().unwrap().to_owned())
        };
        let limited = Error::new(ErrorCode::ResourceExhausted, "slow down")
            .with_reason("rate_limit_exceeded")
            .with_retry_after(Duration::from_micros(1_200_001));
        assert_eq!(header(&limited, "retry-after").as_deref(), Some("2"));
        assert_eq!(header(&limited, "retry-after-ms").as_deref(), Some("1201"));
        assert_eq!(header(&limited, "x-should-retry").as_deref(), Some("true"));

        let spent = limited.with_reason("insufficient_quota");
        assert_eq!(header(&spent, "retry-after"), None);
        assert_eq!(header(&spent, "x-should-retry").as_deref(), Some("false"));
        assert_eq!(header(&Error::invalid("x"), "x-should-retry"), None);
        assert_eq!(
            header(&Error::new(ErrorCode::FailedPrecondition, "x"), "x-should-retry").as_deref(),
            Some("false")
        );
        let quarantined = Error::unavailable("x").with_reason("plugin_quarantined");
        assert_eq!((status(&quarantined).as_u16(), kind(&quarantined)), (503, "server_error"));
        assert_eq!(header(&quarantined, "x-should-retry").as_deref(), Some("false"));
    }

    #[test]
    fn figures_stand_beside_the_message() {
        let error = Error::new(ErrorCode::OutOfRange, "too long")
            .with_reason("context_length_exceeded")
            .with_param("messages")
            .with_detail("n_prompt", 5000);
        let body: Value = serde_json::from_str(&body(&error, Dialect::OpenAi)).unwrap();
        assert_eq!(body["error"]["n_prompt"], 5000);
        assert_eq!(body["error"]["code"], "context_length_exceeded");
        assert_eq!(body["error"]["type"], "invalid_request_error");
        assert_eq!(body["error"]["param"], "messages");
    }

    #[test]
    fn a_figure_never_doubles_a_member() {
        let error = ["message", "type", "param", "code"]
            .iter()
            .fold(Error::invalid("no"), |error, name| error.with_detail(name, "another"))
            .with_detail("n", 1);
        let expected = r#"{"error":{"message":"no","type":"invalid_request_error","param":null,"code":"invalid_argument","n":1}}"#;
        assert_eq!(body(&error, Dialect::OpenAi), expected);
    }
}
