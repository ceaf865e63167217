//! What llama.cpp's converter will take for a schema. Pure.
//!
//! It looks for a name that is not taken yet by counting up, writes every tail of a list of optional properties, copies
//! all its rules for each pattern, and goes through a name by a regular expression that recurses.
//!
//! # Source
//! `common_chat_schema_converter` in llama.cpp's `common/json-schema-to-grammar.cpp`.

use serde_json::Value;
use std::collections::HashMap;

/// Steps of the converter, each less than a microsecond.
const MOST_STEPS: usize = 500_000;
/// Bytes of a rule's name.
const MOST_NAME: usize = 4096;

/// Whether the converter comes back soon with the grammar of a schema that was checked.
pub fn are_few(schema: &Value) -> bool {
    Converter::default().visit(schema, "").is_some()
}

#[derive(Default)]
struct Converter {
    /// How many rules have a name, as it is written.
    names: HashMap<String, usize>,
    rules: usize,
    steps: usize,
}

impl Converter {
    fn step(&mut self, steps: usize) -> Option<()> {
        self.steps = self.steps.saturating_add(steps);
        (self.steps <= MOST_STEPS).then_some(())
    }

    fn add_rule(&mut self, name: &str) -> Option<()> {
        if name.len() > MOST_NAME {
            return None;
        }
        let mut written = String::with_capacity(name.len());
        for c in name.chars() {
            match c {
                c if c.is_ascii_alphanumeric() || c == '-' => written.push(c),
                _ if written.ends_with('\0') => {}
                _ => written.push('\0'),
            }
        }
        let others = self.names.entry(written.replace('\0', "-")).or_default();
        *others += 1;
        let others = *others;
        self.rules += 1;
        self.step(1 + name.len() / 4 + 2 * others)
    }

    fn visit(&mut self, schema: &Value, name: &str) -> Option<()> {
        self.add_rule(name)?;
        let below = |end: &str| if name.is_empty() { end.to_owned() } else { format!("{name}-{end}") };
        let list = |key: &str| schema.get(key).and_then(Value::as_array).into_iter().flatten();
        for (i, schema) in list("anyOf").enumerate() {
            self.visit(schema, &below(&i.to_string()))?;
        }
        for (i, schema) in list("prefixItems").enumerate() {
            self.visit(schema, &below(&format!("tuple-{i}")))?;
        }
        if let Some(items) = schema.get("items") {
            self.visit(items, &below("item"))?;
        }
        if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
            let optional = properties.len() - list("required").count().min(properties.len());
            // As many tails as half the square, each copied and made a rule.
            self.step(2 * optional * optional * (1 + name.len() / 32) + properties.len())?;
            for (property, schema) in properties {
                self.visit(schema, &below(property))?;
                self.add_rule(&below(&format!("{property}-kv")))?;
            }
        }
        if let Some(additional) = schema.get("additionalProperties").filter(|it| it.is_object()) {
            self.visit(additional, &below("additional-value"))?;
        }
        for (definition, schema) in schema.get("$defs").and_then(Value::as_object).into_iter().flatten() {
            self.visit(schema, &format!("ref-{name}-{definition}"))?;
        }
        match schema.get("pattern") {
            Some(_) => self.step(1000 + self.rules),
            None => Some(()),
        }
    }
}
