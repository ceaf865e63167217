//! `/v1/vision/…` and RapidOCR's `/ocr`: what is asked of a picture, as JSON, as a form, or as the picture alone.

mod input;
mod rapid;

pub(crate) use rapid::{Form as RapidForm, Line as RapidLine, ocr as rapid_ocr};

use crate::call::{Call, refuse_ignored};
use crate::fault;
use crate::openai::wire::invalid;
use actix_web::HttpResponse;
use backplane::payload;
use backplane::{Answer, Result};
use input::Input;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

/// `POST /v1/vision/ocr`
pub(crate) async fn ocr(call: Call) -> Result<HttpResponse> {
    ask(call, payload::ocr::CAPABILITY).await
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

/// Asks a capability that takes a picture, and gives its answer with the model's name.
async fn ask(mut call: Call, capability: &str) -> Result<HttpResponse> {
    let options = call.options()?;
    let Input { mut params, tensors, mut ignored } = Input::read(&mut call).await?;
    let model = match params.shift_remove("model") {
        None | Some(Value::Null) => None,
        Some(Value::String(model)) => Some(model),
        Some(_) => return Err(invalid("model", "`model` is not a string")),
    };
    ignored.retain(|name| name != "model");
    refuse_ignored(&options, &ignored)?;
    let answer = call.ask(call.request(capability, model, &params, tensors, &options)?).await?;
    let told = Told { model: answer.route.model.to_string(), answer: object(&answer)? };
    call.answer(&answer, &ignored, &told)
}

/// The one piece of JSON of an answer.
fn object(answer: &Answer) -> Result<Map<String, Value>> {
    let json = answer.chunks.iter().map(|chunk| &chunk.json).find(|json| !json.is_empty());
    json.map_or(Ok(Map::new()), |json| {
        serde_json::from_slice(json).map_err(|error| fault::schema(&answer.route.plugin, &error))
    })
}
