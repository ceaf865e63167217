//! Small ONNX graphs, written as the few fields of protobuf that they need (`onnx.proto3`).

use backplane_testkit::DType;

/// A side of a tensor: a number, or a name where any length goes.
#[derive(Clone, Copy)]
pub enum Side {
    Is(i64),
    Any(&'static str),
}
pub use Side::{Any, Is};

/// A graph in the making.
#[derive(Clone, Default)]
pub struct Graph(Message);

impl Graph {
    pub fn input(mut self, name: &str, dtype: DType, shape: &[Side]) -> Self {
        self.0.message(11, tensor_port(name, dtype, shape));
        self
    }

    pub fn output(mut self, name: &str, dtype: DType, shape: &[Side]) -> Self {
        self.0.message(12, tensor_port(name, dtype, shape));
        self
    }

    /// An output that is a sequence of tensors.
    pub fn sequence_output(mut self, name: &str, dtype: DType) -> Self {
        let element = Message::default().with_message(1, Message::default().with_number(1, code(dtype)));
        let sequence = Message::default().with_message(1, element);
        self.0.message(
            12,
            Message::default()
                .with_text(1, name)
                .with_message(2, Message::default().with_message(4, sequence)),
        );
        self
    }

    pub fn node(self, operator: &str, inputs: &[&str], outputs: &[&str]) -> Self {
        self.node_with(operator, inputs, outputs, &[])
    }

    /// A node with attributes that are numbers.
    pub fn node_with(
        mut self,
        operator: &str,
        inputs: &[&str],
        outputs: &[&str],
        attributes: &[(&str, i64)],
    ) -> Self {
        let mut node = Message::default().with_text(4, operator);
        inputs.iter().for_each(|name| node.text(1, name));
        outputs.iter().for_each(|name| node.text(2, name));
        for (name, value) in attributes {
            node.message(
                5,
                Message::default().with_text(1, name).with_number(3, *value as u64).with_number(20, 2),
            );
        }
        self.0.message(1, node);
        self
    }

    /// Weights that are in the graph.
    pub fn weights(mut self, name: &str, shape: &[i64], values: &[f32]) -> Self {
        let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let mut tensor = weights(name, shape);
        tensor.bytes(9, &raw);
        self.0.message(5, tensor);
        self
    }

    /// Integers that are in the graph.
    pub fn integers(mut self, name: &str, values: &[i64]) -> Self {
        let mut tensor =
            Message::default().with_number(1, values.len() as u64).with_number(2, code(DType::Int64));
        tensor.text(8, name);
        tensor.bytes(9, &values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>());
        self.0.message(5, tensor);
        self
    }

    /// Weights in a file of this name.
    pub fn external_weights(mut self, name: &str, shape: &[i64], location: &str) -> Self {
        let mut tensor = weights(name, shape);
        tensor.message(13, Message::default().with_text(1, "location").with_text(2, location));
        tensor.number(14, 1);
        self.0.message(5, tensor);
        self
    }

    /// The model, with the operators of version 17.
    pub fn bytes(mut self) -> Vec<u8> {
        self.0.text(2, "test");
        let operators = Message::default().with_text(1, "").with_number(2, 17);
        Message::default().with_number(1, 8).with_message(7, self.0).with_message(8, operators).0
    }
}

fn weights(name: &str, shape: &[i64]) -> Message {
    let mut tensor = Message::default();
    shape.iter().for_each(|side| tensor.number(1, *side as u64));
    tensor.number(2, code(DType::Fp32));
    tensor.text(8, name);
    tensor
}

fn tensor_port(name: &str, dtype: DType, shape: &[Side]) -> Message {
    let mut sides = Message::default();
    for side in shape {
        let side = match side {
            Is(length) => Message::default().with_number(1, *length as u64),
            Any(name) => Message::default().with_text(2, name),
        };
        sides.message(1, side);
    }
    let tensor = Message::default().with_number(1, code(dtype)).with_message(2, sides);
    Message::default().with_text(1, name).with_message(2, Message::default().with_message(1, tensor))
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

/// A protobuf message: fields as they are written.
#[derive(Clone, Default)]
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

    fn with_number(mut self, field: u64, value: u64) -> Self {
        self.number(field, value);
        self
    }

    fn with_text(mut self, field: u64, text: &str) -> Self {
        self.text(field, text);
        self
    }

    fn with_message(mut self, field: u64, message: Message) -> Self {
        self.message(field, message);
        self
    }
}
