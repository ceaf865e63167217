//! Element types of tensors.

use serde::{Deserialize, Serialize};

/// The element types of the Open Inference Protocol, which every tensor capability speaks.
///
/// # Source
/// Open Inference Protocol v2, "Tensor Data Types"; `(code, bits)` are DLPack's, and ours for byte strings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "the names are the protocol's")]
pub enum DType {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
    Bytes,
}

impl DType {
    /// Every type.
    pub const ALL: [DType; 14] = [
        DType::Bool,
        DType::Uint8,
        DType::Uint16,
        DType::Uint32,
        DType::Uint64,
        DType::Int8,
        DType::Int16,
        DType::Int32,
        DType::Int64,
        DType::Fp16,
        DType::Bf16,
        DType::Fp32,
        DType::Fp64,
        DType::Bytes,
    ];

    /// DLPack's type code (200 for byte strings) and bits per element.
    pub fn raw(self) -> (u8, u8) {
        match self {
            DType::Bool => (6, 8),
            DType::Uint8 => (1, 8),
            DType::Uint16 => (1, 16),
            DType::Uint32 => (1, 32),
            DType::Uint64 => (1, 64),
            DType::Int8 => (0, 8),
            DType::Int16 => (0, 16),
            DType::Int32 => (0, 32),
            DType::Int64 => (0, 64),
            DType::Fp16 => (2, 16),
            DType::Bf16 => (4, 16),
            DType::Fp32 => (2, 32),
            DType::Fp64 => (2, 64),
            DType::Bytes => (200, 8),
        }
    }

    /// The type with this code and bits, one lane.
    pub fn from_raw(code: u8, bits: u8) -> Option<DType> {
        DType::ALL.into_iter().find(|dtype| dtype.raw() == (code, bits))
    }

    /// Bytes per element; `None` for byte strings, whose elements differ in length.
    pub fn size(self) -> Option<usize> {
        (self != DType::Bytes).then(|| usize::from(self.raw().1) / 8)
    }

    /// Name in the Open Inference Protocol: `"FP32"`.
    pub fn name(self) -> &'static str {
        match self {
            DType::Bool => "BOOL",
            DType::Uint8 => "UINT8",
            DType::Uint16 => "UINT16",
            DType::Uint32 => "UINT32",
            DType::Uint64 => "UINT64",
            DType::Int8 => "INT8",
            DType::Int16 => "INT16",
            DType::Int32 => "INT32",
            DType::Int64 => "INT64",
            DType::Fp16 => "FP16",
            DType::Bf16 => "BF16",
            DType::Fp32 => "FP32",
            DType::Fp64 => "FP64",
            DType::Bytes => "BYTES",
        }
    }

    /// The type with this protocol name.
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|dtype| dtype.name() == name)
    }
}

/// Bytes that `shape` of `dtype` takes; `None` on overflow, a negative side, or byte strings.
pub fn dense_bytes(dtype: DType, shape: &[i64]) -> Option<usize> {
    shape
        .iter()
        .try_fold(1usize, |product, &side| product.checked_mul(usize::try_from(side).ok()?))?
        .checked_mul(dtype.size()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_go_round() {
        for dtype in DType::ALL {
            let (code, bits) = dtype.raw();
            assert_eq!(DType::from_raw(code, bits), Some(dtype));
            assert_eq!(DType::from_name(dtype.name()), Some(dtype));
            assert_eq!(serde_json::to_string(&dtype).unwrap(), format!("\"{}\"", dtype.name()));
        }
        assert_eq!(DType::from_raw(2, 8), None);
    }

    #[test]
    fn absurd_shapes_have_no_size() {
        assert_eq!(dense_bytes(DType::Fp32, &[2, 3]), Some(24));
        assert_eq!(dense_bytes(DType::Fp32, &[]), Some(4));
        assert_eq!(dense_bytes(DType::Fp32, &[0, 7]), Some(0));
        assert_eq!(dense_bytes(DType::Fp32, &[-1]), None);
        assert_eq!(dense_bytes(DType::Int8, &[i64::MAX, i64::MAX]), None);
        assert_eq!(dense_bytes(DType::Bytes, &[1]), None);
    }
}
