//! What comes back from a plugin.

use crate::host::DeviceHeld;
use backplane_abi::code::Code;
use backplane_abi::dtype::DType;
use serde_json::Value;
use std::fmt;
use std::sync::Arc;

/// A failure as a plugin reported it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Failure {
    /// A canonical code (1..16), or a negative answer to a misuse of the plugin.
    pub code: i32,
    /// `BP_SUB_*`.
    pub sub: i32,
    /// For people.
    pub message: String,
    /// For machines.
    pub reason: String,
    /// Figures; null when there are none.
    pub details: Box<Value>,
    /// 0: no advice.
    pub retry_after_ms: u32,
}

impl Failure {
    /// The canonical code, if it is one.
    pub fn canonical(&self) -> Option<Code> {
        (1..=16).contains(&self.code).then(|| Code::from_raw(self.code))
    }

    /// Whether it says that a panic was caught.
    pub fn is_panic(&self) -> bool {
        self.sub == backplane_abi::table::BP_SUB_PANIC
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.canonical() {
            Some(code) => write!(f, "{code}")?,
            None => write!(f, "code {}", self.code)?,
        }
        if self.is_panic() {
            write!(f, " (a panic)")?;
        }
        if self.message.is_empty() {
            write!(f, ", without a message")
        } else {
            write!(f, ": {}", self.message)
        }
    }
}

impl std::error::Error for Failure {}

/// A tensor of an answer: dense, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorOutput {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Its sides.
    pub shape: Vec<i64>,
    /// Its memory.
    pub data: Vec<u8>,
}

/// A tensor of an answer that stayed on its device: dense, row-major. Its memory is held until the last clone goes.
#[derive(Clone)]
pub struct DeviceOutput {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Its sides.
    pub shape: Vec<i64>,
    pub(crate) held: Arc<DeviceHeld>,
}

impl DeviceOutput {
    /// Its first byte, as the device addresses it.
    pub fn address(&self) -> u64 {
        self.held.at.start as u64
    }

    /// `BP_DEV_*`, and which of its kind.
    pub fn device(&self) -> (i32, i32) {
        (self.held.at.dev_type, self.held.at.dev_id)
    }

    /// Its bytes, copied by their owner.
    ///
    /// # Errors
    /// The owner's.
    pub fn read(&self) -> Result<Vec<u8>, Failure> {
        self.held.read()
    }
}

impl fmt::Debug for DeviceOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {:?} on {:?}", self.name, self.dtype.name(), self.shape, self.device())
    }
}

impl PartialEq for DeviceOutput {
    fn eq(&self, other: &Self) -> bool {
        let parts = |output: &Self| (output.name.clone(), output.dtype, output.shape.clone(), output.held.at);
        parts(self) == parts(other)
    }
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunk {
    /// Null when the piece has no JSON.
    pub json: Value,
    /// Its tensors.
    pub tensors: Vec<TensorOutput>,
}

/// A piece without tensors.
impl From<Value> for Chunk {
    fn from(json: Value) -> Self {
        Self { json, tensors: Vec::new() }
    }
}

/// How an answer ended.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// Well.
    Done {
        /// What was consumed; null when not reported.
        usage: Value,
        /// 0..=1, if known.
        confidence: Option<f64>,
    },
    /// With an error through `finish`.
    Failed(Failure),
    /// `submit` did not take it.
    Refused(Failure),
    /// Not within the patience of the test.
    Unfinished,
}

/// An answer: its pieces in order, and how it ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The pieces.
    pub chunks: Vec<Chunk>,
    /// Tensors of all pieces that stayed on a device: [`crate::RequestInput::keep_on_device`]. Read once.
    pub on_device: Vec<DeviceOutput>,
    /// The end.
    pub end: End,
}

impl Answer {
    /// Whether it ended well.
    pub fn is_done(&self) -> bool {
        matches!(self.end, End::Done { .. })
    }

    /// Why it did not end well, if it ended so.
    pub fn failure(&self) -> Option<&Failure> {
        match &self.end {
            End::Failed(failure) | End::Refused(failure) => Some(failure),
            End::Done { .. } | End::Unfinished => None,
        }
    }

    /// The JSON of all pieces as one value: texts and lists are appended, numbers replaced. What a reader has at the
    /// end, however the answer was cut into pieces.
    pub fn json(&self) -> Value {
        self.chunks.iter().fold(Value::Null, |mut whole, chunk| {
            append(&mut whole, &chunk.json);
            whole
        })
    }

    /// The tensors of all pieces in order.
    pub fn tensors(&self) -> Vec<&TensorOutput> {
        self.chunks.iter().flat_map(|chunk| &chunk.tensors).collect()
    }

    /// The tensor with this name, of the first piece that has it.
    pub fn tensor(&self, name: &str) -> Option<&TensorOutput> {
        self.tensors().into_iter().find(|tensor| tensor.name == name)
    }
}

fn append(whole: &mut Value, piece: &Value) {
    match (whole, piece) {
        (_, Value::Null) => {}
        (Value::String(whole), Value::String(piece)) => whole.push_str(piece),
        (Value::Array(whole), Value::Array(piece)) => whole.extend_from_slice(piece),
        (Value::Object(whole), Value::Object(piece)) => {
            for (name, value) in piece {
                append(whole.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (whole, piece) => whole.clone_from(piece),
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Done { .. } => write!(f, "ended well"),
            End::Failed(failure) => write!(f, "failed with {failure}"),
            End::Refused(failure) => write!(f, "was refused by `submit` with {failure}"),
            End::Unfinished => write!(f, "was not finished"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pieces_add_up_however_they_were_cut() {
        let answer = |pieces: &[Value]| Answer {
            chunks: pieces.iter().map(|json| Chunk { json: json.clone(), tensors: Vec::new() }).collect(),
            on_device: Vec::new(),
            end: End::Unfinished,
        };
        let one = answer(&[json!({"text": "ab", "list": [1, 2], "n": 2})]);
        let two = answer(&[
            json!({"text": "a", "list": [1], "n": 1}),
            Value::Null,
            json!({"text": "b", "list": [2], "n": 2}),
        ]);
        assert_eq!(one.json(), two.json());
        assert_eq!(answer(&[]).json(), Value::Null);
    }
}
