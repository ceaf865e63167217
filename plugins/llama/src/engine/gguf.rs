//! Reads a GGUF header and checks it against the file, before llama.cpp sees the file.
//!
//! llama.cpp trusts much of what a file says; a truncated or hostile one can end the process. Here every count and
//! length is held against what is left of the file, so that a bad file is an error with a place.

use backplane_plugin::{Error, Result};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

/// What a model file says of itself.
#[derive(Debug, Default)]
pub struct Header {
    /// Metadata, long arrays left out.
    values: HashMap<String, Value>,
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
    /// Numbers in all tensors.
    pub parameters: u64,
    /// Length of the file.
    pub file_bytes: u64,
    /// Entries of `tokenizer.ggml.tokens`.
    pub vocabulary: u64,
}

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    /// Numbers only, at most [`MAX_LIST`] of them.
    List(Vec<u64>),
}

/// Models have one entry a layer; vocabularies are skipped.
const MAX_LIST: u64 = 4096;
/// Longest text kept, templates included.
const MAX_TEXT: u64 = 1 << 22;
const MAX_TENSORS: u64 = 1 << 20;
const MAX_KEYS: u64 = 1 << 16;

impl Header {
    /// Reads and checks the header of the file at `path`.
    ///
    /// # Errors
    /// `model_invalid` with what is wrong where; `NotFound` when there is no such file.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                Error::not_found("the model file is not there; pull the model again")
            }
            _ => Error::model_invalid(format!("the model file cannot be read: {error}")),
        })?;
        let length = file
            .metadata()
            .map_err(|error| Error::model_invalid(format!("the model file cannot be read: {error}")))?
            .len();
        Self::parse(BufReader::new(file), length)
    }

    /// Reads from anything that holds `length` bytes.
    ///
    /// # Errors
    /// As [`Header::read`].
    pub fn parse(input: impl Read, length: u64) -> Result<Self> {
        let mut reader = Reader { input, at: 0, length };
        if &reader.bytes::<4>().map_err(|_| invalid("it is no GGUF file: it is shorter than four bytes"))?
            != b"GGUF"
        {
            return Err(invalid("it is no GGUF file: it does not begin with `GGUF`"));
        }
        let version = reader.u32()?;
        if !(2..=3).contains(&version) {
            return Err(invalid(format!("it is GGUF version {version}; versions 2 and 3 are read")));
        }
        let tensors = reader.u64()?;
        let keys = reader.u64()?;
        if tensors > MAX_TENSORS || keys > MAX_KEYS {
            return Err(invalid(format!(
                "it claims {tensors} tensors and {keys} keys, more than any model has"
            )));
        }
        let mut header = Header { file_bytes: length, ..Header::default() };
        for _ in 0..keys {
            let key = reader.text("a key")?;
            let kind = reader.u32()?;
            let value = reader.value(&key, kind, &mut header.vocabulary)?;
            if let Some(value) = value {
                header.values.insert(key, value);
            }
        }
        let alignment = header.number("general.alignment").unwrap_or(32);
        if !alignment.is_power_of_two() || alignment > 1 << 20 {
            return Err(invalid(format!("`general.alignment` is {alignment}, not a power of two")));
        }
        let mut end = 0u64;
        let mut last = String::new();
        for _ in 0..tensors {
            let tensor = reader.tensor()?;
            header.parameters = header.parameters.saturating_add(tensor.elements);
            header.tensor_bytes = header.tensor_bytes.saturating_add(tensor.bytes);
            let tensor_end = tensor
                .offset
                .checked_add(tensor.bytes)
                .ok_or_else(|| invalid(format!("tensor `{}` lies beyond any file", tensor.name)))?;
            if tensor_end >= end {
                (end, last) = (tensor_end, tensor.name);
            }
        }
        let data = reader.at.next_multiple_of(alignment);
        let needed = data.saturating_add(end);
        if needed > length {
            return Err(invalid(format!(
                "it is cut off: tensor `{last}` ends at byte {needed} and the file has {length}; pull the model again"
            )));
        }
        Ok(header)
    }

    /// A whole number.
    pub fn number(&self, key: &str) -> Option<u64> {
        match self.values.get(key)? {
            Value::Unsigned(n) => Some(*n),
            Value::Signed(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    /// A text.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.values.get(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A number that need not be whole.
    pub fn real(&self, key: &str) -> Option<f64> {
        match self.values.get(key)? {
            Value::Float(x) => Some(*x),
            _ => None,
        }
    }

    /// A truth value.
    pub fn flag(&self, key: &str) -> Option<bool> {
        match self.values.get(key)? {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// A number for each of `count` layers: from a list, or the same for all.
    pub fn per_layer(&self, key: &str, count: u64) -> Option<Vec<u64>> {
        match self.values.get(key)? {
            Value::List(list) => Some(list.clone()),
            Value::Unsigned(n) => Some(vec![*n; count as usize]),
            Value::Signed(n) => Some(vec![u64::try_from(*n).ok()?; count as usize]),
            _ => None,
        }
    }

    /// `general.architecture`, such as `llama`.
    pub fn architecture(&self) -> &str {
        self.text("general.architecture").unwrap_or_default()
    }

    /// A number of this architecture: `key` without the architecture's name.
    pub fn of_architecture(&self, key: &str) -> Option<u64> {
        self.number(&format!("{}.{key}", self.architecture()))
    }
}

struct Tensor {
    name: String,
    elements: u64,
    bytes: u64,
    offset: u64,
}

fn invalid(what: impl std::fmt::Display) -> Error {
    Error::model_invalid(format!("the model file is not valid: {what}"))
}

struct Reader<R> {
    input: R,
    at: u64,
    length: u64,
}

impl<R: Read> Reader<R> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.need(N as u64, "the header")?;
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes).map_err(|error| invalid(error.to_string()))?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn need(&self, bytes: u64, what: &str) -> Result<()> {
        if bytes > self.length.saturating_sub(self.at) {
            return Err(invalid(format!(
                "it is cut off: {what} needs {bytes} bytes at byte {} and the file has {}; pull the model again",
                self.at, self.length
            )));
        }
        Ok(())
    }

    fn skip(&mut self, bytes: u64, what: &str) -> Result<()> {
        self.need(bytes, what)?;
        let skipped = std::io::copy(&mut self.input.by_ref().take(bytes), &mut std::io::sink());
        match skipped {
            Ok(n) if n == bytes => {
                self.at += bytes;
                Ok(())
            }
            Ok(_) => Err(invalid("it became shorter while it was read")),
            Err(error) => Err(invalid(error.to_string())),
        }
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    fn text(&mut self, what: &str) -> Result<String> {
        let length = self.u64()?;
        self.need(length, what)?;
        if length > MAX_TEXT {
            self.skip(length, what)?;
            return Ok(String::new());
        }
        let mut bytes = vec![0; length as usize];
        self.input.read_exact(&mut bytes).map_err(|error| invalid(error.to_string()))?;
        self.at += length;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn value(&mut self, key: &str, kind: u32, vocabulary: &mut u64) -> Result<Option<Value>> {
        Ok(Some(match kind {
            0 => Value::Unsigned(u64::from(self.bytes::<1>()?[0])),
            1 => Value::Signed(i64::from(self.bytes::<1>()?[0] as i8)),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.bytes()?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.bytes()?))),
            4 => Value::Unsigned(u64::from(self.u32()?)),
            5 => Value::Signed(i64::from(i32::from_le_bytes(self.bytes()?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.bytes()?))),
            7 => Value::Bool(self.bytes::<1>()?[0] != 0),
            8 => Value::Text(self.text(&format!("`{key}`"))?),
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.bytes()?)),
            12 => Value::Float(f64::from_le_bytes(self.bytes()?)),
            9 => return self.list(key, vocabulary),
            other => return Err(invalid(format!("`{key}` has the unknown type {other}"))),
        }))
    }

    fn list(&mut self, key: &str, vocabulary: &mut u64) -> Result<Option<Value>> {
        let kind = self.u32()?;
        let count = self.u64()?;
        if key == "tokenizer.ggml.tokens" {
            *vocabulary = count;
        }
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 => {
                // Each text has at least its length.
                self.need(count.saturating_mul(8), &format!("`{key}`"))?;
                for _ in 0..count {
                    let length = self.u64()?;
                    self.skip(length, &format!("`{key}`"))?;
                }
                return Ok(None);
            }
            other => return Err(invalid(format!("`{key}` is a list of the unknown type {other}"))),
        };
        self.need(count.saturating_mul(size), &format!("`{key}`"))?;
        if count > MAX_LIST || matches!(kind, 6 | 12) {
            self.skip(count * size, key)?;
            return Ok(None);
        }
        let list = (0..count)
            .map(|_| match self.value(key, kind, vocabulary)? {
                Some(Value::Unsigned(n)) => Ok(n),
                Some(Value::Signed(n)) => Ok(u64::try_from(n).unwrap_or(0)),
                Some(Value::Bool(b)) => Ok(u64::from(b)),
                _ => Ok(0),
            })
            .collect::<Result<_>>()?;
        Ok(Some(Value::List(list)))
    }

    fn tensor(&mut self) -> Result<Tensor> {
        let name = self.text("a tensor's name")?;
        let sides = self.u32()?;
        if sides > 4 {
            return Err(invalid(format!("tensor `{name}` has {sides} dimensions; four are possible")));
        }
        let mut elements = 1u64;
        let mut row = 1u64;
        for side in 0..sides {
            let length = self.u64()?;
            if side == 0 {
                row = length;
            }
            elements = elements
                .checked_mul(length)
                .filter(|&n| n > 0 && n <= 1 << 50)
                .ok_or_else(|| invalid(format!("tensor `{name}` has an impossible size")))?;
        }
        let kind = self.u32()?;
        let offset = self.u64()?;
        // Types newer than this table are llama.cpp's to refuse; they count as one bit a number here.
        let (block, size) = BLOCKS.iter().find(|b| b.0 == kind).map_or((8, 1), |b| (b.1, b.2));
        if !row.is_multiple_of(block) {
            return Err(invalid(format!("tensor `{name}` has rows of {row}, which type {kind} cannot hold")));
        }
        Ok(Tensor { bytes: elements / block * size, name, elements, offset })
    }
}

/// Type, numbers in a block, bytes of a block.
///
/// # Source
/// `ggml.h` (`enum ggml_type`) and `ggml-common.h`.
const BLOCKS: &[(u32, u64, u64)] = &[
    (0, 1, 4),      // F32
    (1, 1, 2),      // F16
    (2, 32, 18),    // Q4_0
    (3, 32, 20),    // Q4_1
    (6, 32, 22),    // Q5_0
    (7, 32, 24),    // Q5_1
    (8, 32, 34),    // Q8_0
    (9, 32, 36),    // Q8_1
    (10, 256, 84),  // Q2_K
    (11, 256, 110), // Q3_K
    (12, 256, 144), // Q4_K
    (13, 256, 176), // Q5_K
    (14, 256, 210), // Q6_K
    (15, 256, 292), // Q8_K
    (16, 256, 66),  // IQ2_XXS
    (17, 256, 74),  // IQ2_XS
    (18, 256, 98),  // IQ3_XXS
    (19, 256, 50),  // IQ1_S
    (20, 32, 18),   // IQ4_NL
    (21, 256, 110), // IQ3_S
    (22, 256, 82),  // IQ2_S
    (23, 256, 136), // IQ4_XS
    (24, 1, 1),     // I8
    (25, 1, 2),     // I16
    (26, 1, 4),     // I32
    (27, 1, 8),     // I64
    (28, 1, 8),     // F64
    (29, 256, 56),  // IQ1_M
    (30, 1, 2),     // BF16
];

#[cfg(test)]
pub mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A small valid file: two keys, a vocabulary, one tensor of 64 floats.
    pub fn file() -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        let text = |out: &mut Vec<u8>, text: &str| {
            out.extend((text.len() as u64).to_le_bytes());
            out.extend(text.as_bytes());
        };
        out.extend(3u32.to_le_bytes());
        out.extend(1u64.to_le_bytes());
        out.extend(4u64.to_le_bytes());
        text(&mut out, "general.architecture");
        out.extend(8u32.to_le_bytes());
        text(&mut out, "llama");
        text(&mut out, "llama.block_count");
        out.extend(4u32.to_le_bytes());
        out.extend(30u32.to_le_bytes());
        text(&mut out, "llama.attention.head_count_kv");
        out.extend(9u32.to_le_bytes());
        out.extend(4u32.to_le_bytes());
        out.extend(2u64.to_le_bytes());
        out.extend([3u32.to_le_bytes(), 4u32.to_le_bytes()].concat());
        text(&mut out, "tokenizer.ggml.tokens");
        out.extend(9u32.to_le_bytes());
        out.extend(8u32.to_le_bytes());
        out.extend(2u64.to_le_bytes());
        text(&mut out, "a");
        text(&mut out, "bc");
        text(&mut out, "weight");
        out.extend(1u32.to_le_bytes());
        out.extend(64u64.to_le_bytes());
        out.extend(0u32.to_le_bytes());
        out.extend(0u64.to_le_bytes());
        out.resize(out.len().next_multiple_of(32) + 256, 0);
        out
    }

    fn parse(bytes: &[u8]) -> Result<Header> {
        Header::parse(bytes, bytes.len() as u64)
    }

    #[test]
    fn a_header_is_read() {
        let header = parse(&file()).unwrap();
        assert_eq!(header.architecture(), "llama");
        assert_eq!(header.of_architecture("block_count"), Some(30));
        assert_eq!(header.per_layer("llama.attention.head_count_kv", 2), Some(vec![3, 4]));
        assert_eq!((header.vocabulary, header.parameters, header.tensor_bytes), (2, 64, 256));
    }

    #[test]
    fn a_file_cut_anywhere_is_refused_with_the_place() {
        let whole = file();
        for length in 0..whole.len() {
            let error = parse(&whole[..length]).unwrap_err();
            assert_eq!(error.reason.as_deref(), Some("model_invalid"), "{length}: {error}");
        }
        assert!(parse(&whole[..whole.len() - 1]).unwrap_err().message.contains("`weight`"));
    }

    #[test]
    fn other_files_are_refused_by_name() {
        let check = |bytes: &[u8], says: &str| {
            let error = parse(bytes).unwrap_err();
            assert!(error.message.contains(says), "{error}");
        };
        check(b"PK\x03\x04 a zip", "does not begin with `GGUF`");
        check(b"", "shorter than four bytes");
        let mut old = file();
        old[4] = 1;
        check(&old, "version 1");
        let mut many = file();
        many[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        check(&many, "more than any model has");
        let mut long = file();
        long[24..32].copy_from_slice(&(u64::MAX / 2).to_le_bytes());
        check(&long, "cut off");
    }

    proptest! {
        #[test]
        fn a_damaged_header_never_ends_the_process(at in 0usize..300, with: u8, cut in 0usize..600) {
            let mut bytes = file();
            bytes[at] = with;
            bytes.truncate(cut.max(4));
            let _ = parse(&bytes);
        }
    }
}
