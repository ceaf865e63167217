//! Whether two schemas of a `oneOf` can never both hold: a grammar allows what either does.

use super::schema::{Checker, Members};
use super::values::{equal, is_of_type};
use serde_json::Value;

/// How deep properties are compared.
const MOST_DEPTH: usize = 3;
/// Comparisons for one schema.
const MOST_COMPARED: usize = 100_000;

impl Checker<'_> {
    /// Whether no value is valid for both; false where it cannot be told.
    pub fn are_apart(&self, one: &Value, other: &Value) -> bool {
        self.apart(one, other, 0)
    }

    fn apart(&self, one: &Value, other: &Value, depth: usize) -> bool {
        self.compared.set(self.compared.get() + 1);
        if depth > MOST_DEPTH || self.compared.get() > MOST_COMPARED {
            return false;
        }
        let (Some(one), Some(other)) = (self.plain(one), self.plain(other)) else { return false };
        for (with, other) in [(&one, &other), (&other, &one)] {
            for key in ["anyOf", "oneOf"] {
                let other = || Value::Object(other.clone());
                if let Some(schemas) = with.get(key).and_then(Value::as_array)
                    && schemas.iter().all(|schema| self.apart(schema, &other(), depth + 1))
                {
                    return true;
                }
            }
        }
        match (values(&one), values(&other)) {
            (Some(ours), Some(theirs)) => {
                return !ours.iter().any(|value| theirs.iter().any(|other| equal(value, other)));
            }
            (Some(ours), None) if !ours.iter().any(|value| may_be(&other, value)) => return true,
            (None, Some(theirs)) if !theirs.iter().any(|value| may_be(&one, value)) => return true,
            _ => {}
        }
        if let (Some(ours), Some(theirs)) = (types(&one), types(&other))
            && !ours.iter().any(|name| theirs.iter().any(|other| overlap(name, other)))
        {
            return true;
        }
        self.have_apart_properties(&one, &other, depth)
    }

    /// Whether two objects differ in a property that both must have, or one must have what the other may not.
    fn have_apart_properties(&self, one: &Members, other: &Members, depth: usize) -> bool {
        // Of what is no object, properties ask nothing.
        if !is_object(one) || !is_object(other) {
            return false;
        }
        let property = |of: &Members, name: &str| of.get("properties").and_then(|it| it.get(name)).cloned();
        let closed = |of: &Members| of.get("additionalProperties") == Some(&Value::Bool(false));
        let lacks = |of: &Members, name: &str| closed(of) && property(of, name).is_none();
        required(one).any(|name| {
            lacks(other, name)
                || required(other).any(|it| it == name)
                    && match (property(one, name), property(other, name)) {
                        (Some(ours), Some(theirs)) => self.apart(&ours, &theirs, depth + 1),
                        _ => false,
                    }
        }) || required(other).any(|name| lacks(one, name))
    }

    /// A schema without references and `allOf`.
    fn plain(&self, schema: &Value) -> Option<Members> {
        let members = schema.as_object()?;
        match members.contains_key("$ref") || members.contains_key("allOf") {
            true => self.join(members, "#").ok(),
            false => Some(members.clone()),
        }
    }
}

fn values(schema: &Members) -> Option<Vec<&Value>> {
    match schema.get("const") {
        Some(value) => Some(vec![value]),
        None => Some(schema.get("enum")?.as_array()?.iter().collect()),
    }
}

fn types(schema: &Members) -> Option<Vec<&str>> {
    match schema.get("type")? {
        Value::Array(names) => names.iter().map(Value::as_str).collect(),
        name => Some(vec![name.as_str()?]),
    }
}

fn is_object(schema: &Members) -> bool {
    types(schema).is_some_and(|types| types == ["object"])
}

fn may_be(schema: &Members, value: &Value) -> bool {
    types(schema).is_none_or(|types| types.iter().any(|name| is_of_type(value, name)))
}

fn overlap(one: &str, other: &str) -> bool {
    one == other || matches!((one, other), ("integer", "number") | ("number", "integer"))
}

fn required(schema: &Members) -> impl Iterator<Item = &str> {
    schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}
