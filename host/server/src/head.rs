//! The headers that tell of an answer: who gave it, from where, how sure, how long it took, what was not read.

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use backplane::{CacheOutcome, Route, Timing};
use std::fmt::Write as _;
use std::time::Duration;

/// Longest value of a header we write: proxies refuse heads of 8 KiB and more.
const MAX_VALUE: usize = 1024;

/// Of the list of those that were refused. The rest are counted.
const MAX_REFUSED: usize = 900;

/// `x-model`, `x-route-decision`, `x-route-refused`, `x-cache`. Every caller may see every model: `/v1/models` lists them.
pub(crate) fn route(route: &Route, cache: CacheOutcome, headers: &mut HeaderMap) {
    set("x-model", &route.model, headers);
    tried(route, headers);
    set("x-cache", cache.name(), headers);
}

/// `x-route-decision`, `x-route-refused`: all there is to tell where nobody answered.
pub(crate) fn tried(route: &Route, headers: &mut HeaderMap) {
    set("x-route-decision", &decision(route), headers);
    if let Some(refused) = refused(route) {
        set("x-route-refused", &refused, headers);
    }
}

/// `a=device_missing, b=overloaded`: each that could have answered and did not, with the code of why. Codes only: what a
/// plugin says in words may tell of this machine.
fn refused(route: &Route) -> Option<String> {
    let mut text = String::new();
    let mut more = 0;
    for (model, code) in route.candidates.iter().filter_map(|one| Some((&one.model, one.refused.as_ref()?))) {
        if 0 < more || MAX_REFUSED < text.len() + model.len() + code.len() {
            more += 1;
            continue;
        }
        let comma = if text.is_empty() { "" } else { ", " };
        text.extend([comma, model, "="]);
        // A plugin's own word.
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        text.extend(code.chars().take(64).map(|c| if plain(c) { c } else { '_' }));
    }
    if 0 < more {
        let _ = write!(text, ", {more} more");
    }
    (!text.is_empty()).then_some(text)
}

/// `smollm2; plugin=dev.backplane.llama; why="by name"; considered="a:900, b:300"`.
fn decision(route: &Route) -> String {
    let mut text = String::with_capacity(128);
    text.extend([&route.model, "; plugin=", &route.plugin, "; why=\""]);
    text.extend(route.why.chars().map(|c| if c == '"' { '\'' } else { c }));
    text.push('"');
    let bids = || route.candidates.iter().filter(|candidate| 0 < candidate.score);
    if 1 < bids().count() {
        for (place, candidate) in bids().enumerate() {
            let before = if place == 0 { "; considered=\"" } else { ", " };
            // Writing to a string does not fail.
            let _ = write!(text, "{before}{}:{}", candidate.model, candidate.score);
        }
        text.push('"');
    }
    text
}

/// `x-confidence: 0.83;uncalibrated`. Nothing has been compared with outcomes yet, and the header says so.
pub(crate) fn confidence(confidence: Option<f64>, headers: &mut HeaderMap) {
    if let Some(confidence) = confidence {
        set("x-confidence", &format!("{confidence:.2};uncalibrated"), headers);
    }
}

/// `server-timing`, `openai-processing-ms` and `x-overhead-ms`, which is ours alone: all but opening, waiting, running.
/// What is not generated token by token has neither prefill nor decode: it runs.
pub(crate) fn timing(timing: &Timing, generated: bool, total: Duration, headers: &mut HeaderMap) {
    let mut text = String::with_capacity(128);
    let (first, rest) = match generated {
        true => (("prefill", timing.first), ("decode", timing.run.saturating_sub(timing.first))),
        false => (("run", timing.run), ("", Duration::ZERO)),
    };
    for (name, time) in [("admit", timing.admit), ("open", timing.open), ("queue", timing.queue), first, rest]
    {
        if !time.is_zero() {
            text.extend([name, ";dur="]);
            millis(time, &mut text);
            text.push_str(", ");
        }
    }
    text.push_str("total;dur=");
    millis(total, &mut text);
    set("server-timing", &text, headers);
    set("openai-processing-ms", &(total.as_millis() as u64).to_string(), headers);
    text.clear();
    millis(total.saturating_sub(timing.open + timing.queue + timing.run), &mut text);
    set("x-overhead-ms", &text, headers);
}

/// Appends a time in milliseconds, to the microsecond. Digit by digit: every answer has several, and a format or a number of
/// 128 bits takes several times as long.
fn millis(time: Duration, text: &mut String) {
    let micros = time.as_secs().saturating_mul(1_000_000) + u64::from(time.subsec_nanos() + 500) / 1000;
    let (mut whole, mut digits) = (micros / 1000, [0; 20]);
    let mut first = digits.len();
    while first == digits.len() || whole != 0 {
        first -= 1;
        (digits[first], whole) = (b'0' + (whole % 10) as u8, whole / 10);
    }
    text.extend(digits[first..].iter().copied().map(char::from));
    text.push('.');
    text.extend([100, 10, 1].map(|place| char::from(b'0' + (micros / place % 10) as u8)));
}

/// `x-ignored-params`: the members of the request that had no effect.
pub(crate) fn ignored(ignored: &[String], headers: &mut HeaderMap) {
    if !ignored.is_empty() {
        set("x-ignored-params", &ignored.join(", "), headers);
    }
}

/// Sets a header; what a header cannot carry becomes `?`, and what is too long is cut with `…`'s ASCII cousin.
pub(crate) fn set(name: &'static str, value: &str, headers: &mut HeaderMap) {
    let printable = |c: char| c.is_ascii_graphic() || c == ' ';
    let value = if value.len() <= MAX_VALUE && value.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        HeaderValue::from_str(value)
    } else {
        let mut text: String =
            value.chars().take(MAX_VALUE).map(|c| if printable(c) { c } else { '?' }).collect();
        if value.chars().nth(MAX_VALUE).is_some() {
            text.push_str("...");
        }
        HeaderValue::try_from(text)
    };
    if let Ok(value) = value {
        headers.insert(HeaderName::from_static(name), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backplane::Candidate;

    #[test]
    fn any_name_makes_a_header() {
        let mut headers = HeaderMap::new();
        ignored(&["größe\r\nx-evil: 1".to_owned(), "b".repeat(5000)], &mut headers);
        let value = headers.get("x-ignored-params").unwrap().to_str().unwrap();
        assert!(value.starts_with("gr??e??x-evil: 1, bbb"), "{value}");
        assert_eq!(value.len(), MAX_VALUE + 3);
        assert_eq!(headers.len(), 1);
    }

    #[test]
    fn who_was_refused_is_told_by_codes_and_no_header_grows_without_bound() {
        let candidate = |model: String, refused: Option<&str>| Candidate {
            model: model.into(),
            score: if refused.is_some() { 0 } else { 900 },
            confidence: None,
            refused: refused.map(|code| code.to_owned().into()),
            why: "no key `/home/me/secret`".to_owned(),
        };
        let mut told = Route {
            asked: None,
            model: "a".into(),
            plugin: "p".into(),
            why: "best of 1 bids".to_owned(),
            candidates: vec![candidate("a".to_owned(), None)],
            confidence: None,
        };
        let headers = |told: &Route| {
            let mut headers = HeaderMap::new();
            route(told, CacheOutcome::Miss, &mut headers);
            assert!(headers.iter().all(|(_, value)| !value.to_str().unwrap().contains("secret")));
            headers
        };
        assert!(!headers(&told).contains_key("x-route-refused"), "nobody was");
        told.candidates.push(candidate("b".to_owned(), Some("no_memory")));
        told.candidates.push(candidate("c".to_owned(), Some("own word;\r\nx: 1")));
        let text = headers(&told);
        assert_eq!(text.get("x-route-refused").unwrap(), "b=no_memory, c=own_word___x__1");
        assert_eq!(text.get("x-route-decision").unwrap(), "a; plugin=p; why=\"best of 1 bids\"");
        told.candidates.extend((0..200).map(|n| candidate(format!("model-{n}"), Some("overloaded"))));
        let text = headers(&told);
        let text = text.get("x-route-refused").unwrap().to_str().unwrap();
        assert!(text.len() <= MAX_VALUE && text.ends_with(" more"), "{text}");
    }

    #[test]
    fn overhead_is_what_the_model_did_not_take() {
        let mut headers = HeaderMap::new();
        let spent = Timing {
            admit: Duration::from_micros(5),
            queue: Duration::from_millis(1),
            first: Duration::from_millis(10),
            run: Duration::from_millis(30),
            ..Timing::default()
        };
        timing(&spent, true, Duration::from_micros(31_250), &mut headers);
        let text = |name: &str| headers.get(name).unwrap().to_str().unwrap();
        assert_eq!(text("x-overhead-ms"), "0.250");
        assert_eq!(text("openai-processing-ms"), "31");
        assert_eq!(
            text("server-timing"),
            "admit;dur=0.005, queue;dur=1.000, prefill;dur=10.000, decode;dur=20.000, total;dur=31.250"
        );
        let mut headers = HeaderMap::new();
        timing(&spent, false, Duration::from_micros(31_250), &mut headers);
        let told = "admit;dur=0.005, queue;dur=1.000, run;dur=30.000, total;dur=31.250";
        assert_eq!(headers.get("server-timing").unwrap(), told, "a picture has no prefill");
    }

    #[test]
    fn a_time_is_told_to_the_microsecond() {
        for (nanos, told) in [
            (0, "0.000"),
            (499, "0.000"),
            (500, "0.001"),
            (999_999_500, "1000.000"),
            (3_600_000_070_000, "3600000.070"),
        ] {
            let mut text = String::new();
            millis(Duration::from_nanos(nanos), &mut text);
            assert_eq!(text, told);
        }
    }

    #[test]
    fn confidence_says_what_it_is_worth() {
        let mut headers = HeaderMap::new();
        confidence(None, &mut headers);
        assert!(headers.is_empty());
        confidence(Some(0.834), &mut headers);
        assert_eq!(headers.get("x-confidence").unwrap(), "0.83;uncalibrated");
    }
}
