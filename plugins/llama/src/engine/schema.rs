//! JSON Schemas, checked before llama.cpp turns them into grammars.
//!
//! llama.cpp says little about a schema it cannot turn, and some keywords it drops in silence: what an answer cannot be
//! held to is refused here, by its place.

use super::pattern;
use serde_json::{Map, Value, json};
use std::collections::HashSet;

/// Moves a schema's references to where the schema now stands.
pub fn rebase(schema: Value, at: &str) -> Value {
    match schema {
        Value::Object(members) => Value::Object(
            members
                .into_iter()
                .map(|(key, value)| match (&*key, &value) {
                    ("$ref", Value::String(to)) => (key, Value::String(to.replacen('#', at, 1))),
                    _ => (key, rebase(value, at)),
                })
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.into_iter().map(|item| rebase(item, at)).collect()),
        other => other,
    }
}

/// What is wrong with a schema, and where.
#[derive(Debug, PartialEq)]
pub struct Wrong {
    pub path: String,
    pub what: String,
}

/// Checks a schema. Strict: what a grammar cannot hold an answer to is refused; otherwise it is left out.
pub struct Checker<'a> {
    pub root: &'a Value,
    pub strict: bool,
}

/// More than this in one schema makes llama.cpp's grammar too large.
const MOST_REPETITIONS: u64 = 1000;
pub const MOST_DEPTH: usize = 32;
/// Different places that references may lead to: llama.cpp recurses from one to the next.
const MOST_REFERENCES: usize = 400;

/// Say nothing about what is valid, or nothing that must be checked.
const NOTES: &[&str] = &[
    "title",
    "description",
    "default",
    "examples",
    "example",
    "deprecated",
    "readOnly",
    "writeOnly",
    "format",
    "$schema",
    "$id",
    "$comment",
    "$defs",
    "definitions",
    "$anchor",
    "strict",
    "discriminator",
    "nullable",
    "contentEncoding",
    "contentMediaType",
];

/// Where references lead, most often.
pub const DEFINITIONS: [&str; 2] = ["$defs", "definitions"];

/// Whether a keyword asks for nothing.
pub fn is_note(key: &str) -> bool {
    NOTES.contains(&key) || key.starts_with("x-")
}

/// Where the references of a schema lead. No deeper than the body of a request may nest.
fn references<'a>(schema: &'a Value, places: &mut HashSet<&'a str>) {
    match schema {
        Value::Object(members) => members.iter().for_each(|(key, value)| match value {
            Value::String(to) if key == "$ref" => _ = places.insert(to),
            value => references(value, places),
        }),
        Value::Array(items) => items.iter().for_each(|item| references(item, places)),
        _ => {}
    }
}

impl Checker<'_> {
    /// The schema as llama.cpp understands it.
    ///
    /// # Errors
    /// What it cannot be held to, by place.
    pub fn whole(&self) -> Result<Value, Wrong> {
        let mut places = HashSet::new();
        references(self.root, &mut places);
        if places.len() > MOST_REFERENCES {
            let what = format!("refers to {} places; at most {MOST_REFERENCES} can be held to", places.len());
            return Err(Wrong { path: "#".to_owned(), what });
        }
        self.check(self.root, "#", 0)
    }

    fn check(&self, schema: &Value, path: &str, depth: usize) -> Result<Value, Wrong> {
        let wrong = |what: String| Err(Wrong { path: path.to_owned(), what });
        if depth > MOST_DEPTH {
            return wrong(format!("is nested deeper than {MOST_DEPTH}"));
        }
        let Value::Object(members) = schema else {
            return match schema {
                Value::Bool(true) => Ok(json!({})),
                _ => wrong("is not an object".into()),
            };
        };
        let sub = |value: &Value, path: String| self.check(value, &path, depth + 1);
        let has = |key: &str| members.contains_key(key);
        let mut out = Map::new();
        let alone = |key: &String| key == "$ref" || is_note(key) && !DEFINITIONS.contains(&key.as_str());
        if let Some(to) = members.get("$ref").filter(|_| members.keys().all(alone)) {
            let Some(to) = to.as_str() else { return wrong("has a `$ref` that is no text".into()) };
            self.resolve(to, path)?;
            return Ok(json!({"$ref": to}));
        }
        let joined;
        let members = if has("allOf") || has("$ref") {
            joined = self.join(members, path)?;
            &joined
        } else {
            members
        };
        let has = |key: &str| members.contains_key(key);
        for (key, value) in members {
            let at = format!("{path}/{key}");
            let is = |what: &str| Err(Wrong { path: at.clone(), what: what.to_owned() });
            let checked = match key.as_str() {
                "$defs" | "definitions" => match value {
                    Value::Object(defs) => defs
                        .iter()
                        .map(|(name, def)| Ok((name.clone(), sub(def, format!("{at}/{name}"))?)))
                        .collect::<Result<Map<_, _>, _>>()?
                        .into(),
                    _ => return is("is not an object"),
                },
                "type" => match value {
                    Value::String(_) => self.type_name(value, &at)?,
                    Value::Array(names) if !names.is_empty() => names
                        .iter()
                        .map(|name| self.type_name(name, &at))
                        .collect::<Result<Vec<_>, _>>()?
                        .into(),
                    _ => return is("is neither a type's name nor a list of them"),
                },
                "properties" => match value {
                    Value::Object(properties) => properties
                        .iter()
                        .map(|(name, property)| Ok((name.clone(), sub(property, format!("{at}/{name}"))?)))
                        .collect::<Result<Map<_, _>, _>>()?
                        .into(),
                    _ => return is("is not an object"),
                },
                "required" => {
                    let Some(names) = value.as_array() else { return is("is not a list") };
                    for name in names {
                        let Some(name) = name.as_str() else { return is("names something that is no text") };
                        if self.strict && members.get("properties").is_none_or(|p| p.get(name).is_none()) {
                            return is(&format!("names `{name}`, which `properties` does not have"));
                        }
                    }
                    value.clone()
                }
                "additionalProperties" => match value {
                    Value::Bool(_) => value.clone(),
                    _ => sub(value, at)?,
                },
                "items" | "prefixItems" => match value {
                    Value::Array(items) => items
                        .iter()
                        .enumerate()
                        .map(|(i, item)| sub(item, format!("{at}/{i}")))
                        .collect::<Result<Vec<_>, _>>()?
                        .into(),
                    Value::Bool(false) => return is("allows nothing"),
                    _ => sub(value, at)?,
                },
                "anyOf" | "oneOf" => {
                    let Some(schemas) = value.as_array().filter(|list| !list.is_empty()) else {
                        return is("is not a list of schemas");
                    };
                    // llama.cpp looks at nothing else beside them.
                    if has("properties") || has("enum") || has("const") || has("items") {
                        return is("stands beside other demands; put them into each alternative");
                    }
                    schemas
                        .iter()
                        .enumerate()
                        .map(|(i, schema)| sub(schema, format!("{at}/{i}")))
                        .collect::<Result<Vec<_>, _>>()?
                        .into()
                }
                "enum" => match value.as_array() {
                    Some(values) if !values.is_empty() => value.clone(),
                    _ => return is("is not a list of values"),
                },
                "const" => value.clone(),
                "minLength" | "maxLength" | "minItems" | "maxItems" => match value.as_u64() {
                    Some(n) if n <= MOST_REPETITIONS => value.clone(),
                    Some(_) if key.starts_with("max") && !self.strict => continue,
                    Some(n) => return is(&format!("is {n}; at most {MOST_REPETITIONS} can be held to")),
                    None => return is("is not a whole number from 0"),
                },
                "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" => {
                    if !value.is_number() {
                        return is("is not a number");
                    }
                    if self.strict && !members.get("type").is_some_and(|name| name == "integer") {
                        return is("can be held to for integers only; remove it, or use `integer`");
                    }
                    value.clone()
                }
                "pattern" => {
                    let Some(pattern) = value.as_str() else { return is("is not a text") };
                    match pattern::is_supported(pattern) {
                        true => value.clone(),
                        false if self.strict => {
                            return is(
                                "cannot be held to; it must be anchored (`^…$`), without look-around, `.`, `[^…]`, or what JSON escapes",
                            );
                        }
                        false => continue,
                    }
                }
                // An extension says nothing to us.
                key if key.starts_with("x-") => continue,
                key if is_note(key) => value.clone(),
                _ if self.strict => return is("cannot be held to; remove it"),
                _ => continue,
            };
            out.insert(key.clone(), checked);
        }
        Ok(out.into())
    }

    fn type_name(&self, name: &Value, path: &str) -> Result<Value, Wrong> {
        const TYPES: [&str; 7] = ["object", "array", "string", "number", "integer", "boolean", "null"];
        match name.as_str() {
            Some(text) if TYPES.contains(&text) => Ok(name.clone()),
            _ => Err(Wrong {
                path: path.to_owned(),
                what: format!("is {name}; it can be one of {}", TYPES.join(", ")),
            }),
        }
    }

    /// Whether a reference leads somewhere, other than through references to itself.
    pub fn resolve(&self, to: &str, path: &str) -> Result<&Value, Wrong> {
        let wrong = |what: String| Err(Wrong { path: format!("{path}/$ref"), what });
        let mut at = to;
        for _ in 0..MOST_DEPTH {
            let Some(steps) = at.strip_prefix("#/") else {
                return wrong(format!("is `{at}`; it can lead to `#/…` only, in the same schema"));
            };
            let target = steps.split('/').try_fold(self.root, |value, step| match value {
                Value::Object(members) => members.get(step),
                Value::Array(items) => step.parse::<usize>().ok().and_then(|i| items.get(i)),
                _ => None,
            });
            match target {
                None => return wrong(format!("leads to `{at}`, which is not there")),
                Some(target) => match target.get("$ref").and_then(Value::as_str) {
                    None => return Ok(target),
                    Some(next) => at = next,
                },
            }
        }
        wrong("leads in a circle".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backplane_plugin::payload::ResponseFormat;

    fn strict(schema: Value) -> Result<Value, (String, String)> {
        Checker { root: &schema, strict: true }.whole().map_err(|e| (e.path, e.what))
    }

    fn refused(schema: Value, path: &str, says: &str) {
        let (at, what) = strict(schema.clone()).unwrap_err();
        assert_eq!(at, path, "{schema}: {what}");
        assert!(what.contains(says), "{what}");
        let error = super::super::grammar::of_format(&ResponseFormat::JsonSchema { schema }).unwrap_err();
        assert!(error.message.contains(path) && error.details.contains_key("param"), "{error}");
    }

    #[test]
    fn a_schema_that_leads_from_place_to_place_for_long_is_refused() {
        let chain = |places: usize| {
            let definition =
                |i| (format!("d{i}"), json!({"anyOf": [{"$ref": format!("#/$defs/d{}", i + 1)}]}));
            let mut definitions: Map<String, Value> = (0..places).map(definition).collect();
            definitions.insert(format!("d{places}"), json!({"type": "null"}));
            json!({"$defs": definitions, "anyOf": [{"$ref": "#/$defs/d0"}]})
        };
        assert!(strict(chain(100)).is_ok());
        refused(chain(20_000), "#", "refers to 20001 places");
    }

    #[test]
    fn a_schema_that_cannot_be_held_to_is_refused_by_place() {
        refused(json!([]), "#", "not an object");
        refused(json!({"type": "strin"}), "#/type", "string");
        refused(
            json!({"type": "object", "properties": {"a": {"type": 3}}}),
            "#/properties/a/type",
            "type's name",
        );
        refused(
            json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}}),
            "#/properties/a/$ref",
            "not there",
        );
        refused(json!({"$ref": "https://example.org/x"}), "#/$ref", "same schema");
        refused(
            json!({"$defs": {"a": {"$ref": "#/$defs/a"}}, "allOf": [{"$ref": "#/$defs/a"}]}),
            "#/allOf/0/$ref",
            "circle",
        );
        refused(json!({"type": "number", "minimum": 0}), "#/minimum", "integers only");
        refused(json!({"type": "object", "not": {}}), "#/not", "cannot be held to");
        refused(json!({"type": "string", "pattern": "a+"}), "#/pattern", "anchored");
        refused(json!({"type": "string", "pattern": "^(?=a)a$"}), "#/pattern", "look-around");
        refused(json!({"type": "string", "maxLength": 100_000}), "#/maxLength", "at most 1000");
        refused(json!({"type": "object", "properties": {}, "required": ["a"]}), "#/required", "`a`");
        refused(json!({"anyOf": []}), "#/anyOf", "list of schemas");
        refused(json!({"enum": []}), "#/enum", "list of values");
        let deep =
            (0..40).fold(json!({"type": "string"}), |inner, _| json!({"type": "array", "items": inner}));
        assert!(strict(deep).unwrap_err().1.contains("deeper"));
    }
}
