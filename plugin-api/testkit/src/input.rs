//! What is sent to a plugin: right by default, and as wrong as a test wants it.

use crate::answer::DeviceOutput;
use backplane_abi::dtype::{DType, dense_bytes};
use std::time::Duration;

/// A tensor to send. The constructors make a good one; the fields let a test spoil it.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInput {
    /// Its name; UTF-8 unless a test wants otherwise.
    pub name: Vec<u8>,
    /// DLPack's type code, bits and lanes.
    pub dtype: (u8, u8, u16),
    /// Its sides.
    pub shape: Vec<i64>,
    /// How many sides it claims to have, if not as many as there are.
    pub ndim: Option<i32>,
    /// Its strides in elements; `None` is dense.
    pub strides: Option<Vec<i64>>,
    /// Its memory; `nbytes` is its length.
    pub data: Vec<u8>,
    /// How many bytes in front of the data the pointer points.
    pub byte_offset: usize,
    /// Places the data one byte after an aligned address.
    pub misaligned: bool,
    /// Hands it over behind a buffer handle.
    pub buffer: bool,
    /// `BP_DEV_*`.
    pub device: i32,
    /// On a device, where an answer left it: [`TensorInput::there`].
    pub there: Option<DeviceOutput>,
    /// `BP_TENSOR_*`, and what a test adds.
    pub flags: u32,
}

impl TensorInput {
    /// A dense tensor in CPU memory.
    pub fn new(name: &str, dtype: DType, shape: &[i64], data: Vec<u8>) -> Self {
        let (code, bits) = dtype.raw();
        Self {
            name: name.as_bytes().to_vec(),
            dtype: (code, bits, 1),
            shape: shape.to_vec(),
            ndim: None,
            strides: None,
            data,
            byte_offset: 0,
            misaligned: false,
            buffer: false,
            device: backplane_abi::table::BP_DEV_CPU,
            there: None,
            flags: backplane_abi::table::BP_TENSOR_READ_ONLY,
        }
    }

    /// A tensor of an answer that stayed on its device, under this name.
    pub fn there(name: &str, output: &DeviceOutput) -> Self {
        let there = Some(output.clone());
        Self { there, ..Self::new(name, output.dtype, &output.shape, Vec::new()) }
    }

    /// Integers of 64 bits.
    pub fn int64(name: &str, shape: &[i64], values: &[i64]) -> Self {
        Self::new(name, DType::Int64, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// Floating-point numbers of 32 bits.
    pub fn fp32(name: &str, shape: &[i64], values: &[f32]) -> Self {
        Self::new(name, DType::Fp32, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// Byte strings.
    pub fn strings<S: AsRef<[u8]>>(name: &str, shape: &[i64], strings: &[S]) -> Self {
        Self::new(name, DType::Bytes, shape, encode(strings))
    }

    /// A tensor as a file gives it: `name`, `datatype`, `shape`, and `data`, a list of numbers, truth values or texts.
    ///
    /// # Errors
    /// When it is not that.
    pub(crate) fn from_json(tensor: &serde_json::Value) -> Result<Self, String> {
        use serde_json::Value;
        let name = tensor["name"].as_str().ok_or("a tensor has no `name`")?;
        let wrong = |what: &str| format!("tensor `{name}`: {what}");
        let dtype = serde_json::from_value::<DType>(tensor["datatype"].clone()).ok();
        let dtype =
            dtype.ok_or_else(|| wrong("`datatype` is none of those of the Open Inference Protocol"))?;
        let shape = tensor["shape"].as_array().map(|shape| shape.iter().map(Value::as_i64).collect());
        let shape: Vec<i64> =
            shape.flatten().ok_or_else(|| wrong("`shape` must be a list of whole numbers"))?;
        let data = tensor["data"].as_array().ok_or_else(|| wrong("`data` must be a list"))?;
        let bytes = |value: &Value| -> Option<Vec<u8>> {
            Some(match dtype {
                DType::Bool => vec![u8::from(value.as_bool()?)],
                DType::Fp32 => (value.as_f64()? as f32).to_le_bytes().to_vec(),
                DType::Fp64 => value.as_f64()?.to_le_bytes().to_vec(),
                DType::Bytes => encode(&[value.as_str()?]),
                DType::Uint64 => value.as_u64()?.to_le_bytes().to_vec(),
                DType::Int64
                | DType::Int32
                | DType::Int16
                | DType::Int8
                | DType::Uint32
                | DType::Uint16
                | DType::Uint8 => value.as_i64()?.to_le_bytes()[..dtype.size()?].to_vec(),
                _ => return None,
            })
        };
        let data: Option<Vec<Vec<u8>>> = data.iter().map(bytes).collect();
        let data = data.ok_or_else(|| wrong("an element of `data` is not of its `datatype`"))?;
        Ok(Self::new(name, dtype, &shape, data.concat()))
    }

    /// A tensor of this type and shape with content that differs in every byte nearby; BYTES get short strings.
    pub fn patterned(name: &str, dtype: DType, shape: &[i64]) -> Self {
        let elements = dense_bytes(DType::Uint8, shape).unwrap_or_default();
        let data = match dtype.size() {
            None => encode(&(0..elements).map(|n| format!("string {n}\0")).collect::<Vec<_>>()),
            Some(_) if dtype == DType::Bool => (0..elements).map(|n| (n % 2) as u8).collect(),
            Some(size) => (0..elements * size).map(|n| (n * 7 + 1) as u8).collect(),
        };
        Self::new(name, dtype, shape, data)
    }
}

/// Byte strings as BP_DT_BYTES holds them.
fn encode<S: AsRef<[u8]>>(strings: &[S]) -> Vec<u8> {
    let mut data = Vec::new();
    for string in strings {
        let string = string.as_ref();
        data.extend_from_slice(&(string.len() as u32).to_le_bytes());
        data.extend_from_slice(string);
    }
    data
}

/// How the caller reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reader {
    /// Everything at once.
    #[default]
    Fast,
    /// Every chunk is refused so many times before it is taken.
    Behind {
        /// How often `push` answers BP_WOULD_BLOCK to each chunk.
        refusals: u32,
    },
    /// Leaves: from then on `push` answers BP_CANCELLED, and the cancel word is set.
    Leaves {
        /// After so many chunks.
        after: usize,
    },
}

/// When the answer is of no use any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Deadline {
    /// Never.
    #[default]
    None,
    /// It is already past.
    Past,
    /// In so long.
    In(Duration),
}

/// A request to send.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestInput {
    /// What is asked for.
    pub capability: String,
    /// Parameters: JSON, unless a test wants otherwise.
    pub params: Vec<u8>,
    /// Tensors beside it.
    pub tensors: Vec<TensorInput>,
    /// `BP_REQUEST_*`, and what a test adds.
    pub flags: u32,
    /// What it is called, if not `test-1`.
    pub request_id: Option<String>,
    /// When the answer is of no use any more.
    pub deadline: Deadline,
    /// How its answer is read.
    pub reader: Reader,
    /// Sets the cancel word before the request is submitted.
    pub cancelled: bool,
    /// The `struct_size` it claims, if not its own.
    pub struct_size: Option<u32>,
    /// Unknown bytes after the struct, as a newer host would have them.
    pub tail: usize,
}

impl RequestInput {
    /// A request that everybody should be able to read.
    pub fn new(capability: &str, params_json: &str, tensors: Vec<TensorInput>) -> Self {
        Self {
            capability: capability.to_owned(),
            params: params_json.as_bytes().to_vec(),
            tensors,
            flags: backplane_abi::table::BP_REQUEST_STREAM,
            ..Self::default()
        }
    }

    /// The same from a caller who takes tensors of the answer on a device: [`crate::Answer::on_device`].
    pub fn keep_on_device(mut self) -> Self {
        self.flags |= backplane_abi::table::BP_REQUEST_DEVICE;
        self
    }
}
