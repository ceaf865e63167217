//! The formats of strings that an answer is held to. Pure.
//!
//! llama.cpp has grammars for some; the others are held to by a pattern, which may allow less than the format does, and
//! never more. A format that is not here is a note, as JSON Schema has it.

/// How an answer is held to a format.
#[derive(Debug, PartialEq)]
pub struct Format {
    /// What stands for it, where llama.cpp has no grammar of its own.
    pub pattern: Option<&'static str>,
    /// Characters that each text of it has at the least, which a `minLength` need not ask for any more.
    pub least: u64,
}

/// A number from 0 to 255.
macro_rules! byte {
    () => {
        "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9][0-9]|[0-9])"
    };
}
/// A part of a host's name. Two hyphens side by side have a meaning of their own there.
macro_rules! label {
    () => {
        "[a-zA-Z0-9]{1,20}(-[a-zA-Z0-9]{1,20}){0,2}"
    };
}

/// How to hold to a format, if there is a way.
pub fn of(name: &str) -> Option<Format> {
    let own = |least| Some(Format { pattern: None, least });
    let by = |pattern, least| Some(Format { pattern: Some(pattern), least });
    match name {
        "date" => own(10),
        "time" => own(9),
        "date-time" => own(20),
        "uuid" | "uuid1" | "uuid2" | "uuid3" | "uuid4" | "uuid5" => own(36),
        "email" => by(
            concat!(
                "^[a-zA-Z0-9_+-]{1,30}(\\.[a-zA-Z0-9_+-]{1,30}){0,1}@",
                label!(),
                "(\\.",
                label!(),
                "){0,2}\\.[a-z]{2,10}$"
            ),
            6,
        ),
        "hostname" => by(concat!("^", label!(), "(\\.", label!(), "){0,2}$"), 1),
        "ipv4" => by(concat!("^", byte!(), "(\\.", byte!(), "){3}$"), 7),
        // The long form only.
        "ipv6" => by("^[0-9a-f]{1,4}(:[0-9a-f]{1,4}){7}$", 15),
        "uri" => by(
            concat!(
                "^[a-z][a-z0-9+-]{1,15}://",
                label!(),
                "(\\.",
                label!(),
                "){0,4}(/[a-zA-Z0-9._~!$&()*+,;=:@-]*)*(\\?[a-zA-Z0-9._~!$&()*+,;=:@/-]*)?$"
            ),
            6,
        ),
        "duration" => by(
            "^P([0-9]{1,9}W|[0-9]{1,9}D(T[0-9]{1,9}[HMS])?|[0-9]{1,9}Y([0-9]{1,9}M)?|[0-9]{1,9}M([0-9]{1,9}D)?|T[0-9]{1,9}H([0-9]{1,9}M([0-9]{1,9}S)?)?|T[0-9]{1,9}M([0-9]{1,9}S)?|T[0-9]{1,9}S)$",
            3,
        ),
        _ => None,
    }
}

/// Whether a format asks something of an answer.
pub fn is_held(name: &serde_json::Value) -> bool {
    name.as_str().is_some_and(|name| of(name).is_some())
}

#[cfg(test)]
mod tests {
    use super::super::pattern;
    use super::*;

    #[test]
    fn every_pattern_is_one_that_can_be_held_to() {
        for name in ["email", "hostname", "ipv4", "ipv6", "uri", "duration"] {
            let pattern = of(name).unwrap().pattern.unwrap();
            assert!(pattern::is_supported(pattern), "{name}: {pattern}");
        }
        assert_eq!(of("date").unwrap().pattern, None);
        assert_eq!(of("phone"), None);
    }
}
