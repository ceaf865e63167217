//! What a caller asks for beside the body: in headers, and in the member `keep_alive`.

use actix_web::http::header::{CACHE_CONTROL, HeaderMap, HeaderName};
use backplane::{CacheUse, Error, KeepAlive, Result};
use schemars::JsonSchema;
use serde::Deserialize;
use std::time::{Duration, Instant};

/// Longest time a caller may ask for; more is a slip of the unit.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

// By name and not by text, which would be checked anew with every request.
static KEEP_ALIVE: HeaderName = HeaderName::from_static("x-keep-alive");
static CACHE: HeaderName = HeaderName::from_static("x-cache");
static TIMEOUT: HeaderName = HeaderName::from_static("x-request-timeout");
static CONFIDENCE: HeaderName = HeaderName::from_static("x-confidence");
static STRICT: HeaderName = HeaderName::from_static("x-strict");

/// The headers a request may carry, read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    /// `x-keep-alive`.
    pub keep_alive: Option<KeepAlive>,
    /// `cache-control` or `x-cache`.
    pub cache: CacheUse,
    /// `x-request-timeout`.
    pub deadline: Option<Instant>,
    /// `x-confidence: true`.
    pub confidence: bool,
    /// `x-strict: true`: what would be ignored is refused.
    pub strict: bool,
}

impl Options {
    /// Reads them.
    ///
    /// # Errors
    /// A value that means nothing, by the header's name.
    pub(crate) fn of(headers: &HeaderMap, now: Instant) -> Result<Self> {
        let text = |name: &HeaderName| match headers.get(name).map(|value| value.to_str()) {
            Some(Err(_)) => Err(bad_header(name.as_str(), "plain text")),
            Some(Ok(value)) => Ok(Some(value.trim())),
            None => Ok(None),
        };
        let duration_of = |name: &str, value: &str| {
            duration(value).ok_or_else(|| bad_header(name, "a duration, such as `30s` or `5m`"))
        };
        Ok(Self {
            keep_alive: text(&KEEP_ALIVE)?
                .map(|value| {
                    keep_alive(value).ok_or_else(|| bad_header("x-keep-alive", "a duration, `0` or `-1`"))
                })
                .transpose()?,
            cache: match text(&CACHE)? {
                Some("refresh") => CacheUse::Refresh,
                Some("bypass") => CacheUse::Bypass,
                Some(_) => return Err(bad_header("x-cache", "`refresh` or `bypass`")),
                None => cache_control(text(&CACHE_CONTROL)?.unwrap_or_default()),
            },
            deadline: text(&TIMEOUT)?
                .map(|value| duration_of("x-request-timeout", value).map(|wait| now + wait))
                .transpose()?,
            confidence: flag("x-confidence", text(&CONFIDENCE)?)?,
            strict: flag("x-strict", text(&STRICT)?)?,
        })
    }
}

fn bad_header(name: &str, wanted: &str) -> Error {
    Error::invalid(format!("header `{name}` must be {wanted}")).with_param(name)
}

fn flag(name: &str, value: Option<&str>) -> Result<bool> {
    match value {
        None | Some("false" | "0") => Ok(false),
        Some("true" | "1") => Ok(true),
        Some(_) => Err(bad_header(name, "`true` or `false`")),
    }
}

/// Other directives (`max-age=0` of a browser) say nothing to us.
fn cache_control(value: &str) -> CacheUse {
    let mut directives = value.split(',').map(str::trim);
    let has = |wanted: &str| directives.clone().any(|directive| directive.eq_ignore_ascii_case(wanted));
    let bypass = has("no-store");
    let refresh = directives.any(|directive| directive.eq_ignore_ascii_case("no-cache"));
    match (bypass, refresh) {
        (true, _) => CacheUse::Bypass,
        (_, true) => CacheUse::Refresh,
        _ => CacheUse::Default,
    }
}

/// `"30s"`, `"1m 30s"`, or seconds.
fn duration(text: &str) -> Option<Duration> {
    let time = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok()?,
        Err(_) => humantime::parse_duration(text).ok()?,
    };
    (time <= LONGEST).then_some(time)
}

/// As Ollama's users write it: a duration, seconds, `0` to close at once, anything negative for ever.
fn keep_alive(text: &str) -> Option<KeepAlive> {
    match text {
        text if text.starts_with('-') => text
            .trim_start_matches('-')
            .starts_with(|c: char| c.is_ascii_digit())
            .then_some(KeepAlive::Forever),
        text => duration(text).map(KeepAlive::For),
    }
}

/// The member `keep_alive`: text or a number of seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct KeepAliveField(pub KeepAlive);

impl<'de> Deserialize<'de> for KeepAliveField {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a duration such as `5m`, a number of seconds, `0` or `-1`")]
        enum Field {
            Number(serde_json::Number),
            Text(String),
        }
        let text = match Field::deserialize(deserializer)? {
            Field::Number(number) => number.to_string(),
            Field::Text(text) => text,
        };
        keep_alive(&text).map(Self).ok_or_else(|| {
            serde::de::Error::custom(format!(
                "`{text}` is not a duration such as `5m`, a number of seconds, `0` or `-1`"
            ))
        })
    }
}

impl JsonSchema for KeepAliveField {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "KeepAlive".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": ["string", "number"], "examples": ["5m", 300, 0, -1] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::http::header::{HeaderName, HeaderValue};

    fn read(pairs: &[(&'static str, &'static str)]) -> Result<Options> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        Options::of(&headers, Instant::now())
    }

    #[test]
    fn headers_are_read() {
        let options =
            read(&[("x-keep-alive", "5m"), ("x-strict", "true"), ("cache-control", "max-age=0, No-Store")]);
        let options = options.unwrap();
        assert_eq!(options.keep_alive, Some(KeepAlive::For(Duration::from_secs(300))));
        assert_eq!((options.strict, options.confidence, options.cache), (true, false, CacheUse::Bypass));
        assert_eq!(read(&[("cache-control", "no-cache")]).unwrap().cache, CacheUse::Refresh);
        assert_eq!(read(&[("x-cache", "refresh")]).unwrap().cache, CacheUse::Refresh);
        assert!(read(&[("x-request-timeout", "1.5")]).unwrap().deadline.is_some());
    }

    #[test]
    fn what_means_nothing_is_refused_by_name() {
        for (name, value) in [
            ("x-keep-alive", "soon"),
            ("x-request-timeout", "-1"),
            ("x-request-timeout", "99999h"),
            ("x-request-timeout", "NaN"),
            ("x-cache", "maybe"),
            ("x-strict", "yes please"),
            ("x-confidence", ""),
        ] {
            assert_eq!(read(&[(name, value)]).unwrap_err().param.as_deref(), Some(name), "{value}");
        }
    }

    #[test]
    fn keep_alive_is_what_ollama_takes() {
        let field = |json: &str| serde_json::from_str::<KeepAliveField>(json).map(|field| field.0).ok();
        assert_eq!(field("\"5m\""), Some(KeepAlive::For(Duration::from_secs(300))));
        assert_eq!(field("300"), Some(KeepAlive::For(Duration::from_secs(300))));
        assert_eq!(field("0"), Some(KeepAlive::For(Duration::ZERO)));
        assert_eq!(field("-1"), Some(KeepAlive::Forever));
        assert_eq!(field("\"-1m\""), Some(KeepAlive::Forever));
        assert_eq!(field("\"-\""), None);
        assert_eq!(field("true"), None);
    }
}
