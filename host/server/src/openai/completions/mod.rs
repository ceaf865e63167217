//! `/v1/completions`.

pub(crate) mod answer;
pub(crate) mod wire;

use crate::call::{Call, refuse_ignored};
use crate::error::too_long;
use crate::parse::Parsed;
use actix_web::HttpResponse;
use backplane::Result;
use backplane::payload::complete::CAPABILITY;
use futures::future::try_join_all;

/// Continues a text, or several: each prompt is a request of its own, all at once.
pub(crate) async fn create(mut call: Call) -> Result<HttpResponse> {
    let mut options = call.options()?;
    let Parsed { value: request, ignored } = call.json::<wire::Request>().await?;
    refuse_ignored(&options, &ignored)?;
    let model = request.model.clone();
    options.keep_alive = request.keep_alive.map(|field| field.0).or(options.keep_alive);
    let (params, telling) = request.into_params()?;
    let requests = params
        .iter()
        .enumerate()
        .map(|(index, params)| {
            let mut request = call.request(CAPABILITY, model.clone(), params, Vec::new(), &options)?;
            request.default_max_tokens = Some(wire::DEFAULT_MAX_TOKENS);
            if 0 < index {
                // The host wants ids to be unique among open requests.
                request.id = format!("{}-{index}", request.id);
            }
            Ok(request)
        })
        .collect::<Result<Vec<_>>>()?;
    if telling.stream {
        let encoder = answer::Stream::new(&call.id, telling, requests.len());
        let replies = requests.into_iter().map(|request| call.asking(request)).collect();
        return call.stream(replies, &ignored, encoder).await;
    }
    let asked = try_join_all(requests.into_iter().map(|request| call.ask(request))).await;
    let answers = asked.map_err(|error| too_long(error, "prompt"))?;
    let body = answer::whole(&call.id, &answers, telling)?;
    match answers.first() {
        Some(first) => call.answer(CAPABILITY, first, &ignored, &body),
        None => crate::call::json(&body),
    }
}
