//! TOML that refuses unknown keys, with the line and the nearest right name.

use serde::de::DeserializeOwned;

/// Reads `text` as `T`; the error is one line a person can act on.
pub(crate) fn from_toml<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(String::new(), |span| {
            format!(
                "line {}: ",
                text.as_bytes()[..span.start.min(text.len())].iter().filter(|b| **b == b'\n').count() + 1
            )
        });
        format!("{line}{}", explain(error.message()))
    })
}

/// serde says "unknown field `a`, expected one of `b`, `c`"; of the expected names only the nearest helps.
fn explain(message: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match quoted.split_first() {
        Some((unknown, known)) if message.starts_with("unknown field") => {
            let nearest = known
                .iter()
                .max_by(|a, b| strsim::jaro_winkler(unknown, a).total_cmp(&strsim::jaro_winkler(unknown, b)));
            match nearest {
                Some(nearest) if strsim::jaro_winkler(unknown, nearest) >= 0.75 => {
                    format!("unknown key `{unknown}`, did you mean `{nearest}`?")
                }
                _ => format!("unknown key `{unknown}`, expected one of {}", known.join(", ")),
            }
        }
        _ => message.lines().next().unwrap_or_default().to_owned(),
    }
}
