//! Tensors as the host holds them.

use crate::error::{Error, Result};
use crate::loader::Place;
use backplane_abi::dtype::dense_bytes;
use bytes::Bytes;

pub use backplane_abi::dtype::DType;

/// A tensor in CPU memory: dense, row-major, little endian. Cloning shares the memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Its sides; empty for a scalar.
    pub shape: Vec<i64>,
    /// Its memory. Byte strings lie one after the other, each after its length as `u32` in little endian.
    pub data: Bytes,
    /// Where it is instead, on its way from a plugin to the next that both know the device: only a call of a plugin
    /// that asked for it is answered with such a tensor.
    pub(crate) place: Option<Place>,
}

impl Tensor {
    /// A tensor whose memory fits its shape.
    ///
    /// # Errors
    /// When a side is negative, or `data` does not hold what `shape` of `dtype` takes.
    pub fn new(
        name: impl Into<String>,
        dtype: DType,
        shape: Vec<i64>,
        data: impl Into<Bytes>,
    ) -> Result<Self> {
        let (name, data) = (name.into(), data.into());
        let fits = match dtype {
            DType::Bytes => dense_bytes(DType::Uint8, &shape) == count_strings(&data),
            _ => dense_bytes(dtype, &shape) == Some(data.len()),
        };
        if !fits {
            return Err(Error::invalid(format!(
                "tensor `{name}` has {} bytes of data, which is not {shape:?} of {}",
                data.len(),
                dtype.name()
            ))
            .with_param(name));
        }
        Ok(Self { name, dtype, shape, data, place: None })
    }

    /// Numbers in the memory of a device, which was seen to hold what `shape` of `dtype` takes.
    pub(crate) fn on_device(name: &str, dtype: DType, shape: Vec<i64>, place: Place) -> Self {
        Self { name: name.to_owned(), dtype, shape, data: Bytes::new(), place: Some(place) }
    }

    /// Itself, or a copy that its owner makes where it is on a device.
    ///
    /// # Errors
    /// The owner's.
    pub(crate) fn landed(self) -> Result<Self> {
        match &self.place {
            Some(place) => Ok(Self { data: place.read()?, place: None, ..self }),
            None => Ok(self),
        }
    }

    /// How many bytes it has, wherever they are.
    pub(crate) fn size(&self) -> usize {
        self.place.as_ref().map_or(self.data.len(), Place::len)
    }

    /// Numbers of `f32` in `shape`.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn from_f32(name: impl Into<String>, shape: Vec<i64>, values: &[f32]) -> Result<Self> {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self::new(name, DType::Fp32, shape, data)
    }

    /// Its elements as `f32`, when that is its type.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        (self.dtype == DType::Fp32)
            .then(|| self.data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    /// Its byte strings, when that is its type.
    pub fn strings(&self) -> Option<Vec<Bytes>> {
        if self.dtype != DType::Bytes {
            return None;
        }
        let (mut at, mut strings) = (0, Vec::new());
        while let Some(head) = self.data.get(at..at + 4) {
            let len = u32::from_le_bytes(head.try_into().ok()?) as usize;
            at += 4;
            if self.data.len() < at + len {
                return None;
            }
            strings.push(self.data.slice(at..at + len));
            at += len;
        }
        (at == self.data.len()).then_some(strings)
    }
}

/// How many byte strings `data` holds, or `None` when the lengths do not add up.
fn count_strings(mut data: &[u8]) -> Option<usize> {
    let mut count = 0;
    while !data.is_empty() {
        let (head, tail) = data.split_first_chunk::<4>()?;
        data = tail.get(u32::from_le_bytes(*head) as usize..)?;
        count += 1;
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_must_fit_the_shape() {
        assert!(Tensor::new("x", DType::Fp32, vec![2], vec![0; 8]).is_ok());
        assert!(Tensor::new("x", DType::Fp32, vec![2], vec![0; 7]).is_err());
        assert!(Tensor::new("x", DType::Fp32, vec![-2], vec![0; 8]).is_err());
        assert!(Tensor::new("x", DType::Int8, vec![i64::MAX, 3], vec![]).is_err());
        assert!(Tensor::new("x", DType::Bytes, vec![1], b"\x02\0\0\0ab".to_vec()).is_ok());
        assert!(Tensor::new("x", DType::Bytes, vec![1], b"\x03\0\0\0ab".to_vec()).is_err());
        assert!(Tensor::new("x", DType::Bytes, vec![2], b"\x02\0\0\0ab".to_vec()).is_err());
    }
}
