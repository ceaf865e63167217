//! The model repository: what is installed, opening and closing it.

use super::VERSION;
use super::model;
use super::wire::{IndexEntry, IndexRequest, RepositoryRequest};
use crate::call::{self, Call};
use crate::openai::wire::unsupported;
use actix_web::HttpResponse;
use backplane::{Caller, ModelInfo, ModelState, Result};

/// `POST /v2/repository/index`
pub(crate) async fn index(mut call: Call) -> Result<HttpResponse> {
    let only_ready = call.json_or_default::<IndexRequest>().await?.value.ready.unwrap_or_default();
    let models = call.host().models();
    let list: Vec<IndexEntry> = models
        .into_iter()
        .filter(|info| !only_ready || info.state == ModelState::Ready)
        .map(|info| IndexEntry::of(info, &call.caller))
        .collect();
    call::json(&list)
}

impl IndexEntry {
    /// What a plugin says of a model is for administrators alone.
    fn of(info: ModelInfo, caller: &Caller) -> Self {
        let problem = info.problem.filter(|_| caller.is_admin());
        let (state, reason) = match info.state {
            ModelState::Ready => ("READY", String::new()),
            ModelState::Loading => ("LOADING", String::new()),
            ModelState::Closing => ("UNLOADING", String::new()),
            ModelState::Idle => ("UNAVAILABLE", problem.unwrap_or_else(|| "unloaded".to_owned())),
            ModelState::Failed => ("UNAVAILABLE", problem.unwrap_or_else(|| "failed".to_owned())),
        };
        Self { name: info.name.to_string(), version: VERSION, state, reason }
    }
}

/// `POST /v2/repository/models/{m}/load`
pub(crate) async fn load(mut call: Call) -> Result<HttpResponse> {
    let model = model(&call).await?;
    let parameters = call.json_or_default::<RepositoryRequest>().await?.value.parameters.unwrap_or_default();
    if let Some(name) = parameters.keys().next() {
        let message = format!(
            "parameter `{name}` is not supported: a model's files and settings come from the registry and the configuration"
        );
        return Err(unsupported(format!("parameters.{name}"), message));
    }
    let keep_alive = call.options()?.keep_alive;
    call.host().load(&model.name, keep_alive).await?;
    Ok(HttpResponse::Ok().finish())
}

/// `POST /v2/repository/models/{m}/unload`. Its parameter `unload_dependents` changes nothing: no model depends on
/// another.
pub(crate) async fn unload(mut call: Call) -> Result<HttpResponse> {
    let model = model(&call).await?;
    call.json_or_default::<RepositoryRequest>().await?;
    call.host().unload(&model.name).await?;
    Ok(HttpResponse::Ok().finish())
}
