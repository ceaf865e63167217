//! `/healthz`, `/readyz`, `/metrics`.

use crate::call::{self, Call};
use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use backplane::Result;
use serde_json::json;

/// The process lives.
pub(crate) async fn alive(call: Call) -> Result<HttpResponse> {
    let host = call.host();
    call::json(&json!({
        "status": "ok",
        "version": host.version(),
        "uptime_seconds": host.uptime().as_secs(),
    }))
}

/// The host takes requests; each part says how it is.
pub(crate) async fn ready(call: Call) -> Result<HttpResponse> {
    let health = call.host().health();
    let mut response = call::json(&health)?;
    if !health.ready {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    Ok(response)
}

/// Prometheus' text.
pub(crate) async fn metrics(call: Call) -> Result<HttpResponse> {
    let text = call.host().metrics().render();
    Ok(HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body(text))
}
