//! `/admin/v1`: what the operator sees and does. The command line and the page are its clients.

use crate::call::{self, Call};
use crate::openai::wire::invalid;
use crate::options::KeepAliveField;
use crate::parse::Parsed;
use actix_web::HttpResponse;
use backplane::auth::{KeyInfo, KeyLimits, LimitsChange, NewKey, Role};
use backplane::{BudgetStatus, Error, ErrorCode, LimitStatus, ListedKey, ModelInfo, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Names are for people, and for lists that fit a screen.
const MAX_NAME: usize = 128;

/// `GET /admin/v1/whoami`: for any key.
pub(crate) async fn whoami(call: Call) -> Result<HttpResponse> {
    let caller = &call.caller;
    let key = call.host().key_of(caller);
    let info = key.as_ref().map(|key| &key.info);
    call::json(&json!({
        "tenant": caller.tenant,
        "key": caller.key,
        "name": info.map(|info| &info.name),
        "role": caller.role,
        "expires_at": info.and_then(|info| info.expires_at),
        "budget": key.as_ref().and_then(|key| key.budget).map(KeyBudget::of),
        "limits": call.host().limits(caller).iter().map(limit).collect::<Vec<_>>(),
    }))
}

fn limit(status: &LimitStatus) -> Value {
    json!({
        "scope": status.scope,
        "dimension": status.dimension,
        "limit": status.limit,
        "remaining": status.remaining,
        "reset_seconds": status.reset.map(|reset| reset.as_secs_f64()),
    })
}

// ---- models

/// `GET /admin/v1/models`
pub(crate) async fn models(call: Call) -> Result<HttpResponse> {
    call::json(&json!({ "data": call.host().models() }))
}

/// `GET /admin/v1/models/{m}`
pub(crate) async fn model(call: Call) -> Result<HttpResponse> {
    call::json(&model_of(&call).await?)
}

async fn model_of(call: &Call) -> Result<ModelInfo> {
    let name: String = call.path().await?;
    call.host().find(&name)
}

/// How a model is to be opened.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub(crate) struct LoadRequest {
    /// How long it stays open without being asked: `"5m"`, seconds, `0`, or `-1` for ever; if absent, as configured.
    #[serde(default)]
    keep_alive: Option<KeepAliveField>,
}

/// `POST /admin/v1/models/{m}/load`
pub(crate) async fn load(mut call: Call) -> Result<HttpResponse> {
    let model = model_of(&call).await?;
    let options = call.options()?;
    let request = call.json_or_default::<LoadRequest>().await?.value;
    let keep_alive = request.keep_alive.map(|field| field.0).or(options.keep_alive);
    call::json(&call.host().load(&model.name, keep_alive).await?)
}

/// `POST /admin/v1/models/{m}/unload`
pub(crate) async fn unload(call: Call) -> Result<HttpResponse> {
    let model = model_of(&call).await?;
    call.host().unload(&model.name).await?;
    call::json(&call.host().find(&model.name)?)
}

/// `GET /admin/v1/models/{m}/plan`
pub(crate) async fn plan(call: Call) -> Result<HttpResponse> {
    let model = model_of(&call).await?;
    call::json(&call.host().plan(&model.name).await?)
}

/// `POST /admin/v1/refresh`: after something was pulled, removed or dropped in.
pub(crate) async fn refresh(call: Call) -> Result<HttpResponse> {
    call.host().refresh().await?;
    call::json(&json!({ "models": call.host().models().len(), "plugins": call.host().plugins().len() }))
}

/// `GET /admin/v1/plugins`
pub(crate) async fn plugins(call: Call) -> Result<HttpResponse> {
    call::json(&json!({ "data": call.host().plugins() }))
}

/// How another version of a plugin is to take over.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub(crate) struct UpgradeRequest {
    /// Without a share of the requests first (`plugins.upgrade`): for a version that is known.
    #[serde(default)]
    now: bool,
}

/// `POST /admin/v1/plugins/{p}/upgrade`: begins it; how it goes is to be read at the same place.
pub(crate) async fn upgrade(mut call: Call) -> Result<HttpResponse> {
    let id: String = call.path().await?;
    let now = call.json_or_default::<UpgradeRequest>().await?.value.now;
    let host = call.host();
    let begun = if now { host.begin_upgrade_now(&id).await? } else { host.begin_upgrade(&id).await? };
    let mut response = call::json(&begun)?;
    *response.status_mut() = actix_web::http::StatusCode::ACCEPTED;
    Ok(response)
}

/// `GET /admin/v1/plugins/{p}/upgrade`
pub(crate) async fn upgraded(call: Call) -> Result<HttpResponse> {
    let id: String = call.path().await?;
    let upgrade = call.host().plugin_upgrade(&id).ok_or_else(|| {
        Error::new(ErrorCode::NotFound, format!("plugin `{id}` was not upgraded since the host started"))
            .with_reason("upgrade_not_found")
    })?;
    call::json(&upgrade)
}

/// `DELETE /admin/v1/plugins/{p}/quarantine`
pub(crate) async fn unquarantine(call: Call) -> Result<HttpResponse> {
    let id: String = call.path().await?;
    let lifted = call.host().unquarantine(&id).await?;
    call::json(&json!({ "plugin": id, "lifted": lifted }))
}

// ---- keys

/// `GET /admin/v1/keys`
pub(crate) async fn keys(call: Call) -> Result<HttpResponse> {
    let keys = call.host().keys().await?;
    call::json(&Keys { data: keys.into_iter().map(Key::of).collect() })
}

/// Every key, oldest first.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Keys {
    data: Vec<Key>,
}

/// A key, without its secret. Times are seconds since 1970.
#[derive(Serialize, JsonSchema)]
struct Key {
    #[serde(flatten)]
    #[schemars(with = "KeyFacts")]
    info: KeyInfo,
    /// How its token budget stands; `null` where neither the key nor the configuration sets one.
    budget: Option<KeyBudget>,
}

/// What a key has spent and may still spend, in tokens.
#[derive(Serialize, JsonSchema)]
struct KeyBudget {
    /// What may be spent in a window.
    limit: u64,
    /// `minute`, `hour`, `day`, `month` (all in UTC), `total`, or another length such as `15m`.
    window: String,
    /// What was spent in this window; more than `limit` where a request cost more than it had reserved.
    spent: u64,
    /// What is set aside for requests that are open.
    reserved: u64,
    /// What is left.
    remaining: u64,
    /// Until the next window begins; `null`: never.
    reset_seconds: Option<f64>,
}

impl KeyBudget {
    fn of(budget: BudgetStatus) -> Self {
        Self {
            limit: budget.limit,
            window: budget.window.to_string(),
            spent: budget.spent,
            reserved: budget.reserved,
            remaining: budget.remaining,
            reset_seconds: budget.reset.map(|reset| reset.as_secs_f64()),
        }
    }
}

impl Key {
    fn of(ListedKey { info, budget }: ListedKey) -> Self {
        Self { info, budget: budget.map(KeyBudget::of) }
    }
}

/// The schema of [`KeyInfo`]; a test holds them together.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "it is a schema only")]
struct KeyFacts {
    /// Public; part of the key's text.
    id: String,
    /// Who pays.
    tenant: String,
    /// For people.
    name: String,
    /// `user` or `admin`.
    role: String,
    /// `{"requests_per_minute", "tokens": {"tokens", "window"}}`; what is `null` is as configured.
    limits: serde_json::Map<String, Value>,
    /// When it was made.
    created_at: i64,
    /// When it stops to work.
    expires_at: Option<i64>,
    /// When it was revoked.
    revoked_at: Option<i64>,
    /// When it was last used, to the minute.
    last_used_at: Option<i64>,
}

/// A key to be made.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct KeyRequest {
    /// For people.
    name: String,
    /// `user` or `admin`; `user` if absent.
    #[serde(default)]
    role: Option<String>,
    /// `{"requests_per_minute", "tokens": {"tokens", "window"}}`; what is absent is as configured.
    #[serde(default)]
    #[schemars(with = "Option<serde_json::Map<String, Value>>")]
    limits: Option<KeyLimits>,
    /// How long it works: `"30d"`; if absent, until it is revoked.
    #[serde(default)]
    expires_in: Option<String>,
}

/// `POST /admin/v1/keys`: the answer holds the secret, this once.
pub(crate) async fn create_key(mut call: Call) -> Result<HttpResponse> {
    let Parsed { value: request, ignored } = call.json::<KeyRequest>().await?;
    no_other_members(&ignored)?;
    let name = request.name.trim();
    if name.is_empty() || MAX_NAME < name.len() || name.chars().any(char::is_control) {
        return Err(invalid("name", format!("`name` must be 1 to {MAX_NAME} bytes of printable text")));
    }
    let role = request.role.as_deref().unwrap_or(Role::User.name());
    let role = Role::from_name(role)
        .ok_or_else(|| invalid("role", format!("`role` is `{role}`; it must be `user` or `admin`")))?;
    let lifetime = request
        .expires_in
        .map(|text| {
            humantime::parse_duration(&text).map_err(|_| {
                invalid(
                    "expires_in",
                    format!("`expires_in` is `{text}`; it must be a duration, such as `30d`"),
                )
            })
        })
        .transpose()?;
    let new = NewKey { name: name.to_owned(), role, limits: request.limits.unwrap_or_default(), lifetime };
    let created = call.host().create_key(new).await?;
    let info = &created.info;
    tracing::info!(
        key = info.id, name = info.name, role = info.role.name(), limits = ?info.limits, by = by(&call), request = call.id,
        "key created"
    );
    let mut response = call::json(&created)?;
    *response.status_mut() = actix_web::http::StatusCode::CREATED;
    let never = actix_web::http::header::HeaderValue::from_static("no-store");
    response.headers_mut().insert(actix_web::http::header::CACHE_CONTROL, never);
    Ok(response)
}

/// A misspelt limit would be no limit.
fn no_other_members(ignored: &[String]) -> Result<()> {
    ignored.first().map_or(Ok(()), |name| {
        Err(invalid(name.as_str(), format!("`{name}` is not a member of a key that can be set")))
    })
}

/// Whose doing something is, for the log.
fn by(call: &Call) -> &str {
    call.caller.key.as_deref().unwrap_or("nobody: keys are off")
}

/// What is to be changed of a key.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct KeyChange {
    /// `{"requests_per_minute", "tokens": {"tokens", "window"}}`: what is absent stays, what is `null` is as configured.
    #[schemars(with = "serde_json::Map<String, Value>")]
    limits: LimitsChange,
}

/// `PATCH /admin/v1/keys/{id}`: the next request of the key has the new limits.
pub(crate) async fn change_key(mut call: Call) -> Result<HttpResponse> {
    let id: String = call.path().await?;
    let Parsed { value: KeyChange { limits }, ignored } = call.json::<KeyChange>().await?;
    no_other_members(&ignored)?;
    let key = call.host().change_key(&id, limits).await?;
    let info = &key.info;
    tracing::info!(
        key = info.id, name = info.name, limits = ?info.limits, by = by(&call), request = call.id,
        "limits of a key changed"
    );
    call::json(&Key::of(key))
}

/// `DELETE /admin/v1/keys/{id}`
pub(crate) async fn revoke_key(call: Call) -> Result<HttpResponse> {
    let id: String = call.path().await?;
    let info = call.host().revoke_key(&id).await?;
    tracing::info!(key = info.id, name = info.name, by = by(&call), request = call.id, "key revoked");
    call::json(&info)
}

// ---- configuration, cache

/// `GET /admin/v1/config`: what is in force, and where each value comes from.
pub(crate) async fn config(call: Call) -> Result<HttpResponse> {
    let config = call.host().config();
    let sources: serde_json::Map<String, Value> =
        config.sources().iter().map(|(key, source)| (key.clone(), source.to_string().into())).collect();
    call::json(&json!({
        "toml": config.to_shown_toml(),
        "sources": sources,
        "file": config.file().map(|file| file.display().to_string()),
    }))
}

/// `POST /admin/v1/config/reload`
pub(crate) async fn reload(call: Call) -> Result<HttpResponse> {
    call::json(&call.host().reload().await?)
}

/// `POST /admin/v1/shutdown`: as SIGTERM. Answers before the host begins to stop.
pub(crate) async fn shutdown(call: Call) -> Result<HttpResponse> {
    let host = call.host();
    host.ask_to_stop()?;
    call::json(&Stopping { drain_seconds: host.config().server.drain.as_secs_f64() })
}

/// The server finishes what it has, then ends.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Stopping {
    /// How long open requests have at most.
    drain_seconds: f64,
}

/// `POST /admin/v1/cache/flush`
pub(crate) async fn flush(call: Call) -> Result<HttpResponse> {
    call::json(&json!({ "flushed": call.host().cache_flush().await? }))
}
