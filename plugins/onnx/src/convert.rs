//! Tensors of requests and results as ONNX Runtime's values, and back.
//!
//! Inputs of one request are borrowed as they lie; those of several are joined along the first side. An output is cut
//! into one tensor for each request, and large ones are lent to the host instead of being copied.

use backplane_plugin::Element;
use backplane_plugin::prelude::*;
use ort::session::SessionInputValue;
use ort::value::{
    DynValue, PrimitiveTensorElementType, Tensor as OrtTensor, TensorElementType, TensorRef, TensorValueType,
};
use std::borrow::Cow;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

/// From this size on a part of an output is lent to the host. What is lent keeps the session's arena alive as long as the
/// host holds it, though not its weights; smaller ones are not worth that.
const LEND_FROM: usize = 64 * 1024;

/// The protocol's type for an element type of ONNX, if it has one.
pub fn dtype(element: TensorElementType) -> Option<DType> {
    Some(match element {
        TensorElementType::Bool => DType::Bool,
        TensorElementType::Uint8 => DType::Uint8,
        TensorElementType::Uint16 => DType::Uint16,
        TensorElementType::Uint32 => DType::Uint32,
        TensorElementType::Uint64 => DType::Uint64,
        TensorElementType::Int8 => DType::Int8,
        TensorElementType::Int16 => DType::Int16,
        TensorElementType::Int32 => DType::Int32,
        TensorElementType::Int64 => DType::Int64,
        TensorElementType::Float16 => DType::Fp16,
        TensorElementType::Bfloat16 => DType::Bf16,
        TensorElementType::Float32 => DType::Fp32,
        TensorElementType::Float64 => DType::Fp64,
        TensorElementType::String => DType::Bytes,
        _ => return None,
    })
}

/// Does `$body` with `$T` the Rust type of a numeric `$dtype`; `$bool` and `$bytes` for the two that are none.
macro_rules! with_element {
    ($dtype:expr, $T:ident => $body:expr, BOOL => $bool:expr, BYTES => $bytes:expr) => {
        match $dtype {
            DType::Uint8 => {
                type $T = u8;
                $body
            }
            DType::Uint16 => {
                type $T = u16;
                $body
            }
            DType::Uint32 => {
                type $T = u32;
                $body
            }
            DType::Uint64 => {
                type $T = u64;
                $body
            }
            DType::Int8 => {
                type $T = i8;
                $body
            }
            DType::Int16 => {
                type $T = i16;
                $body
            }
            DType::Int32 => {
                type $T = i32;
                $body
            }
            DType::Int64 => {
                type $T = i64;
                $body
            }
            DType::Fp16 => {
                type $T = half::f16;
                $body
            }
            DType::Bf16 => {
                type $T = half::bf16;
                $body
            }
            DType::Fp32 => {
                type $T = f32;
                $body
            }
            DType::Fp64 => {
                type $T = f64;
                $body
            }
            DType::Bool => $bool,
            DType::Bytes => $bytes,
        }
    };
}

/// The same input of several requests as one value, joined along the first side; the other sides agree. The memory of a
/// single one is borrowed.
///
/// # Errors
/// When a byte string is none that ONNX can hold.
pub fn join<'a>(parts: &[TensorView<'a>]) -> Result<SessionInputValue<'a>> {
    let [first, rest @ ..] = parts else { return Err(Error::internal("no tensors to join")) };
    let mut shape = first.shape().to_vec();
    if let (Some(rows), [_, ..]) = (shape.first_mut(), rest) {
        *rows = parts.iter().map(|part| part.shape()[0]).sum();
    }
    with_element!(first.dtype(),
        T => {
            let elements = match rest {
                [] => first.elements::<T>()?,
                _ => {
                    let parts: Vec<_> = parts.iter().map(TensorView::elements::<T>).collect::<Result<_>>()?;
                    Cow::Owned(parts.concat())
                }
            };
            value(&shape, elements)
        },
        BOOL => {
            let bools = parts.iter().flat_map(|part| part.bytes()).map(|&byte| byte != 0).collect();
            value::<bool>(&shape, Cow::Owned(bools))
        },
        BYTES => {
            let mut texts = Vec::new();
            for part in parts {
                for (place, bytes) in part.strings()?.into_iter().enumerate() {
                    texts.push(text(part.name(), place, bytes)?.to_owned());
                }
            }
            OrtTensor::from_string_array((shape, &*texts)).map(Into::into).map_err(|error| made(&error))
        }
    )
}

fn value<'a, T>(shape: &[i64], elements: Cow<'a, [T]>) -> Result<SessionInputValue<'a>>
where
    T: PrimitiveTensorElementType + Debug + Clone + 'static,
{
    match elements {
        Cow::Borrowed(elements) => TensorRef::from_array_view((shape.to_vec(), elements)).map(Into::into),
        Cow::Owned(elements) => OrtTensor::from_array((shape.to_vec(), elements)).map(Into::into),
    }
    .map_err(|error| made(&error))
}

/// ONNX's strings are UTF-8, and its C interface ends them with a zero byte.
fn text<'a>(name: &str, place: usize, bytes: &'a [u8]) -> Result<&'a str> {
    let refused = |why| Error::invalid(format!("tensor `{name}`: string {place} {why}")).with_param(name);
    let text =
        std::str::from_utf8(bytes).map_err(|_| refused("is not UTF-8, and strings of ONNX graphs are"))?;
    match text.contains('\0') {
        true => Err(refused("has a zero byte, which ONNX Runtime cannot take in a string")),
        false => Ok(text),
    }
}

/// An output cut along its first side into parts of so many rows, or left whole.
///
/// # Errors
/// When it does not have the rows.
pub fn split(name: &str, output: DynValue, parts: Option<&[usize]>) -> Result<Vec<Tensor>> {
    let element = output.dtype().tensor_type().and_then(dtype);
    let dtype = element.ok_or_else(|| Error::internal(format!("output `{name}` is no tensor")))?;
    let shape: Vec<i64> = output.dtype().tensor_shape().map(|shape| shape.to_vec()).unwrap_or_default();
    let cuts = match parts {
        None => vec![(shape.clone(), 0..shape.iter().product::<i64>() as usize)],
        Some(parts) => cuts(&shape, parts).ok_or_else(|| {
            Error::internal(format!("output `{name}` is {shape:?} for {} rows", parts.iter().sum::<usize>()))
        })?,
    };
    let wrong = |error: ort::Error| Error::internal(format!("output `{name}` cannot be read: {error}"));
    with_element!(dtype,
        T => {
            let output = Arc::new(output.downcast::<TensorValueType<T>>().map_err(wrong)?);
            let part = |(shape, range): (Vec<i64>, Range<usize>)| {
                if std::mem::size_of::<T>() * range.len() >= LEND_FROM {
                    Tensor::lent(name, &shape, Part { output: output.clone(), range })
                } else {
                    Tensor::new(name, &shape, output.extract_tensor().1[range].to_vec())
                }
            };
            cuts.into_iter().map(part).collect()
        },
        BOOL => {
            let (_, bools) = output.try_extract_tensor::<bool>().map_err(wrong)?;
            let part = |(shape, range): (Vec<i64>, Range<usize>)| {
                Tensor::raw(name, DType::Bool, &shape, bools[range].iter().map(|&bool| bool.into()).collect())
            };
            cuts.into_iter().map(part).collect()
        },
        BYTES => {
            let (_, texts) = output.try_extract_strings().map_err(wrong)?;
            cuts.into_iter().map(|(shape, range)| Tensor::strings(name, &shape, &texts[range])).collect()
        }
    )
}

/// Shape and elements of each part.
fn cuts(shape: &[i64], parts: &[usize]) -> Option<Vec<(Vec<i64>, Range<usize>)>> {
    let (&rows, sides) = shape.split_first()?;
    if usize::try_from(rows).ok()? != parts.iter().sum::<usize>() {
        return None;
    }
    let row = sides.iter().product::<i64>() as usize;
    let mut start = 0;
    let cuts = parts.iter().map(|&rows| {
        let range = start..start + rows * row;
        start = range.end;
        let mut shape = shape.to_vec();
        shape[0] = rows as i64;
        (shape, range)
    });
    Some(cuts.collect())
}

/// A part of an output that the host holds; the whole output lives as long as its last part.
struct Part<T: PrimitiveTensorElementType + Debug> {
    output: Arc<OrtTensor<T>>,
    range: Range<usize>,
}

impl<T: Element + PrimitiveTensorElementType + Debug> AsRef<[T]> for Part<T> {
    fn as_ref(&self) -> &[T] {
        &self.output.extract_tensor().1[self.range.clone()]
    }
}

/// An output of floating-point numbers of any width: its shape, and its elements as `f32`.
///
/// # Errors
/// When it is of another type.
pub fn floats<'a>(name: &str, output: &'a DynValue) -> Result<(&'a [i64], Cow<'a, [f32]>)> {
    let wrong = |error: ort::Error| Error::internal(format!("output `{name}` cannot be read: {error}"));
    let shape: &[i64] = output.dtype().tensor_shape().map_or(&[], |shape| shape);
    let elements = match output.dtype().tensor_type() {
        Some(TensorElementType::Float16) => {
            output.try_extract_tensor::<half::f16>().map_err(wrong)?.1.iter().map(|x| x.to_f32()).collect()
        }
        Some(TensorElementType::Bfloat16) => {
            output.try_extract_tensor::<half::bf16>().map_err(wrong)?.1.iter().map(|x| x.to_f32()).collect()
        }
        Some(TensorElementType::Float64) => {
            output.try_extract_tensor::<f64>().map_err(wrong)?.1.iter().map(|&x| x as f32).collect()
        }
        _ => Cow::Borrowed(output.try_extract_tensor::<f32>().map_err(wrong)?.1),
    };
    Ok((shape, elements))
}

/// A value that could not be made of good memory.
fn made(error: &ort::Error) -> Error {
    Error::internal(format!("a tensor cannot be handed to ONNX Runtime: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_is_cut_where_the_rows_are() {
        assert_eq!(cuts(&[3, 2], &[1, 2]), Some(vec![(vec![1, 2], 0..2), (vec![2, 2], 2..6)]));
        assert_eq!(cuts(&[2], &[0, 2]), Some(vec![(vec![0], 0..0), (vec![2], 0..2)]));
        assert_eq!(cuts(&[2, 0], &[1, 1]), Some(vec![(vec![1, 0], 0..0), (vec![1, 0], 0..0)]));
        assert_eq!(cuts(&[3, 2], &[1, 1]), None, "a row is left");
        assert_eq!(cuts(&[], &[1]), None, "a scalar has no rows");
    }

    #[test]
    fn strings_that_onnx_cannot_hold_are_named() {
        assert_eq!(text("t", 0, "ä".as_bytes()).unwrap(), "ä");
        assert!(text("t", 3, &[0xff]).unwrap_err().message.contains("tensor `t`: string 3 is not UTF-8"));
        assert!(text("t", 1, b"a\0b").unwrap_err().message.contains("string 1 has a zero byte"));
    }
}
