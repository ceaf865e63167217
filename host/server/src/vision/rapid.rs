//! `/ocr` as RapidOCR's server has it: a form with `image_file`, or `image_data` in base64, and an object whose members
//! are the lines, called by their numbers.

use super::input::{content_type, flag, pictures};
use crate::call::{Call, refuse_ignored};
use crate::multipart;
use crate::openai::wire::invalid;
use actix_web::HttpResponse;
use backplane::payload::ocr;
use backplane::{Error, Result};
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::BTreeMap;

/// The fields of the form.
#[derive(Debug, JsonSchema)]
#[schemars(rename = "RapidOcrRequest")]
#[allow(dead_code, reason = "a schema")]
pub(crate) struct Form {
    /// The picture: a file.
    image_file: Option<String>,
    /// The picture: a file in base64, where there is no `image_file`.
    image_data: Option<String>,
    /// Whether to look for lines; without, the whole picture is one.
    use_det: Option<bool>,
    /// Whether to turn lines that stand on their head.
    use_cls: Option<bool>,
    /// Whether to read the lines.
    use_rec: Option<bool>,
    /// Not RapidOCR's: which model is to read.
    model: Option<String>,
}

/// A line.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "RapidOcrLine")]
pub(crate) struct Line {
    #[serde(skip_serializing_if = "Option::is_none")]
    rec_txt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dt_boxes: Option<[[f32; 2]; 4]>,
    /// With four decimals, as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<String>,
}

/// `POST /ocr`
pub(crate) async fn ocr(mut call: Call) -> Result<HttpResponse> {
    let options = call.options()?;
    let (kind, body) = (content_type(&call), call.bytes().await?);
    let parts = if multipart::is_form(&kind) {
        multipart::parse(&kind, body).await?
    } else if multipart::is_urlencoded(&kind) {
        multipart::urlencoded(&body)?
    } else {
        return Err(Error::invalid(
            "`/ocr` takes a form: `multipart/form-data` with the picture as the file `image_file`, or either kind with it as `image_data` in base64",
        ));
    };
    let (mut params, mut tensors, mut model) = (ocr::Params::default(), vec![], None);
    // RapidOCR's server reads the form alone.
    let mut ignored: Vec<String> = call.unread_query().collect();
    for part in parts {
        match part.name.as_str() {
            "image_file" => tensors.push(pictures(&[part.data])?),
            "image_data" => params.image = Some(part.text()?.to_owned()),
            "use_det" => params.detect = Some(flag("use_det", part.text()?)?),
            "use_cls" => params.direction = Some(flag("use_cls", part.text()?)?),
            "use_rec" => params.recognize = Some(flag("use_rec", part.text()?)?),
            "model" => model = Some(part.text()?.to_owned()),
            other => ignored.push(other.to_owned()),
        }
    }
    if tensors.is_empty() && params.image.is_none() {
        let message = "`image_file` is missing, the picture as a file of the form, and so is `image_data`, the same in base64";
        return Err(invalid("image_file", message));
    }
    // As there: a file goes before base64.
    if !tensors.is_empty() {
        params.image = None;
    }
    refuse_ignored(&options, &ignored)?;
    call.fetch(params.image.as_mut().map(|image| ("image_data".to_owned(), image)), &options).await?;
    let (places, texts) = (params.detect.unwrap_or(true), params.recognize.unwrap_or(true));
    let answer = call.ask(call.request(ocr::CAPABILITY, model, &params, tensors, &options)?).await?;
    let mut pages = super::objects(&answer)?;
    if 1 < pages.len() {
        let message = format!(
            "the file has {} pages, and `/ocr` tells of one: send them one by one, or to `/v1/vision/ocr`",
            pages.len()
        );
        return Err(invalid("image_file", message));
    }
    let page = pages.pop().unwrap_or_default();
    let read: ocr::Chunk = serde_json::from_value(page.into())
        .map_err(|error| crate::fault::schema(&answer.route.plugin, &error))?;
    let line = |(index, line): (usize, ocr::Line)| {
        let line = Line {
            rec_txt: texts.then_some(line.text),
            dt_boxes: places.then_some(line.corners),
            score: texts.then(|| format!("{:.4}", line.score)),
        };
        (index, line)
    };
    let lines: BTreeMap<usize, Line> = read.lines.into_iter().enumerate().map(line).collect();
    call.answer(ocr::CAPABILITY, &answer, &ignored, &lines)
}
