//! What serde says of a value that does not fit, in the words of JSON: whoever sent it knows neither `u32` nor sequences.

/// `must be a whole number from 0 to 255; got a string`, of `invalid type: string "a", expected u8 at line 1 column 9`.
pub fn of_json(message: &str) -> String {
    // Lines and columns of the body mean little to somebody whose client wrote it.
    let message = match message.rsplit_once(" at line ") {
        Some((before, place)) if place.bytes().next().is_some_and(|byte| byte.is_ascii_digit()) => before,
        _ => message,
    };
    // What was sent comes first and may hold any text; what was expected comes last.
    let Some((got, expected)) = message.rsplit_once(", expected ") else {
        return match message.strip_prefix("expected ") {
            Some(expected) => format!("must be {expected}"),
            None => message.to_owned(),
        };
    };
    let expected = wanted(expected);
    let after = |words: &str| got.strip_prefix(words);
    if let Some(got) = after("invalid type: ").or_else(|| after("invalid value: ")) {
        return format!("must be {expected}; got {}", sent(got));
    }
    if let Some(got) = after("unknown variant ") {
        return format!("must be {expected}; got {got}");
    }
    match after("invalid length ") {
        Some(length) => format!("must be {expected}; got {length}"),
        None => message.to_owned(),
    }
}

fn wanted(expected: &str) -> String {
    match expected {
        "u8" => format!("a whole number from 0 to {}", u8::MAX),
        "u16" => format!("a whole number from 0 to {}", u16::MAX),
        "u32" => format!("a whole number from 0 to {}", u32::MAX),
        "u64" | "usize" => format!("a whole number from 0 to {}", u64::MAX),
        "i8" => format!("a whole number from {} to {}", i8::MIN, i8::MAX),
        "i16" => format!("a whole number from {} to {}", i16::MIN, i16::MAX),
        "i32" => format!("a whole number from {} to {}", i32::MIN, i32::MAX),
        "i64" | "isize" => format!("a whole number from {} to {}", i64::MIN, i64::MAX),
        "f32" | "f64" => "a number".to_owned(),
        "a boolean" => "`true` or `false`".to_owned(),
        "a borrowed string" | "string" | "variant identifier" => "a string".to_owned(),
        "a sequence" => "an array".to_owned(),
        "a map" => "an object".to_owned(),
        "string or map" => "a string or an object".to_owned(),
        "unit" => "`null`".to_owned(),
        other if other.starts_with("struct ") => "an object".to_owned(),
        other => other.to_owned(),
    }
}

fn sent(got: &str) -> &str {
    let word =
        |name: &str| Some(got.strip_prefix(name)?.trim().trim_matches('`')).filter(|it| !it.is_empty());
    match got.split(' ').next().unwrap_or_default() {
        // Not what it holds: that may be long, or a secret in the wrong place.
        "string" | "character" => "a string",
        "sequence" => "an array",
        "map" => "an object",
        "unit" | "null" => "`null`",
        "boolean" => word("boolean").unwrap_or(got),
        "integer" => word("integer").unwrap_or(got),
        "floating" => word("floating point").unwrap_or(got),
        _ => got,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use serde::de::DeserializeOwned;
    use std::collections::BTreeMap;

    fn said<T: DeserializeOwned>(json: &str) -> String {
        of_json(&serde_json::from_str::<T>(json).err().unwrap().to_string())
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Choice {
        Some,
        Other,
    }

    #[derive(Deserialize)]
    struct Inner {}

    #[test]
    fn no_type_of_ours_is_named() {
        let number = "must be a whole number from 0 to 255; got ";
        for (got, json) in [
            ("a string", r#""a, expected i8 at line 1""#),
            ("1.5", "1.5"),
            ("256", "256"),
            ("-1", "-1"),
            ("true", "true"),
            ("`null`", "null"),
            ("an array", "[1]"),
            ("an object", "{}"),
        ] {
            assert_eq!(said::<u8>(json), format!("{number}{got}"));
        }
        assert_eq!(said::<f32>("{}"), "must be a number; got an object");
        assert_eq!(said::<bool>("1"), "must be `true` or `false`; got 1");
        assert_eq!(said::<String>("1"), "must be a string; got 1");
        assert_eq!(said::<Vec<String>>("\"a\""), "must be an array; got a string");
        assert_eq!(said::<BTreeMap<String, f32>>("[]"), "must be an object; got an array");
        assert_eq!(said::<Inner>("1"), "must be an object; got 1");
        assert_eq!(said::<Choice>("\"none\""), "must be `some` or `other`; got `none`");
        assert_eq!(said::<(u8, u8)>("[1]"), "must be a tuple of size 2; got 1");
        assert!(matches!(serde_json::from_str("\"other\""), Ok(Choice::Other)));
    }

    #[test]
    fn what_was_said_in_our_own_words_stays() {
        assert_eq!(
            of_json("expected a string or an array of strings"),
            "must be a string or an array of strings"
        );
        assert_eq!(of_json("`soon` is not a duration at line 1 column 9"), "`soon` is not a duration");
        assert_eq!(of_json("a message at line ends"), "a message at line ends");
    }
}
