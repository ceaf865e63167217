//! A graph that reads rows of tokens: which of its inputs is what, and which output is read.

use crate::convert;
use crate::session::{Engine, Port, Signature};
use crate::tokenize::Tokens;
use backplane_plugin::prelude::*;
use ort::session::SessionInputValue;
use ort::value::{DynValue, Tensor as OrtTensor};
use std::borrow::Cow;

/// What an input of the graph is to be filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ids,
    Mask,
    Types,
    Positions,
}

/// The names that exporters agree on.
const NAMES: [(&str, Kind); 4] = [
    ("input_ids", Kind::Ids),
    ("attention_mask", Kind::Mask),
    ("token_type_ids", Kind::Types),
    ("position_ids", Kind::Positions),
];

/// See the module.
pub struct Encoder {
    inputs: Vec<(Kind, Port)>,
    output: Port,
    pad: u32,
}

/// What a run gave: a row of numbers for each row of tokens.
pub struct Rows<'a> {
    /// Sides of a row: tokens and width, or only the width.
    pub sides: Vec<usize>,
    numbers: Cow<'a, [f32]>,
}

impl Rows<'_> {
    /// The numbers of one row.
    pub fn row(&self, row: usize) -> &[f32] {
        let len: usize = self.sides.iter().product();
        self.numbers.get(row * len..(row + 1) * len).unwrap_or_default()
    }
}

impl Encoder {
    /// The graph as an encoder whose `output` is read.
    ///
    /// # Errors
    /// When it takes something that is not made of tokens.
    pub fn of(signature: &Signature, output: Port, pad: u32, model: &str) -> Result<Self> {
        let inputs = signature.inputs.iter().map(|port| {
            let known = NAMES.iter().find(|(name, _)| *name == port.name).map(|(_, kind)| *kind);
            known
                .filter(|_| matches!(port.dtype, DType::Int64 | DType::Int32) && matches!(port.shape.len(), 0 | 2))
                .map(|kind| (kind, port.clone()))
                .ok_or_else(|| {
                    Error::invalid(format!(
                        "model `{model}` cannot read text: its input `{}`, {} {:?}, is none of {} as INT64 or INT32 \
                         of two sides; without `capabilities` in its card it serves `tensor.infer`",
                        port.name,
                        port.dtype.name(),
                        port.shape,
                        NAMES.map(|(name, _)| format!("`{name}`")).join(", "),
                    ))
                })
        });
        let inputs: Vec<_> = inputs.collect::<Result<_>>()?;
        if !inputs.iter().any(|(kind, _)| *kind == Kind::Ids) {
            return Err(Error::invalid(format!(
                "model `{model}` cannot read text: it has no input `input_ids`"
            )));
        }
        Ok(Self { inputs, output, pad })
    }

    /// Tokens of a row, where the graph has a fixed number of them.
    pub fn fixed_length(&self) -> Option<usize> {
        self.side(1)
    }

    /// Whether the graph takes any number of rows; otherwise it takes one.
    pub fn takes_many(&self) -> bool {
        self.side(0).is_none()
    }

    fn side(&self, side: usize) -> Option<usize> {
        self.inputs.iter().find_map(|(_, port)| usize::try_from(*port.shape.get(side)?).ok())
    }

    /// Tokens of a row in a run with these, padding included.
    pub fn padded(&self, rows: &[&Tokens]) -> usize {
        self.fixed_length().unwrap_or_else(|| rows.iter().map(|row| row.len()).max().unwrap_or_default())
    }

    /// Runs the graph on rows of tokens, padded to the longest.
    ///
    /// # Errors
    /// As [`Engine::run`].
    pub fn run(&self, engine: &Engine, requests: &[&Request], rows: &[&Tokens]) -> Result<DynValue> {
        let length = self.padded(rows);
        let inputs = self.inputs.iter().map(|(kind, port)| {
            let cells = cells(*kind, rows, length, self.pad);
            let shape = [rows.len(), length];
            let value: SessionInputValue<'_> = match port.dtype {
                DType::Int32 => OrtTensor::from_array((shape, cells.map(|x| x as i32).collect::<Vec<_>>()))
                    .map(Into::into),
                _ => OrtTensor::from_array((shape, cells.map(i64::from).collect::<Vec<_>>())).map(Into::into),
            }
            .map_err(|error| Error::internal(format!("tokens cannot be handed to ONNX Runtime: {error}")))?;
            Ok((Cow::Borrowed(port.name.as_str()), value))
        });
        let outputs = engine.run(requests, inputs.collect::<Result<_>>()?)?;
        let output = outputs.into_iter().nth(self.output.index);
        output.ok_or_else(|| Error::internal(format!("the graph gave no `{}`", self.output.name)))
    }

    /// The output of a run of `count` rows.
    ///
    /// # Errors
    /// When it has another number of rows.
    pub fn read<'a>(&self, output: &'a DynValue, count: usize) -> Result<Rows<'a>> {
        let name = &self.output.name;
        let (shape, numbers) = convert::floats(name, output)?;
        let sides = shape.get(1..).unwrap_or_default().iter().map(|&side| side as usize).collect();
        match shape.first() {
            Some(&rows) if rows as usize == count => Ok(Rows { sides, numbers }),
            _ => Err(Error::internal(format!("output `{name}` is {shape:?} for {count} rows of tokens"))),
        }
    }
}

/// What an input is filled with: a row for each of `rows`, padded to `length`.
fn cells(kind: Kind, rows: &[&Tokens], length: usize, pad: u32) -> impl Iterator<Item = u32> {
    let mut cells = vec![if kind == Kind::Ids { pad } else { 0 }; rows.len() * length];
    for (row, cells) in rows.iter().zip(cells.chunks_exact_mut(length.max(1))) {
        let cells = &mut cells[..row.len()];
        match kind {
            Kind::Ids => cells.copy_from_slice(&row.ids),
            Kind::Types => cells.copy_from_slice(&row.types),
            Kind::Mask => cells.fill(1),
            Kind::Positions => cells.iter_mut().zip(0..).for_each(|(cell, place)| *cell = place),
        }
    }
    cells.into_iter()
}

/// The output to read among those that `fits`: the one the card names, the usual one, or the only one.
///
/// # Errors
/// When the card's is none of them, or there is no single one.
pub fn choose(
    signature: &Signature,
    named: Option<&str>,
    usual: &[&str],
    fits: impl Fn(&Port) -> bool,
    model: &str,
) -> Result<Port> {
    let float = |port: &&Port| matches!(port.dtype, DType::Fp16 | DType::Bf16 | DType::Fp32 | DType::Fp64);
    let able: Vec<&Port> = signature.outputs.iter().filter(float).filter(|port| fits(port)).collect();
    let by_name = |name: &str| able.iter().find(|port| port.name == name);
    let chosen = match (named, &able[..]) {
        (Some(name), _) => by_name(name),
        (None, [only]) => Some(only),
        (None, _) => usual.iter().find_map(|name| by_name(name)),
    };
    chosen.map(|&port| port.clone()).ok_or_else(|| {
        let describe = |port: &Port| format!("`{}` {} {:?}", port.name, port.dtype.name(), port.shape);
        let outputs = signature.outputs.iter().map(describe).collect::<Vec<_>>().join(", ");
        let fitting = able.iter().map(|port| format!("`{}`", port.name)).collect::<Vec<_>>().join(", ");
        Error::invalid(match (named, able.is_empty()) {
            (_, true) => format!("model `{model}` has no output for this capability, only {outputs}"),
            (Some(name), _) => format!("model `{model}`: `output` is `{name}`, and {fitting} can be read"),
            (None, _) => format!("model `{model}` has several outputs; name one of {fitting} by `output`"),
        })
        .with_param("parameters")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_padded_to_the_longest() {
        let short = Tokens { ids: vec![7], types: vec![1] };
        let long = Tokens { ids: vec![8, 9], types: vec![0, 1] };
        let of = |kind| cells(kind, &[&short, &long], 2, 5).collect::<Vec<_>>();
        assert_eq!(of(Kind::Ids), [7, 5, 8, 9]);
        assert_eq!(of(Kind::Mask), [1, 0, 1, 1]);
        assert_eq!(of(Kind::Types), [1, 0, 0, 1]);
        assert_eq!(of(Kind::Positions), [0, 0, 0, 1]);
    }

    #[test]
    fn one_output_is_chosen_or_the_choice_is_explained() {
        let port = |name: &str, dtype, shape: &[i64]| Port {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
            symbols: Vec::new(),
            index: 0,
        };
        let outputs = vec![
            port("a", DType::Fp32, &[-1, -1, 4]),
            port("b", DType::Fp16, &[-1, 8, 4]),
            port("ids", DType::Int64, &[-1, -1, 4]),
            port("flat", DType::Fp32, &[-1, 4]),
        ];
        let signature = Signature { outputs, ..Signature::default() };
        let three = |port: &Port| port.shape.len() == 3;
        let two = |port: &Port| port.shape.len() == 2;
        let chosen = |named, usual: &[&str], fits: &dyn Fn(&Port) -> bool| {
            choose(&signature, named, usual, fits, "m").map(|port| port.name)
        };
        assert_eq!(chosen(None, &[], &two).unwrap(), "flat", "the only one");
        assert_eq!(chosen(Some("b"), &["a"], &three).unwrap(), "b", "the named one");
        assert_eq!(chosen(None, &["last", "a"], &three).unwrap(), "a", "the usual one");
        assert!(chosen(None, &[], &three).unwrap_err().message.contains("one of `a`, `b`"));
        assert!(chosen(Some("ids"), &[], &three).unwrap_err().message.contains("is `ids`, and `a`, `b` can"));
        assert!(chosen(None, &[], &|_| false).unwrap_err().message.contains("only `a` FP32"));
    }
}
