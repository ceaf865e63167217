//! ONNX, written and never read: the few messages of `onnx.proto` that weights and nodes need. For what is converted here,
//! and for tests that need a graph.
//!
//! ```
//! use backplane_registry::onnx::{DType, Graph, Side};
//!
//! let any = [Side::Any("N"), Side::Is(3)];
//! let file = Graph::default()
//!     .input("x", DType::Fp32, &any)
//!     .output("y", DType::Fp32, &any)
//!     .node("Neg", &["x"], &["y"], &[])
//!     .finish("negative");
//! # assert!(file.ends_with(b"B\x04\n\x00\x10\r"));
//! ```
//!
//! By hand, because that takes two wire types and a page; a protobuf library would bring a code generator, or the whole
//! schema, to write the same bytes. What is made of the same calls is the same to the byte.

pub use backplane_abi::dtype::DType;

/// The operators' version, and the format's: what ONNX Runtime has read since 2021.
const OPERATORS: u64 = 13;
const FORMAT: u64 = 8;

/// A side of a tensor.
#[derive(Clone, Copy, Debug)]
pub enum Side {
    /// So long.
    Is(usize),
    /// Any length; the same name, the same length.
    Any(&'static str),
}

/// What a node is told beside its inputs.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "kinds of values, by their names")]
pub enum Attribute<'a> {
    Float(f32),
    Int(i64),
    Ints(&'a [i64]),
    Text(&'a str),
}

/// A graph in the making.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    nodes: Message,
    weights: Message,
    ports: Message,
}

impl Graph {
    /// A tensor that it takes.
    pub fn input(&mut self, name: &str, dtype: DType, shape: &[Side]) -> &mut Self {
        self.ports.message(11, port(name, 1, tensor_type(dtype, shape)));
        self
    }

    /// A tensor that it gives.
    pub fn output(&mut self, name: &str, dtype: DType, shape: &[Side]) -> &mut Self {
        self.ports.message(12, port(name, 1, tensor_type(dtype, shape)));
        self
    }

    /// A sequence of tensors that it gives.
    pub fn output_sequence(&mut self, name: &str, dtype: DType) -> &mut Self {
        let (mut tensor, mut element, mut sequence) =
            (Message::default(), Message::default(), Message::default());
        tensor.number(1, code(dtype));
        element.message(1, tensor);
        sequence.message(1, element);
        self.ports.message(12, port(name, 4, sequence));
        self
    }

    /// What is done with tensors.
    pub fn node(
        &mut self,
        operator: &str,
        inputs: &[&str],
        outputs: &[&str],
        told: &[(&str, Attribute<'_>)],
    ) -> &mut Self {
        let mut node = Message::default();
        inputs.iter().for_each(|name| node.text(1, name));
        outputs.iter().for_each(|name| node.text(2, name));
        node.text(3, outputs.first().unwrap_or(&operator));
        node.text(4, operator);
        told.iter().for_each(|(name, value)| node.message(5, attribute(name, *value)));
        self.nodes.message(1, node);
        self
    }

    /// Numbers that are known.
    pub fn floats(&mut self, name: &str, shape: &[usize], values: &[f32]) -> &mut Self {
        let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let mut weights = tensor(name, DType::Fp32, shape);
        weights.bytes(9, &raw);
        self.weights.message(5, weights);
        self
    }

    /// Whole numbers that are known.
    pub fn integers(&mut self, name: &str, values: &[i64]) -> &mut Self {
        let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let mut weights = tensor(name, DType::Int64, &[values.len()]);
        weights.bytes(9, &raw);
        self.weights.message(5, weights);
        self
    }

    /// Numbers that stand in a file of this name.
    pub fn floats_elsewhere(&mut self, name: &str, shape: &[usize], file: &str) -> &mut Self {
        let (mut weights, mut place) = (tensor(name, DType::Fp32, shape), Message::default());
        place.text(1, "location");
        place.text(2, file);
        weights.message(13, place);
        weights.number(14, 1);
        self.weights.message(5, weights);
        self
    }

    /// The model; what is left is empty.
    pub fn finish(&mut self, name: &str) -> Vec<u8> {
        let Self { mut nodes, weights, ports } = std::mem::take(self);
        nodes.text(2, name);
        nodes.0.extend(weights.0);
        nodes.0.extend(ports.0);
        let mut operators = Message::default();
        operators.text(1, "");
        operators.number(2, OPERATORS);
        let mut model = Message::default();
        model.number(1, FORMAT);
        model.text(2, "backplane");
        model.message(7, nodes);
        model.message(8, operators);
        model.0
    }
}

/// A port whose type is of this kind: 1, a tensor; 4, a sequence.
fn port(name: &str, kind: u64, of: Message) -> Message {
    let (mut port, mut types) = (Message::default(), Message::default());
    types.message(kind, of);
    port.text(1, name);
    port.message(2, types);
    port
}

fn tensor_type(dtype: DType, shape: &[Side]) -> Message {
    let mut sides = Message::default();
    for side in shape {
        let mut message = Message::default();
        match side {
            Side::Is(length) => message.number(1, *length as u64),
            Side::Any(name) => message.text(2, name),
        }
        sides.message(1, message);
    }
    let mut tensor = Message::default();
    tensor.number(1, code(dtype));
    tensor.message(2, sides);
    tensor
}

/// All of a tensor but its numbers.
fn tensor(name: &str, dtype: DType, shape: &[usize]) -> Message {
    let mut tensor = Message::default();
    shape.iter().for_each(|side| tensor.number(1, *side as u64));
    tensor.number(2, code(dtype));
    tensor.text(8, name);
    tensor
}

/// `TensorProto.DataType`.
fn code(dtype: DType) -> u64 {
    match dtype {
        DType::Fp32 => 1,
        DType::Uint8 => 2,
        DType::Int8 => 3,
        DType::Uint16 => 4,
        DType::Int16 => 5,
        DType::Int32 => 6,
        DType::Int64 => 7,
        DType::Bytes => 8,
        DType::Bool => 9,
        DType::Fp16 => 10,
        DType::Fp64 => 11,
        DType::Uint32 => 12,
        DType::Uint64 => 13,
        DType::Bf16 => 16,
    }
}

fn attribute(name: &str, value: Attribute<'_>) -> Message {
    let mut attribute = Message::default();
    attribute.text(1, name);
    let kind = match value {
        Attribute::Float(value) => {
            attribute.float(2, value);
            1
        }
        Attribute::Int(value) => {
            attribute.number(3, value as u64);
            2
        }
        Attribute::Text(value) => {
            attribute.text(4, value);
            3
        }
        Attribute::Ints(values) => {
            values.iter().for_each(|value| attribute.number(8, *value as u64));
            7
        }
    };
    attribute.number(20, kind);
    attribute
}

/// A protobuf message: its fields as they are written.
#[derive(Clone, Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(&mut self, field: u64, value: u64) {
        self.varint(field << 3);
        self.varint(value);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.varint(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, field: u64, text: &str) {
        self.bytes(field, text.as_bytes());
    }

    fn message(&mut self, field: u64, message: Message) {
        self.bytes(field, &message.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes that the `onnx` package of its authors writes for the same graph.
    #[test]
    fn a_graph_is_written_as_its_authors_write_it() {
        let mut graph = Graph::default();
        graph.input("x", DType::Fp32, &[Side::Any("N"), Side::Is(300)]);
        graph.output("y", DType::Fp32, &[Side::Any("N"), Side::Is(300)]);
        graph.floats("w", &[1], &[0.5]);
        graph.node("LeakyRelu", &["x"], &["y"], &[("alpha", Attribute::Float(0.5))]);
        let told = [
            ("auto_pad", Attribute::Text("SAME")),
            ("group", Attribute::Int(2)),
            ("kernel_shape", Attribute::Ints(&[3, 3])),
        ];
        graph.node("Conv", &["x", "w"], &["z"], &told);
        let theirs = b"\x08\x08\x12\tbackplane:\xb5\x01\n%\n\x01x\x12\x01y\x1a\x01y\"\tLeakyRelu*\x0f\n\x05alpha\x15\x00\
            \x00\x00?\xa0\x01\x01\nL\n\x01x\n\x01w\x12\x01z\x1a\x01z\"\x04Conv*\x13\n\x08auto_pad\"\x04SAME\xa0\x01\x03*\
            \x0c\n\x05group\x18\x02\xa0\x01\x02*\x15\n\x0ckernel_shape@\x03@\x03\xa0\x01\x07\x12\x01g*\r\x08\x01\x10\x01B\
            \x01wJ\x04\x00\x00\x00?Z\x15\n\x01x\x12\x10\n\x0e\x08\x01\x12\n\n\x03\x12\x01N\n\x03\x08\xac\x02b\x15\n\x01y\
            \x12\x10\n\x0e\x08\x01\x12\n\n\x03\x12\x01N\n\x03\x08\xac\x02B\x04\n\x00\x10\r";
        assert_eq!(graph.finish("g").escape_ascii().to_string(), theirs.escape_ascii().to_string());
    }
}
