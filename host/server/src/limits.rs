//! The caller's limits as `x-ratelimit-*` headers.

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use backplane::LimitStatus;
use std::time::Duration;

/// Writes limit, remainder and reset of the tightest limit in each dimension: of several, the one a caller meets first.
pub(crate) fn write(limits: &[LimitStatus], headers: &mut HeaderMap) {
    for dimension in ["requests", "tokens"] {
        let tightest =
            limits.iter().filter(|limit| limit.dimension == dimension).min_by_key(|limit| limit.remaining);
        let Some(limit) = tightest else { continue };
        for (what, value) in [
            ("limit", limit.limit.to_string()),
            ("remaining", limit.remaining.to_string()),
            ("reset", limit.reset.map(duration).unwrap_or_default()),
        ] {
            if value.is_empty() {
                continue;
            }
            let name = HeaderName::try_from(format!("x-ratelimit-{what}-{dimension}"));
            if let (Ok(name), Ok(value)) = (name, HeaderValue::try_from(value)) {
                headers.insert(name, value);
            }
        }
    }
}

/// As OpenAI writes it: `"17ms"`, `"1.5s"`, `"6m0s"`, `"2h5m0s"`.
fn duration(time: Duration) -> String {
    let (seconds, millis) = (time.as_secs(), time.subsec_millis());
    match seconds {
        0 => format!("{millis}ms"),
        1..60 if millis == 0 => format!("{seconds}s"),
        1..60 => format!("{}s", f64::from(millis) / 1000.0 + seconds as f64),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        _ => format!("{}h{}m{}s", seconds / 3600, seconds / 60 % 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resets_read_as_openai_writes_them() {
        for (millis, text) in
            [(0, "0ms"), (17, "17ms"), (1000, "1s"), (1500, "1.5s"), (360_000, "6m0s"), (7_500_000, "2h5m0s")]
        {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
    }
}
