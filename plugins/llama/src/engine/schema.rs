//! JSON Schemas, made into ones that llama.cpp turns into grammars of nothing else.
//!
//! llama.cpp reads a keyword or two of each schema and drops the others in silence. So each schema is made into one of a
//! few forms here (a reference, alternatives, a list of values, one type with keywords that hold together), and what has
//! no such form is refused by its place. A form may allow less than the schema does: an object's properties in their
//! order and none besides, integers that JSON is exact for, a tuple as long as its `prefixItems`. It never allows more.

use super::{budget, format, pattern};
use serde_json::{Map, Value, json};
use std::cell::{Cell, RefCell};
use std::collections::HashSet;

/// What is wrong with a schema, and where.
#[derive(Debug, PartialEq)]
pub struct Wrong {
    pub path: String,
    pub what: String,
}

pub type Members = Map<String, Value>;

/// Checks a schema. Strict: what a grammar cannot hold an answer to is refused; otherwise it is left out.
pub struct Checker<'a> {
    root: &'a Value,
    strict: bool,
    /// Where the made schema will stand.
    base: &'a str,
    /// The schemas that references lead to, and their places.
    referred: RefCell<Vec<(&'a Value, String)>>,
    /// Begins the names that those are given.
    prefix: String,
    made: Cell<usize>,
    /// Parts copied and compared so far.
    spent: Cell<usize>,
    /// Whether nobody waits for the result any more.
    gone: &'a dyn Fn() -> bool,
}

/// More than this in one schema makes llama.cpp's grammar too large.
const MOST_REPETITIONS: u64 = 1000;
pub const MOST_DEPTH: usize = 32;
/// Different places that references may lead to: llama.cpp recurses from one to the next.
const MOST_REFERENCES: usize = 400;
/// Levels of all those schemas together, for the same reason.
const MOST_LEVELS: usize = 2000;
/// Schemas that a schema may come to, once what `allOf` joins is multiplied out.
const MOST_SCHEMAS: usize = 20_000;
/// Properties of one object that may be left out: llama.cpp writes rules for them in the cube of their number.
const MOST_OPTIONAL: usize = 200;
/// The largest integer that every reader of JSON is exact for.
const LARGEST: i128 = (1 << 53) - 1;

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
    "$schema",
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

pub const TYPES: [&str; 7] = ["object", "array", "string", "number", "integer", "boolean", "null"];

const LENGTHS: [&str; 2] = ["minLength", "maxLength"];
const COUNTS: [&str; 2] = ["minItems", "maxItems"];
pub const BOUNDS: [&str; 4] = ["minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"];

/// Whether a keyword asks for nothing. A format that answers cannot be held to is a note, as JSON Schema has it.
pub fn is_note((key, value): (&String, &Value)) -> bool {
    match key.as_str() {
        "format" => !format::is_held(value),
        key => NOTES.contains(&key) || key.starts_with("x-"),
    }
}

/// Whether a schema is a reference and nothing besides.
pub fn is_reference(schema: &Members) -> bool {
    schema.contains_key("$ref") && schema.iter().all(|member| member.0 == "$ref" || is_note(member))
}

/// Whether a type has the values that a keyword speaks of; of others it asks nothing.
fn concerns(key: &str, name: &str) -> bool {
    match key {
        "properties" | "required" | "additionalProperties" => name == "object",
        "items" | "prefixItems" | "minItems" | "maxItems" => name == "array",
        "pattern" | "minLength" | "maxLength" | "format" => name == "string",
        key if BOUNDS.contains(&key) => matches!(name, "integer" | "number"),
        _ => false,
    }
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

/// How deep a value nests.
fn depth(value: &Value) -> usize {
    1 + match value {
        Value::Object(members) => members.values().map(depth).max().unwrap_or(0),
        Value::Array(items) => items.iter().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// How the names begin that references lead to. llama.cpp names its rules by where they come from, with dashes: a name
/// that is nowhere in the schema is safe.
fn unused_name(text: &str) -> String {
    let used: HashSet<usize> = text
        .match_indices("at")
        .filter_map(|(at, name)| {
            let rest = text[at + name.len()..].trim_start_matches('x');
            rest.starts_with('0').then(|| text.len() - rest.len() - at - name.len())
        })
        .collect();
    let unused = (0..).find(|count| !used.contains(count)).unwrap_or(used.len());
    format!("at{}", "x".repeat(unused))
}

fn wrong<T>(path: &str, what: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { path: path.to_owned(), what: what.into() })
}

impl<'a> Checker<'a> {
    /// `base`: where in a larger schema the result will stand, `#` if it is the whole.
    pub fn new(root: &'a Value, strict: bool, base: &'a str) -> Self {
        let (referred, made, spent) = Default::default();
        let prefix = unused_name(&root.to_string());
        Self { root, strict, base, referred, prefix, made, spent, gone: &|| false }
    }

    /// Ends, as one that takes too much, once nobody waits for it.
    pub fn until(self, gone: &'a dyn Fn() -> bool) -> Self {
        Self { gone, ..self }
    }

    /// Goes on with what was spent for other schemas of the same request.
    pub fn after(self, spent: usize) -> Self {
        self.spent.set(spent);
        self
    }

    /// What was spent.
    pub fn spent(&self) -> usize {
        self.spent.get()
    }

    /// Whether more was spent than may be.
    pub fn is_exhausted(&self) -> bool {
        self.spent.get() > budget::MOST_WORK
    }

    /// Counts work before it is done.
    ///
    /// # Errors
    /// When it is more than a schema may make.
    pub fn spend(&self, work: usize, path: &str) -> Result<(), Wrong> {
        self.spent.set(if (self.gone)() { usize::MAX } else { self.spent.get().saturating_add(work) });
        match self.is_exhausted() {
            true => wrong(
                path,
                "is where the schema takes too much work to prepare; let it join and compare less",
            ),
            false => Ok(()),
        }
    }

    /// The schema as llama.cpp understands it.
    ///
    /// # Errors
    /// What it cannot be held to, by place.
    pub fn whole(&self) -> Result<Value, Wrong> {
        budget::check(self.root)?;
        self.spend(budget::size(self.root), "#")?;
        let mut places = HashSet::new();
        references(self.root, &mut places);
        if places.len() > MOST_REFERENCES {
            let what = format!("refers to {} places; at most {MOST_REFERENCES} can be held to", places.len());
            return wrong("#", what);
        }
        let mut whole = self.check(self.root, "#", 0)?;
        let mut levels = depth(&whole);
        let mut definitions = Members::new();
        loop {
            let next = self.referred.borrow().get(definitions.len()).cloned();
            let Some((target, place)) = next else { break };
            let definition = self.check(target, &place, 0)?;
            levels += depth(&definition);
            definitions.insert(format!("{}{}", self.prefix, definitions.len()), definition);
        }
        if !definitions.is_empty() && levels > MOST_LEVELS {
            return wrong(
                "#",
                format!("nests {levels} levels through its references; at most {MOST_LEVELS}"),
            );
        }
        if !definitions.is_empty() {
            whole["$defs"] = definitions.into();
        }
        Ok(whole)
    }

    /// Whether what cannot be held to is refused.
    pub fn is_strict(&self) -> bool {
        self.strict
    }

    fn check(&self, schema: &Value, path: &str, depth: usize) -> Result<Value, Wrong> {
        if depth > MOST_DEPTH {
            return wrong(path, format!("is nested deeper than {MOST_DEPTH}"));
        }
        self.made.set(self.made.get() + 1);
        if self.made.get() > MOST_SCHEMAS {
            return wrong(path, format!("comes to more than {MOST_SCHEMAS} schemas once `allOf` is joined"));
        }
        let members = match schema {
            Value::Object(members) => members,
            Value::Bool(true) => return Ok(json!({})),
            _ => return wrong(path, "is not an object"),
        };
        let lists = ["required", "enum"].iter().filter_map(|key| members.get(*key)?.as_array());
        self.spend(1 + lists.map(Vec::len).sum::<usize>(), path)?;
        if let Some(to) = members.get("$ref").filter(|_| is_reference(members)) {
            return self.refer(to, path);
        }
        let joined;
        let members = if ["allOf", "$ref"].iter().any(|key| members.contains_key(*key)) {
            joined = self.join(members, path)?;
            &joined
        } else {
            members
        };
        // What stands beside alternatives holds for each of them.
        let moved;
        let members = match self.move_into_alternatives(members, path)? {
            Some(members) => {
                moved = members;
                &moved
            }
            None => members,
        };
        self.check_keywords(members, path)?;
        if let Some(key) = ["anyOf", "oneOf"].into_iter().find(|key| members.contains_key(*key)) {
            return self.alternatives(members, key, path, depth);
        }
        if members.contains_key("const") || members.contains_key("enum") {
            return self.values(members, path);
        }
        let types = match members.get("type") {
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
            Some(name) => name.as_str().into_iter().collect(),
            None => self.implied_type(members),
        };
        match *types {
            [] => Ok(json!({})),
            [name] => self.of_type(name, members, path, depth),
            _ => {
                let each = types.iter().map(|name| self.of_type(name, members, path, depth));
                Ok(json!({"anyOf": each.collect::<Result<Vec<_>, _>>()?}))
            }
        }
    }

    /// The type that a schema without one is about: that of the first of its keywords.
    fn implied_type(&self, members: &Members) -> Vec<&'static str> {
        let implied = ["object", "array", "string", if self.strict { "integer" } else { "number" }];
        let about = |name: &&str| members.keys().any(|key| concerns(key, name));
        implied.into_iter().find(about).into_iter().collect()
    }

    fn alternatives(&self, members: &Members, key: &str, path: &str, depth: usize) -> Result<Value, Wrong> {
        let schemas = members[key].as_array().map(Vec::as_slice).unwrap_or_default();
        if key == "oneOf" && self.strict {
            for (j, other) in schemas.iter().enumerate() {
                for (i, schema) in schemas[..j].iter().enumerate() {
                    if self.are_apart(schema, other, path)? {
                        continue;
                    }
                    let what = format!(
                        "has alternatives {i} and {j} that may both hold, which it forbids; use `anyOf`, or give \
                         both a required property with another `const`"
                    );
                    return wrong(&format!("{path}/{key}"), what);
                }
            }
        }
        let checked = schemas.iter().enumerate();
        let checked = checked.map(|(i, schema)| self.check(schema, &format!("{path}/{key}/{i}"), depth + 1));
        Ok(json!({"anyOf": checked.collect::<Result<Vec<_>, _>>()?}))
    }

    /// Checks each keyword by itself, as far as that needs no other schema.
    fn check_keywords(&self, members: &Members, path: &str) -> Result<(), Wrong> {
        for (key, value) in members {
            let at = format!("{path}/{key}");
            match key.as_str() {
                "type" => match value {
                    Value::Array(names) if names.len() > TYPES.len() => {
                        return wrong(&at, "lists more types than there are");
                    }
                    Value::Array(names) if !names.is_empty() => {
                        names.iter().try_for_each(|name| type_name(name, &at))?;
                    }
                    Value::String(_) => type_name(value, &at)?,
                    _ => return wrong(&at, "is neither a type's name nor a list of them"),
                },
                "properties" if !value.is_object() => return wrong(&at, "is not an object"),
                "required" => {
                    let Some(names) = value.as_array() else { return wrong(&at, "is not a list") };
                    if !names.iter().all(Value::is_string) {
                        return wrong(&at, "names something that is no text");
                    }
                }
                "anyOf" | "oneOf" | "enum" => {
                    let things = if key == "enum" { "values" } else { "schemas" };
                    if value.as_array().is_none_or(Vec::is_empty) {
                        return wrong(&at, format!("is not a list of {things}"));
                    }
                }
                "minLength" | "maxLength" | "minItems" | "maxItems" if value.as_u64().is_none() => {
                    return wrong(&at, "is not a whole number from 0");
                }
                key if BOUNDS.contains(&key) && !value.is_number() => return wrong(&at, "is not a number"),
                "pattern" if !value.is_string() => return wrong(&at, "is not a text"),
                "const"
                | "properties"
                | "additionalProperties"
                | "items"
                | "prefixItems"
                | "minLength"
                | "maxLength"
                | "minItems"
                | "maxItems"
                | "pattern"
                | "format" => {}
                bound if BOUNDS.contains(&bound) => {}
                _ if is_note((key, value)) => {}
                // Below the root it would change where references lead from.
                "$id" if path == "#" => {}
                _ if self.strict => return wrong(&at, "cannot be held to; remove it"),
                _ => {}
            }
        }
        for (least, most) in [("minLength", "maxLength"), ("minItems", "maxItems")] {
            let number = |key: &str| members.get(key).and_then(Value::as_u64);
            if let (Some(low), Some(high)) = (number(least), number(most))
                && low > high
            {
                let what = format!("is {low}, and `{most}` is {high}: nothing is both");
                return wrong(&format!("{path}/{least}"), what);
            }
        }
        Ok(())
    }

    /// The schema of one type, with what concerns it.
    fn of_type(&self, name: &str, members: &Members, path: &str, depth: usize) -> Result<Value, Wrong> {
        let mut out = Members::from_iter([("type".to_owned(), name.into())]);
        match name {
            "object" => self.object(members, path, depth, &mut out)?,
            "array" => self.array(members, path, depth, &mut out)?,
            "string" => self.string(members, path, &mut out)?,
            "integer" => {
                if let Some((low, high)) = integers(members, path)? {
                    out.insert("minimum".to_owned(), json!(low));
                    out.insert("maximum".to_owned(), json!(high));
                }
            }
            "number" => {
                if let Some(key) = BOUNDS.iter().find(|key| self.strict && members.contains_key(**key)) {
                    let what = "can be held to for integers only; remove it, or use `integer`";
                    return wrong(&format!("{path}/{key}"), what);
                }
            }
            _ => {}
        }
        Ok(out.into())
    }

    fn object(&self, members: &Members, path: &str, depth: usize, out: &mut Members) -> Result<(), Wrong> {
        let sub = |schema: &Value, at: &str| self.check(schema, &format!("{path}/{at}"), depth + 1);
        let properties = members.get("properties").and_then(Value::as_object);
        let has = |name: &Value| {
            name.as_str()
                .is_some_and(|name| properties.is_some_and(|properties| properties.contains_key(name)))
        };
        if let Some(required) = members.get("required").and_then(Value::as_array) {
            if let Some(name) = required.iter().find(|name| self.strict && !has(name)) {
                let what = format!(
                    "names `{}`, which `properties` does not have",
                    name.as_str().unwrap_or_default()
                );
                return wrong(&format!("{path}/required"), what);
            }
            let named: Vec<Value> = required.iter().filter(|name| has(name)).cloned().collect();
            out.insert("required".to_owned(), named.into());
        }
        let required = out.get("required").and_then(Value::as_array).into_iter().flatten();
        let required: HashSet<String> = required.filter_map(Value::as_str).map(str::to_owned).collect();
        let optional = properties.map_or(0, |properties| properties.len() - required.len());
        if optional > MOST_OPTIONAL {
            if self.strict {
                let what = format!(
                    "has {optional} that `required` does not name; at most {MOST_OPTIONAL} may be left out"
                );
                return wrong(&format!("{path}/properties"), what);
            }
            // Any object.
            out.remove("required");
            return Ok(());
        }
        if let Some(properties) = properties {
            // llama.cpp takes the name for that of all other properties, which may come again and again.
            let repeats = |name: &str| name == "*" && !required.contains(name);
            if self.strict && properties.keys().any(|name| repeats(name)) {
                let what = "has `*`, which can be held to only where `required` names it";
                return wrong(&format!("{path}/properties"), what);
            }
            let checked = properties
                .iter()
                .filter(|(name, _)| !repeats(name))
                .map(|(name, schema)| Ok((name.clone(), sub(schema, &format!("properties/{name}"))?)))
                .collect::<Result<Members, _>>()?;
            out.insert("properties".to_owned(), checked.into());
        }
        // Beside properties llama.cpp would write names that JSON reads as one of theirs.
        let additional =
            members.get("additionalProperties").filter(|_| properties.is_none_or(Members::is_empty));
        match additional {
            None | Some(Value::Bool(true)) => {}
            Some(Value::Bool(false)) => _ = out.insert("additionalProperties".to_owned(), false.into()),
            Some(schema) => {
                _ = out.insert("additionalProperties".to_owned(), sub(schema, "additionalProperties")?);
            }
        }
        Ok(())
    }

    fn array(&self, members: &Members, path: &str, depth: usize, out: &mut Members) -> Result<(), Wrong> {
        let sub = |schema: &Value, at: &str| self.check(schema, &format!("{path}/{at}"), depth + 1);
        let number = |key: &str| members.get(key).and_then(Value::as_u64);
        for key in COUNTS {
            self.in_reach(key, members, path)?;
        }
        let tuple =
            ["prefixItems", "items"].into_iter().find_map(|key| Some((key, members.get(key)?.as_array()?)));
        if let Some((key, items)) = tuple {
            let count = number("maxItems").map_or(items.len(), |most| items.len().min(most as usize));
            if let Some(least) = number("minItems").filter(|&least| least > count as u64) {
                let what =
                    format!("is {least}, and `{key}` has {count}, which is how long the list can be made");
                return wrong(&format!("{path}/minItems"), what);
            }
            let items = items[..count].iter().enumerate();
            let items =
                items.map(|(i, item)| sub(item, &format!("{key}/{i}"))).collect::<Result<Vec<_>, _>>()?;
            out.insert("prefixItems".to_owned(), items.into());
            return Ok(());
        }
        match members.get("items") {
            None => {}
            Some(Value::Bool(false)) => return wrong(&format!("{path}/items"), "allows nothing"),
            Some(schema) => _ = out.insert("items".to_owned(), sub(schema, "items")?),
        }
        if members.contains_key("prefixItems") {
            return wrong(&format!("{path}/prefixItems"), "is not a list of schemas");
        }
        for key in COUNTS {
            let reach = number(key).filter(|&count| count <= MOST_REPETITIONS);
            out.extend(reach.map(|count| (key.to_owned(), count.into())));
        }
        Ok(())
    }

    fn string(&self, members: &Members, path: &str, out: &mut Members) -> Result<(), Wrong> {
        let number = |key: &str| members.get(key).and_then(Value::as_u64);
        // Of a length, a pattern and a format a grammar can have one.
        let format = members.get("format").and_then(Value::as_str).and_then(format::of);
        let least = format.as_ref().map_or(0, |format| format.least);
        let lengths: Vec<&str> = LENGTHS
            .into_iter()
            .filter(|&key| number(key).is_some_and(|length| key != "minLength" || least < length))
            .collect();
        let asked: Vec<&str> = (members.contains_key("pattern").then_some("pattern").into_iter())
            .chain(format.as_ref().map(|_| "format"))
            .chain(lengths.first().copied())
            .collect();
        if let (true, [one, other, ..]) = (self.strict, &*asked) {
            let what = format!("cannot be held to beside `{one}`; remove one of them");
            return wrong(&format!("{path}/{other}"), what);
        }
        let key = asked.first().copied().unwrap_or_default();
        match key {
            "pattern" => {
                let pattern = members[key].as_str().unwrap_or_default();
                if pattern::is_supported(pattern) {
                    out.insert(key.to_owned(), pattern.into());
                } else if self.strict {
                    return wrong(
                        &format!("{path}/{key}"),
                        "cannot be held to; it must be anchored (`^…$`), without look-around, `.`, `[^…]`, or what JSON \
                         escapes",
                    );
                }
            }
            "format" => {
                let (key, value) = match format.and_then(|format| format.pattern) {
                    Some(pattern) => ("pattern", pattern.into()),
                    None => (key, members[key].clone()),
                };
                out.insert(key.to_owned(), value);
            }
            _ => {
                for key in LENGTHS {
                    self.in_reach(key, members, path)?;
                    let reach = number(key).filter(|&length| length <= MOST_REPETITIONS);
                    out.extend(reach.map(|length| (key.to_owned(), length.into())));
                }
            }
        }
        Ok(())
    }

    /// Refuses a repetition that makes too large a grammar; one that only limits may be left out unless strict.
    fn in_reach(&self, key: &str, members: &Members, path: &str) -> Result<(), Wrong> {
        match members.get(key).and_then(Value::as_u64) {
            Some(n) if n > MOST_REPETITIONS && (self.strict || key.starts_with("min")) => {
                wrong(&format!("{path}/{key}"), format!("is {n}; at most {MOST_REPETITIONS} can be held to"))
            }
            _ => Ok(()),
        }
    }

    /// A reference to where the schema that it leads to will stand.
    fn refer(&self, to: &Value, path: &str) -> Result<Value, Wrong> {
        let Some(to) = to.as_str() else { return wrong(path, "has a `$ref` that is no text") };
        let (target, place) = self.follow(to, path)?;
        let mut referred = self.referred.borrow_mut();
        let known = referred.iter().position(|(known, _)| std::ptr::eq(*known, target));
        let number = known.unwrap_or_else(|| {
            referred.push((target, place));
            referred.len() - 1
        });
        Ok(json!({"$ref": format!("{}/$defs/{}{number}", self.base, self.prefix)}))
    }

    /// The schema that a reference leads to.
    ///
    /// # Errors
    /// When it leads nowhere, or only to references to itself.
    pub fn resolve(&self, to: &str, path: &str) -> Result<&'a Value, Wrong> {
        Ok(self.follow(to, path)?.0)
    }

    /// The schema that a reference leads to, and its place.
    fn follow(&self, to: &str, path: &str) -> Result<(&'a Value, String), Wrong> {
        let lost = |what: String| wrong(&format!("{path}/$ref"), what);
        let mut at = to;
        for _ in 0..MOST_DEPTH {
            let pointer =
                at.strip_prefix('#').and_then(unescape).filter(|it| it.is_empty() || it.starts_with('/'));
            let Some(pointer) = pointer else {
                return lost(format!("is `{at}`; it can lead to `#` or `#/…` only, in the same schema"));
            };
            let Some(target) = self.root.pointer(&pointer) else {
                return lost(format!("leads to `{at}`, which is not there"));
            };
            match target.get("$ref").and_then(Value::as_str) {
                Some(next) if target.as_object().is_some_and(is_reference) => at = next,
                _ => return Ok((target, format!("#{pointer}"))),
            }
        }
        lost("leads in a circle".into())
    }
}

/// The integers within all bounds; `None` where there are no bounds.
fn integers(members: &Members, path: &str) -> Result<Option<(i128, i128)>, Wrong> {
    let (mut low, mut high) = ((-LARGEST, None), (LARGEST, None));
    for key in BOUNDS {
        let Some(bound) = members.get(key) else { continue };
        let exact = bound.as_i64().map(i128::from).or_else(|| bound.as_u64().map(i128::from));
        let (down, up) = match (exact, bound.as_f64().unwrap_or_default()) {
            (Some(bound), _) => (bound, bound),
            (None, bound) => (bound.floor() as i128, bound.ceil() as i128),
        };
        let bound = match key {
            "minimum" => up,
            "exclusiveMinimum" => down.saturating_add(1),
            "maximum" => down,
            _ => up.saturating_sub(1),
        };
        if key.ends_with("inimum") && bound > low.0 {
            low = (bound, Some(key));
        } else if key.ends_with("aximum") && bound < high.0 {
            high = (bound, Some(key));
        }
    }
    if low.0 <= high.0 {
        return Ok(BOUNDS.iter().any(|key| members.contains_key(*key)).then_some((low.0, high.0)));
    }
    let (key, what) = match (low.1, high.1) {
        (Some(one), Some(other)) => {
            let (a, b) = (&members[one], &members[other]);
            (one, format!("is {a}, and `{other}` is {b}: no integer is both"))
        }
        (one, other) => {
            let key = one.or(other).unwrap_or("minimum");
            (key, format!("is {}; integers from -{LARGEST} to {LARGEST} can be held to", members[key]))
        }
    };
    wrong(&format!("{path}/{key}"), what)
}

fn type_name(name: &Value, path: &str) -> Result<(), Wrong> {
    match name.as_str() {
        Some(text) if TYPES.contains(&text) => Ok(()),
        _ => wrong(path, format!("is {name}; it can be one of {}", TYPES.join(", "))),
    }
}

/// A URI's fragment without its `%` escapes.
fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        out.push(match byte {
            b'%' => (digit(bytes.next())? << 4 | digit(bytes.next())?) as u8,
            byte => byte,
        });
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use backplane_plugin::payload::ResponseFormat;

    fn strict(schema: Value) -> Result<Value, (String, String)> {
        Checker::new(&schema, true, "#").whole().map_err(|e| (e.path, e.what))
    }

    fn refused(schema: Value, path: &str, says: &str) {
        let (at, what) = strict(schema.clone()).unwrap_err();
        assert_eq!(at, path, "{schema}: {what}");
        assert!(what.contains(says), "{what}");
        let error =
            super::super::grammar::of_format(&ResponseFormat::JsonSchema { schema }, &|| false).unwrap_err();
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
        refused(chain(1000), "#", "refers to 1001 places");
    }

    #[test]
    fn a_format_is_held_to_wherever_it_stands() {
        let (day, nothing) = (json!({"type": "string", "format": "date"}), json!({"type": "null"}));
        let beside = |mut schema: Value| {
            schema["format"] = "date".into();
            strict(schema).unwrap()
        };
        assert_eq!(beside(json!({"$defs": {"d": {"type": "string"}}, "$ref": "#/$defs/d"})), day);
        for key in ["anyOf", "oneOf"] {
            let made = beside(json!({(key): [{"type": "string"}, nothing]}));
            assert_eq!(made, json!({"anyOf": [day, nothing]}));
        }
        assert_eq!(beside(json!({"type": ["string", "null"]})), json!({"anyOf": [day, nothing]}));
        let pattern = json!({"type": "string", "pattern": "^[0-9]{4}$"});
        refused(json!({"allOf": [pattern], "format": "date"}), "#/format", "beside `pattern`");
        refused(json!({"enum": ["1969-07-20", "soon"], "format": "date"}), "#/enum", "beside `format`");
        // Listed values of a format are those that an answer in it could be.
        for (format, value) in [
            ("date", "1969-07-20"),
            ("time", "20:17:40Z"),
            ("date-time", "1969-07-20T20:17:40Z"),
            ("uuid", "12345678-9abc-def0-1234-56789abcdef0"),
            ("email", "a@x.org"),
            ("ipv4", "127.0.0.1"),
        ] {
            let listed = |values: Value| json!({"type": "string", "format": format, "enum": values});
            assert_eq!(strict(listed(json!([value]))).unwrap(), json!({"enum": [value]}), "{format}");
            refused(listed(json!([value, "soon"])), "#/enum", "beside `format`");
            let one = json!({"format": format, "const": value});
            assert_eq!(strict(one).unwrap(), json!({"enum": [value]}), "{format}");
        }
        assert_eq!(strict(json!({"enum": [7, null], "format": "date"})).unwrap(), json!({"enum": [7, null]}));
        let loose = json!({"enum": ["soon"], "format": "date"});
        assert_eq!(Checker::new(&loose, false, "#").whole().unwrap(), json!({"enum": ["soon"]}));
        // What nobody holds to says nothing, here as there.
        assert_eq!(strict(json!({"enum": ["a"], "format": "iri"})).unwrap(), json!({"enum": ["a"]}));
        let noted = json!({"$defs": {"d": nothing}, "$ref": "#/$defs/d", "format": "iri"});
        assert_eq!(strict(noted).unwrap()["$ref"], json!("#/$defs/at0"));
    }

    #[test]
    fn a_schema_that_nobody_waits_for_is_not_gone_through() {
        let schema =
            json!({"anyOf": vec![json!({"type": "object", "properties": {"a": {"enum": [1, 2, 3]}}}); 500]});
        let looks = Cell::new(0);
        let (never, soon) = (|| false, || looks.replace(looks.get() + 1) > 20);
        assert!(Checker::new(&schema, true, "#").until(&never).whole().is_ok());
        let checker = Checker::new(&schema, true, "#").until(&soon);
        assert!(checker.whole().is_err() && checker.is_exhausted());
        assert!(looks.get() < 30, "{}", looks.get());
        let format = ResponseFormat::JsonSchema { schema };
        assert!(super::super::grammar::of_format(&format, &|| true).is_err());
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
        refused(
            json!({"type": "object", "properties": {"*": {}, "a": {}}, "required": ["a"]}),
            "#/properties",
            "`*`",
        );
        refused(json!({"anyOf": []}), "#/anyOf", "list of schemas");
        refused(json!({"enum": []}), "#/enum", "list of values");
        let deep =
            (0..40).fold(json!({"type": "string"}), |inner, _| json!({"type": "array", "items": inner}));
        assert!(strict(deep).unwrap_err().1.contains("deeper"));
    }
}
