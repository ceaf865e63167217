//! The three graphs of a model, as Hugging Face's Optimum exports them, and the state that goes from step to step.
//!
//! The encoder reads the sentences once. The decoder makes the first step and the keys and values of all it has seen; the
//! decoder with past makes every further one from these. What they take is in the files; what they give is `logits` and
//! `present.…`, which is the `past_key_values.…` of the next step.

use super::protobuf::{Field, Message};
use super::search::Row;
use backplane_plugin::prelude::*;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;
use std::sync::Arc;

/// The roles of their files.
pub const ENCODER: &str = "encoder";
pub const DECODER: &str = "decoder";
pub const DECODER_WITH_PAST: &str = "decoder_with_past";

/// Runs graphs.
pub trait Run {
    /// Runs the graph of this role.
    ///
    /// # Errors
    /// Those of whatever runs it.
    fn run(&self, role: &str, inputs: Vec<Input>) -> Result<Vec<Output>>;
}

/// An input of a graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    pub name: String,
    pub shape: Vec<i64>,
    pub numbers: Numbers,
}

/// What a tensor holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Numbers {
    Whole(Vec<i64>),
    /// Shared with what it was an output of.
    Real(Arc<[f32]>),
}

/// An output of a graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    pub name: String,
    pub shape: Vec<i64>,
    pub numbers: Arc<[f32]>,
}

/// What the graphs of a model take.
pub struct Graphs {
    encoder: Vec<String>,
    decoder: Vec<String>,
    decoder_with_past: Vec<String>,
}

impl Graphs {
    /// Looks into the files of a model.
    ///
    /// # Errors
    /// When a graph takes what nobody here gives.
    pub fn open(model: &ModelSpec) -> Result<Self> {
        let inputs = |role: &str, takes: &dyn Fn(&str) -> bool| -> Result<Vec<String>> {
            let wrong = |why: &str| {
                Error::model_invalid(format!("the file with role `{role}` of model `{}`: {why}", model.name))
            };
            let ports =
                ports(model.file(role)?).map_err(|error| wrong(&format!("it is no ONNX graph: {error}")))?;
            if let Some(port) = ports.iter().find(|port| !port.is_output && !takes(&port.name)) {
                return Err(wrong(&format!(
                    "it takes `{}`, which no graph of an encoder and a decoder without `merged` in its name does",
                    port.name
                )));
            }
            match ports.iter().find_map(Port::odd) {
                Some(odd) => Err(wrong(&odd)),
                None => {
                    let inputs = ports.into_iter().filter(|port| !port.is_output);
                    Ok(inputs.map(|port| port.name).collect())
                }
            }
        };
        let state =
            |name: &str| matches!(name, "input_ids" | "encoder_attention_mask" | "encoder_hidden_states");
        Ok(Self {
            encoder: inputs(ENCODER, &|name| matches!(name, "input_ids" | "attention_mask"))?,
            decoder: inputs(DECODER, &state)?,
            decoder_with_past: inputs(DECODER_WITH_PAST, &|name| state(name) || present(name).is_some())?,
        })
    }

    /// Reads sentences: the state that a translation of them begins from.
    ///
    /// # Errors
    /// Those of whatever runs the graphs.
    pub fn read<'a>(&'a self, run: &'a dyn Run, sentences: &[&[i64]], pad: i64) -> Result<State<'a>> {
        let longest = sentences.iter().map(|ids| ids.len()).max().unwrap_or_default();
        let padded = |ids: &&[i64]| {
            ids.iter().copied().chain(std::iter::repeat(pad)).take(longest).collect::<Vec<_>>()
        };
        let mask = |ids: &&[i64]| (0..longest).map(|at| i64::from(at < ids.len())).collect::<Vec<_>>();
        let ids: Vec<i64> = sentences.iter().flat_map(padded).collect();
        let mask: Vec<i64> = sentences.iter().flat_map(mask).collect();
        let shape = [sentences.len() as i64, longest as i64];
        let inputs = self.encoder.iter().map(|name| {
            let numbers = if name == "input_ids" { &ids } else { &mask };
            Input { name: name.clone(), shape: shape.to_vec(), numbers: Numbers::Whole(numbers.clone()) }
        });
        let outputs = run.run(ENCODER, inputs.collect())?;
        let hidden = outputs.into_iter().next();
        let hidden = hidden.ok_or_else(|| Error::model_invalid("the encoder gives no output"))?;
        let rows = (0..sentences.len()).collect();
        Ok(State { graphs: self, run, mask, hidden, past: Vec::new(), rows })
    }
}

/// The output that an input is of the next step: `present.0.decoder.key` of `past_key_values.0.decoder.key`.
fn present(input: &str) -> Option<String> {
    Some(format!("present{}", input.strip_prefix("past_key_values")?))
}

/// Where a translation is.
pub struct State<'a> {
    graphs: &'a Graphs,
    run: &'a dyn Run,
    /// Which places of the sentences are no padding, row by row.
    mask: Vec<i64>,
    /// What the encoder made of the sentences.
    hidden: Output,
    /// By the names of the decoder's outputs.
    past: Vec<Output>,
    /// The sentence of each row.
    rows: Vec<usize>,
}

impl State<'_> {
    /// The scores of all tokens for each row, after it has read its token.
    ///
    /// # Errors
    /// Those of whatever runs the graphs, and when a graph gives something else.
    pub fn step(&mut self, rows: &[Row]) -> Result<Vec<f32>> {
        let parents: Vec<usize> = rows.iter().map(|row| row.parent).collect();
        let sentences: Vec<usize> = parents.iter().map(|parent| self.rows[*parent]).collect();
        // What belongs to sentences stays where it is while the rows have the same ones.
        let moved = sentences != self.rows;
        if moved {
            self.hidden = self.hidden.rows(&parents)?;
            let width = self.mask.len() / self.rows.len().max(1);
            self.mask =
                parents.iter().flat_map(|row| &self.mask[row * width..(row + 1) * width]).copied().collect();
        }
        let stays = parents.iter().copied().eq(0..self.rows.len());
        for past in &mut self.past {
            if if is_of_encoder(&past.name) { moved } else { !stays } {
                *past = past.rows(&parents)?;
            }
        }
        self.rows = sentences;

        let (role, takes) = match self.past.is_empty() {
            true => (DECODER, &self.graphs.decoder),
            false => (DECODER_WITH_PAST, &self.graphs.decoder_with_past),
        };
        let count = rows.len() as i64;
        let whole = |name: &String, numbers: Vec<i64>| {
            let shape = vec![count, numbers.len() as i64 / count.max(1)];
            Input { name: name.clone(), shape, numbers: Numbers::Whole(numbers) }
        };
        let input = |name: &String| match (&**name, present(name)) {
            (_, Some(present)) => {
                let past = self.past.iter().find(|past| past.name == present);
                Ok(past.ok_or_else(|| odd(&format!("has no output `{present}`")))?.lend(name))
            }
            ("input_ids", _) => Ok(whole(name, rows.iter().map(|row| row.token).collect())),
            ("encoder_hidden_states", _) => Ok(self.hidden.lend(name)),
            _ => Ok(whole(name, self.mask.clone())),
        };
        let inputs = takes.iter().map(input).collect::<Result<_>>()?;
        let mut logits = None;
        for output in self.run.run(role, inputs)? {
            if output.name == "logits" {
                logits = Some(output);
            } else if let Some(past) = self.past.iter_mut().find(|past| past.name == output.name) {
                // The keys and values of the sentences stay as they are.
                if !is_of_encoder(&past.name) {
                    *past = output;
                }
            } else if role == DECODER {
                self.past.push(output);
            }
        }
        let logits = logits.ok_or_else(|| odd("has no output `logits`"))?;
        if logits.shape.len() != 3 || logits.shape[..2] != [count, 1] {
            return Err(odd(&format!("has `logits` of {:?} for {count} rows of one token", logits.shape)));
        }
        Ok(logits.numbers.to_vec())
    }
}

fn is_of_encoder(name: &str) -> bool {
    name.contains(".encoder.")
}

fn odd(what: &str) -> Error {
    Error::model_invalid(format!("the graph of the decoder {what}: it is no export of Optimum's"))
}

impl Output {
    /// These rows of it.
    fn rows(&self, rows: &[usize]) -> Result<Self> {
        let count = self.shape.first().map_or(0, |rows| *rows as usize);
        if count == 0 || rows.iter().any(|row| count <= *row) {
            return Err(odd(&format!("has an output `{}` of {:?}", self.name, self.shape)));
        }
        let width = self.numbers.len() / count;
        let mut numbers = Vec::with_capacity(rows.len() * width);
        rows.iter().for_each(|row| numbers.extend_from_slice(&self.numbers[row * width..(row + 1) * width]));
        let mut shape = self.shape.clone();
        shape[0] = rows.len() as i64;
        Ok(Self { name: self.name.clone(), shape, numbers: numbers.into() })
    }

    /// An input with the same numbers, in the same memory.
    fn lend(&self, name: &str) -> Input {
        Input {
            name: name.to_owned(),
            shape: self.shape.clone(),
            numbers: Numbers::Real(self.numbers.clone()),
        }
    }
}

/// An input or output of a graph.
struct Port {
    name: String,
    is_output: bool,
    /// Of `TensorProto.DataType`; 0 where the graph does not say.
    element: u64,
}

impl Port {
    /// Numbers of 32 bits go from step to step, and tokens are of 64.
    const REAL: u64 = 1;
    const WHOLE: u64 = 7;

    /// What is odd about its numbers, if something is. Said when a model is opened: a graph runs much later, in the middle
    /// of somebody's translation.
    fn odd(&self) -> Option<String> {
        let whole = matches!(&*self.name, "input_ids" | "attention_mask" | "encoder_attention_mask");
        let expected = if whole && !self.is_output { Self::WHOLE } else { Self::REAL };
        if [0, expected].contains(&self.element) {
            return None;
        }
        let side = if self.is_output { "output" } else { "input" };
        let (is, expected) = (element(self.element), element(expected));
        let mut odd =
            format!("its {side} `{}` is of {is}, and {expected} goes from step to step here", self.name);
        if is.ends_with("16") {
            odd += ": export it with 32 bits, or have its weights alone in 16 (`keep_io_types=True` of \
                    onnxconverter-common's `convert_float_to_float16`)";
        }
        Some(odd)
    }
}

/// The name of an element type.
fn element(number: u64) -> String {
    const NAMES: &[(u64, &str)] = &[
        (Port::REAL, "FLOAT"),
        (6, "INT32"),
        (Port::WHOLE, "INT64"),
        (9, "BOOL"),
        (10, "FLOAT16"),
        (11, "DOUBLE"),
        (16, "BFLOAT16"),
    ];
    let name = NAMES.iter().find(|(known, _)| *known == number).map(|(_, name)| (*name).to_owned());
    name.unwrap_or_else(|| format!("element type {number}"))
}

/// The inputs and outputs of an ONNX graph. Its weights are passed over.
fn ports(path: &Path) -> io::Result<Vec<Port>> {
    // Of `ModelProto` and `GraphProto` in `onnx.proto3`.
    const GRAPH: u64 = 7;
    const INPUT: u64 = 11;
    const OUTPUT: u64 = 12;
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut graph = Message::within(BufReader::new(file), length);
    loop {
        match graph.field()? {
            Some((GRAPH, Field::Bytes(length))) => break graph = graph.message(length),
            Some((_, Field::Bytes(length))) => graph.pass(length)?,
            Some(_) => {}
            None => return Err(io::Error::new(io::ErrorKind::InvalidData, "there is no graph in it")),
        }
    }
    let mut ports = Vec::new();
    while let Some((number, field)) = graph.field()? {
        match (number, field) {
            (INPUT | OUTPUT, Field::Bytes(length)) => {
                ports.push(port(number == OUTPUT, graph.bytes(length)?)?);
            }
            (_, Field::Bytes(length)) => graph.pass(length)?,
            _ => {}
        }
    }
    Ok(ports)
}

/// A `ValueInfoProto`: its name, and in it a `TypeProto`, in which is a `TypeProto.Tensor`.
fn port(is_output: bool, bytes: Vec<u8>) -> io::Result<Port> {
    const NAME: u64 = 1;
    const TYPE: u64 = 2;
    const TENSOR: u64 = 1;
    const ELEMENT: u64 = 1;
    let mut port = Port { name: String::new(), is_output, element: 0 };
    let mut info = Message::of(bytes);
    while let Some((number, field)) = info.field()? {
        match (number, field) {
            (NAME, Field::Bytes(length)) => port.name = info.text(length)?,
            (TYPE, Field::Bytes(length)) => {
                let Some(mut tensor) = Message::of(info.bytes(length)?).find(TENSOR)? else { continue };
                while let Some((number, field)) = tensor.field()? {
                    match (number, field) {
                        (ELEMENT, Field::Number(element)) => port.element = element,
                        (_, Field::Bytes(length)) => tensor.pass(length)?,
                        _ => {}
                    }
                }
            }
            (_, Field::Bytes(length)) => info.pass(length)?,
            _ => {}
        }
    }
    Ok(port)
}
