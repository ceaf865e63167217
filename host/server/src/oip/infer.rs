//! `/v2/models/{m}/infer`.

use super::binary::{self, HEADER_LENGTH};
use super::wire::{BinarySize, Data, InferRequest, InferResponse, InputTensor, OutputSpec, OutputTensor};
use super::{VERSION, model};
use crate::call::{Call, refuse_ignored};
use crate::elements;
use crate::openai::wire::{invalid, unsupported};
use crate::options::Options;
use crate::parse::{self, Parsed};
use actix_web::HttpResponse;
use actix_web::http::header::{CONTENT_TYPE, HeaderValue};
use backplane::payload::tensor as payload;
use backplane::{DType, Result, Tensor};
use bytes::BytesMut;
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::time::Duration;

/// Infers.
pub(crate) async fn infer(mut call: Call) -> Result<HttpResponse> {
    let mut options = call.options()?;
    let model = model(&call).await?;
    let body = call.bytes().await?;
    let mut parts = binary::split(call.headers(), body)?;
    let Parsed { value: request, mut ignored } =
        parse::json::<InferRequest<'_>>(&parts.json, call.json_depth())?;

    let tensors =
        request.inputs.iter().map(|input| read(input, &mut parts.binary)).collect::<Result<Vec<_>>>()?;
    parts.binary.finish()?;
    for (index, input) in request.inputs.iter().enumerate() {
        binary::unread(&format!("inputs[{index}]"), input.parameters.as_ref(), &mut ignored);
    }
    let mut parameters = request.parameters.unwrap_or_default();
    let binary_by_default = take_flag(&mut parameters, "binary_data_output")?.unwrap_or_default();
    read_parameters(&mut parameters, &mut options, call.started, &mut ignored)?;
    let wanted = request.outputs.unwrap_or_default();
    // An output that may be had many times over would make a small request a huge answer.
    let mut names = HashSet::new();
    if let Some(twice) = wanted.iter().find(|output| !names.insert(&output.name)) {
        return Err(invalid("outputs", format!("output `{}` is asked for twice", twice.name)));
    }
    let forms = wanted.iter().map(|output| form(output, binary_by_default)).collect::<Result<Vec<_>>>()?;
    ignored.extend(call.unread_query());
    refuse_ignored(&options, &ignored)?;

    let params = payload::Params {
        outputs: wanted.iter().map(|output| output.name.clone()).collect(),
        extra: parameters,
    };
    let asked =
        call.request(payload::CAPABILITY, Some(model.name.to_string()), &params, tensors, &options)?;
    let answer = call.ask(asked).await?;

    let tensors: Vec<&Tensor> = if wanted.is_empty() {
        answer.chunks.iter().flat_map(|chunk| &chunk.tensors).collect()
    } else {
        wanted
            .iter()
            .map(|output| answer.tensor(&output.name).ok_or_else(|| no_output(&output.name, &model.name)))
            .collect::<Result<_>>()?
    };
    let form_of = |index: usize| forms.get(index).copied().unwrap_or(binary_by_default);
    let outputs = tensors
        .iter()
        .enumerate()
        .map(|(index, tensor)| write(tensor, form_of(index)))
        .collect::<Result<Vec<_>>>()?;
    let response =
        InferResponse { model_name: &model.name, model_version: VERSION, id: request.id.as_deref(), outputs };
    let mut response = assemble(&response, &tensors)?;
    call.tell(payload::CAPABILITY, &answer, &ignored, response.headers_mut());
    Ok(response)
}

fn no_output(name: &str, model: &str) -> backplane::Error {
    invalid("outputs", format!("model `{model}` has no output `{name}`"))
}

/// A tensor of the request.
fn read(input: &InputTensor<'_>, binary: &mut binary::Binary) -> Result<Tensor> {
    let name = &input.name;
    if input.parameters.as_ref().is_some_and(|all| all.contains_key("shared_memory_region")) {
        let message =
            format!("input `{name}` is in shared memory, which this server does not offer; send its data");
        return Err(unsupported(name.as_str(), message));
    }
    let dtype = DType::from_name(&input.datatype).ok_or_else(|| {
        invalid(name.as_str(), format!("input `{name}` has datatype `{}`, which is none", input.datatype))
    })?;
    let shape = input.shape.clone();
    match (binary.take(name, input.parameters.as_ref())?, input.data) {
        (Some(_), Some(_)) => Err(invalid(
            name.as_str(),
            format!("input `{name}` has both `data` and `binary_data_size`; send one"),
        )),
        (Some(data), None) => Tensor::new(name.as_str(), dtype, shape, data),
        (None, Some(data)) => elements::read(name, dtype, shape, data),
        (None, None) => {
            Err(invalid(name.as_str(), format!("input `{name}` has neither `data` nor `binary_data_size`")))
        }
    }
}

fn take_flag(parameters: &mut Map<String, Value>, name: &str) -> Result<Option<bool>> {
    match parameters.remove(name) {
        None => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(flag)),
        Some(_) => Err(invalid(name, format!("parameter `{name}` must be true or false"))),
    }
}

/// Takes out the parameters that the protocol knows; the rest is the model's.
fn read_parameters(
    parameters: &mut Map<String, Value>,
    options: &mut Options,
    started: std::time::Instant,
    ignored: &mut Vec<String>,
) -> Result<()> {
    for name in ["sequence_id", "sequence_start", "sequence_end"] {
        if parameters.contains_key(name) {
            return Err(unsupported(
                name,
                format!("parameter `{name}`: models with sequences are not supported"),
            ));
        }
    }
    if let Some(timeout) = parameters.remove("timeout") {
        let micros = timeout.as_u64().ok_or_else(|| {
            invalid("timeout", "parameter `timeout` must be a whole number of microseconds")
        })?;
        // 0 is Triton's "none".
        if micros != 0 {
            options.deadline = started.checked_add(Duration::from_micros(micros));
        }
    }
    if parameters.remove("priority").is_some() {
        ignored.push("parameters.priority".to_owned());
    }
    Ok(())
}

/// Whether an output is to come as binary data.
fn form(output: &OutputSpec, default: bool) -> Result<bool> {
    let mut parameters = output.parameters.clone().unwrap_or_default();
    let binary = take_flag(&mut parameters, "binary_data")?;
    match parameters.keys().next() {
        None => Ok(binary.unwrap_or(default)),
        Some(other) => {
            let message = format!("parameter `{other}` of output `{}` is not supported", output.name);
            Err(unsupported(format!("outputs.{}.{other}", output.name), message))
        }
    }
}

fn write(tensor: &Tensor, binary: bool) -> Result<OutputTensor<'_>> {
    if let (false, Err(what)) = (binary, elements::carried_by_json(tensor)) {
        let name = &tensor.name;
        let message = format!(
            "output `{name}` has {what}, which JSON does not carry; ask for it with `binary_data: true`"
        );
        return Err(invalid(name.as_str(), message));
    }
    Ok(OutputTensor {
        name: &tensor.name,
        datatype: tensor.dtype,
        shape: &tensor.shape,
        parameters: binary.then_some(BinarySize { binary_data_size: tensor.data.len() }),
        data: (!binary).then_some(Data(elements::Flat(tensor))),
    })
}

/// JSON, and behind it the memory of the outputs that come as binary data.
fn assemble(response: &InferResponse<'_>, tensors: &[&Tensor]) -> Result<HttpResponse> {
    let json = serde_json::to_vec(response).map_err(|error| crate::fault::unwritable(&error))?;
    let binary: Vec<&Tensor> = tensors
        .iter()
        .zip(&response.outputs)
        .filter(|(_, output)| output.parameters.is_some())
        .map(|(tensor, _)| *tensor)
        .collect();
    if binary.is_empty() {
        return Ok(HttpResponse::Ok().content_type("application/json").body(json));
    }
    let length = json.len();
    let mut body =
        BytesMut::with_capacity(length + binary.iter().map(|tensor| tensor.data.len()).sum::<usize>());
    body.extend_from_slice(&json);
    binary.iter().for_each(|tensor| body.extend_from_slice(&tensor.data));
    let mut response = HttpResponse::Ok().body(body.freeze());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    response.headers_mut().insert(HEADER_LENGTH, HeaderValue::from(length));
    Ok(response)
}
