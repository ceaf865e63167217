//! The statistics extension: what each model has done since it was opened.

use super::{VERSION, model};
use crate::call::{self, Call};
use actix_web::HttpResponse;
use backplane::{ModelInfo, Result};
use serde_json::{Value, json};

/// `GET /v2/models/stats`
pub(crate) async fn all(call: Call) -> Result<HttpResponse> {
    let stats: Vec<Value> = call.host().models().iter().map(of).collect();
    call::json(&json!({ "model_stats": stats }))
}

/// `GET /v2/models/{m}/stats`
pub(crate) async fn one(call: Call) -> Result<HttpResponse> {
    let info = model(&call).await?;
    call::json(&json!({ "model_stats": [of(&info)] }))
}

/// Times are sums in nanoseconds. What is not measured apart is 0, as in Triton: inputs and outputs are not copied, so
/// all of a request's time is `queue` or `compute_infer`.
fn of(info: &ModelInfo) -> Value {
    let running = info.running.clone().unwrap_or_default();
    let all = running.answered + running.failed;
    let duration = |count: u64, ns: u64| json!({ "count": count, "ns": ns });
    json!({
        "name": info.name,
        "version": VERSION,
        "last_inference": 0,
        "inference_count": running.rows,
        "execution_count": running.batches,
        "inference_stats": {
            "success": duration(running.answered, running.queue_ns + running.run_ns),
            "fail": duration(running.failed, 0),
            "queue": duration(all, running.queue_ns),
            "compute_input": duration(0, 0),
            "compute_infer": duration(all, running.run_ns),
            "compute_output": duration(0, 0),
            "cache_hit": duration(0, 0),
            "cache_miss": duration(0, 0),
        },
        "batch_stats": [],
    })
}
