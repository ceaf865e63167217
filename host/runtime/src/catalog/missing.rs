//! What to say of a name that means nothing here.

use crate::error::{Error, ErrorCode};
use std::sync::Arc;

/// From here on two names are alike.
const ALIKE: f64 = 0.75;
/// Names that are shown.
const SHOWN: usize = 3;
/// Letters of what was asked for that are shown.
const LONGEST: usize = 120;

/// `model_not_found`, with those of the `known` names that are close.
pub fn model(asked: &str, known: impl Iterator<Item = Arc<str>>) -> Error {
    let shown: String = asked.chars().take(LONGEST).collect();
    let mut close: Vec<(f64, Arc<str>)> = known
        .map(|name| (strsim::jaro_winkler(&shown.to_lowercase(), &name.to_lowercase()), name))
        .filter(|(likeness, _)| ALIKE < *likeness)
        .collect();
    close.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    close.dedup_by(|a, b| a.1 == b.1);
    close.truncate(SHOWN);
    let names: Vec<String> = close.iter().map(|(_, name)| format!("`{name}`")).collect();
    let hint = match names.as_slice() {
        [] => "see `backplane ls` for what is installed, `backplane pull` to install".to_owned(),
        [only] => format!("did you mean {only}?"),
        [first @ .., last] => format!("did you mean {} or {last}?", first.join(", ")),
    };
    Error::new(ErrorCode::NotFound, format!("model `{shown}` not found; {hint}"))
        .with_reason("model_not_found")
        .with_param("model")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(asked: &str) -> String {
        let known = ["smollm2", "smollm2-large", "minilm", "magika", "smollm2"];
        model(asked, known.into_iter().map(Arc::from)).message
    }

    #[test]
    fn near_names_come_first_and_nothing_far_is_named() {
        assert_eq!(said("smolm2"), "model `smolm2` not found; did you mean `smollm2` or `smollm2-large`?");
        assert_eq!(said("MiniLM-v2"), "model `MiniLM-v2` not found; did you mean `minilm`?");
        assert!(said("gpt-4o").contains("`backplane ls`"));
        assert!(said(&"x".repeat(100_000)).len() < 300, "what was asked for may be of any length");
    }
}
