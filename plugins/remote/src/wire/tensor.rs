//! `tensor.infer/1` as the Open Inference Protocol's `infer`, with tensors behind the JSON where the server can.
//!
//! # Source
//! Open Inference Protocol v2 (REST) and its binary tensor data extension: `Inference-Header-Content-Length` says where
//! the JSON ends; the tensors that say `binary_data_size` follow in its order.

use backplane_plugin::payload::tensor::{Params, TensorSpec};
use backplane_plugin::prelude::*;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// The header that says where the JSON ends.
pub const HEADER_LENGTH: &str = "inference-header-content-length";
/// What a server that can do so lists in `GET /v2`.
pub const BINARY: &str = "binary_tensor_data";

/// What is sent: the JSON's length, if tensors follow it, and all bytes.
#[derive(Debug)]
pub struct Sent {
    pub json: Option<usize>,
    pub body: Bytes,
}

/// # Errors
/// A tensor that JSON does not carry, where the server takes nothing else.
pub fn request(params: Params, inputs: &[TensorView<'_>], binary: bool) -> Result<Sent> {
    let mut listed = Vec::with_capacity(inputs.len());
    for input in inputs {
        let mut tensor =
            json!({"name": input.name(), "datatype": input.dtype().name(), "shape": input.shape()});
        match binary {
            true => tensor["parameters"] = json!({"binary_data_size": input.bytes().len()}),
            false => tensor["data"] = Value::Array(elements(input)?),
        }
        listed.push(tensor);
    }
    let mut body = json!({"inputs": listed});
    if !params.outputs.is_empty() {
        let wanted = params.outputs.iter().map(|name| json!({"name": name}));
        body["outputs"] = wanted.collect();
    }
    let mut parameters = params.extra;
    if binary {
        parameters.insert("binary_data_output".to_owned(), true.into());
    }
    if !parameters.is_empty() {
        body["parameters"] = Value::Object(parameters);
    }
    let mut body = body.to_string().into_bytes();
    let json = binary.then_some(body.len());
    if binary {
        inputs.iter().for_each(|input| body.extend_from_slice(input.bytes()));
    }
    Ok(Sent { json, body: body.into() })
}

/// An answer's JSON.
#[derive(Debug, Deserialize)]
struct Answer {
    outputs: Vec<Output>,
}

#[derive(Debug, Deserialize)]
struct Output {
    name: String,
    datatype: String,
    shape: Vec<i64>,
    #[serde(default)]
    parameters: Map<String, Value>,
    #[serde(default)]
    data: Option<Value>,
}

/// The tensors of an answer; `json` is where its JSON ends, if the server said.
///
/// # Errors
/// What of it the protocol does not allow.
pub fn answer(body: &[u8], json: Option<usize>) -> Result<Vec<Tensor>, String> {
    let end = json.unwrap_or(body.len());
    let (text, mut rest) = body.split_at_checked(end).ok_or("its JSON ends behind its body")?;
    let answer: Answer = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let mut tensors = Vec::with_capacity(answer.outputs.len());
    for Output { name, datatype, shape, parameters, data } in answer.outputs {
        let said = |what: &str| format!("output `{name}`: {what}");
        let dtype = DType::from_name(&datatype).ok_or_else(|| said(&format!("datatype `{datatype}`")))?;
        let bytes = match (parameters.get("binary_data_size"), data) {
            (Some(size), None) => {
                let size = size.as_u64().and_then(|size| usize::try_from(size).ok());
                let (taken, left) = size
                    .and_then(|size| rest.split_at_checked(size))
                    .ok_or_else(|| said("`binary_data_size` is more than there is"))?;
                rest = left;
                taken.to_vec()
            }
            (None, Some(data)) => {
                let mut bytes = Vec::new();
                collect(dtype, &data, &mut bytes).map_err(|what| said(&what))?;
                bytes
            }
            _ => return Err(said("it has neither `data` nor `binary_data_size`, or both")),
        };
        let (took, why) = (bytes.len(), said(&format!("its data are not what {datatype} {shape:?} takes")));
        let tensor = match dtype {
            DType::Bytes => strings(&bytes).and_then(|strings| Tensor::strings(&name, &shape, &strings).ok()),
            _ => Tensor::raw(&name, dtype, &shape, bytes).ok(),
        };
        tensors.push(tensor.ok_or_else(|| format!("{why} ({took} bytes)"))?);
    }
    match rest {
        [] => Ok(tensors),
        rest => Err(format!("{} bytes behind its tensors are nobody's", rest.len())),
    }
}

/// The byte strings of a BYTES tensor: each a little-endian length and that many bytes.
fn strings(mut bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let mut strings = Vec::new();
    while !bytes.is_empty() {
        let (length, tail) = bytes.split_first_chunk::<4>()?;
        let (string, tail) = tail.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        strings.push(string);
        bytes = tail;
    }
    Some(strings)
}

/// The elements of a tensor as JSON, flat.
fn elements(tensor: &TensorView<'_>) -> Result<Vec<Value>> {
    macro_rules! numbers {
        ($type:ty) => {
            tensor.elements::<$type>()?.iter().map(|number| Value::from(*number)).collect()
        };
    }
    let refuse = |what: &str| {
        let message = format!(
            "tensor `{}` has {what}, which JSON does not carry, and its upstream takes nothing else",
            tensor.name()
        );
        Err(Error::invalid(message).with_param(tensor.name()))
    };
    let listed: Vec<Value> = match tensor.dtype() {
        DType::Bool => tensor.bytes().iter().map(|byte| Value::from(*byte != 0)).collect(),
        DType::Uint8 => numbers!(u8),
        DType::Uint16 => numbers!(u16),
        DType::Uint32 => numbers!(u32),
        DType::Uint64 => numbers!(u64),
        DType::Int8 => numbers!(i8),
        DType::Int16 => numbers!(i16),
        DType::Int32 => numbers!(i32),
        DType::Int64 => numbers!(i64),
        DType::Fp32 => numbers!(f32),
        DType::Fp64 => numbers!(f64),
        DType::Fp16 | DType::Bf16 => return refuse("16-bit floats"),
        DType::Bytes => {
            let strings = tensor.strings()?;
            let texts: Option<Vec<_>> =
                strings.iter().map(|bytes| std::str::from_utf8(bytes).ok().map(Value::from)).collect();
            match texts {
                Some(texts) => texts,
                None => return refuse("byte strings that are not UTF-8"),
            }
        }
    };
    // What is not finite became null.
    if listed.iter().any(Value::is_null) { refuse("numbers that are not finite") } else { Ok(listed) }
}

/// Appends the elements in `data`, flat or nested, as memory.
fn collect(dtype: DType, data: &Value, out: &mut Vec<u8>) -> Result<(), String> {
    if let Value::Array(items) = data {
        return items.iter().try_for_each(|item| collect(dtype, item, out));
    }
    let wrong = || format!("{data} is not of type {}", dtype.name());
    macro_rules! whole {
        ($type:ty) => {{
            let number = data.as_i64().map(i128::from).or_else(|| data.as_u64().map(i128::from));
            let number = number.and_then(|number| <$type>::try_from(number).ok()).ok_or_else(wrong)?;
            out.extend_from_slice(&number.to_le_bytes());
        }};
    }
    match dtype {
        DType::Bool => out.push(data.as_bool().ok_or_else(wrong)?.into()),
        DType::Uint8 => whole!(u8),
        DType::Uint16 => whole!(u16),
        DType::Uint32 => whole!(u32),
        DType::Uint64 => whole!(u64),
        DType::Int8 => whole!(i8),
        DType::Int16 => whole!(i16),
        DType::Int32 => whole!(i32),
        DType::Int64 => whole!(i64),
        DType::Fp32 => out.extend_from_slice(&(data.as_f64().ok_or_else(wrong)? as f32).to_le_bytes()),
        DType::Fp64 => out.extend_from_slice(&data.as_f64().ok_or_else(wrong)?.to_le_bytes()),
        DType::Bytes => {
            let text = data.as_str().ok_or_else(wrong)?;
            let length = u32::try_from(text.len()).map_err(|_| wrong())?;
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(text.as_bytes());
        }
        DType::Fp16 | DType::Bf16 => return Err("16-bit floats as JSON".to_owned()),
    }
    Ok(())
}

/// What a server says of a model: `GET /v2/models/{model}`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Metadata {
    pub platform: String,
    pub inputs: Vec<TensorSpec>,
    pub outputs: Vec<TensorSpec>,
}

/// What a server says of itself: `GET /v2`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Server {
    pub extensions: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_from_json_and_from_bytes() {
        let body = br#"{"outputs":[{"name":"a","datatype":"INT32","shape":[2,2],"data":[[1,2],[3,-4]]},
            {"name":"b","datatype":"BYTES","shape":[2],"data":["x","\u00e9"]},
            {"name":"c","datatype":"BOOL","shape":[1],"data":[true]}]}"#;
        let tensors = answer(body, None).unwrap();
        assert_eq!(tensors.len(), 3);

        let json = r#"{"outputs":[{"name":"a","datatype":"FP16","shape":[2],"parameters":{"binary_data_size":4}},
            {"name":"b","datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":6}}]}"#;
        let mut body = json.as_bytes().to_vec();
        body.extend_from_slice(&[0, 60, 0, 64, 2, 0, 0, 0, b'h', b'i']);
        assert_eq!(answer(&body, Some(json.len())).unwrap().len(), 2);
        for (cut, why) in [(1, "more than there is"), (7, "more than there is")] {
            let refused = answer(&body[..body.len() - cut], Some(json.len())).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
        body.push(0);
        assert!(answer(&body, Some(json.len())).unwrap_err().contains("nobody's"));
        assert!(answer(&body, Some(body.len() + 1)).is_err());
    }

    #[test]
    fn what_the_protocol_does_not_allow_is_named() {
        for (output, why) in [
            (r#"{"name":"a","datatype":"FP32","shape":[3],"data":[1,2]}"#, "not what FP32 [3] takes"),
            (r#"{"name":"a","datatype":"FP32","shape":[-1],"data":[1]}"#, "not what"),
            (r#"{"name":"a","datatype":"UINT8","shape":[1],"data":[256]}"#, "256 is not of type UINT8"),
            (r#"{"name":"a","datatype":"INT64","shape":[1],"data":[1.5]}"#, "not of type INT64"),
            (r#"{"name":"a","datatype":"COMPLEX","shape":[1],"data":[1]}"#, "datatype `COMPLEX`"),
            (r#"{"name":"a","datatype":"FP16","shape":[1],"data":[1]}"#, "16-bit floats as JSON"),
            (r#"{"name":"a","datatype":"INT8","shape":[1]}"#, "neither"),
        ] {
            let refused = answer(format!(r#"{{"outputs":[{output}]}}"#).as_bytes(), None).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
        assert!(answer(b"{}", None).is_err());
    }
}
