//! A kernel's card: `[parameters]` of a model whose file is a `.cu`.
//!
//! What a card says is checked when it is read, as far as that goes without a request: every name that an expression uses
//! is bound by an input or a number, every argument is a tensor or an expression, every check gives what is asked for.

use crate::expr::{Expr, Numbers};
use backplane_plugin::prelude::*;
use serde::{Deserialize, Deserializer};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes of all tensors of a request, unless the card says otherwise.
const MEMORY: u64 = 1 << 30;
/// Launches of a request, and tensors of each kind.
const MANY: usize = 32;

/// What a card says.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// Numbers that a request gives beside its tensors.
    #[serde(default)]
    pub numbers: BTreeMap<String, Number>,
    /// Tensors that a request gives. A side that is a name and nothing else takes the tensor's length.
    pub inputs: Vec<Port>,
    /// Tensors that it gets.
    pub outputs: Vec<Port>,
    /// Tensors between two launches.
    #[serde(default)]
    pub scratch: Vec<Port>,
    /// What is run, in order.
    pub launch: Vec<Launch>,
    /// What is refused before anything runs.
    #[serde(default)]
    pub limits: Limits,
    /// Macros that the source is compiled with.
    #[serde(default)]
    pub defines: BTreeMap<String, i64>,
    /// Inputs with the outputs that belong to them: tried when the model is opened.
    #[serde(default)]
    pub checks: Vec<Check>,
}

/// A number that a request gives.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Number {
    /// The least.
    pub min: i64,
    /// The most.
    pub max: i64,
    /// What it is when a request does not say.
    pub default: Option<i64>,
}

/// A tensor.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    pub name: String,
    pub dtype: DType,
    #[serde(deserialize_with = "expressions")]
    pub shape: Vec<Expr>,
}

/// One run of a function of the source.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launch {
    /// Its name: `extern "C" __global__`.
    pub entry: String,
    /// Blocks: one to three numbers.
    #[serde(deserialize_with = "expressions")]
    pub grid: Vec<Expr>,
    /// Threads of a block.
    #[serde(deserialize_with = "expressions")]
    pub block: Vec<Expr>,
    /// Bytes of dynamic shared memory of a block.
    #[serde(default = "none", deserialize_with = "expression")]
    pub shared: Expr,
    /// What it is called with: the names of tensors, which become pointers, and expressions, which become `long long`.
    #[serde(deserialize_with = "expressions")]
    pub arguments: Vec<Expr>,
}

/// What is refused before anything runs.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Least and most of each name that an input binds.
    pub sides: BTreeMap<String, [i64; 2]>,
    /// Bytes of all tensors of a request.
    pub memory: Option<u64>,
}

impl Limits {
    /// Bytes of all tensors of a request.
    pub fn memory(&self) -> u64 {
        self.memory.unwrap_or(MEMORY)
    }
}

/// Inputs with the outputs that belong to them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    #[serde(default)]
    pub numbers: Numbers,
    pub inputs: BTreeMap<String, Written>,
    pub outputs: BTreeMap<String, Vec<f64>>,
    /// How far an element may be from what is written, absolutely and as a part of it. Whole numbers are equal.
    #[serde(default = "tolerance")]
    pub tolerance: f64,
}

/// A tensor that is written down.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Written {
    pub shape: Vec<i64>,
    pub data: Vec<f64>,
}

fn tolerance() -> f64 {
    1e-5
}

fn none() -> Expr {
    Expr::number(0)
}

fn expression<'de, D: Deserializer<'de>>(from: D) -> Result<Expr, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "must be a whole number or a text with an expression")]
    enum Written {
        Number(i64),
        Text(String),
    }
    match Written::deserialize(from)? {
        Written::Number(number) => Ok(Expr::number(number)),
        Written::Text(text) => Expr::parse(&text).map_err(serde::de::Error::custom),
    }
}

fn expressions<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Expr>, D::Error> {
    #[derive(Deserialize)]
    struct One(#[serde(deserialize_with = "expression")] Expr);
    Ok(Vec::<One>::deserialize(from)?.into_iter().map(|One(expression)| expression).collect())
}

impl Card {
    /// The card of a model.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn of(model: &ModelSpec) -> Result<Self> {
        let card: Self = model.parameters()?;
        card.check().map_err(|what| {
            Error::invalid(format!("[parameters] of model `{}`: {what}", model.name)).with_param("parameters")
        })?;
        Ok(card)
    }

    /// The tensor with this name.
    pub fn port(&self, name: &str) -> Option<&Port> {
        self.ports().find(|port| port.name == name)
    }

    /// Inputs, outputs, scratch: in this order.
    pub fn ports(&self) -> impl Iterator<Item = &Port> {
        self.inputs.iter().chain(&self.outputs).chain(&self.scratch)
    }

    fn check(&self) -> Result<(), String> {
        for (what, count) in
            [("inputs", self.inputs.len()), ("outputs", self.outputs.len()), ("launch", self.launch.len())]
        {
            if count == 0 {
                return Err(format!("`{what}` is empty"));
            }
        }
        if let Some(many) = [self.inputs.len(), self.outputs.len(), self.scratch.len(), self.launch.len()]
            .into_iter()
            .find(|count| MANY < *count)
        {
            return Err(format!("there are {many} tensors or launches, and may be {MANY} of a kind"));
        }
        let mut names: BTreeSet<&str> = BTreeSet::new();
        for name in self.ports().map(|port| &*port.name).chain(self.numbers.keys().map(|name| &**name)) {
            if name.is_empty() || !names.insert(name) {
                return Err(format!("the name `{name}` stands twice, or is empty"));
            }
        }
        if let Some(port) = self.ports().find(|port| port.dtype.size().is_none()) {
            return Err(format!("`{}` is {}, which no kernel can read", port.name, port.dtype.name()));
        }
        for (name, number) in &self.numbers {
            let default = number.default.unwrap_or(number.min);
            if number.min < 0 {
                return Err(format!("number `{name}`: `min` is below zero"));
            }
            if number.max < number.min || !(number.min..=number.max).contains(&default) {
                return Err(format!("number `{name}`: `min`, `default` and `max` are not in order"));
            }
        }
        let known = self.known()?;
        for (name, [least, most]) in &self.limits.sides {
            if !known.contains(&**name) || self.numbers.contains_key(name) {
                return Err(format!("limits.sides names `{name}`, which no input binds"));
            }
            if most < least {
                return Err(format!("limits.sides.{name}: {least} is more than {most}"));
            }
        }
        for (kind, ports) in [("output", &self.outputs), ("scratch", &self.scratch)] {
            for port in ports {
                for side in &port.shape {
                    uses(side, &known).map_err(|what| format!("{kind} `{}`: {what}", port.name))?;
                }
            }
        }
        for launch in &self.launch {
            launch.check(self, &known).map_err(|what| format!("launch of `{}`: {what}", launch.entry))?;
        }
        for (name, value) in &self.defines {
            if !is_word(name) {
                return Err(format!("`{name}` = {value} in `defines` is no name of a macro"));
            }
        }
        for (number, check) in self.checks.iter().enumerate() {
            check.check(self).map_err(|what| format!("checks[{number}]: {what}"))?;
        }
        Ok(())
    }

    /// Names that a request gives a value, in the order in which sides are read.
    fn known(&self) -> Result<BTreeSet<&str>, String> {
        let mut known: BTreeSet<&str> = self.numbers.keys().map(|name| &**name).collect();
        for port in &self.inputs {
            for side in &port.shape {
                match side.name() {
                    Some(name) => {
                        known.insert(name);
                    }
                    None => uses(side, &known).map_err(|what| format!("input `{}`: {what}", port.name))?,
                }
            }
        }
        Ok(known)
    }
}

impl Launch {
    fn check(&self, card: &Card, known: &BTreeSet<&str>) -> Result<(), String> {
        if !is_word(&self.entry) {
            return Err("`entry` must be the name of a function".to_owned());
        }
        for (what, sides) in [("grid", &self.grid), ("block", &self.block)] {
            if !(1..=3).contains(&sides.len()) {
                return Err(format!("`{what}` has {} numbers, and must have one to three", sides.len()));
            }
        }
        let sizes = self.grid.iter().chain(&self.block).chain([&self.shared]);
        for size in sizes {
            uses(size, known)?;
        }
        for argument in &self.arguments {
            if argument.name().is_none_or(|name| card.port(name).is_none()) {
                uses(argument, known)?;
            }
        }
        Ok(())
    }
}

impl Check {
    fn check(&self, card: &Card) -> Result<(), String> {
        if let Some(missing) = card.inputs.iter().find(|port| !self.inputs.contains_key(&port.name)) {
            return Err(format!("input `{}` is missing", missing.name));
        }
        if self.outputs.is_empty() {
            return Err("it says no output".to_owned());
        }
        let inputs: BTreeSet<&str> = card.inputs.iter().map(|port| &*port.name).collect();
        let outputs: BTreeSet<&str> = card.outputs.iter().map(|port| &*port.name).collect();
        let unknown = |names: &BTreeSet<&str>, name: &str| !names.contains(name);
        if let Some(name) = self.inputs.keys().find(|name| unknown(&inputs, name)) {
            return Err(format!("there is no input `{name}`"));
        }
        if let Some(name) = self.outputs.keys().find(|name| unknown(&outputs, name)) {
            return Err(format!("there is no output `{name}`"));
        }
        for (name, value) in &self.inputs {
            let elements = value.shape.iter().try_fold(1_i64, |all, side| all.checked_mul(*side));
            if elements != i64::try_from(value.data.len()).ok() {
                let (has, shape) = (value.data.len(), &value.shape);
                return Err(format!("input `{name}` has {has} numbers for the shape {shape:?}"));
            }
        }
        Ok(())
    }
}

/// Whether all names of an expression are known.
fn uses(expression: &Expr, known: &BTreeSet<&str>) -> Result<(), String> {
    match expression.names().into_iter().find(|name| !known.contains(name)) {
        None => Ok(()),
        Some(name) => {
            let known: Vec<&str> = known.iter().copied().collect();
            Err(format!("`{expression}` names `{name}`; known here are `{}`", known.join("`, `")))
        }
    }
}

fn is_word(text: &str) -> bool {
    let first = text.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    first && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(text: &str) -> Result<Card> {
        let parameters: toml::Table = toml::from_str(text).unwrap();
        let Ok(Value::Object(parameters)) = serde_json::to_value(parameters) else { panic!("a table") };
        Card::of(&ModelSpec { name: "k".to_owned(), parameters, ..ModelSpec::default() })
    }

    const GOOD: &str = r#"
        inputs = [{ name = "x", dtype = "FP32", shape = ["n", 4] }]
        outputs = [{ name = "y", dtype = "FP32", shape = ["n * size"] }]
        numbers.size = { min = 1, max = 8, default = 2 }
        limits.sides.n = [1, 100]

        [[launch]]
        entry = "twice"
        grid = ["ceil_div(n, 256)"]
        block = [256]
        arguments = ["x", "y", "n", "size * 2"]
    "#;

    #[test]
    fn a_card_is_read() {
        let card = card(GOOD).unwrap();
        assert_eq!(card.limits.memory(), 1 << 30);
        assert_eq!(card.launch[0].arguments.len(), 4);
        assert!(card.port("y").is_some() && card.port("z").is_none());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (from, to, says) in [
            ("\"FP32\", shape = [\"n\"", "\"FP99\", shape = [\"n\"", "FP99"),
            (
                "\"FP32\", shape = [\"n\"",
                "\"BYTES\", shape = [\"n\"",
                "`x` is BYTES, which no kernel can read",
            ),
            ("n * size", "m * size", "output `y`: `m * size` names `m`; known here are `n`, `size`"),
            ("n * size", "n *", "must stand at 4, and it ends"),
            ("\"n\", 4", "\"n\", \"m + 1\"", "input `x`: `m + 1` names `m`"),
            ("\"y\", \"n\"", "\"z\", \"n\"", "launch of `twice`: `z` names `z`"),
            ("[256]", "[1, 1, 1, 1]", "`block` has 4 numbers"),
            ("\"twice\"", "\"twice()\"", "must be the name of a function"),
            ("sides.n = [1, 100]", "sides.m = [1, 100]", "limits.sides names `m`, which no input binds"),
            ("sides.n = [1, 100]", "sides.n = [9, 1]", "9 is more than 1"),
            ("default = 2", "default = 9", "not in order"),
            ("name = \"y\"", "name = \"x\"", "`x` stands twice"),
            ("block = [256]", "block = [256]\ntreads = 2", "`treads`"),
            ("block = [256]", "block = [1.5]", "a whole number or a text with an expression"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let error = card(&GOOD.replacen(from, to, 1)).unwrap_err().message;
            assert!(error.contains(says), "{to}: {error}");
        }
        let checks = |text: &str| card(&format!("{GOOD}\n[[checks]]\n{text}")).unwrap_err().message;
        assert!(checks("inputs = {}\noutputs.y = [1]").contains("checks[0]: input `x` is missing"));
        let x = "inputs.x = { shape = [1, 4], data = [1, 2, 3] }\n";
        assert!(checks(&format!("{x}outputs.y = [1]")).contains("3 numbers for the shape [1, 4]"));
        let x = "inputs.x = { shape = [1, 4], data = [1, 2, 3, 4] }\n";
        assert!(checks(&format!("{x}outputs.z = [1]")).contains("no output `z`"));
        assert!(checks(&format!("{x}outputs = {{}}")).contains("says no output"));
    }
}
