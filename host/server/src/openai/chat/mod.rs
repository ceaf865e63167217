//! `/v1/chat/completions`.

pub(crate) mod answer;
mod content;
pub(crate) mod wire;

use crate::call::{Call, refuse_ignored};
use crate::error::too_long;
use crate::parse::Parsed;
use actix_web::HttpResponse;
use backplane::payload::chat::CAPABILITY;
use backplane::{Error, Result};

/// Answers a conversation.
pub(crate) async fn create(mut call: Call) -> Result<HttpResponse> {
    let mut options = call.options()?;
    let Parsed { value: mut request, mut ignored } = call.json::<wire::Request>().await?;
    let telling = request.telling();
    let model = request.model.clone();
    options.keep_alive = request.keep_alive.map(|field| field.0).or(options.keep_alive);
    if let Some(at) = request.first_picture() {
        let refused = |error: Error| if error.param.is_none() { error.with_param(at) } else { error };
        call.host().check_sight(model.as_deref(), CAPABILITY).map_err(refused)?;
        call.fetch(request.pictures(), &options).await?;
    }
    let (params, pictures) = request.into_params(&mut ignored)?;
    refuse_ignored(&options, &ignored)?;
    let request = call.request(CAPABILITY, model, &params, pictures, &options)?;
    if telling.stream {
        let encoder = answer::Stream::new(&call.id, telling);
        return call.stream(vec![call.asking(request)], &ignored, encoder).await;
    }
    let answer = call.ask(request).await.map_err(|error| too_long(error, "messages"))?;
    let body = answer::whole(&call.id, &answer, telling)?;
    call.answer(CAPABILITY, &answer, &ignored, &body)
}
