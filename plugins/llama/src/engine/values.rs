//! Schemas that list their values: those are kept that all keywords beside them allow.

use super::matcher::Matcher;
use super::schema::{BOUNDS, Checker, Members, Wrong};
use super::{format, gbnf, grammar, pattern};
use serde_json::{Number, Value, json};
use std::cell::Cell;
use std::sync::Arc;

/// What it takes to make a pattern's matcher, and to copy it for a value, in parts copied.
const PATTERN_WORK: usize = 5000;
const VALUE_WORK: usize = 100;
/// What a matcher may do for all values of a list, and how much of that is a part copied.
const MATCHER_WORK: u64 = 1 << 21;
const WORK_PER_PART: u64 = 8;

impl Checker<'_> {
    /// The schema of the values that `enum`, `const` and what stands beside them all allow.
    pub fn values(&self, members: &Members, path: &str) -> Result<Value, Wrong> {
        let key = if members.contains_key("enum") { "enum" } else { "const" };
        let wrong = |what: String| Err(Wrong { path: format!("{path}/{key}"), what });
        let listed: Vec<&Value> = match members.get("enum").and_then(Value::as_array) {
            Some(values) => values.iter().collect(),
            None => members.get("const").into_iter().collect(),
        };
        let (listed, mut kept) = (&listed, Vec::new());
        let shapes = [
            self.shape("pattern", members, listed.len(), path)?,
            self.shape("format", members, listed.len(), path)?,
        ];
        let mut excludes = None;
        for &value in listed {
            let mut holds = true;
            for (other, asked) in members.iter().filter(|(other, _)| *other != key) {
                match allows(other, asked, value, &shapes) {
                    Some(true) => {}
                    Some(false) => {
                        excludes.get_or_insert(other.as_str());
                        holds = false;
                    }
                    None if self.is_strict() => {
                        return wrong(format!(
                            "stands beside `{other}`, and which values that allows is not looked into; leave those out \
                             that it forbids, and remove it"
                        ));
                    }
                    None => {}
                }
            }
            if holds {
                kept.push(value);
            }
        }
        for shape in shapes.iter().flatten() {
            self.spend(shape.work_done(), path)?;
        }
        match (kept.is_empty(), excludes) {
            (true, Some(other)) if self.is_strict() => {
                wrong(format!("has no value that `{other}` beside it allows"))
            }
            (true, _) => Ok(json!({"enum": listed})),
            _ => Ok(json!({"enum": kept})),
        }
    }

    /// The `pattern` or the held `format` that so many values are asked for.
    fn shape(&self, key: &str, members: &Members, values: usize, path: &str) -> Result<Option<Shape>, Wrong> {
        let Some(asked) = members.get(key).and_then(Value::as_str) else { return Ok(None) };
        let (key, asked) = match (key, format::of(asked)) {
            ("pattern", _) => (key, asked),
            // A format leaves no value out, so it is looked into only where one that it may not allow is refused.
            (_, Some(format)) if self.is_strict() => {
                format.pattern.map_or((key, asked), |pattern| ("pattern", pattern))
            }
            _ => return Ok(None),
        };
        self.spend(PATTERN_WORK + values * (VALUE_WORK + asked.len()), path)?;
        Ok(Some(Shape::new(key, asked)))
    }
}

/// Whether a keyword allows a value; `None` where that is not looked into.
fn allows(key: &str, asked: &Value, value: &Value, shapes: &[Option<Shape>; 2]) -> Option<bool> {
    let [pattern, format] = shapes;
    let most = |count: usize| asked.as_u64().is_none_or(|most| count as u64 <= most);
    let least = |count: usize| asked.as_u64().is_none_or(|least| count as u64 >= least);
    Some(match (key, value) {
        ("type", _) => match asked {
            Value::Array(names) => names.iter().filter_map(Value::as_str).any(|name| is_of_type(value, name)),
            name => name.as_str().is_some_and(|name| is_of_type(value, name)),
        },
        ("const", _) => equal(asked, value),
        ("enum", _) => asked.as_array().is_some_and(|values| values.iter().any(|other| equal(other, value))),
        ("minLength", Value::String(text)) => least(text.chars().count()),
        ("maxLength", Value::String(text)) => most(text.chars().count()),
        ("minItems", Value::Array(items)) => least(items.len()),
        ("maxItems", Value::Array(items)) => most(items.len()),
        ("pattern", Value::String(_)) => return pattern.as_ref()?.matches(value),
        // Answers are held to less than some formats allow: of a value beyond that nothing is known.
        ("format", Value::String(_)) if format::is_held(asked) => {
            return format.as_ref()?.matches(value).filter(|matches| *matches);
        }
        ("properties" | "required" | "additionalProperties", Value::Object(_)) => return None,
        ("items" | "prefixItems", Value::Array(_)) => return None,
        (key, Value::Number(number)) if BOUNDS.contains(&key) => {
            let Value::Number(bound) = asked else { return None };
            let order = compare(number, bound);
            match key {
                "minimum" => order.is_ge(),
                "exclusiveMinimum" => order.is_gt(),
                "maximum" => order.is_le(),
                _ => order.is_lt(),
            }
        }
        // Of other values it asks nothing.
        _ => true,
    })
}

/// A pattern or a format, as grammars ask it; without a matcher it is one that they cannot ask.
struct Shape {
    matcher: Option<Matcher>,
    work: Cell<u64>,
}

impl Shape {
    fn new(key: &str, asked: &str) -> Self {
        let matcher = || {
            let grammar = grammar::convert(&json!({"type": "string", (key): asked})).ok()?;
            let rules = gbnf::parse(&grammar, &|_| None).ok()?;
            Matcher::new(Arc::new(rules)).ok()
        };
        let matcher = (key != "pattern" || pattern::is_supported(asked)).then(matcher).flatten();
        Self { matcher, work: Cell::new(MATCHER_WORK) }
    }

    fn matches(&self, text: &Value) -> Option<bool> {
        let (read, work) = self.matcher.as_ref()?.reads(text.to_string().as_bytes(), self.work.get());
        self.work.set(work);
        read.ok()
    }

    fn work_done(&self) -> usize {
        ((MATCHER_WORK - self.work.get().min(MATCHER_WORK)) / WORK_PER_PART) as usize
    }
}

/// Whether a value is of a type, as JSON Schema has it: 1.0 is an integer.
pub fn is_of_type(value: &Value, name: &str) -> bool {
    match value {
        Value::Null => name == "null",
        Value::Bool(_) => name == "boolean",
        Value::String(_) => name == "string",
        Value::Array(_) => name == "array",
        Value::Object(_) => name == "object",
        Value::Number(number) => {
            let whole = !number.is_f64() || number.as_f64().is_some_and(|number| number.fract() == 0.0);
            name == "number" || name == "integer" && whole
        }
    }
}

/// A value whose numbers are all of one kind: what is the same to JSON Schema is the same then, and so are integers that
/// differ by less than a `f64` tells.
pub fn loose(value: &Value) -> Value {
    match value {
        Value::Number(number) => number.as_f64().map_or(Value::Null, Value::from),
        Value::Array(items) => items.iter().map(loose).collect(),
        Value::Object(members) => members.iter().map(|(key, value)| (key.clone(), loose(value))).collect(),
        value => value.clone(),
    }
}

/// Whether two values are the same to JSON Schema.
fn equal(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => compare(one, other).is_eq(),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| equal(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(key, value)| other.get(key).is_some_and(|other| equal(value, other)))
        }
        _ => one == other,
    }
}

fn compare(one: &Number, other: &Number) -> std::cmp::Ordering {
    let exact = |number: &Number| number.as_i64().map(i128::from).or(number.as_u64().map(i128::from));
    match (exact(one), exact(other)) {
        (Some(one), Some(other)) => one.cmp(&other),
        _ => {
            let real = |number: &Number| number.as_f64().unwrap_or(f64::NAN);
            real(one).total_cmp(&real(other))
        }
    }
}
