//! `/v1/models`.

use crate::call::{self, Call};
use actix_web::HttpResponse;
use backplane::{Caller, ModelInfo, ModelState, Result};
use schemars::JsonSchema;
use serde::Serialize;

/// The models.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ModelList")]
pub(crate) struct List {
    object: &'static str,
    data: Vec<Model>,
}

/// A model; the first four members are OpenAI's.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Model {
    id: String,
    object: &'static str,
    /// When it was installed, seconds since 1970.
    created: u64,
    /// The plugin that serves it.
    owned_by: String,
    /// Names that mean it too.
    aliases: Vec<String>,
    /// What it serves.
    capabilities: Vec<String>,
    /// `text` and `image` for a model that sees; absent for those that take text alone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    modalities: Vec<String>,
    /// Tokens a request may take in all, once known.
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<u64>,
    /// `idle` (opened by the first request), `loading`, `ready`, `closing` or `failed`.
    #[schemars(with = "String")]
    state: ModelState,
    /// Why it cannot be opened, as far as that is known, in its plugin's words. For administrators alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

impl Model {
    fn of(info: ModelInfo, caller: &Caller) -> Self {
        let context = [&info.description, &info.card].into_iter().find_map(|said| said["context"].as_u64());
        let modalities = info.card["modalities"].as_array().into_iter().flatten();
        let modalities = modalities.filter_map(|modality| modality.as_str().map(str::to_owned)).collect();
        Self {
            id: info.name.to_string(),
            object: "model",
            created: info.installed,
            owned_by: info.plugin,
            aliases: info.aliases,
            capabilities: info.capabilities,
            modalities,
            context,
            state: info.state,
            problem: info.problem.filter(|_| caller.is_admin()),
        }
    }
}

/// Lists the models.
pub(crate) async fn list(call: Call) -> Result<HttpResponse> {
    // Whoever chooses from the list looks for a copy by its own name, though it is open only once.
    let each = |info: ModelInfo| {
        let copies = info.copies.clone();
        let model = Model::of(info, &call.caller);
        let copies = copies.into_iter().map(|id| Model { id, aliases: Vec::new(), ..model.clone() });
        std::iter::once(model.clone()).chain(copies.collect::<Vec<_>>())
    };
    let data = call.host().models().into_iter().flat_map(each).collect();
    call::json(&List { object: "list", data })
}

/// One model, by name, alias or route.
pub(crate) async fn retrieve(call: Call) -> Result<HttpResponse> {
    let asked: String = call.path().await?;
    let host = call.host();
    let meant = host.resolve(&asked).unwrap_or_else(|| asked.into());
    call::json(&Model::of(host.find(&meant)?, &call.caller))
}
