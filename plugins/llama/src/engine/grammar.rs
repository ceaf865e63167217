//! Grammars that hold an answer to a form: JSON, a JSON Schema, tool calls.
//!
//! llama.cpp turns a schema into a grammar, and says little about a schema it cannot turn; and some keywords it
//! drops in silence. So a schema is checked first: what cannot be held to is refused by its place.

use super::sampling::{Allow, Candidate};
use super::tools;
use backplane_plugin::payload::ResponseFormat;
use backplane_plugin::payload::chat::{Tool, ToolChoice};
use backplane_plugin::{Error, Result};
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token::data::LlamaTokenData;
use llama_cpp_2::token::data_array::LlamaTokenDataArray;
use serde_json::{Map, Value, json};

/// A grammar and how far an answer has come in it.
pub struct Grammar {
    sampler: LlamaSampler,
    array: LlamaTokenDataArray,
}

impl Grammar {
    /// Parses `text` (GBNF with the start rule `root`).
    ///
    /// # Errors
    /// `InvalidArgument` for a grammar that cannot be parsed.
    pub fn new(model: &LlamaModel, text: &str) -> Result<Self> {
        let sampler = LlamaSampler::grammar(model, text, "root").map_err(|_| {
            Error::invalid(
                "the grammar cannot be used: it has a mistake, recurses to the left, or repeats too often",
            )
            .with_param("response_format")
        })?;
        Ok(Self::of(sampler))
    }

    /// A grammar that holds from the point where `trigger` is complete in the answer. It must begin with it.
    ///
    /// # Errors
    /// As [`Grammar::new`].
    pub fn from_trigger(model: &LlamaModel, text: &str, trigger: &str) -> Result<Self> {
        let sampler = LlamaSampler::grammar_lazy(model, text, "root", [trigger], &[])
            .map_err(|error| Error::internal(format!("the grammar of the tools cannot be used: {error}")))?;
        Ok(Self::of(sampler))
    }

    fn of(sampler: LlamaSampler) -> Self {
        Self { sampler, array: LlamaTokenDataArray::new(Vec::new(), false) }
    }

    /// Goes on with a token that it allowed. Never call it with an end-of-generation token: llama.cpp aborts.
    ///
    /// # Errors
    /// `Internal` when it did not allow it.
    pub fn accept(&mut self, token: i32) -> Result<()> {
        self.sampler.try_accept(LlamaToken(token)).map_err(|error| {
            Error::internal(format!("the grammar does not go on with token {token}: {error}"))
        })
    }
}

impl Clone for Grammar {
    fn clone(&self) -> Self {
        Self::of(self.sampler.clone())
    }
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Grammar")
    }
}

impl Allow for Grammar {
    fn allows(&mut self, token: i32) -> bool {
        self.array.data.clear();
        self.array.data.push(LlamaTokenData::new(LlamaToken(token), 0.0, 0.0));
        self.array.apply_sampler(&mut self.sampler);
        self.array.data[0].logit().is_finite()
    }

    fn retain(&mut self, candidates: &mut Vec<Candidate>) {
        self.array.data.clear();
        self.array
            .data
            .extend(candidates.iter().map(|c| LlamaTokenData::new(LlamaToken(c.token), c.logit, 0.0)));
        self.array.apply_sampler(&mut self.sampler);
        let mut allowed = self.array.data.iter().map(|data| data.logit().is_finite());
        candidates.retain(|_| allowed.next().unwrap_or(false));
    }
}

/// The grammar of an answer's form; `None` for any text.
///
/// # Errors
/// `InvalidArgument` that names the place in the schema.
pub fn of_format(format: &ResponseFormat) -> Result<Option<String>> {
    Ok(match format {
        ResponseFormat::Text => None,
        ResponseFormat::JsonObject => Some(lead(&convert(&json!({"type": "object"}))?)),
        ResponseFormat::JsonSchema { schema } => {
            let schema = Checker { root: schema, strict: true }.check(schema, "#", 0).map_err(|error| {
                let param = "response_format.json_schema.schema";
                Error::invalid(format!("the schema at `{}` {}", error.path, error.what)).with_param(param)
            })?;
            Some(lead(&convert(&schema)?))
        }
        ResponseFormat::Grammar { grammar } => {
            let wrong = |what: &str| Err(Error::invalid(what.to_owned()).with_param("response_format"));
            if grammar.len() > 64 * 1024 {
                return wrong("the grammar is longer than 64 KiB");
            }
            if deepest(grammar) > 64 {
                return wrong("the grammar nests its groups deeper than 64");
            }
            if grammar.contains('\0') || !grammar.contains("root") {
                return wrong("the grammar has no rule `root`");
            }
            Some(grammar.clone())
        }
    })
}

/// The grammar of one or more tool calls, beginning with [`tools::OPEN`].
///
/// # Errors
/// `InvalidArgument` for a named tool that is not offered, or parameters that are no schema.
pub fn of_tools(tools: &[Tool], choice: &ToolChoice, parallel: bool) -> Result<String> {
    let mut calls = Vec::new();
    for (i, tool) in tools.iter().enumerate() {
        if matches!(choice, ToolChoice::Named(name) if *name != tool.name) {
            continue;
        }
        let parameters = tools::parameters(tool);
        let checked =
            Checker { root: &parameters, strict: false }.check(&parameters, "#", 0).map_err(|error| {
                let param = format!("tools[{i}].function.parameters");
                Error::invalid(format!("`{param}` at `{}` {}", error.path, error.what)).with_param(param)
            })?;
        let at = format!("#/anyOf/{}/properties/arguments", calls.len());
        calls.push(json!({
            "type": "object",
            "properties": {"name": {"const": tool.name}, "arguments": rebase(checked, &at)},
            "required": ["name", "arguments"],
        }));
    }
    if calls.is_empty() {
        return Err(match choice {
            ToolChoice::Named(name) => {
                Error::invalid(format!("`tool_choice` names `{name}`, which `tools` does not offer"))
            }
            _ => Error::invalid("`tool_choice` demands a call and `tools` offers none"),
        }
        .with_param("tool_choice"));
    }
    let call = rename_root(&convert(&json!({"anyOf": calls}))?, "call");
    let more = if parallel {
        format!(" (\"\\n\"? \"{}\" gap call gap \"{}\")*", tools::OPEN, tools::CLOSE)
    } else {
        String::new()
    };
    Ok(format!(
        "root ::= \"{}\" gap call gap \"{}\"{more}\ngap ::= [ \\n]{{0,2}}{call}",
        tools::OPEN,
        tools::CLOSE
    ))
}

/// Lets an answer begin with a little white space, as models that were trained on prose like to.
fn lead(grammar: &str) -> String {
    format!("root ::= [ \\n]{{0,2}} value-of-root{}", rename_root(grammar, "value-of-root"))
}

/// The rules with another name for `root`, to be added to rules of ours: begins with a line feed.
fn rename_root(grammar: &str, name: &str) -> String {
    format!("\n{grammar}").replacen("\nroot ::=", &format!("\n{name} ::="), 1)
}

fn convert(schema: &Value) -> Result<String> {
    llama_cpp_2::json_schema_to_grammar(&schema.to_string()).map_err(|_| {
        Error::invalid("the schema cannot be turned into a grammar").with_param("response_format")
    })
}

/// How deep a grammar's parentheses nest; llama.cpp's parser recurses.
fn deepest(grammar: &str) -> usize {
    let (mut depth, mut most) = (0usize, 0);
    for c in grammar.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        most = most.max(depth);
    }
    most
}

/// Moves a schema's references to where the schema now stands.
fn rebase(schema: Value, at: &str) -> Value {
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
struct Wrong {
    path: String,
    what: String,
}

/// Checks a schema. Strict: what a grammar cannot hold an answer to is refused; otherwise it is left out.
struct Checker<'a> {
    root: &'a Value,
    strict: bool,
}

/// More than this in one schema makes llama.cpp's grammar too large.
const MOST_REPETITIONS: u64 = 1000;
const MOST_DEPTH: usize = 32;

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

impl Checker<'_> {
    /// The schema as llama.cpp understands it.
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
        if let Some(to) = members.get("$ref") {
            let Some(to) = to.as_str() else { return wrong("has a `$ref` that is no text".into()) };
            self.resolve(to, path)?;
            return Ok(json!({"$ref": to}));
        }
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
                "anyOf" | "oneOf" | "allOf" => {
                    let Some(schemas) = value.as_array().filter(|list| !list.is_empty()) else {
                        return is("is not a list of schemas");
                    };
                    let schemas = schemas
                        .iter()
                        .enumerate()
                        .map(|(i, schema)| sub(schema, format!("{at}/{i}")))
                        .collect::<Result<Vec<_>, _>>()?;
                    if key != "allOf" {
                        // llama.cpp looks at nothing else beside them.
                        if has("properties") || has("enum") || has("const") || has("items") {
                            return is("stands beside other demands; put them into each alternative");
                        }
                    } else if let [only] = schemas.as_slice() {
                        if members.keys().all(|key| key == "allOf" || NOTES.contains(&key.as_str())) {
                            return Ok(with_definitions(only.clone(), &out));
                        }
                    } else if let Some(i) = schemas.iter().position(|schema| !self.is_object(schema)) {
                        return is(&format!("joins schemas, and number {i} describes no object"));
                    }
                    schemas.into()
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
                    match understands(pattern) {
                        true => value.clone(),
                        false if self.strict => {
                            return is("cannot be held to; it must be anchored (`^…$`), without look-around");
                        }
                        false => continue,
                    }
                }
                key if NOTES.contains(&key) => value.clone(),
                // An extension says nothing to us.
                key if key.starts_with("x-") => continue,
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
    fn resolve(&self, to: &str, path: &str) -> Result<&Value, Wrong> {
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

    fn is_object(&self, schema: &Value) -> bool {
        let target = match schema.get("$ref").and_then(Value::as_str) {
            Some(to) => self.resolve(to, "").ok(),
            None => Some(schema),
        };
        target.is_some_and(|schema| schema.get("properties").is_some() || schema.get("anyOf").is_some())
    }
}

/// Definitions stay reachable when the schema around them goes.
fn with_definitions(schema: Value, around: &Map<String, Value>) -> Value {
    let Value::Object(mut members) = schema else { return schema };
    for key in ["$defs", "definitions"] {
        if let Some(definitions) = around.get(key) {
            members.insert(key.to_owned(), definitions.clone());
        }
    }
    Value::Object(members)
}

/// Whether llama.cpp turns a pattern into a grammar; one it does not know becomes any string, without a word.
fn understands(pattern: &str) -> bool {
    if pattern.len() > 1000 || deepest(pattern) > 32 || !pattern.starts_with('^') || !pattern.ends_with('$') {
        return false;
    }
    llama_cpp_2::json_schema_to_grammar(&json!({"type": "string", "pattern": pattern}).to_string())
        .is_ok_and(|grammar| !grammar.contains("string ::=") && !grammar.contains("root ::= string"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strict(schema: Value) -> Result<Value, (String, String)> {
        Checker { root: &schema, strict: true }.check(&schema, "#", 0).map_err(|e| (e.path, e.what))
    }

    fn refused(schema: Value, path: &str, says: &str) {
        let (at, what) = strict(schema.clone()).unwrap_err();
        assert_eq!(at, path, "{schema}: {what}");
        assert!(what.contains(says), "{what}");
        let error = of_format(&ResponseFormat::JsonSchema { schema }).unwrap_err();
        assert!(error.message.contains(path) && error.details.contains_key("param"), "{error}");
    }

    #[test]
    fn a_schema_becomes_a_grammar_in_the_order_of_its_properties() {
        let schema = json!({
            "$defs": {"unit": {"enum": ["c", "f"]}},
            "type": "object",
            "properties": {"zone": {"type": "string"}, "city": {"type": "string", "pattern": "^[A-Z][a-z]+$"},
                           "unit": {"$ref": "#/$defs/unit"}, "all": {"allOf": [{"$ref": "#/$defs/unit"}]}},
            "required": ["zone", "city", "unit", "all"],
            "additionalProperties": false,
        });
        let grammar = of_format(&ResponseFormat::JsonSchema { schema }).unwrap().unwrap();
        let root = grammar.lines().find(|line| line.starts_with("value-of-root ::=")).unwrap();
        assert!(root.find("zone-kv").unwrap() < root.find("city-kv").unwrap(), "{root}");
        assert_eq!(grammar.matches("\nroot ::=").count() + usize::from(grammar.starts_with("root ::=")), 1);
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
            "#/$defs/a/$ref",
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

    #[test]
    fn tools_become_one_grammar() {
        let tool = |name: &str, parameters: Value| Tool {
            name: name.into(),
            parameters: Some(parameters),
            ..Tool::default()
        };
        let tools = [
            tool(
                "weather",
                json!({"type": "object", "properties": {"city": {"$ref": "#/$defs/city"}, "n": {"type": "number", "minimum": 0}},
                "required": ["city"], "$defs": {"city": {"type": "string"}}}),
            ),
            tool("time", json!({"type": "object", "properties": {}})),
        ];
        let all = of_tools(&tools, &ToolChoice::Required, true).unwrap();
        assert!(all.contains("weather") && all.contains("time") && all.contains("\ncall ::="), "{all}");
        assert_eq!(all.lines().filter(|line| line.starts_with("root ::=")).count(), 1);
        let one = of_tools(&tools, &ToolChoice::Named("time".into()), false).unwrap();
        assert!(!one.contains("weather") && !one.contains(")*\ngap"), "{one}");
        let error = of_tools(&tools, &ToolChoice::Named("x".into()), true).unwrap_err();
        assert_eq!(error.details["param"], "tool_choice");
        let bad = [tool("f", json!({"type": "object", "properties": {"a": 1}}))];
        let error = of_tools(&bad, &ToolChoice::Auto, true).unwrap_err();
        assert_eq!(error.details["param"], "tools[0].function.parameters");
    }

    #[test]
    fn a_hostile_grammar_is_refused_before_it_is_parsed() {
        let check = |grammar: String, says: &str| {
            let error = of_format(&ResponseFormat::Grammar { grammar }).unwrap_err();
            assert!(error.message.contains(says), "{error}");
        };
        check(format!("root ::= {}", "(".repeat(100)), "deeper");
        check("x".repeat(70_000), "64 KiB");
        check("start ::= \"a\"".into(), "`root`");
    }
}
