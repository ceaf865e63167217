//! Whether two schemas of a `oneOf` can never both hold: a grammar allows what either does.

use super::schema::{Checker, Members, Wrong, is_reference};
use super::values::{is_of_type, loose};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::HashSet;

/// How deep properties are compared.
const MOST_DEPTH: usize = 3;

impl Checker<'_> {
    /// Whether no value is valid for both; false where it cannot be told.
    ///
    /// # Errors
    /// When telling takes too much.
    pub fn are_apart(&self, one: &Value, other: &Value, path: &str) -> Result<bool, Wrong> {
        match (one.as_object(), other.as_object()) {
            (Some(one), Some(other)) => self.apart(one, other, path, 0),
            _ => self.spend(1, path).map(|()| false),
        }
    }

    fn apart(&self, one: &Members, other: &Members, path: &str, depth: usize) -> Result<bool, Wrong> {
        self.spend(1, path)?;
        if depth > MOST_DEPTH {
            return Ok(false);
        }
        let (Some(one), Some(other)) = (self.plain(one, path)?, self.plain(other, path)?) else {
            return Ok(false);
        };
        for (with, other) in [(&one, &other), (&other, &one)] {
            for key in ["anyOf", "oneOf"] {
                let Some(schemas) = with.get(key).and_then(Value::as_array) else { continue };
                let mut all = true;
                for schema in schemas {
                    let schema = schema.as_object();
                    all = match schema {
                        Some(schema) => self.apart(schema, other, path, depth + 1)?,
                        None => false,
                    };
                    if !all {
                        break;
                    }
                }
                if all {
                    return Ok(true);
                }
            }
        }
        let (ours, theirs) = (values(&one), values(&other));
        self.spend(ours.unwrap_or_default().len() + theirs.unwrap_or_default().len(), path)?;
        match (ours, theirs) {
            (Some(ours), Some(theirs)) => {
                let ours: HashSet<Value> = ours.iter().map(loose).collect();
                return Ok(!theirs.iter().any(|value| ours.contains(&loose(value))));
            }
            (Some(ours), None) if !ours.iter().any(|value| may_be(&other, value)) => return Ok(true),
            (None, Some(theirs)) if !theirs.iter().any(|value| may_be(&one, value)) => return Ok(true),
            _ => {}
        }
        if let (Some(ours), Some(theirs)) = (types(&one), types(&other)) {
            self.spend(ours.len() * theirs.len(), path)?;
            if !ours.iter().any(|name| theirs.iter().any(|other| overlap(name, other))) {
                return Ok(true);
            }
        }
        self.have_apart_properties(&one, &other, path, depth)
    }

    /// Whether two objects differ in a property that both must have, or one must have what the other may not.
    fn have_apart_properties(
        &self,
        one: &Members,
        other: &Members,
        path: &str,
        depth: usize,
    ) -> Result<bool, Wrong> {
        // Of what is no object, properties ask nothing.
        if !is_object(one) || !is_object(other) {
            return Ok(false);
        }
        let (ours, theirs) = (required(one), required(other));
        self.spend(ours.len() + theirs.len(), path)?;
        if ours.iter().any(|name| lacks(other, name)) || theirs.iter().any(|name| lacks(one, name)) {
            return Ok(true);
        }
        let theirs: HashSet<&str> = theirs.into_iter().collect();
        for name in ours.into_iter().filter(|name| theirs.contains(name)) {
            let of = |schema| property(schema, name).and_then(Value::as_object);
            if let (Some(ours), Some(theirs)) = (of(one), of(other))
                && self.apart(ours, theirs, path, depth + 1)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A schema without references and `allOf`; `None` where there is none.
    fn plain<'m>(&'m self, schema: &'m Members, path: &str) -> Result<Option<Cow<'m, Members>>, Wrong> {
        let mut schema = schema;
        if let Some(to) = schema.get("$ref").and_then(Value::as_str)
            && is_reference(schema)
        {
            let Some(target) = self.resolve(to, path).ok().and_then(Value::as_object) else {
                return Ok(None);
            };
            schema = target;
        }
        if !schema.contains_key("$ref") && !schema.contains_key("allOf") {
            return Ok(Some(Cow::Borrowed(schema)));
        }
        match self.join(schema, path) {
            Ok(joined) => Ok(Some(Cow::Owned(joined))),
            Err(wrong) if self.is_exhausted() => Err(wrong),
            Err(_) => Ok(None),
        }
    }
}

fn property<'m>(of: &'m Members, name: &str) -> Option<&'m Value> {
    of.get("properties").and_then(|it| it.get(name))
}

fn lacks(schema: &Members, name: &str) -> bool {
    schema.get("additionalProperties") == Some(&Value::Bool(false)) && property(schema, name).is_none()
}

fn values(schema: &Members) -> Option<&[Value]> {
    match schema.get("const") {
        Some(value) => Some(std::slice::from_ref(value)),
        None => Some(schema.get("enum")?.as_array()?),
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

fn required(schema: &Members) -> Vec<&str> {
    schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}
