//! `/v1/vision/…` and RapidOCR's `/ocr`: what is asked of a picture, as JSON, as a form, or as the picture alone.

mod input;
mod rapid;

pub(crate) use rapid::{Form as RapidForm, Line as RapidLine, ocr as rapid_ocr};

use crate::call::Call;
use crate::elements::Flat;
use crate::error::reason;
use crate::fault;
use crate::openai::wire::invalid;
use actix_web::HttpResponse;
use backplane::payload;
use backplane::{Answer, DType, Result, Tensor};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use input::Input;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// `POST /v1/vision/ocr`
pub(crate) async fn ocr(call: Call) -> Result<HttpResponse> {
    ask::<payload::ocr::Params>(call, payload::ocr::CAPABILITY, Several::Each).await
}

/// `POST /v1/vision/detect`
pub(crate) async fn detect(call: Call) -> Result<HttpResponse> {
    ask::<payload::vision_detect::Params>(call, payload::vision_detect::CAPABILITY, Several::Each).await
}

/// `POST /v1/vision/classify`
pub(crate) async fn classify(call: Call) -> Result<HttpResponse> {
    ask::<payload::vision_classify::Params>(call, payload::vision_classify::CAPABILITY, Several::Each).await
}

/// `POST /v1/vision/faces`
pub(crate) async fn faces(call: Call) -> Result<HttpResponse> {
    ask::<payload::vision_faces::Params>(call, payload::vision_faces::CAPABILITY, Several::Each).await
}

/// `POST /v1/vision/embed`
pub(crate) async fn embed(call: Call) -> Result<HttpResponse> {
    ask::<payload::vision_embed::Params>(call, payload::vision_embed::CAPABILITY, Several::Together).await
}

/// An answer with a picture. Documents it.
#[derive(Debug, JsonSchema)]
#[schemars(rename = "VisionDrawn")]
#[allow(dead_code, reason = "a schema")]
pub(crate) struct Drawn<T> {
    #[serde(flatten)]
    answer: T,
    /// A PNG file in base64: the picture with what was found drawn, where `draw` asks for it.
    drawn: Option<String>,
}

/// An answer with features. Documents it.
#[derive(Debug, JsonSchema)]
#[schemars(rename = "VisionEmbedded")]
#[allow(dead_code, reason = "a schema")]
pub(crate) struct Embedded {
    #[serde(flatten)]
    answer: payload::vision_embed::Chunk,
    /// For each picture its features, of length 1.
    embeddings: Vec<Vec<f32>>,
}

/// A request about a picture: the parameters of its capability, and which model. Documents it; the plugin reads it.
#[derive(Debug, JsonSchema)]
#[schemars(rename = "VisionRequest")]
#[allow(dead_code, reason = "a schema")]
pub(crate) struct Asked<T> {
    /// A model, an alias or a route. Without it the router chooses.
    model: Option<String>,
    #[serde(flatten)]
    params: T,
}

/// An answer about a picture: that of its capability, and from which model.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "VisionAnswer")]
pub(crate) struct Told<T> {
    model: String,
    #[serde(flatten)]
    answer: T,
}

/// An answer about one picture, or about several. Documents it.
#[derive(Debug, JsonSchema)]
#[schemars(rename = "VisionResults")]
#[serde(untagged)]
#[allow(dead_code, reason = "a schema")]
pub(crate) enum Given<T> {
    /// About one picture.
    One(T),
    /// About several files, `images`, or a file of several pages: for each picture, in their order, what is told of one.
    Each {
        /// The answers.
        results: Vec<T>,
    },
}

/// How a capability tells of several pictures.
#[derive(Clone, Copy, PartialEq)]
enum Several {
    /// Of each by itself.
    Each,
    /// Of all of them together.
    Together,
}

/// Asks a capability that takes pictures, and gives its answer with the model's name.
async fn ask<P: JsonSchema>(mut call: Call, capability: &str, several: Several) -> Result<HttpResponse> {
    let options = call.options()?;
    let Input { mut params, tensors } = Input::read::<P>(&mut call).await?;
    let model = match params.shift_remove("model") {
        None | Some(Value::Null) => None,
        Some(Value::String(model)) => Some(model),
        Some(_) => return Err(invalid("model", "`model` must be a string").with_reason(reason::INVALID_TYPE)),
    };
    let listed = params.get("images").is_some_and(Value::is_array)
        || tensors.iter().any(|tensor| tensor.shape.first().is_some_and(|files| *files > 1));
    call.fetch(input::texts(&mut params), &options).await?;
    let answer = call.ask(call.request(capability, model, &params, tensors, &options)?).await?;
    let mut results = objects(&answer)?;
    let model = answer.route.model.to_string();
    // A file may have had several pages.
    if several == Several::Each && (listed || 1 < results.len()) {
        return call.answer(capability, &answer, &[], &Told { model, answer: json!({ "results": results }) });
    }
    let result = if results.is_empty() { Map::new() } else { results.swap_remove(0) };
    call.answer(capability, &answer, &[], &Told { model, answer: result })
}

/// The pieces of an answer, each with its tensors as members.
fn objects(answer: &Answer) -> Result<Vec<Map<String, Value>>> {
    let odd = |error: serde_json::Error| fault::schema(&answer.route.plugin, &error);
    let mut objects: Vec<Map<String, Value>> = Vec::new();
    for chunk in &answer.chunks {
        if !chunk.json.is_empty() {
            objects.push(serde_json::from_slice(&chunk.json).map_err(odd)?);
        } else if objects.is_empty() {
            objects.push(Map::new());
        }
        let members = chunk.tensors.iter().map(|tensor| Ok((tensor.name.to_string(), member(tensor)?)));
        let members = members.collect::<serde_json::Result<Vec<_>>>().map_err(odd)?;
        if let Some(last) = objects.last_mut() {
            last.extend(members);
        }
    }
    Ok(objects)
}

/// A tensor in JSON: one file in base64, rows as lists, else a list.
fn member(tensor: &Tensor) -> serde_json::Result<Value> {
    if let (DType::Bytes, [1], Some((_length, file))) =
        (tensor.dtype, &tensor.shape[..], tensor.data.split_first_chunk::<4>())
    {
        return Ok(STANDARD.encode(file).into());
    }
    // By its text: a number of 32 bits has a few digits there, and many as one of 64.
    let flat = serde_json::from_slice(&serde_json::to_vec(&Flat(tensor))?)?;
    match (&tensor.shape[..], flat) {
        ([_, columns], Value::Array(all)) if *columns > 0 => {
            Ok(all.chunks(*columns as usize).map(<[Value]>::to_vec).collect::<Vec<_>>().into())
        }
        (_, flat) => Ok(flat),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_have_no_more_digits_than_they_are_worth() {
        let tensor = Tensor::from_f32("embeddings", vec![2, 2], &[0.1, -0.7, 1.0, 0.333_333_34]).unwrap();
        assert_eq!(member(&tensor).unwrap().to_string(), "[[0.1,-0.7],[1.0,0.33333334]]");
    }
}
