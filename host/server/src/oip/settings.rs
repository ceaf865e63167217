//! Tracing, logging and shared memory as Triton's clients ask for them: what is there is told, what would change
//! something is refused by name.

use crate::call::{self, Call};
use crate::openai::wire::unsupported;
use actix_web::HttpResponse;
use backplane::Result;
use serde_json::{Map, Value, json};

/// `GET /v2/trace/setting`: Triton's own traces are not made; `traceparent` is honoured instead.
pub(crate) async fn trace(_call: Call) -> Result<HttpResponse> {
    call::json(&trace_settings())
}

fn trace_settings() -> Value {
    json!({ "trace_level": ["OFF"], "trace_rate": "0", "trace_count": "0", "log_frequency": "0", "trace_file": "", "trace_mode": "triton" })
}

/// `GET /v2/logging`
pub(crate) async fn logging(call: Call) -> Result<HttpResponse> {
    call::json(&log_settings(&call))
}

/// `warn,backplane=debug` → its level for everything.
fn log_settings(call: &Call) -> Value {
    let config = call.host().config();
    let level =
        config.log.level.split(',').find(|directive| !directive.contains('=')).unwrap_or("info").trim();
    let at_least = |levels: &[&str]| levels.iter().any(|known| known.eq_ignore_ascii_case(level));
    json!({
        "log_file": "",
        "log_error": !at_least(&["off"]),
        "log_warning": at_least(&["warn", "info", "debug", "trace"]),
        "log_info": at_least(&["info", "debug", "trace"]),
        "log_verbose_level": if at_least(&["trace"]) { 2 } else { i32::from(at_least(&["debug"])) },
        "log_format": "default",
    })
}

/// `POST /v2/trace/setting`
pub(crate) async fn set_trace(mut call: Call) -> Result<HttpResponse> {
    unchanged(&mut call, trace_settings(), "traces go where `traceparent` says").await
}

/// `POST /v2/logging`
pub(crate) async fn set_logging(mut call: Call) -> Result<HttpResponse> {
    let now = log_settings(&call);
    unchanged(&mut call, now, "set `log.level` in the configuration and reload it").await
}

/// Accepts settings that are in force already, and null, which is "no change"; refuses others.
async fn unchanged(call: &mut Call, now: Value, hint: &str) -> Result<HttpResponse> {
    let wanted = call.json_or_default::<Map<String, Value>>().await?.value;
    match wanted.iter().find(|(name, value)| !value.is_null() && now.get(name.as_str()) != Some(value)) {
        None => call::json(&now),
        Some((name, value)) => {
            Err(unsupported(name.as_str(), format!("`{name}` cannot be set to {value} here; {hint}")))
        }
    }
}

/// `GET /v2/{system,cuda}sharedmemory/status`: no region, ever.
pub(crate) async fn no_regions(_call: Call) -> Result<HttpResponse> {
    call::json(&json!([]))
}

/// `POST /v2/{system,cuda}sharedmemory/unregister`: there is nothing, so nothing is left.
pub(crate) async fn unregister(_call: Call) -> Result<HttpResponse> {
    Ok(HttpResponse::Ok().finish())
}

/// `POST /v2/{system,cuda}sharedmemory/region/{name}/register`
pub(crate) async fn register(call: Call) -> Result<HttpResponse> {
    let name: String = call.path().await?;
    let message = format!(
        "shared memory region `{name}` cannot be registered: this server reads no memory of its clients; send binary data"
    );
    Err(unsupported("name", message))
}
