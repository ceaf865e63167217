//! JSON with one reading only: no name twice in an object, no floating point, no depth without end.
//!
//! Two parsers that take different ones of two equal names read different documents under one signature.

use std::fmt;

use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::{Result, TrustError};

/// How deep objects and arrays may stand in each other.
const DEPTH: usize = 32;

/// Reads `bytes` as one JSON value.
pub fn parse(bytes: &[u8]) -> Result<Value, String> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Strict { depth: 0 }.deserialize(&mut reader).map_err(|error| error.to_string())?;
    reader.end().map_err(|error| error.to_string())?;
    Ok(value)
}

/// Reads `bytes` as a `T`; the error names the member.
pub fn typed<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let value = parse(bytes).map_err(|reason| TrustError::Payload { reason })?;
    of_object(value).map_err(|reason| TrustError::Payload { reason })
}

/// Reads a JSON object as a `T`. serde would take an array of its members' values too: a second way to write it.
pub(super) fn of_object<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    if !value.is_object() {
        return Err("expected an object".to_owned());
    }
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let reason = error.into_inner().to_string();
        if path == "." { reason } else { format!("`{path}`: {reason}") }
    })
}

#[derive(Clone, Copy)]
struct Strict {
    depth: usize,
}

impl Strict {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth == DEPTH {
            return Err(E::custom(format_args!("more than {DEPTH} objects or arrays in each other")));
        }
        Ok(Self { depth: self.depth + 1 })
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value without floating point")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut out = Vec::new();
        while let Some(item) = items.next_element_seed(inner)? {
            out.push(item);
        }
        Ok(out.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut out = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            if out.contains_key(&name) {
                return Err(A::Error::custom(format_args!("the name `{name}` stands twice in one object")));
            }
            let value = members.next_value_seed(inner)?;
            out.insert(name, value);
        }
        Ok(out.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_read_as_it_stands() {
        let value = parse(br#" {"a":[1,-2,true,null,"x"],"b":{"a":18446744073709551615}} "#).unwrap();
        assert_eq!(value.to_string(), r#"{"a":[1,-2,true,null,"x"],"b":{"a":18446744073709551615}}"#);
    }

    #[test]
    fn what_has_two_readings_is_refused() {
        for (text, says) in [
            (r#"{"a":1,"a":2}"#, "`a` stands twice"),
            (r#"{"x":[{"a":1,"\u0061":2}]}"#, "`a` stands twice"),
            ("1.0", "floating point"),
            ("1e3", "floating point"),
            ("18446744073709551616", "floating point"),
            ("{} {}", "trailing characters"),
            ("", "EOF"),
            ("\u{feff}{}", "expected value"),
        ] {
            let refused = parse(text.as_bytes()).unwrap_err();
            assert!(refused.contains(says), "{text} => {refused}");
        }
        assert!(parse(b"\"\xff\"").is_err());
        let deep = "[".repeat(33) + &"]".repeat(33);
        assert!(parse(deep.as_bytes()).unwrap_err().contains("32"));
        assert!(parse(&vec![b'['; 1 << 20]).is_err(), "no depth overflows the stack");
    }

    #[test]
    fn a_wrong_member_is_named() {
        #[derive(Debug, serde::Deserialize)]
        struct Inner {
            #[expect(dead_code, reason = "read, never looked at")]
            b: u8,
        }
        type Outer = std::collections::BTreeMap<String, Inner>;
        let refused = typed::<Outer>(br#"{"a":{"b":"x"}}"#).unwrap_err().to_string();
        assert!(refused.contains("`a.b`"), "{refused}");
    }
}
