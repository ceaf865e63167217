//! Makes one schema of those that `allOf` joins: llama.cpp's grammars know no conjunction.
//!
//! What holds is what all of them ask for: properties and `required` of all, the narrower of two bounds, the values that
//! two lists share. A property that one of them forbids by `additionalProperties` is left out. Alternatives are
//! multiplied out. Where two demands have no common form, such as two patterns, the schema is refused.

use super::budget::size;
use super::format;
use super::schema::{Checker, MOST_DEPTH, Members, TYPES, Wrong, is_note};
use serde_json::{Value, json};
use std::collections::HashSet;

/// Most alternatives that joining may come to.
const MOST_ALTERNATIVES: usize = 64;
/// Marks an `allOf` that was made here.
const JOINED: &str = "x-joined";

impl Checker<'_> {
    /// A schema with `allOf`, or with something beside a `$ref`, without either.
    ///
    /// # Errors
    /// What cannot be joined, by place.
    pub fn join(&self, schema: &Members, path: &str) -> Result<Members, Wrong> {
        let mut parts = Vec::new();
        self.collect(schema, path, 0, &mut parts)?;
        let mut joined = Members::new();
        for part in parts {
            joined = self.both(joined, part, path)?;
        }
        Ok(joined)
    }

    /// A schema with something beside its alternatives, as one that has it in each of them instead; `None` where nothing
    /// stands beside them.
    ///
    /// # Errors
    /// What cannot be joined, by place.
    pub fn move_into_alternatives(&self, schema: &Members, path: &str) -> Result<Option<Members>, Wrong> {
        for key in ["anyOf", "oneOf"] {
            let Some(alternatives) = schema.get(key).and_then(Value::as_array) else { continue };
            if schema.iter().any(|member| member.0 != key && !is_note(member)) {
                return self.each(schema, key, alternatives, &Members::new(), path).map(Some);
            }
        }
        Ok(None)
    }

    /// The schemas joined in this one, each without `allOf` and `$ref`.
    fn collect(
        &self,
        schema: &Members,
        path: &str,
        depth: usize,
        parts: &mut Vec<Members>,
    ) -> Result<(), Wrong> {
        let wrong = |at: &str, what: &str| Err(Wrong { path: format!("{path}{at}"), what: what.to_owned() });
        if depth > MOST_DEPTH {
            return wrong("", "joins itself, or is nested too deep");
        }
        self.spend(size_of(schema), path)?;
        let mut own = schema.clone();
        if let Some(to) = own.remove("$ref") {
            let Some(to) = to.as_str() else { return wrong("", "has a `$ref` that is no text") };
            match self.resolve(to, path)? {
                Value::Object(target) => self.collect(target, path, depth + 1, parts)?,
                Value::Bool(true) => {}
                _ => return wrong("/$ref", "leads to something that is no schema"),
            }
        }
        if let Some(joined) = own.remove("allOf") {
            let Some(schemas) = joined.as_array().filter(|list| !list.is_empty()) else {
                return wrong("/allOf", "is not a list of schemas");
            };
            for (i, schema) in schemas.iter().enumerate() {
                // What was joined here has no such place in the caller's schema.
                let at = if own.contains_key(JOINED) { String::new() } else { format!("/allOf/{i}") };
                match schema {
                    Value::Object(schema) => {
                        self.collect(schema, &format!("{path}{at}"), depth + 1, parts)?;
                    }
                    Value::Bool(true) => {}
                    Value::Bool(false) => return wrong(&at, "allows nothing"),
                    _ => return wrong(&at, "is not an object"),
                }
            }
        }
        parts.push(own);
        Ok(())
    }

    /// One schema that asks for what both ask for.
    fn both(&self, a: Members, b: Members, path: &str) -> Result<Members, Wrong> {
        self.spend(size_of(&a) + size_of(&b), path)?;
        let asks = |schema: &Members| schema.iter().any(|member| !is_note(member));
        if !asks(&a) || !asks(&b) {
            let (mut first, second) = (a, b);
            for (key, value) in second {
                // Some formats ask for something, though the word alone does not.
                let both = match first.get(&key) {
                    Some(there) if key == "format" => keyword(&key, there, &value, path)?,
                    Some(_) => continue,
                    None => Some(value),
                };
                first.extend(both.map(|both| (key, both)));
            }
            return Ok(first);
        }
        for (with, other) in [(&a, &b), (&b, &a)] {
            for key in ["anyOf", "oneOf"] {
                if let Some(alternatives) = with.get(key).and_then(Value::as_array) {
                    return self.each(with, key, alternatives, other, path);
                }
            }
        }
        for (one, other) in [(&a, &b), (&b, &a)] {
            if one.contains_key("prefixItems")
                && other.contains_key("items")
                && !other.contains_key("prefixItems")
            {
                let what = "joins `prefixItems` with an `items` that speaks of all items";
                return Err(Wrong { path: path.to_owned(), what: what.to_owned() });
            }
        }
        let mut joined = Members::new();
        for (key, value) in &a {
            let value = match b.get(key) {
                Some(other) if value != other => keyword(key, value, other, path)?,
                _ => Some(value.clone()),
            };
            joined.extend(value.map(|value| (key.clone(), value)));
        }
        for (key, value) in &b {
            joined.entry(key.clone()).or_insert_with(|| value.clone());
        }
        if a.contains_key("properties") || b.contains_key("properties") {
            joined.insert("properties".to_owned(), properties(&a, &b).into());
        }
        Ok(joined)
    }

    /// Alternatives, each joined with what stands beside them and with `other`.
    fn each(
        &self,
        with: &Members,
        key: &str,
        alternatives: &[Value],
        other: &Members,
        path: &str,
    ) -> Result<Members, Wrong> {
        let mut beside = with.clone();
        beside.remove(key);
        let beside = self.both(beside, other.clone(), path)?;
        let factor = ["anyOf", "oneOf"].iter().filter_map(|key| beside.get(*key)?.as_array()).map(Vec::len);
        if alternatives.len() * factor.product::<usize>() > MOST_ALTERNATIVES {
            let what = format!("joins more than {MOST_ALTERNATIVES} alternatives");
            return Err(Wrong { path: path.to_owned(), what });
        }
        let copied = alternatives.iter().map(size).sum::<usize>() + alternatives.len() * size_of(&beside);
        self.spend(copied, path)?;
        let alternatives = alternatives
            .iter()
            .map(|alternative| json!({"allOf": [alternative, beside], JOINED: true}))
            .collect();
        Ok(Members::from_iter([(key.to_owned(), Value::Array(alternatives))]))
    }
}

/// The properties that both allow, those of `a` first.
fn properties(a: &Members, b: &Members) -> Members {
    let mut joined = Members::new();
    for (of, other) in [(a, b), (b, a)] {
        let theirs = other.get("properties").and_then(Value::as_object);
        for (name, schema) in of.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let also =
                theirs.and_then(|theirs| theirs.get(name)).or_else(|| other.get("additionalProperties"));
            let schema = match also {
                None | Some(Value::Bool(true)) => schema.clone(),
                Some(Value::Bool(false)) => continue,
                Some(also) if also == schema => schema.clone(),
                Some(also) => json!({"allOf": [schema, also]}),
            };
            joined.entry(name.clone()).or_insert(schema);
        }
    }
    joined
}

/// A keyword that both have, and differently; `None` where it then asks for nothing.
fn keyword(key: &String, a: &Value, b: &Value, path: &str) -> Result<Option<Value>, Wrong> {
    let wrong = |what: String| Err(Wrong { path: path.to_owned(), what });
    let larger = || if number(a) < number(b) { b } else { a };
    let smaller = || if number(b) < number(a) { b } else { a };
    Ok(Some(match key.as_str() {
        "format" => match (format::is_held(a), format::is_held(b)) {
            (true, true) if a != b => return wrong(format!("joins the formats {a} and {b}")),
            (false, true) => b.clone(),
            _ => a.clone(),
        },
        _ if is_note((key, a)) => a.clone(),
        "properties" => a.clone(), // joined by `properties`
        "required" => {
            let known: HashSet<&Value> = list(a).iter().collect();
            let others = list(b).iter().filter(|name| !known.contains(name));
            list(a).iter().chain(others).cloned().collect()
        }
        "type" => {
            let (ours, theirs) = (list(a), list(b));
            if ours.len().max(theirs.len()) > TYPES.len() {
                return wrong("joins a `type` that lists more than there are".to_owned());
            }
            let narrower = |name: &Value, other: &[Value]| {
                other.contains(name) || name == "integer" && other.contains(&json!("number"))
            };
            let mut names: Vec<Value> = ours.iter().filter(|name| narrower(name, theirs)).cloned().collect();
            names.extend(
                theirs
                    .iter()
                    .filter(|name| narrower(name, ours) && !names.contains(name))
                    .cloned()
                    .collect::<Vec<_>>(),
            );
            match names.as_slice() {
                [] => return wrong(format!("joins the types {a} and {b}: nothing is both")),
                [only] => only.clone(),
                _ => names.into(),
            }
        }
        "enum" => {
            let theirs: HashSet<&Value> = list(b).iter().collect();
            let shared: Vec<Value> = list(a).iter().filter(|value| theirs.contains(value)).cloned().collect();
            if shared.is_empty() {
                return wrong("joins lists of values that share none".to_owned());
            }
            shared.into()
        }
        "minimum" | "exclusiveMinimum" | "minLength" | "minItems" => larger().clone(),
        "maximum" | "exclusiveMaximum" | "maxLength" | "maxItems" => smaller().clone(),
        "additionalProperties" => match (a, b) {
            (Value::Bool(false), _) | (_, Value::Bool(false)) => Value::Bool(false),
            (Value::Bool(true), other) | (other, Value::Bool(true)) => other.clone(),
            _ => json!({"allOf": [a, b]}),
        },
        "items" if a.is_object() && b.is_object() => json!({"allOf": [a, b]}),
        _ => return wrong(format!("joins schemas whose `{key}` differ")),
    }))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}

/// A list, or the one thing that stands for it.
fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice)
}

fn size_of(schema: &Members) -> usize {
    1 + schema.values().map(size).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(schema: &Value) -> Result<Value, (String, String)> {
        Checker::new(schema, true, "#").whole().map_err(|wrong| (wrong.path, wrong.what))
    }

    #[test]
    fn what_is_joined_asks_for_everything() {
        let schema = json!({
            "$defs": {"named": {"type": "object", "properties": {"name": {"type": "string"}}}},
            "allOf": [
                {"$ref": "#/$defs/named"},
                {"properties": {"age": {"type": "number"}}, "required": ["name"]},
                {"properties": {"age": {"type": "integer", "minimum": 0}}, "required": ["age"]},
            ],
            "properties": {"age": {"maximum": 150, "type": "integer", "minimum": 1}},
        });
        let joined = whole(&schema).unwrap();
        assert_eq!(
            joined,
            json!({
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "age": {"type": "integer", "minimum": 1, "maximum": 150},
                },
                "required": ["name", "age"],
            })
        );
    }

    #[test]
    fn a_reference_with_something_beside_it_asks_for_both() {
        let schema = json!({
            "$defs": {"color": {"enum": ["red", "green", "blue"]}},
            "type": "object",
            "properties": {"color": {"$ref": "#/$defs/color", "enum": ["green", "blue", "black"]},
                           "other": {"$ref": "#/$defs/color", "description": "Another."}},
        });
        let joined = whole(&schema).unwrap();
        assert_eq!(joined["properties"]["color"], json!({"enum": ["green", "blue"]}));
        assert_eq!(joined["properties"]["other"], json!({"$ref": "#/$defs/at0"}));
        assert_eq!(joined["$defs"], json!({"at0": {"enum": ["red", "green", "blue"]}}));
    }

    #[test]
    fn a_property_that_one_forbids_is_left_out() {
        let closed = json!({"properties": {"a": {"type": "string"}}, "additionalProperties": false});
        let schema = json!({"allOf": [closed, {"properties": {"a": {}, "b": {"type": "string"}}}]});
        let joined = whole(&schema).unwrap();
        assert_eq!(joined["properties"], json!({"a": {"type": "string"}}));
        let schema = json!({"allOf": [closed, {"properties": {"b": {}}, "required": ["b"]}]});
        let (path, what) = whole(&schema).unwrap_err();
        assert!(path == "#/required" && what.contains("`b`"), "{path} {what}");
    }

    #[test]
    fn alternatives_are_multiplied_out() {
        let named =
            json!({"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]});
        let kinds = json!({"anyOf": [{"properties": {"a": {"type": "null"}}}, {"properties": {"b": {"type": "null"}}}]});
        let joined = whole(&json!({"allOf": [named, kinds]})).unwrap();
        let of = |i: usize| {
            joined["anyOf"][i]["properties"].as_object().unwrap().keys().cloned().collect::<Vec<_>>()
        };
        assert_eq!(
            (of(0), of(1)),
            (vec!["a".to_owned(), "name".to_owned()], vec!["b".to_owned(), "name".to_owned()])
        );
        let joined = whole(&json!({"allOf": [kinds, kinds]})).unwrap();
        assert_eq!(joined["anyOf"][1]["anyOf"].as_array().map(Vec::len), Some(2), "{joined}");
        let many = json!({"anyOf": vec![json!({"type": "string", "maxLength": 1}); 9]});
        assert!(whole(&json!({"allOf": [many, many]})).unwrap_err().1.contains("64 alternatives"));
    }

    #[test]
    fn what_has_no_common_form_is_refused() {
        for (a, b, says) in [
            (json!({"type": "string"}), json!({"type": "null"}), "nothing is both"),
            (json!({"enum": [1]}), json!({"enum": [2]}), "share none"),
            (json!({"pattern": "^a$"}), json!({"pattern": "^b$"}), "`pattern` differ"),
            (json!({"const": 1}), json!({"const": 2}), "`const` differ"),
            (json!(false), json!({"type": "string"}), "allows nothing"),
        ] {
            let schema = json!({"type": "object", "properties": {"x": {"allOf": [a, b]}}});
            let (path, what) = whole(&schema).unwrap_err();
            assert!(path.starts_with("#/properties/x") && what.contains(says), "{path} {what}");
        }
        let circle = json!({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"});
        assert!(whole(&circle).unwrap_err().1.contains("itself"));
        assert!(whole(&json!({"allOf": []})).unwrap_err().1.contains("list of schemas"));
    }
}
