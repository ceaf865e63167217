//! `/v1/embeddings`.

pub(crate) mod wire;

use crate::call::{Call, refuse_ignored};
use crate::error::too_long;
use crate::parse::Parsed;
use actix_web::HttpResponse;
use backplane::Result;
use backplane::payload::embed::CAPABILITY;

/// Embeds texts.
pub(crate) async fn create(mut call: Call) -> Result<HttpResponse> {
    let mut options = call.options()?;
    let Parsed { value: request, ignored } = call.json::<wire::Request>().await?;
    refuse_ignored(&options, &ignored)?;
    let model = request.model.clone();
    options.keep_alive = request.keep_alive.map(|field| field.0).or(options.keep_alive);
    let (params, encoding) = request.into_params()?;
    let inputs = params.input.len();
    let request = call.request(CAPABILITY, model, &params, Vec::new(), &options)?;
    let answer = call.ask(request).await.map_err(|error| too_long(error, "input"))?;
    let (numbers, dimensions) = wire::vectors(&answer, inputs)?;
    call.answer(CAPABILITY, &answer, &ignored, &wire::Embeddings::of(&answer, &numbers, dimensions, encoding))
}
