//! What the server and its models are, and whether they are ready.

use super::wire::{ModelMetadata, ServerMetadata, TensorMetadata};
use super::{VERSION, model};
use crate::call::{self, Call};
use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use backplane::payload::tensor::{Description, TensorSpec};
use backplane::{DType, Error, ErrorCode, ModelInfo, ModelState, Result};
use serde_json::{Value, json};

/// What of Triton's extensions is here whole.
const EXTENSIONS: &[&str] = &["binary_tensor_data", "model_configuration", "model_repository", "statistics"];

/// `GET /v2`
pub(crate) async fn server(call: Call) -> Result<HttpResponse> {
    call::json(&ServerMetadata { name: "backplane", version: call.host().version(), extensions: EXTENSIONS })
}

/// `GET /v2/health/live`
pub(crate) async fn live(_call: Call) -> Result<HttpResponse> {
    Ok(HttpResponse::Ok().finish())
}

/// `GET /v2/health/ready`
pub(crate) async fn ready(call: Call) -> Result<HttpResponse> {
    Ok(readiness(call.host().health().ready))
}

/// `GET /v2/models/{m}/ready`: whether the model is open. One that is idle opens with the first request, and is not
/// ready until then, so that "unload, then not ready" holds as it does with Triton.
pub(crate) async fn model_ready(call: Call) -> Result<HttpResponse> {
    Ok(readiness(model(&call).await?.state == ModelState::Ready))
}

/// The protocol has no body here: clients look at the status.
fn readiness(ready: bool) -> HttpResponse {
    HttpResponse::new(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE })
}

/// `GET /v2/models/{m}`
pub(crate) async fn model_metadata(call: Call) -> Result<HttpResponse> {
    let info = model(&call).await?;
    let described = describe(&info)?;
    let tensors = |specs: Vec<TensorSpec>| {
        specs
            .into_iter()
            .map(|spec| TensorMetadata { name: spec.name, datatype: spec.datatype, shape: spec.shape })
            .collect()
    };
    call::json(&ModelMetadata {
        name: info.name.to_string(),
        versions: [VERSION],
        platform: platform(&info, &described),
        inputs: tensors(described.inputs),
        outputs: tensors(described.outputs),
    })
}

/// `GET /v2/models/{m}/config`: the members of Triton's configuration that mean something here.
pub(crate) async fn model_config(call: Call) -> Result<HttpResponse> {
    let info = model(&call).await?;
    let described = describe(&info)?;
    let running = info.running.clone().unwrap_or_default();
    // Triton's `dims` leave out the batch.
    let dims =
        |spec: &TensorSpec| spec.shape[usize::from(described.batch && !spec.shape.is_empty())..].to_vec();
    let tensors = |specs: &[TensorSpec]| -> Vec<Value> {
        specs
            .iter()
            .map(|spec| json!({ "name": spec.name, "data_type": type_name(spec.datatype), "dims": dims(spec) }))
            .collect()
    };
    call::json(&json!({
        "name": info.name,
        "platform": platform(&info, &described),
        "backend": info.plugin,
        "version_policy": { "latest": { "num_versions": 1 } },
        "max_batch_size": if described.batch { running.slots.max(1) } else { 0 },
        "input": tensors(&described.inputs),
        "output": tensors(&described.outputs),
        "instance_group": [{
            "name": info.name,
            "kind": if running.device.is_empty() || running.device == "cpu" { "KIND_CPU" } else { "KIND_GPU" },
            "count": running.instances.max(1),
        }],
    }))
}

fn type_name(dtype: DType) -> String {
    match dtype {
        DType::Bytes => "TYPE_STRING".to_owned(),
        other => format!("TYPE_{}", other.name()),
    }
}

fn platform(info: &ModelInfo, described: &Description) -> String {
    described.platform.clone().unwrap_or_else(|| info.format.clone())
}

/// What the model said of itself; known once it has been open.
fn describe(info: &ModelInfo) -> Result<Description> {
    if info.description.is_null() {
        let name = &info.name;
        let message = format!(
            "model `{name}` has not been open yet, so its tensors are not known; open it with \
             `POST /v2/repository/models/{name}/load`"
        );
        return Err(Error::new(ErrorCode::FailedPrecondition, message).with_reason("model_not_open"));
    }
    serde_json::from_value(info.description.clone())
        .map_err(|error| crate::fault::schema(&info.plugin, &error))
}
