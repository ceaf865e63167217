//! What went wrong at an upstream, in the host's words.
//!
//! The caller is told what it can act on. It is not the caller's fault that our key was refused, so a 401 of theirs is
//! not a 401 of ours; and what such an answer says is not repeated, since servers quote the key in it.

use crate::settings::Flavour;
use backplane_plugin::prelude::*;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::time::{Duration, SystemTime};

/// Most of a server's message that is passed on, in characters.
const MAX_MESSAGE: usize = 500;

/// What a server says of a request that was too long and is passed on.
const FIGURES: [&str; 4] = ["n_prompt", "n_ctx", "n_over", "max_tokens"];

/// What every one of our errors says of itself to a machine.
pub const UNREACHABLE: &str = "upstream_unreachable";
const REFUSED_KEY: &str = "upstream_auth";
const LIMITED: &str = "upstream_rate_limited";
const BROKEN: &str = "upstream_error";
/// A budget or an account is used up.
const SPENT: &str = "insufficient_quota";
/// The stream ended before the answer did.
pub const CUT: &str = "upstream_cut";

/// A refusal, as servers write it: OpenAI's form, vLLM's older one, FastAPI's, and plain text.
#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct Said {
    pub message: String,
    pub param: Option<Value>,
    pub code: Option<Value>,
    #[serde(rename = "type")]
    pub kind: Option<Value>,
    /// Figures, as llama.cpp's server and a Backplane have them.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// Whose fault a refusal is, as far as the server tells. A key is shared by all callers, so that it rests only for what
/// is its own.
#[derive(Debug, PartialEq, Eq)]
pub enum Blame {
    /// The key is wrong, or may not.
    Key,
    /// The key is limited for so long.
    Limit(Duration),
    /// The key's or the request's.
    Unclear,
    /// The request's, which said nothing against the key.
    Request,
    /// The server's, which says nothing of the key.
    Server,
}

impl Said {
    /// Whose fault it is.
    pub fn blames(&self, status: u16, flavour: Flavour, retry_after: Option<Duration>) -> Blame {
        let ours = flavour == Flavour::Backplane;
        match (status, retry_after) {
            (401, _) => Blame::Key,
            (403, _) if self.is_of_key() => Blame::Key,
            (403, _) if ours => Blame::Request,
            // Too much for what is left of the key's budget: a smaller request is served.
            (429, _) if ours && self.code() == SPENT => Blame::Request,
            (429, Some(wait)) => Blame::Limit(wait),
            (403 | 429, _) => Blame::Unclear,
            (500.., _) => Blame::Server,
            _ => Blame::Request,
        }
    }

    /// Whether a 403 says that it is for the key, and not for what was asked.
    fn is_of_key(&self) -> bool {
        let kind = self.kind.as_ref().and_then(Value::as_str);
        matches!(self.code(), "admin_only" | "account_deactivated")
            || self.code().contains("api_key")
            || kind == Some("authentication_error")
    }

    /// Reads the body of an answer, whatever it is.
    pub fn read(body: &[u8]) -> Self {
        let Ok(Value::Object(mut body)) = serde_json::from_slice::<Value>(body) else {
            return Self { message: String::from_utf8_lossy(body).trim().to_owned(), ..Self::default() };
        };
        match body.remove("error").or_else(|| body.remove("detail")) {
            Some(Value::String(message)) => Self { message, ..Self::default() },
            Some(said @ Value::Object(_)) => serde_json::from_value(said).unwrap_or_default(),
            Some(other) => Self { message: other.to_string(), ..Self::default() },
            None => serde_json::from_value(Value::Object(body)).unwrap_or_default(),
        }
    }

    fn message(&self) -> String {
        let mut message: String = self.message.chars().take(MAX_MESSAGE).collect();
        if message.len() < self.message.len() {
            message.push('…');
        }
        if message.is_empty() { "nothing".to_owned() } else { message }
    }

    fn code(&self) -> &str {
        self.code.as_ref().and_then(Value::as_str).unwrap_or_default()
    }

    /// Names the member of the request that the server names.
    fn at_fault(&self, error: Error) -> Error {
        match self.param.as_ref().and_then(Value::as_str) {
            Some(param) => error.with_param(param),
            None => error,
        }
    }

    /// Whether the prompt was too long, as OpenAI, llama.cpp's server and vLLM say so.
    fn is_too_long(&self) -> bool {
        self.code() == "context_length_exceeded"
            || self.kind.as_ref().and_then(Value::as_str) == Some("exceed_context_size_error")
            || self.message.contains("maximum context length")
    }
}

/// The error for an answer with this status. `server` is what people call the upstream: its host.
pub fn of_status(server: &str, status: u16, said: &Said, retry_after: Option<Duration>) -> Error {
    let with = |code, reason: &str, what: String| {
        Error::new(code, what).with_reason(reason).with_detail("upstream_status", status)
    };
    let says = said.message();
    match status {
        400 | 413 | 422 if said.is_too_long() => {
            let what = format!("upstream `{server}` refused: {says}");
            let error = said.at_fault(with(Code::OutOfRange, "context_length_exceeded", what));
            FIGURES.iter().fold(error, |error, name| match said.more.get(*name) {
                Some(Value::Number(figure)) => error.with_detail(name, figure.clone()),
                _ => error,
            })
        }
        400 | 413 | 422 => {
            let error = Error::invalid(format!("upstream `{server}` refused: {says}"));
            said.at_fault(error.with_detail("upstream_status", status))
        }
        403 if !said.code().is_empty() && !said.is_of_key() => with(
            Code::FailedPrecondition,
            BROKEN,
            format!("upstream `{server}` does not serve this request ({}): {says}", said.code()),
        ),
        401 | 403 => with(
            Code::FailedPrecondition,
            REFUSED_KEY,
            format!(
                "upstream `{server}` refused this host's key with {status}: mend `keys` of that upstream"
            ),
        ),
        404 => with(
            Code::FailedPrecondition,
            BROKEN,
            format!("upstream `{server}` does not have it: {says}; look at `url` and `model` of the card"),
        ),
        408 | 504 => {
            with(Code::Unavailable, BROKEN, format!("upstream `{server}` took too long ({status}): {says}"))
        }
        429 if said.code() == SPENT => with(
            Code::FailedPrecondition,
            LIMITED,
            format!("what this host has left at upstream `{server}` is too little for this request: {says}"),
        ),
        429 => {
            let error = with(
                Code::ResourceExhausted,
                LIMITED,
                format!("upstream `{server}` limits this host: {says}"),
            );
            error.with_retry_after(retry_after.unwrap_or(Duration::from_secs(1)))
        }
        _ => {
            let error =
                with(Code::Unavailable, BROKEN, format!("upstream `{server}` failed with {status}: {says}"));
            retry_after.into_iter().fold(error, Error::with_retry_after)
        }
    }
}

/// An error that came inside a stream.
pub fn of_event(server: &str, said: &Said) -> Error {
    Error::new(Code::Unavailable, format!("upstream `{server}` broke off: {}", said.message()))
        .with_reason(BROKEN)
}

/// The server said what is not in the protocol.
pub fn malformed(server: &str, what: impl std::fmt::Display) -> Error {
    Error::new(Code::Unavailable, format!("upstream `{server}` does not keep to its API: {what}"))
        .with_reason(BROKEN)
}

/// When to ask again: `retry-after-ms`, `retry-after` in seconds or as a date, or the `x-ratelimit-reset-*` that
/// OpenAI and others send (`1s`, `6m0s`, `250ms`).
pub fn retry_after<'a>(header: impl Fn(&str) -> Option<&'a str>, now: SystemTime) -> Option<Duration> {
    let milliseconds = || header("retry-after-ms")?.parse().ok().map(Duration::from_millis);
    let after = || {
        let text = header("retry-after")?;
        let seconds = text.parse::<f64>().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        seconds.or_else(|| date(text)?.duration_since(now).ok())
    };
    let said = milliseconds().or_else(after).or_else(|| exhausted(&header));
    said.map(|wait| wait.min(Duration::from_secs(24 * 60 * 60)))
}

/// How long nothing is left of what a key may have, requests or tokens; an answer says so too, not only a refusal.
pub fn exhausted<'a>(header: impl Fn(&str) -> Option<&'a str>) -> Option<Duration> {
    let none_left = |kind: &str| header(&format!("x-ratelimit-remaining-{kind}")) == Some("0");
    let reset = |kind: &str| humantime::parse_duration(header(&format!("x-ratelimit-reset-{kind}"))?).ok();
    ["requests", "tokens"].into_iter().filter(|kind| none_left(kind)).filter_map(reset).max()
}

/// A date of RFC 9110: `Sun, 06 Nov 1994 08:49:37 GMT`. The two obsolete forms are not read.
fn date(text: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut parts = text.split_once(", ")?.1.split(' ');
    let (day, month, year, time) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    humantime::parse_rfc3339(&format!("{year}-{month:02}-{day}T{time}Z")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_read_in_every_form() {
        let read = |text: &str| Said::read(text.as_bytes());
        let said =
            read(r#"{"error":{"message":"m","type":"t","param":"p","code":"context_length_exceeded"}}"#);
        assert_eq!((said.message.as_str(), said.code()), ("m", "context_length_exceeded"));
        assert_eq!(read(r#"{"object":"error","message":"m","code":400}"#).message, "m");
        assert_eq!(read(r#"{"error":"m"}"#).message, "m");
        assert_eq!(read(r#"{"detail":"Not Found"}"#).message, "Not Found");
        assert_eq!(read(r#"{"detail":[{"loc":["body"]}]}"#).message, r#"[{"loc":["body"]}]"#);
        assert_eq!(read("<html>Bad Gateway").message, "<html>Bad Gateway");
        assert_eq!(read("").message, "");
        assert!(read(&"x".repeat(9000)).message().chars().count() <= MAX_MESSAGE + 1);
    }

    #[test]
    fn a_status_becomes_what_the_caller_can_act_on() {
        let said = Said { message: "says sk-123".into(), ..Said::default() };
        let of = |status| of_status("h", status, &said, None);
        assert_eq!(of(400).code, Code::InvalidArgument);
        assert_eq!(of(500).code, Code::Unavailable);
        assert_eq!(of(429).retry_after, Some(Duration::from_secs(1)));
        for status in [401, 403] {
            let error = of(status);
            assert_eq!(error.code, Code::FailedPrecondition, "our key, not the caller's");
            assert!(!error.message.contains("sk-123"), "{error}");
        }
        let long = Said { code: Some("context_length_exceeded".into()), ..Said::default() };
        assert_eq!(of_status("h", 400, &long, None).reason.as_deref(), Some("context_length_exceeded"));
        let ours = Said::read(
            br#"{"error":{"message":"m","code":"context_length_exceeded","param":"max_tokens","max_tokens":5000,
                "n_ctx":4096,"n_prompt":"many","other":1}}"#,
        );
        let told = of_status("h", 400, &ours, None);
        assert_eq!(told.details.get("param"), Some(&"max_tokens".into()));
        let figures = ["max_tokens", "n_ctx", "n_prompt", "other"].map(|name| told.details.get(name));
        assert_eq!(figures, [Some(&5000.into()), Some(&4096.into()), None, None]);
    }

    #[test]
    fn a_key_is_blamed_for_what_is_its_own() {
        let wait = Duration::from_secs(3);
        let blames = |status, code: &str, flavour, wait| {
            let said = Said { code: Some(code.into()), ..Said::default() };
            said.blames(status, flavour, wait)
        };
        for flavour in [Flavour::Backplane, Flavour::Openai] {
            assert_eq!(blames(401, "", flavour, None), Blame::Key);
            assert_eq!(blames(403, "admin_only", flavour, None), Blame::Key);
            assert_eq!(blames(403, "invalid_api_key", flavour, None), Blame::Key);
            assert_eq!(blames(429, "rate_limit_exceeded", flavour, Some(wait)), Blame::Limit(wait));
            assert_eq!(blames(429, "rate_limit_exceeded", flavour, None), Blame::Unclear);
            assert_eq!(blames(400, "invalid_value", flavour, None), Blame::Request);
            assert_eq!(blames(503, "overloaded", flavour, Some(wait)), Blame::Server);
        }
        assert_eq!(blames(429, SPENT, Flavour::Backplane, Some(wait)), Blame::Request);
        assert_eq!(blames(429, SPENT, Flavour::Openai, None), Blame::Unclear);
        assert_eq!(blames(403, "feature_not_licensed", Flavour::Backplane, None), Blame::Request);
        assert_eq!(blames(403, "unsupported_country", Flavour::Openai, None), Blame::Unclear);
    }

    #[test]
    fn it_is_told_when_to_ask_again() {
        let now = humantime::parse_rfc3339("1994-11-06T08:49:07Z").unwrap();
        let wait = |headers: &[(&str, &'static str)]| {
            retry_after(
                |name| headers.iter().find(|(header, _)| *header == name).map(|(_, value)| *value),
                now,
            )
        };
        assert_eq!(wait(&[("retry-after", "2")]), Some(Duration::from_secs(2)));
        assert_eq!(wait(&[("retry-after", "0.5")]), Some(Duration::from_millis(500)));
        assert_eq!(wait(&[("retry-after", "9"), ("retry-after-ms", "30")]), Some(Duration::from_millis(30)));
        assert_eq!(wait(&[("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")]), Some(Duration::from_secs(30)));
        let reset = [("x-ratelimit-reset-tokens", "6m0s"), ("x-ratelimit-remaining-tokens", "0")];
        assert_eq!(wait(&reset), Some(Duration::from_secs(360)));
        assert_eq!(wait(&reset[..1]), None);
        let reset = [("x-ratelimit-reset-requests", "8.64s"), ("x-ratelimit-remaining-requests", "0")];
        assert_eq!(wait(&reset), Some(Duration::from_millis(8640)));
        for nonsense in ["-1", "soon", "1e400", "Sun, 99 Nov 1994 08:49:37 GMT", ""] {
            assert_eq!(wait(&[("retry-after", nonsense)]), None, "{nonsense}");
        }
    }
}
