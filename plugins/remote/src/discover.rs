//! What an upstream says of a model, asked once when the model is opened: whether it is there, its context, and what it
//! adapts.

use crate::client::Client;
use crate::fault::UNREACHABLE;
use crate::memory::Limit;
use crate::settings::{Flavour, nearest};
use backplane_plugin::prelude::*;
use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;

/// What there is to know of a model is short and ready.
pub const PATIENCE: Duration = Duration::from_secs(15);

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct List {
    data: Vec<Listed>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Listed {
    id: String,
    /// Another Backplane: more names.
    aliases: Vec<String>,
    /// vLLM, of a LoRA adapter: the model that it adapts, whose context it has and does not say. Others mean
    /// other things by it.
    parent: Value,
    /// vLLM.
    max_model_len: Option<u32>,
    /// Another Backplane.
    context: Option<u32>,
    /// Several gateways.
    context_length: Option<u32>,
    /// llama.cpp.
    meta: Option<Meta>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Meta {
    n_ctx: Option<u32>,
}

impl Listed {
    fn context(&self) -> Option<u32> {
        let meta = || self.meta.as_ref().and_then(|meta| meta.n_ctx);
        self.max_model_len.or(self.context).or(self.context_length).or_else(meta)
    }
}

/// What an upstream says of a model.
#[derive(Debug, Default, PartialEq)]
pub struct Found {
    /// How many tokens a request may take, if the server tells.
    pub context: Option<u32>,
    /// Of an adapter: the name of the model that it adapts.
    pub parent: Option<String>,
}

/// Looks for `model`. Nothing is found of it if the server has no list.
///
/// # Errors
/// When the server cannot be asked, refuses our key, or has a list without this model.
pub async fn model(client: &Client, model: &str) -> Result<Found> {
    let asked = async {
        let answer = client.get("models").await?;
        client.json::<Value>(answer, Limit::DESCRIPTION, Some(PATIENCE)).await
    };
    let slow = || {
        Error::new(Code::Unavailable, format!("upstream `{}` did not list its models in time", client.name))
            .with_reason(UNREACHABLE)
    };
    let list = match tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| Err(slow())) {
        Ok((list, _share)) => list,
        // It lives and has no such route; a request will tell.
        Err(error)
            if matches!(
                error.details.get("upstream_status").and_then(Value::as_u64),
                Some(404 | 405 | 501)
            ) =>
        {
            return Ok(Found::default());
        }
        Err(error) => return Err(error),
    };
    let Ok(List { data }) = serde_json::from_value(list) else {
        return Ok(Found::default());
    };
    if data.is_empty() {
        return Ok(Found::default());
    }
    let named = |name: &str| {
        data.iter().find(|listed| {
            listed.id == name
                || listed.aliases.iter().any(|alias| alias == name)
                || client.flavour == Flavour::Ollama && listed.id.strip_suffix(":latest") == Some(name)
        })
    };
    if let Some(listed) = named(model) {
        let parent = listed.parent.as_str().map(str::to_owned);
        let adapted = || parent.as_deref().and_then(named).and_then(Listed::context);
        return Ok(Found { context: listed.context().or_else(adapted), parent });
    }
    let hint = match nearest(model, data.iter().map(|listed| listed.id.as_str())) {
        Some(near) => format!("did you mean `{near}`?"),
        None => {
            let some: Vec<_> = data.iter().take(5).map(|listed| format!("`{}`", listed.id)).collect();
            let more = if some.len() < data.len() { ", …" } else { "" };
            format!("it has {}{more}", some.join(", "))
        }
    };
    let message = format!(
        "upstream `{}` lists no model `{model}`: {hint} Say `model` in the card, or `discover = false` if it serves what it does not list",
        client.name
    );
    Err(Error::new(Code::FailedPrecondition, message))
}
