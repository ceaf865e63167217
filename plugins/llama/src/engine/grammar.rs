//! Grammars that hold an answer to a form: JSON, a JSON Schema, tool calls.

use super::gbnf;
use super::loaded::Loaded;
use super::matcher::{Exhausted, Matcher};
use super::rules;
use super::sampling::{Allow, Candidate};
use super::schema::Checker;
use super::tools;
use super::vocabulary::Vocabulary;
use backplane_plugin::payload::ResponseFormat;
use backplane_plugin::payload::chat::{Tool, ToolChoice};
use backplane_plugin::{Error, Result};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

/// A grammar and how far an answer has come in it.
#[derive(Clone)]
pub struct Grammar {
    matcher: Matcher,
    vocabulary: Arc<Vocabulary>,
    /// Whether the answer shows the texts of control tokens, so that they count.
    special: bool,
    param: &'static str,
}

impl Grammar {
    /// The grammar of an answer's form, in GBNF with the start rule `root`.
    ///
    /// # Errors
    /// `InvalidArgument` for a grammar that cannot be parsed, with the line.
    pub fn of_answer(loaded: &Loaded, text: &str) -> Result<Self> {
        Self::new(loaded, text, false, "response_format")
    }

    /// The grammar of tool calls.
    ///
    /// # Errors
    /// As [`Grammar::of_answer`].
    pub fn of_calls(loaded: &Loaded, text: &str) -> Result<Self> {
        Self::new(loaded, text, true, "tools")
    }

    fn new(loaded: &Loaded, text: &str, special: bool, param: &'static str) -> Result<Self> {
        let token = |text: &str| match *loaded.model.vocab().tokenize(text.as_bytes(), false, true) {
            [token] => Some(token.0),
            _ => None,
        };
        let rules = gbnf::parse(text, &token).map_err(|mistake| {
            Error::invalid(format!("the grammar's line {} {}", mistake.line, mistake.what)).with_param(param)
        })?;
        let matcher = Matcher::new(Arc::new(rules)).map_err(|_| too_much(param))?;
        Ok(Self { matcher, vocabulary: loaded.vocabulary(), special, param })
    }

    /// Goes on with a token that it allowed, other than one that ends the answer.
    ///
    /// # Errors
    /// `Internal` when it did not allow it; `InvalidArgument` when it takes too much to follow.
    pub fn accept(&mut self, token: i32) -> Result<()> {
        let text = self.vocabulary.text(token, self.special);
        match self.matcher.accept(token, text).map_err(|_| too_much(self.param))? {
            true => Ok(()),
            false => Err(Error::internal(format!("the grammar does not go on with token {token}"))),
        }
    }

    /// Goes on with text that is there already; whether it allows that.
    ///
    /// # Errors
    /// `InvalidArgument` when it takes too much to follow.
    pub fn accept_text(&mut self, text: &[u8]) -> Result<bool> {
        self.matcher.accept_text(text).map_err(|_| too_much(self.param))
    }

    fn asks(&mut self, token: i32) -> Result<bool, Exhausted> {
        if self.vocabulary.ends(token) {
            return Ok(self.matcher.may_end());
        }
        self.matcher.allows(token, self.vocabulary.text(token, self.special))
    }
}

fn too_much(param: &str) -> Error {
    Error::invalid(
        "the grammar can be read in so many ways at once that following it takes too long: let alternatives differ \
         where they begin, such as by a first property with another `const` in each",
    )
    .with_reason("grammar_too_ambiguous")
    .with_param(param)
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Grammar")
    }
}

impl Allow for Grammar {
    fn allows(&mut self, token: i32) -> Result<bool> {
        self.asks(token).map_err(|_| too_much(self.param))
    }

    fn retain(&mut self, candidates: &mut Vec<Candidate>) -> Result<()> {
        let mut exhausted = false;
        candidates.retain(|candidate| {
            !exhausted
                && self.asks(candidate.token).unwrap_or_else(|Exhausted| {
                    exhausted = true;
                    false
                })
        });
        if exhausted { Err(too_much(self.param)) } else { Ok(()) }
    }
}

/// Whether somebody waits yet: the steps that follow are llama.cpp's, and cannot be ended.
///
/// # Errors
/// `Cancelled` when nobody does.
fn awaited(gone: &dyn Fn() -> bool) -> Result<()> {
    if gone() { Err(Error::cancelled()) } else { Ok(()) }
}

/// The grammar of an answer's form; `None` for any text. `gone`: whether nobody waits for it any more.
///
/// # Errors
/// `InvalidArgument` that names the place in the schema; `Cancelled`.
pub fn of_format(format: &ResponseFormat, gone: &dyn Fn() -> bool) -> Result<Option<String>> {
    Ok(match format {
        ResponseFormat::Text => None,
        ResponseFormat::JsonObject => Some(lead(&convert(&json!({"type": "object"}))?)),
        ResponseFormat::JsonSchema { schema } => {
            let checker = Checker::new(schema, true, "#").until(gone);
            let schema = checker.whole().map_err(|error| {
                let param = "response_format.json_schema.schema";
                Error::invalid(format!("the schema at `{}` {}", error.path, error.what)).with_param(param)
            })?;
            awaited(gone)?;
            Some(lead(&convert(&schema)?))
        }
        ResponseFormat::Grammar { grammar } => {
            if grammar.len() > 64 * 1024 {
                let what = "the grammar is longer than 64 KiB";
                return Err(Error::invalid(what).with_param("response_format"));
            }
            Some(grammar.clone())
        }
    })
}

/// The grammar of one or more tool calls, beginning with [`tools::OPEN`].
///
/// # Errors
/// `InvalidArgument` for a named tool that is not offered, or parameters that are no schema.
pub fn of_tools(
    tools: &[Tool],
    choice: &ToolChoice,
    parallel: bool,
    gone: &dyn Fn() -> bool,
) -> Result<String> {
    let (mut calls, mut spent) = (Vec::new(), 0);
    for (i, tool) in tools.iter().enumerate() {
        if matches!(choice, ToolChoice::Named(name) if *name != tool.name) {
            continue;
        }
        let parameters = tools::parameters(tool);
        let at = format!("#/anyOf/{}/properties/arguments", calls.len());
        let checker = Checker::new(&parameters, false, &at).after(spent).until(gone);
        let checked = checker.whole().map_err(|error| {
            let param = format!("tools[{i}].function.parameters");
            Error::invalid(format!("`{param}` at `{}` {}", error.path, error.what)).with_param(param)
        })?;
        spent = checker.spent();
        calls.push(json!({
            "type": "object",
            "properties": {"name": {"const": tool.name}, "arguments": checked},
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
    awaited(gone)?;
    let call =
        rename_root(&convert(&json!({"anyOf": calls})).map_err(|error| error.with_param("tools"))?, "call");
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
    let taken: HashSet<&str> = grammar.lines().filter_map(|line| Some(line.split_once(" ::= ")?.0)).collect();
    let mut name = "value-of-root".to_owned();
    while taken.contains(name.as_str()) {
        name.push('-');
    }
    format!("root ::= [ \\n]{{0,2}} {name}{}", rename_root(grammar, &name))
}

/// The rules with another name for `root`, to be added to rules of ours: begins with a line feed.
fn rename_root(grammar: &str, name: &str) -> String {
    format!("\n{grammar}").replacen("\nroot ::=", &format!("\n{name} ::="), 1)
}

/// Rules of llama.cpp that allow what is no JSON, or more than they say: an escape of half a character, which counts as a
/// character and which no reader accepts alone; an exponent that no number has.
const MENDED: [(&str, &str); 2] = [
    (r#""u" [0-9a-fA-F]{4}"#, r#""u" ([0-9a-cefA-CEF] [0-9a-fA-F]{3} | [dD] [0-7] [0-9a-fA-F]{2})"#),
    ("([eE] [-+]? integral-part)?", "([eE] [-+]? [0-9]{1,2})?"),
];

/// A schema whose root has no properties: llama.cpp would name the rule of a root's property `""` as the root's.
fn under_root(schema: &Value) -> Cow<'_, Value> {
    let Some(members) = schema.as_object().filter(|members| members.contains_key("properties")) else {
        return Cow::Borrowed(schema);
    };
    let mut members = members.clone();
    let definitions = members.remove("$defs");
    let mut whole = json!({"anyOf": [members]});
    if let Some(definitions) = definitions {
        whole["$defs"] = definitions;
    }
    Cow::Owned(whole)
}

/// The grammar of a schema that was checked.
pub fn convert(schema: &Value) -> Result<String> {
    let schema = &*under_root(schema);
    if !rules::are_few(schema) {
        return Err(Error::invalid(
            "the schema takes too much work to turn into a grammar; it needs fewer optional properties, fewer patterns, \
             or shorter names of properties",
        )
        .with_param("response_format"));
    }
    let grammar = llama_cpp_2::json_schema_to_grammar(&schema.to_string()).map_err(|_| {
        Error::invalid("the schema cannot be turned into a grammar").with_param("response_format")
    })?;
    let mend = |line: &str| match line.split_once(" ::= ") {
        Some(("char" | "number", _)) => {
            MENDED.iter().fold(line.to_owned(), |line, (from, to)| line.replace(from, to))
        }
        _ => line.to_owned(),
    };
    Ok(grammar.lines().map(mend).collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let grammar = of_format(&ResponseFormat::JsonSchema { schema }, &|| false).unwrap().unwrap();
        let root = grammar.lines().find(|line| line.starts_with("alternative-0 ::=")).unwrap();
        assert!(root.find("zone-kv").unwrap() < root.find("city-kv").unwrap(), "{root}");
        assert_eq!(grammar.matches("\nroot ::=").count() + usize::from(grammar.starts_with("root ::=")), 1);
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
        let all = of_tools(&tools, &ToolChoice::Required, true, &|| false).unwrap();
        assert!(all.contains("weather") && all.contains("time") && all.contains("\ncall ::="), "{all}");
        assert_eq!(all.lines().filter(|line| line.starts_with("root ::=")).count(), 1);
        let one = of_tools(&tools, &ToolChoice::Named("time".into()), false, &|| false).unwrap();
        assert!(!one.contains("weather") && !one.contains(")*\ngap"), "{one}");
        let error = of_tools(&tools, &ToolChoice::Named("x".into()), true, &|| false).unwrap_err();
        assert_eq!(error.details["param"], "tool_choice");
        let bad = [tool("f", json!({"type": "object", "properties": {"a": 1}}))];
        let error = of_tools(&bad, &ToolChoice::Auto, true, &|| false).unwrap_err();
        assert_eq!(error.details["param"], "tools[0].function.parameters");
    }

    #[test]
    fn a_grammar_has_a_size() {
        let error =
            of_format(&ResponseFormat::Grammar { grammar: "x".repeat(70_000) }, &|| false).unwrap_err();
        assert!(error.message.contains("64 KiB"), "{error}");
    }

    #[test]
    fn what_llama_cpp_makes_of_a_schema_is_a_grammar_to_us_too() {
        let schema = json!({
            "type": "object",
            "properties": {
                "name \"quoted\"\n": {"type": "string", "pattern": "^[a-z]{2,3}(?:a|b)?\\.$"}, "n": {"type": "integer", "minimum": -3},
                "list": {"type": "array", "items": {"enum": ["é", 1, null]}, "minItems": 1, "maxItems": 9},
                "any": {}, "date": {"type": "string", "format": "date-time"}, "short": {"type": "string", "maxLength": 900},
            },
            "required": ["n"],
            "additionalProperties": {"type": "number"},
        });
        let grammar = of_format(&ResponseFormat::JsonSchema { schema }, &|| false).unwrap().unwrap();
        assert!(gbnf::parse(&grammar, &|_| None).is_ok(), "{grammar}");
    }
}
