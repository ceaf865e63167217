//! The Open Inference Protocol, version 2, over HTTP, with the extensions of Triton that its clients call.

pub(crate) mod binary;
pub(crate) mod infer;
pub(crate) mod metadata;
pub(crate) mod repository;
pub(crate) mod settings;
pub(crate) mod statistics;
pub(crate) mod wire;

use crate::call::Call;
use backplane::{Error, ErrorCode, ModelInfo, Result};

/// The only version a model has. Triton's clients may leave it out.
pub(crate) const VERSION: &str = "1";

/// The model in the path, without what `"*"` stands for: here an unknown model is unknown.
async fn model(call: &Call) -> Result<ModelInfo> {
    let (name, version) = named(call).await?;
    let model = call.host().find(&name)?;
    match version {
        Some(version) if version != VERSION => {
            let message = format!("model `{name}` has no version `{version}`, only `{VERSION}`");
            Err(Error::new(ErrorCode::NotFound, message).with_reason("model_not_found"))
        }
        _ => Ok(model),
    }
}

async fn named(call: &Call) -> Result<(String, Option<String>)> {
    if call.path_has("version") {
        let (name, version): (String, String) = call.path().await?;
        return Ok((name, Some(version)));
    }
    Ok((call.path().await?, None))
}
