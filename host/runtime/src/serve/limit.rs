//! How long an answer may be, by the model's card and where the request says nothing.

use crate::error::{Error, ErrorCode, Result};
use serde::Deserialize;
use std::borrow::Cow;

/// What a request says of the length of its answer.
#[derive(Deserialize)]
struct Asked {
    max_tokens: Option<u64>,
}

/// Parameters of a request that generates text, with a number of tokens where they say none: `default`, but no more than
/// `most`.
///
/// # Errors
/// When they ask for more than `most`.
pub(super) fn output_tokens<'a>(
    capability: &str,
    params: &'a str,
    most: Option<u32>,
    default: Option<u32>,
) -> Result<Cow<'a, str>> {
    let given = [most, default].into_iter().flatten().min();
    let Some(given) = given.filter(|_| matches!(capability, "chat" | "complete")) else {
        return Ok(Cow::Borrowed(params));
    };
    // What cannot be read is the plugin's to refuse.
    let Ok(asked) = serde_json::from_str::<Asked>(params) else { return Ok(Cow::Borrowed(params)) };
    match (asked.max_tokens, most) {
        (Some(asked), Some(most)) if u64::from(most) < asked => Err(Error::invalid(format!(
            "`max_tokens` is {asked}, and this model gives {most} at the most, as its card says"
        ))
        .with_param("max_tokens")),
        (Some(_), _) => Ok(Cow::Borrowed(params)),
        (None, _) => Ok(Cow::Owned(with(params, given.into()))),
    }
}

/// Refuses more tokens than a model reads and writes in all: no prompt leaves room for them. Fewer are an upper limit,
/// which an answer keeps that ends where the context does, and says so.
///
/// # Errors
/// `context_length_exceeded`, with the numbers.
pub(super) fn within_context(capability: &str, params: &str, context: Option<u32>) -> Result<()> {
    let Some(context) = context.filter(|_| matches!(capability, "chat" | "complete")) else { return Ok(()) };
    // Most requests say nothing, and need not be read for it.
    let asked = params.contains("max_tokens").then(|| serde_json::from_str::<Asked>(params));
    // What cannot be read is the plugin's to refuse.
    let asked = asked.and_then(Result::ok).and_then(|asked| asked.max_tokens);
    let Some(asked) = asked.filter(|asked| u64::from(context) <= *asked) else { return Ok(()) };
    let message = format!(
        "`max_tokens` is {asked}, and this model's context has {context} tokens, those of the prompt among them; ask for \
         {} at the most, or open the model with a larger `context`",
        context.saturating_sub(1)
    );
    Err(Error::new(ErrorCode::OutOfRange, message)
        .with_reason("context_length_exceeded")
        .with_param("max_tokens")
        .with_detail("max_tokens", asked)
        .with_detail("n_ctx", context))
}

/// The object `params` with `max_tokens`.
pub(super) fn with(params: &str, most: u64) -> String {
    let inside = params.trim_start();
    let inside = inside.strip_prefix('{').unwrap_or(inside);
    let comma = if inside.trim_start().starts_with('}') { "" } else { "," };
    // `null` is no number of tokens, and a name may stand once only.
    let kept = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(params);
    match kept {
        Ok(mut kept) if kept.contains_key("max_tokens") => {
            kept.insert("max_tokens".to_owned(), most.into());
            serde_json::Value::Object(kept).to_string()
        }
        _ => format!("{{\"max_tokens\":{most}{comma}{inside}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limited(params: &str) -> String {
        output_tokens("chat", params, Some(16), None).unwrap().into_owned()
    }

    #[test]
    fn who_says_nothing_gets_what_the_card_allows() {
        assert_eq!(limited("{}"), r#"{"max_tokens":16}"#);
        assert_eq!(limited(" { } "), r#"{"max_tokens":16 } "#);
        assert_eq!(limited(r#"{"a":{"max_tokens":9}}"#), r#"{"max_tokens":16,"a":{"max_tokens":9}}"#);
        let null: serde_json::Value =
            serde_json::from_str(&limited(r#"{"max_tokens":null,"a":1.0}"#)).unwrap();
        assert_eq!(null, serde_json::json!({"a": 1.0, "max_tokens": 16}));
        assert_eq!(limited(r#"{"max_tokens":16}"#), r#"{"max_tokens":16}"#);
        assert_eq!(limited("{"), "{", "the plugin's to refuse");
    }

    #[test]
    fn who_asks_for_more_is_refused_and_others_are_left_alone() {
        let error = output_tokens("complete", r#"{"max_tokens":17}"#, Some(16), None).unwrap_err();
        assert!(error.message.contains("17") && error.message.contains("16"), "{error}");
        assert_eq!(output_tokens("embed", "{}", Some(16), Some(4)).unwrap(), "{}");
        let asked = r#"{"max_tokens":17}"#;
        assert_eq!(output_tokens("chat", asked, None, Some(4)).unwrap(), asked);
    }

    #[test]
    fn more_than_the_context_is_refused_with_the_numbers() {
        let check = |params: &str, context| within_context("chat", params, context);
        for params in
            [r#"{"max_tokens":4095}"#, r#"{"max_tokens":null}"#, "{}", r#"{"a":{"max_tokens":9999}}"#, "{"]
        {
            assert_eq!(check(params, Some(4096)), Ok(()), "{params}");
        }
        assert_eq!(check(r#"{"max_tokens":4096}"#, None), Ok(()), "nobody knows");
        assert_eq!(within_context("embed", r#"{"max_tokens":4096}"#, Some(1)), Ok(()));
        let error = check(r#"{"max_tokens":4096}"#, Some(4096)).unwrap_err();
        assert_eq!((&*error.reason, error.param.as_deref()), ("context_length_exceeded", Some("max_tokens")));
        assert!(
            error.message.contains("4096 tokens") && error.message.contains("4095 at the most"),
            "{error}"
        );
    }

    #[test]
    fn a_default_is_no_request() {
        for (most, given) in [(Some(8), 8), (Some(16), 16), (Some(99), 16), (None, 16)] {
            let params = output_tokens("complete", "{}", most, Some(16)).unwrap();
            assert_eq!(params, format!(r#"{{"max_tokens":{given}}}"#), "{most:?}");
        }
        assert_eq!(output_tokens("complete", "{}", None, None).unwrap(), "{}");
    }
}
