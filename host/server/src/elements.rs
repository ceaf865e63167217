//! Elements of tensors as JSON: flat or nested arrays in, flat arrays out.

use backplane::{DType, Error, Result, Tensor, words};
use half::{bf16, f16};
use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde::ser::{Error as _, SerializeSeq};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use std::fmt;

/// A tensor from JSON elements, row-major; nested arrays are flattened, as the protocol allows.
///
/// # Errors
/// An element that is not of the type, or a number of elements that is not the shape's.
pub(crate) fn read(name: &str, dtype: DType, shape: Vec<i64>, json: &RawValue) -> Result<Tensor> {
    if matches!(dtype, DType::Fp16 | DType::Bf16) {
        return Err(Error::invalid(format!("tensor `{name}`: {} travels as binary data only", dtype.name()))
            .with_param(name));
    }
    let (mut out, mut count) = (Vec::new(), 0);
    let mut reader = serde_json::Deserializer::from_str(json.get());
    Elements { dtype, out: &mut out, count: &mut count, outermost: true }.deserialize(&mut reader).map_err(
        |error| {
            let message = words::of_json(&error.to_string());
            Error::invalid(format!("tensor `{name}`: {message}")).with_param(name)
        },
    )?;
    let wanted =
        shape.iter().try_fold(1usize, |product, &side| product.checked_mul(usize::try_from(side).ok()?));
    if wanted != Some(count) {
        let message =
            format!("tensor `{name}` has {count} elements, which is not what its shape {shape:?} takes");
        return Err(Error::invalid(message).with_param(name));
    }
    Tensor::new(name, dtype, shape, out)
}

/// Appends the elements it finds.
struct Elements<'a> {
    dtype: DType,
    out: &'a mut Vec<u8>,
    count: &'a mut usize,
    outermost: bool,
}

impl<'de> DeserializeSeed<'de> for Elements<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Elements<'_> {
    fn push<E, const N: usize>(self, bytes: Option<[u8; N]>, what: impl fmt::Display) -> Result<(), E>
    where
        E: serde::de::Error,
    {
        let Some(bytes) = bytes.filter(|_| !self.outermost) else {
            return Err(E::custom(format!("{what} is not {}", self.wanted())));
        };
        self.out.extend_from_slice(&bytes);
        *self.count += 1;
        Ok(())
    }

    fn wanted(&self) -> String {
        if self.outermost { "an array".to_owned() } else { format!("of type {}", self.dtype.name()) }
    }

    fn integer<E: serde::de::Error>(self, value: i128) -> Result<(), E> {
        macro_rules! as_type {
            ($type:ty) => {
                self.push(<$type>::try_from(value).ok().map(<$type>::to_le_bytes), value)
            };
        }
        match self.dtype {
            DType::Uint8 => as_type!(u8),
            DType::Uint16 => as_type!(u16),
            DType::Uint32 => as_type!(u32),
            DType::Uint64 => as_type!(u64),
            DType::Int8 => as_type!(i8),
            DType::Int16 => as_type!(i16),
            DType::Int32 => as_type!(i32),
            DType::Int64 => as_type!(i64),
            DType::Fp32 => self.push(Some((value as f32).to_le_bytes()), value),
            DType::Fp64 => self.push(Some((value as f64).to_le_bytes()), value),
            DType::Bool | DType::Bytes | DType::Fp16 | DType::Bf16 => self.push(None::<[u8; 1]>, value),
        }
    }
}

impl<'de> Visitor<'de> for Elements<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.wanted())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        loop {
            let item = Elements { dtype: self.dtype, out: self.out, count: self.count, outermost: false };
            if items.next_element_seed(item)?.is_none() {
                return Ok(());
            }
        }
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        let byte = (self.dtype == DType::Bool).then_some([u8::from(value)]);
        self.push(byte, value)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.integer(value.into())
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.integer(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        match self.dtype {
            DType::Fp32 => {
                let single = value as f32;
                self.push(single.is_finite().then(|| single.to_le_bytes()), format_args!("{value:?}"))
            }
            DType::Fp64 => self.push(Some(value.to_le_bytes()), value),
            _ => self.push(None::<[u8; 1]>, format_args!("{value:?}")),
        }
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        let Some(len) =
            u32::try_from(text.len()).ok().filter(|_| self.dtype == DType::Bytes && !self.outermost)
        else {
            return Err(E::custom(format!("a string is not {}", self.wanted())));
        };
        self.out.extend_from_slice(&len.to_le_bytes());
        self.out.extend_from_slice(text.as_bytes());
        *self.count += 1;
        Ok(())
    }
}

/// The elements of a tensor, to be written as one flat array. Check with [`carried_by_json`] first.
pub(crate) struct Flat<'a>(pub &'a Tensor);

impl Serialize for Flat<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let data = &self.0.data;
        macro_rules! as_type {
            ($type:ty) => {
                to.collect_seq(data.as_chunks().0.iter().map(|bytes| <$type>::from_le_bytes(*bytes)))
            };
        }
        match self.0.dtype {
            DType::Bool => to.collect_seq(data.iter().map(|byte| *byte != 0)),
            DType::Uint8 => as_type!(u8),
            DType::Uint16 => as_type!(u16),
            DType::Uint32 => as_type!(u32),
            DType::Uint64 => as_type!(u64),
            DType::Int8 => as_type!(i8),
            DType::Int16 => as_type!(i16),
            DType::Int32 => as_type!(i32),
            DType::Int64 => as_type!(i64),
            DType::Fp16 => {
                to.collect_seq(data.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()))
            }
            DType::Bf16 => {
                to.collect_seq(data.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()))
            }
            DType::Fp32 => as_type!(f32),
            DType::Fp64 => as_type!(f64),
            DType::Bytes => {
                let strings = self.0.strings().unwrap_or_default();
                let mut list = to.serialize_seq(Some(strings.len()))?;
                for string in &strings {
                    list.serialize_element(std::str::from_utf8(string).map_err(S::Error::custom)?)?;
                }
                list.end()
            }
        }
    }
}

/// Whether JSON can carry the elements without loss; the error says what it cannot.
pub(crate) fn carried_by_json(tensor: &Tensor) -> Result<(), &'static str> {
    let finite = match tensor.dtype {
        DType::Fp16 | DType::Bf16 => return Err("16-bit floats"),
        DType::Fp32 => tensor.data.as_chunks().0.iter().all(|bytes| f32::from_le_bytes(*bytes).is_finite()),
        DType::Fp64 => tensor.data.as_chunks().0.iter().all(|bytes| f64::from_le_bytes(*bytes).is_finite()),
        DType::Bytes => {
            let text = tensor
                .strings()
                .is_some_and(|strings| strings.iter().all(|string| std::str::from_utf8(string).is_ok()));
            return if text { Ok(()) } else { Err("byte strings that are not UTF-8") };
        }
        _ => true,
    };
    if finite { Ok(()) } else { Err("NaN or infinity") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.to_owned()).unwrap()
    }

    fn refused(dtype: DType, shape: &[i64], json: &str) -> String {
        read("x", dtype, shape.to_vec(), &raw(json)).unwrap_err().message
    }

    #[test]
    fn nested_and_flat_are_one() {
        let nested = read("x", DType::Int16, vec![2, 2], &raw("[[1,-2],[3,4]]")).unwrap();
        assert_eq!(nested, read("x", DType::Int16, vec![2, 2], &raw("[1,-2,3,4]")).unwrap());
        assert_eq!(serde_json::to_string(&Flat(&nested)).unwrap(), "[1,-2,3,4]");
        assert!(read("x", DType::Fp32, vec![0, 3], &raw("[]")).is_ok());
    }

    #[test]
    fn what_is_not_of_the_type_is_refused() {
        assert_eq!(refused(DType::Uint8, &[1], "[256]"), "tensor `x`: 256 is not of type UINT8");
        assert_eq!(refused(DType::Int64, &[1], "[1.5]"), "tensor `x`: 1.5 is not of type INT64");
        assert_eq!(refused(DType::Bool, &[1], "[1]"), "tensor `x`: 1 is not of type BOOL");
        assert_eq!(refused(DType::Fp32, &[1], "[1e39]"), "tensor `x`: 1e39 is not of type FP32");
        assert_eq!(refused(DType::Bytes, &[1], "[1]"), "tensor `x`: 1 is not of type BYTES");
        assert_eq!(refused(DType::Fp32, &[1], "[\"1\"]"), "tensor `x`: a string is not of type FP32");
        assert_eq!(refused(DType::Fp32, &[1], "7"), "tensor `x`: 7 is not an array");
        assert!(refused(DType::Fp32, &[1], "[null]").contains("FP32"));
        assert!(refused(DType::Fp16, &[1], "[1]").contains("binary"));
        assert!(refused(DType::Fp32, &[3], "[1,2]").contains("2 elements"));
        assert!(refused(DType::Fp32, &[-1], "[1]").contains("shape"));
    }

    #[test]
    fn what_json_cannot_carry_is_known() {
        let tensor = |dtype, data: Vec<u8>| Tensor::new("x", dtype, vec![1], data).unwrap();
        assert!(carried_by_json(&tensor(DType::Fp32, f32::NAN.to_le_bytes().to_vec())).is_err());
        assert!(carried_by_json(&tensor(DType::Fp64, f64::INFINITY.to_le_bytes().to_vec())).is_err());
        assert!(carried_by_json(&tensor(DType::Fp16, vec![0, 0])).is_err());
        assert!(carried_by_json(&tensor(DType::Bytes, vec![1, 0, 0, 0, 0xff])).is_err());
        assert!(carried_by_json(&tensor(DType::Fp32, vec![0; 4])).is_ok());
    }

    proptest! {
        #[test]
        fn every_type_goes_round(
            floats in proptest::collection::vec(-1e30f32..1e30, 0..5),
            longs in proptest::collection::vec(any::<i64>(), 0..5),
            bytes in proptest::collection::vec(any::<u8>(), 0..5),
            texts in proptest::collection::vec(any::<String>(), 0..5),
        ) {
            let strings = texts.iter().flat_map(|text| {
                let mut bytes = (text.len() as u32).to_le_bytes().to_vec();
                bytes.extend_from_slice(text.as_bytes());
                bytes
            });
            let tensors = [
                Tensor::from_f32("x", vec![floats.len() as i64], &floats).unwrap(),
                Tensor::new("x", DType::Int64, vec![longs.len() as i64],
                    longs.iter().flat_map(|long| long.to_le_bytes()).collect::<Vec<_>>()).unwrap(),
                Tensor::new("x", DType::Uint64, vec![longs.len() as i64],
                    longs.iter().flat_map(|long| long.to_le_bytes()).collect::<Vec<_>>()).unwrap(),
                Tensor::new("x", DType::Uint8, vec![bytes.len() as i64], bytes.clone()).unwrap(),
                Tensor::new("x", DType::Int8, vec![bytes.len() as i64], bytes.clone()).unwrap(),
                Tensor::new("x", DType::Bytes, vec![texts.len() as i64], strings.collect::<Vec<_>>()).unwrap(),
            ];
            for tensor in tensors {
                prop_assert!(carried_by_json(&tensor).is_ok());
                let json = serde_json::to_string(&Flat(&tensor)).unwrap();
                prop_assert_eq!(read("x", tensor.dtype, tensor.shape.clone(), &raw(&json)).unwrap(), tensor);
            }
        }
    }
}
