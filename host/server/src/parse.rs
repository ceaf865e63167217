//! From the bytes of a body to a typed value, telling which member is wrong and which were not read.

use crate::error::reason;
use backplane::{Error, Result, words};
use serde::Deserialize;
use serde_json::Value;

/// A body as a type, with the members that the type does not have.
#[derive(Debug)]
pub(crate) struct Parsed<T> {
    pub value: T,
    /// `messages[0].cache_control`. Members that are null are not in it: null means absent.
    pub ignored: Vec<String>,
}

/// Reads a JSON body that nests `depth` deep at most.
///
/// # Errors
/// `InvalidArgument` naming the member at fault.
pub(crate) fn json<'de, T: Deserialize<'de>>(bytes: &'de [u8], depth: usize) -> Result<Parsed<T>> {
    let Some(first) = bytes.trim_ascii_start().first() else {
        return Err(
            Error::invalid("the body is empty; a JSON object is expected").with_reason("invalid_json")
        );
    };
    // Hardly any body has as many brackets in all, and to count them takes less than to follow them.
    let brackets = || bytes.iter().filter(|byte| matches!(byte, b'[' | b'{')).count();
    // What does not begin with a bracket does not nest, and is refused for what it is.
    if matches!(first, b'[' | b'{') && depth < brackets() && depth < deepest(bytes) {
        let message =
            format!("the body's JSON nests deeper than {depth}, which is `server.json_depth`; flatten it");
        return Err(Error::invalid(message).with_reason("json_too_deep"));
    }
    // A list would do for serde: it fills the members of a struct in order.
    if first == &b'[' {
        return Err(Error::invalid("the body is a JSON array; an object is expected"));
    }
    let mut ignored = Vec::new();
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_ignored::deserialize(&mut reader, |path| ignored.push(Place::of(&path)))
        .and_then(|value| reader.end().map(|()| value))
        .map_err(|error| explain::<T>(bytes, &error))?;
    Ok(Parsed { value, ignored: without_nulls(bytes, ignored) })
}

/// How deep JSON nests: brackets outside of strings. What is not JSON gets some number and is refused later.
fn deepest(bytes: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in bytes {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Where a member is: for people, and for `Value::pointer`.
struct Place {
    name: String,
    pointer: String,
}

impl Place {
    fn of(path: &serde_ignored::Path<'_>) -> Self {
        use serde_ignored::Path;
        match path {
            Path::Root => Place { name: String::new(), pointer: String::new() },
            Path::Seq { parent, index } => {
                let mut place = Place::of(parent);
                place.name.push_str(&format!("[{index}]"));
                place.pointer.push_str(&format!("/{index}"));
                place
            }
            Path::Map { parent, key } => {
                let mut place = Place::of(parent);
                if !place.name.is_empty() {
                    place.name.push('.');
                }
                place.name.push_str(key);
                place.pointer.push('/');
                place.pointer.push_str(&key.replace('~', "~0").replace('/', "~1"));
                place
            }
            Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
                Place::of(parent)
            }
        }
    }
}

fn without_nulls(bytes: &[u8], ignored: Vec<Place>) -> Vec<String> {
    if ignored.is_empty() {
        return Vec::new();
    }
    let body: Value = serde_json::from_slice(bytes).unwrap_or_default();
    ignored
        .into_iter()
        .filter(|place| body.pointer(&place.pointer).is_some_and(|value| !value.is_null()))
        .map(|place| place.name)
        .collect()
}

/// Reads once more, slower, to find the place. Only a body that was refused pays for it.
fn explain<'de, T: Deserialize<'de>>(bytes: &'de [u8], error: &serde_json::Error) -> Error {
    use serde_json::error::Category;
    if error.classify() != Category::Data {
        let (line, column) = (error.line(), error.column());
        let message = match (error.classify(), error.to_string()) {
            (Category::Eof, _) => {
                format!(
                    "the body's JSON is cut off: it ends at line {line}, column {column}, before all is closed"
                )
            }
            (_, said) if said.starts_with("number out of range") => {
                format!("a number of the body is larger than any can be: line {line}, column {column}")
            }
            (_, said) => format!("the body is not JSON: {said}"),
        };
        return Error::invalid(message).with_reason("invalid_json");
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let Err(located) = serde_path_to_error::deserialize::<_, T>(&mut reader) else {
        return Error::invalid(error.to_string());
    };
    let mut path = located.path().to_string();
    let message = words::of_json(&located.inner().to_string());
    let quoted = |before: &str| message.strip_prefix(before)?.strip_suffix('`');
    if let Some(member) = quoted("missing field `") {
        path = if path == "." { member.to_owned() } else { format!("{path}.{member}") };
        return Error::invalid(format!("`{path}` is missing")).with_reason("missing_param").with_param(path);
    }
    if let Some(member) = quoted("duplicate field `") {
        let path = if path == "." { member.to_owned() } else { format!("{path}.{member}") };
        return Error::invalid(format!("`{path}` is there twice"))
            .with_reason("duplicate_param")
            .with_param(path);
    }
    let subject = if path == "." { "the body".to_owned() } else { format!("`{path}`") };
    let separator = if message.starts_with("must ") { "" } else { ":" };
    let error = Error::invalid(format!("{subject}{separator} {message}")).with_reason(reason::INVALID_TYPE);
    if path == "." { error } else { error.with_param(path) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    struct Outer {
        name: String,
        #[serde(default)]
        inner: Vec<Inner>,
        options: Option<Inner>,
    }

    #[derive(Debug, Deserialize)]
    struct Inner {
        size: u8,
    }

    fn refused(body: &str) -> Error {
        json::<Outer>(body.as_bytes(), 64).unwrap_err()
    }

    #[test]
    fn what_was_not_read_is_named_unless_null() {
        let body = r#"{"name":"a","x":1,"y":null,"inner":[{"size":1,"p/q":2}],"options":{"size":1,"z":[]}}"#;
        let parsed = json::<Outer>(body.as_bytes(), 64).unwrap();
        assert_eq!(parsed.ignored, ["x", "inner[0].p/q", "options.z"]);
        assert_eq!((parsed.value.name.as_str(), parsed.value.inner[0].size), ("a", 1));
        assert_eq!(parsed.value.options.unwrap().size, 1);
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(refused(r#"{"name":1}"#).param.as_deref(), Some("name"));
        assert_eq!(
            refused(r#"{"name":"a","inner":[{"size":1},{"size":256}]}"#).param.as_deref(),
            Some("inner[1].size")
        );
        let missing = refused(r#"{"name":"a","inner":[{}]}"#);
        assert_eq!(missing.param.as_deref(), Some("inner[0].size"));
        assert_eq!(missing.message, "`inner[0].size` is missing");
        assert_eq!(refused("{}").message, "`name` is missing");
        assert_eq!(refused(r#"{"name":"a","name":"b"}"#).code, backplane::ErrorCode::InvalidArgument);
    }

    #[test]
    fn what_is_no_json_says_so() {
        for body in ["", "{", "nonsense", r#"{"name":"a"} x"#, "{\"name\":\"\u{1}\"}"] {
            assert_eq!(refused(body).reason, "invalid_json", "{body}");
        }
        assert_eq!(json::<Outer>(b"{\"name\":\"\xff\"}", 64).unwrap_err().reason, "invalid_json");
        assert!(
            refused(r#"{"name":"a","#).message.starts_with("the body's JSON is cut off: it ends at line 1")
        );
        assert!(refused(r#"{"name":1e999}"#).message.starts_with("a number of the body is larger than any"));
        assert_eq!(refused(" \n").message, "the body is empty; a JSON object is expected");
        // A picture has many brackets, and does not nest.
        let picture = ["\u{89}PNG", &"[{".repeat(100)].concat();
        assert_eq!(refused(&picture).reason, "invalid_json");
        assert_eq!(refused("[]").message, "the body is a JSON array; an object is expected");
    }

    #[test]
    fn json_nests_as_deep_as_is_allowed() {
        let nested = |n: usize| format!("{}1{}", "{\"a\":".repeat(n), "}".repeat(n));
        assert!(json::<Value>(nested(64).as_bytes(), 64).is_ok());
        assert_eq!(json::<Value>(nested(65).as_bytes(), 64).unwrap_err().reason, "json_too_deep");
        assert!(json::<Value>(nested(100_000).as_bytes(), 64).is_err());
        // Many brackets need not be deep.
        let wide = format!("{{\"a\":[{}{{}}],\"b\":\"{}\"}}", "[],".repeat(100), "[".repeat(100));
        assert!(json::<Value>(wide.as_bytes(), 3).is_ok());
        assert_eq!(json::<Value>(wide.as_bytes(), 2).unwrap_err().reason, "json_too_deep");
        // Brackets in strings do not nest, and a quote behind a backslash ends no string.
        assert_eq!(deepest(br#"{"[[[\"[[[":"\\","a":[1]}"#), 2);
    }
}
