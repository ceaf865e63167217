//! An upstream: its keys in turn, its breakers, what is tried again, and what its answers may take. What is true of a server is
//! shared by all models of it.

use crate::breaker::Breaker;
use crate::fault::{self, Blame, Said, UNREACHABLE};
use crate::hop;
use crate::keys::{Keys, REFUSED};
use crate::memory::{Budget, Full, Limit, Share, TOGETHER, values};
use crate::secret::Secret;
use crate::settings::{Flavour, TokenLimit, Upstream};
use crate::threads;
use crate::transport::{self, Response, TooLong, Transport};
use backplane_plugin::prelude::*;
use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHORIZATION, USER_AGENT,
};
use hyper::http::uri::{Authority, PathAndQuery, Scheme};
use hyper::{Method, StatusCode, Uri};
use serde::Serialize;
use serde_json::{Map, Value};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};
use url::Url;

/// Most bytes of a refusal that are read.
const MAX_REFUSAL: usize = 64 << 10;
const BROKE: &str = "broke the connection";
/// Most bytes of metrics, of which vLLM has some hundred thousand, and how long they may take.
const MAX_METRICS: usize = 4 << 20;
const METRICS_WAIT: Duration = Duration::from_secs(2);
/// Waits before a connection that could not be made is tried again: nothing was sent, so nothing is done twice.
const CONNECT_AGAIN: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(400)];

/// A server, as all its models see it.
struct Server {
    transport: Transport,
    reached: Reached,
    state: Mutex<State>,
    /// What the answers that are being read take.
    memory: Budget,
}

/// How a server is reached, and as whom: models for which this is the same share it.
#[derive(PartialEq)]
struct Reached {
    at: (Scheme, Authority),
    proxy: Option<String>,
    /// What the file with certificates holds: it may be another one tomorrow.
    ca: Option<Vec<u8>>,
    http2: bool,
    connect_timeout: Duration,
    /// One row of headers for each key; one without a key if there is none.
    credentials: Vec<HeaderMap>,
}

/// The servers that a model is open of.
#[derive(Default)]
pub struct Servers(Mutex<Vec<Weak<Server>>>);

impl Servers {
    /// The one that is reached so, if there is one; else a new one.
    fn get(&self, reached: Reached, transport: Transport) -> Arc<Server> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|server| 0 < server.strong_count());
        if let Some(same) = open.iter().filter_map(Weak::upgrade).find(|server| server.reached == reached) {
            return same;
        }
        let keys = Keys::new(reached.credentials.len());
        let state = Mutex::new(State { keys, breaker: Breaker::default() });
        let server = Arc::new(Server { transport, reached, state, memory: Budget::default() });
        open.push(Arc::downgrade(&server));
        server
    }
}

/// A server that a model is served by, as that model sees it.
pub struct Client {
    server: Arc<Server>,
    /// Of the API, without its last `/`.
    path: String,
    /// Where its metrics are.
    metrics: Option<Uri>,
    /// What people call it: its host, and its port if it has one of its own.
    pub name: String,
    pub flavour: Flavour,
    pub token_limit: TokenLimit,
    pub idle_timeout: Duration,
    /// Headers of every request that are not secret.
    plain: HeaderMap,
    /// All that no text of the server's may repeat.
    secrets: Vec<Secret>,
    /// Opened by answers that say that the server failed: with this model, as far as one can tell.
    breaker: Mutex<Breaker>,
    pub counts: Counts,
}

#[derive(Debug)]
struct State {
    keys: Keys,
    /// Opened where there was no answer.
    breaker: Breaker,
}

/// What happened so far.
#[derive(Debug, Default)]
pub struct Counts {
    pub requests: AtomicU64,
    pub failures: AtomicU64,
    pub limited: AtomicU64,
    pub again: AtomicU64,
}

/// No metrics.
#[derive(Debug)]
pub enum Missing {
    Now,
    /// The server has none, or does not give them away: why, and what would help.
    ForGood(String),
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Client {
    /// # Errors
    /// What is wrong with the settings: an address, a header, a secret that is not there, a certificate.
    pub fn new(upstream: &Upstream, servers: &Servers) -> Result<Self> {
        let wrong = |what: String| Error::invalid(format!("upstream `{}`: {what}", upstream.url));
        let base = Url::parse(&upstream.url).map_err(|error| wrong(format!("`url`: {error}")))?;
        if !matches!(base.scheme(), "http" | "https") || !base.has_host() {
            return Err(wrong("`url` is to begin with `http://` or `https://`".to_owned()));
        }
        if !base.username().is_empty() || base.password().is_some() {
            return Err(Error::invalid("`url` of an upstream holds a password: name it under `keys`"));
        }
        let host = base.host_str().unwrap_or_default();
        let name = base.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let uri = Uri::try_from(base.as_str()).map_err(|error| wrong(format!("`url`: {error}")))?;
        let at = uri.scheme().cloned().zip(uri.authority().cloned());
        let at = at.ok_or_else(|| wrong("`url` has no host".to_owned()))?;
        let path = base.path().trim_end_matches('/').to_owned();
        let transport = Transport::new(upstream, &uri).map_err(wrong)?;
        let metrics = match (upstream.metrics.as_deref(), upstream.flavour) {
            (Some(""), _) | (None, Flavour::Openai | Flavour::Ollama) => None,
            (Some(_), Flavour::Openai | Flavour::Ollama) => {
                return Err(wrong(
                    "`metrics` are read of a `flavour` other than `openai` and `ollama`".to_owned(),
                ));
            }
            (Some(at), _) if !at.starts_with('/') => {
                return Err(wrong(format!("`metrics` is `{at}`; it is a path of that host: `/metrics`")));
            }
            (said, _) => {
                let said = said.unwrap_or("/metrics");
                let uri =
                    path_of(&at, said).map_err(|error| wrong(format!("`metrics` is `{said}`: {error}")))?;
                Some(uri)
            }
        };
        let (credentials, plain, secrets) = credentials(upstream)?;
        let reached = Reached {
            at,
            proxy: upstream.proxy.clone(),
            ca: upstream.ca.as_deref().and_then(|path| std::fs::read(path).ok()),
            http2: upstream.http2,
            connect_timeout: upstream.connect_timeout,
            credentials,
        };
        Ok(Self {
            server: servers.get(reached, transport),
            path,
            metrics,
            name,
            flavour: upstream.flavour,
            token_limit: upstream.max_tokens.unwrap_or_else(|| TokenLimit::of(upstream.flavour, host)),
            idle_timeout: upstream.idle_timeout,
            plain,
            secrets,
            breaker: Mutex::default(),
            counts: Counts::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.server.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes our secrets out of what the server said.
    pub fn redact(&self, text: &mut String) {
        self.secrets.iter().for_each(|secret| secret.redact(text));
    }

    /// As [`Client::redact`], all texts in a value.
    pub fn redact_value(&self, value: &mut Value) {
        match value {
            Value::String(text) => self.redact(text),
            Value::Array(items) => items.iter_mut().for_each(|item| self.redact_value(item)),
            Value::Object(members) => self.redact_members(members),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// As [`Client::redact_value`], names as well.
    pub fn redact_members(&self, members: &mut Map<String, Value>) {
        let redacted = std::mem::take(members).into_iter().map(|(mut name, mut value)| {
            self.redact(&mut name);
            self.redact_value(&mut value);
            (name, value)
        });
        *members = redacted.collect();
    }

    /// A refusal without our secrets.
    pub fn redacted(&self, mut said: Said) -> Said {
        self.redact(&mut said.message);
        for value in [&mut said.param, &mut said.code, &mut said.kind].into_iter().flatten() {
            self.redact_value(value);
        }
        said
    }

    /// Whether a breaker keeps requests from the server.
    pub fn is_down(&self) -> bool {
        self.state().breaker.is_open() || self.breaker().is_open()
    }

    /// Sends `body` to `path` of the API and waits until an answer begins. What may be tried again is: a connection
    /// that could not be made, a request that an HTTP/2 server has not begun with, once, and a request that one key is
    /// limited or refused for, with the next key.
    ///
    /// # Errors
    /// [`fault`]'s.
    pub async fn post(&self, path: &str, body: &impl Serialize, request: &Request) -> Result<Response> {
        let body = threads::work(threads::asked(request), || serde_json::to_vec(body));
        let body = body.map_err(|error| Error::internal(format!("not JSON: {error}")))?;
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.post_bytes(path, body.into(), headers, request).await
    }

    /// As [`Client::post`], with a body that is ready and the headers that tell of it.
    ///
    /// # Errors
    /// As there.
    pub async fn post_bytes(
        &self,
        path: &str,
        body: Bytes,
        mut headers: HeaderMap,
        request: &Request,
    ) -> Result<Response> {
        let mut set = |name: &'static str, value: &str| {
            HeaderValue::from_str(value).map(|value| headers.insert(name, value)).ok();
        };
        set("x-request-id", &hop::next(request.request_id())?);
        if let (Flavour::Backplane, Some(deadline)) = (self.flavour, request.deadline()) {
            let left = deadline.saturating_duration_since(Instant::now()).as_secs_f64();
            set("x-request-timeout", &format!("{:.3}", left.max(0.001)));
        }
        self.send(Method::POST, path, headers, Some(body)).await
    }

    /// As [`Client::post`], asking for what is there.
    ///
    /// # Errors
    /// As there.
    pub async fn get(&self, path: &str) -> Result<Response> {
        self.send(Method::GET, path, HeaderMap::new(), None).await
    }

    /// Whether there is anything that [`Client::metrics`] could ask.
    pub fn has_metrics(&self) -> bool {
        self.metrics.is_some()
    }

    /// The server's metrics, as text. Nobody waits for them and they are no request of a caller's: without a key or a
    /// secret header, not counted, nothing for the breaker.
    ///
    /// # Errors
    /// When there are none: for good if the server says so.
    pub async fn metrics(&self) -> Result<String, Missing> {
        let Some(uri) = &self.metrics else { return Err(Missing::ForGood("it is not asked".to_owned())) };
        let asked = async {
            let mut request = hyper::Request::new(transport::Body::default());
            *request.uri_mut() = uri.clone();
            request.headers_mut().clone_from(&self.plain);
            if let Some(value) = &self.server.transport.proxy_authorization {
                request.headers_mut().insert(PROXY_AUTHORIZATION, value.clone());
            }
            let answer = self.server.transport.send(request).await.map_err(|_| Missing::Now)?;
            let status = answer.status();
            if !status.is_success() {
                let why = refused_metrics(status, self.flavour, uri.path());
                return Err(why.map_or(Missing::Now, Missing::ForGood));
            }
            read(answer, MAX_METRICS, METRICS_WAIT, &mut self.share()).await.map_err(|_| Missing::Now)
        };
        let text = tokio::time::timeout(METRICS_WAIT, asked).await.unwrap_or(Err(Missing::Now))?;
        String::from_utf8(text).map_err(|_| Missing::ForGood(format!("`{}` is not text", uri.path())))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Option<Bytes>,
    ) -> Result<Response> {
        count(&self.counts.requests);
        // The API itself: `/v2`, not `/v2/`.
        let path = if path.is_empty() { self.path.clone() } else { format!("{}/{path}", self.path) };
        let uri = path_of(&self.server.reached.at, if path.is_empty() { "/" } else { &path });
        let uri = uri.map_err(|error| Error::internal(format!("a path of the upstream's: {error}")))?;
        let (mut refused, mut tried) = (None, Vec::new());
        // Each key once.
        while tried.len() < self.server.reached.credentials.len() {
            let key = match self.admit(&tried) {
                Ok(key) => key,
                Err(error) => return Err(refused.unwrap_or(error)),
            };
            tried.push(key);
            if refused.is_some() {
                count(&self.counts.again);
            }
            let answer = self.try_to_connect(&method, &uri, key, &headers, body.as_ref()).await?;
            let status = answer.status();
            if status.is_success() {
                self.breaker().answered();
                let mut state = self.state();
                state.breaker.begun();
                state.keys.taken(key);
                let header = |name: &str| answer.headers().get(name)?.to_str().ok();
                if let Some(wait) = fault::exhausted(header) {
                    // After a minute a request may find out: this one was served, and no refusal tells us to wait longer.
                    state.keys.rest(key, Instant::now() + wait.min(REFUSED));
                }
                return Ok(answer);
            }
            let error = self.refusal(answer, key).await;
            if !matches!(
                status,
                StatusCode::TOO_MANY_REQUESTS | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
            ) {
                return Err(error);
            }
            refused = Some(error);
        }
        Err(refused.unwrap_or_else(|| Error::internal("an upstream without a row of headers")))
    }

    /// A key that may be used now and is none of those `tried`, if the server may be asked at all.
    fn admit(&self, tried: &[usize]) -> Result<usize> {
        let now = Instant::now();
        let mut state = self.state();
        let key = state.keys.pick(now, tried).map_err(|wait| {
            Error::new(
                Code::ResourceExhausted,
                format!("every key of this host for upstream `{}` is limited or refused for now", self.name),
            )
            .with_reason("upstream_rate_limited")
            .with_retry_after(wait)
        })?;
        // Both or none: one that lets a request try expects to hear of it.
        let mut breaker = self.breaker();
        let wait = breaker.wait(now).max(state.breaker.wait(now));
        let admitted = wait.map_or(Ok(()), Err);
        let admitted = admitted.and_then(|()| breaker.admit(now)).and_then(|()| state.breaker.admit(now));
        admitted.map_err(|wait| {
            Error::new(
                Code::Unavailable,
                format!(
                    "upstream `{}` does not answer; it is asked again in {:.1} s",
                    self.name,
                    wait.as_secs_f64()
                ),
            )
            .with_reason(UNREACHABLE)
            .with_retry_after(wait)
        })?;
        Ok(key)
    }

    async fn try_to_connect(
        &self,
        method: &Method,
        uri: &Uri,
        key: usize,
        headers: &HeaderMap,
        body: Option<&Bytes>,
    ) -> Result<Response> {
        let (mut waits, mut handed_back) = (CONNECT_AGAIN.iter(), false);
        loop {
            let mut request = hyper::Request::new(body.cloned().unwrap_or_default().into());
            (*request.method_mut(), *request.uri_mut()) = (method.clone(), uri.clone());
            let all = request.headers_mut();
            all.clone_from(&self.server.reached.credentials[key]);
            headers.iter().for_each(|(name, value)| _ = all.insert(name, value.clone()));
            if let Some(value) = &self.server.transport.proxy_authorization {
                all.insert(PROXY_AUTHORIZATION, value.clone());
            }
            let error = match self.server.transport.send(request).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if !handed_back && is_handed_back(&error) {
                handed_back = true;
                count(&self.counts.again);
                continue;
            }
            match waits.next() {
                Some(wait) if error.is_connect() && !took_too_long(&error) => {
                    count(&self.counts.again);
                    tokio::time::sleep(*wait).await;
                }
                _ => return Err(self.unsent(&error)),
            }
        }
    }

    /// Notes that a request could not be sent, or that the connection failed before an answer.
    fn unsent(&self, error: &transport::Error) -> Error {
        let what = if error.is_connect() { "cannot be reached" } else { BROKE };
        self.failed(what, error)
    }

    /// Notes that the connection failed within an answer.
    pub fn lost(&self, error: &hyper::Error) -> Error {
        self.failed(BROKE, error)
    }

    fn failed(&self, what: &str, error: &AnyError) -> Error {
        self.unheard();
        Error::new(Code::Unavailable, format!("upstream `{}` {what}: {}", self.name, cause(error)))
            .with_reason(UNREACHABLE)
    }

    /// Notes that an answer came to its end.
    pub fn answered(&self) {
        self.state().breaker.answered();
    }

    /// Notes that the server did not answer, or not to the end.
    fn unheard(&self) {
        count(&self.counts.failures);
        let now = Instant::now();
        self.state().breaker.failed(now);
        let mut breaker = self.breaker();
        if breaker.is_open() {
            breaker.failed(now);
        }
    }

    /// Notes that it said nothing for too long.
    pub fn silent(&self) -> Error {
        self.unheard();
        let seconds = self.idle_timeout.as_secs_f64();
        Error::new(Code::Unavailable, format!("upstream `{}` said nothing for {seconds} s", self.name))
            .with_reason(UNREACHABLE)
    }

    async fn refusal(&self, answer: Response, key: usize) -> Error {
        let status = answer.status();
        let now = Instant::now();
        let header = |name: &str| answer.headers().get(name)?.to_str().ok();
        let retry_after = fault::retry_after(header, SystemTime::now());
        let body = read(answer, MAX_REFUSAL, self.idle_timeout, &mut self.share()).await.unwrap_or_default();
        let said = self.redacted(Said::read(&body));
        let error = fault::of_status(&self.name, status.as_u16(), &said, retry_after);
        match status.is_server_error() {
            true => {
                count(&self.counts.failures);
                self.breaker().failed(now);
            }
            false => self.breaker().answered(),
        }
        let mut state = self.state();
        state.breaker.answered();
        if status == StatusCode::TOO_MANY_REQUESTS {
            count(&self.counts.limited);
        }
        match said.blames(status.as_u16(), self.flavour, retry_after) {
            Blame::Key => {
                // The only one is tried again each time: who mends it need not wait.
                if self.server.reached.credentials.len() > 1 {
                    state.keys.rest(key, now + REFUSED);
                }
            }
            Blame::Limit(wait) => state.keys.rest(key, now + wait),
            Blame::Unclear => state.keys.suspect(key, now),
            Blame::Request => state.keys.taken(key),
            Blame::Server => {}
        }
        error
    }

    /// The whole answer as a type, and what it takes, as [`Client::body`] has it.
    ///
    /// # Errors
    /// When the connection breaks, it is too large, or it is not what was asked for.
    pub async fn json<T: serde::de::DeserializeOwned>(
        &self,
        answer: Response,
        limit: Limit,
        wait: Option<Duration>,
    ) -> Result<(T, Share)> {
        let (body, mut share) = self.body(answer, limit, wait).await?;
        let values = threads::work(body.len(), || self.count(&body, limit))?;
        self.hold(&mut share, body.len() + values)?;
        let read = threads::work(body.len(), || serde_json::from_slice(&body));
        let read = read.map_err(|error| fault::malformed(&self.name, error))?;
        Ok((read, share))
    }

    /// The whole answer, and what it takes of this upstream's memory: to be kept as long as the answer.
    ///
    /// # Errors
    /// When the connection breaks, or it is too large.
    pub async fn body(
        &self,
        answer: Response,
        limit: Limit,
        wait: Option<Duration>,
    ) -> Result<(Vec<u8>, Share)> {
        let mut share = self.share();
        let body = read(answer, limit.bytes, wait.unwrap_or(Duration::MAX), &mut share).await;
        let body = body.map_err(|unread| match unread {
            Unread::Lost(error) => self.lost(&error),
            Unread::Silent => self.silent(),
            Unread::TooLarge => {
                let bytes = limit.bytes;
                fault::malformed(
                    &self.name,
                    format!("its answer takes more than {bytes} bytes, which what was asked for does not"),
                )
            }
            Unread::Full => self.full(),
        })?;
        self.answered();
        Ok((body, share))
    }

    /// What an answer may take a share of.
    pub fn share(&self) -> Share {
        self.server.memory.share()
    }

    /// How many bytes the values of `json` take once they are read.
    ///
    /// # Errors
    /// When they are more than it may have.
    pub fn count(&self, json: &[u8], limit: Limit) -> Result<usize> {
        match values(json) {
            count if count <= limit.values => Ok(count.saturating_mul(limit.each)),
            count => {
                let what = format!("its answer has {count} values, which what was asked for has not");
                Err(fault::malformed(&self.name, what))
            }
        }
    }

    /// Takes `bytes` for an answer.
    ///
    /// # Errors
    /// When it is too large by itself, or [`Client::full`].
    pub fn hold(&self, share: &mut Share, bytes: usize) -> Result<()> {
        share.hold(bytes).map_err(|Full| match bytes {
            0..=TOGETHER => self.full(),
            _ => {
                let (takes, most) = (bytes >> 20, TOGETHER >> 20);
                let what = format!(
                    "its answer would take {takes} MiB once it is read, of {most}; tensors take least as binary data"
                );
                fault::malformed(&self.name, what)
            }
        })
    }

    /// The answers that are being read take all the memory that they may.
    fn full(&self) -> Error {
        let most = TOGETHER >> 20;
        Error::new(
            Code::ResourceExhausted,
            format!(
                "answers of upstream `{}` take more than the {most} MiB that all of a server may at once",
                self.name
            ),
        )
        .with_reason("overloaded")
        .with_retry_after(Duration::from_secs(1))
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A path of the server, with its query.
fn path_of((scheme, authority): &(Scheme, Authority), path: &str) -> Result<Uri, hyper::http::Error> {
    let mut parts = hyper::http::uri::Parts::default();
    (parts.scheme, parts.authority) = (Some(scheme.clone()), Some(authority.clone()));
    parts.path_and_query = Some(PathAndQuery::try_from(path)?);
    Ok(Uri::from_parts(parts)?)
}

/// Why a server that answers so gives no metrics, and what would help; `None` where it may give them later.
fn refused_metrics(status: StatusCode, flavour: Flavour, path: &str) -> Option<String> {
    let helps = match (status.as_u16(), flavour) {
        (401 | 403, Flavour::Backplane) => {
            "a Backplane gives them to its own machine, to others only with an admin's key, and none is sent"
        }
        (401 | 403, _) => "it wants a key, and they are asked without one",
        (404 | 405 | 501, Flavour::LlamaCpp) => {
            "start it with `--metrics`, or say with `metrics` where they are"
        }
        (404 | 405 | 501, _) => "say with `metrics` where they are",
        _ => return None,
    };
    Some(format!("`{path}` is refused with {}: {helps}; `metrics = \"\"` does not ask", status.as_u16()))
}

enum Unread {
    Lost(hyper::Error),
    Silent,
    TooLarge,
    Full,
}

async fn read(answer: Response, most: usize, wait: Duration, share: &mut Share) -> Result<Vec<u8>, Unread> {
    let mut body = Vec::new();
    let mut pieces = answer.into_body();
    loop {
        match tokio::time::timeout(wait, piece(&mut pieces)).await {
            Err(_) => return Err(Unread::Silent),
            Ok(None) => return Ok(body),
            Ok(Some(Err(error))) => return Err(Unread::Lost(error)),
            Ok(Some(Ok(piece))) if most - body.len() < piece.len() => return Err(Unread::TooLarge),
            Ok(Some(Ok(piece))) => {
                share.hold(body.len() + piece.len()).map_err(|Full| Unread::Full)?;
                body.extend_from_slice(&piece);
            }
        }
    }
}

/// The next bytes of an answer.
pub async fn piece(of: &mut Incoming) -> Option<Result<Bytes, hyper::Error>> {
    loop {
        match of.frame().await?.map(hyper::body::Frame::into_data) {
            Ok(Ok(bytes)) => return Some(Ok(bytes)),
            // Trailers, which say nothing to us.
            Ok(Err(_)) => {}
            Err(error) => return Some(Err(error)),
        }
    }
}

/// The headers of each key, those of them that are not secret, and every secret.
fn credentials(upstream: &Upstream) -> Result<(Vec<HeaderMap>, HeaderMap, Vec<Secret>)> {
    let wrong = |what: String| Error::invalid(format!("upstream `{}`: {what}", upstream.url));
    let mut secrets = Vec::new();
    let mut all = HeaderMap::new();
    all.insert(ACCEPT, HeaderValue::from_static("*/*"));
    all.insert(USER_AGENT, HeaderValue::from_static(concat!("backplane-remote/", env!("CARGO_PKG_VERSION"))));
    for (name, value) in &upstream.headers {
        all.insert(header_name(name).map_err(wrong)?, header_value(name, value).map_err(wrong)?);
    }
    let plain = all.clone();
    for (name, at) in &upstream.secret_headers {
        let secret = at.read()?;
        let mut value = header_value(name, secret.expose()).map_err(wrong)?;
        value.set_sensitive(true);
        all.insert(header_name(name).map_err(wrong)?, value);
        secrets.push(secret);
    }
    if upstream.keys.is_empty() {
        return Ok((vec![all], plain, secrets));
    }
    let mut rows = Vec::new();
    for at in &upstream.keys {
        let secret = at.read()?;
        let mut value = HeaderValue::from_str(&format!("Bearer {}", secret.expose()))
            .map_err(|_| wrong(format!("the secret `{at}` cannot stand in a header")))?;
        value.set_sensitive(true);
        let mut row = all.clone();
        row.insert(AUTHORIZATION, value);
        rows.push(row);
        secrets.push(secret);
    }
    Ok((rows, plain, secrets))
}

fn header_name(name: &str) -> Result<HeaderName, String> {
    HeaderName::try_from(name).map_err(|_| format!("`{name}` cannot be the name of a header"))
}

fn header_value(name: &str, value: &str) -> Result<HeaderValue, String> {
    HeaderValue::from_str(value).map_err(|_| format!("the value of `{name}` cannot stand in a header"))
}

type AnyError = dyn std::error::Error + 'static;

/// What caused an error: hyper's own text says only that sending failed.
fn cause(error: &AnyError) -> String {
    causes(error).last().unwrap_or(error).to_string()
}

fn took_too_long(error: &AnyError) -> bool {
    causes(error).any(|cause| cause.is::<TooLong>())
}

/// Whether a server that speaks HTTP/2 says that it has not begun with the request: it ends the connection in good order,
/// or takes no more at once.
fn is_handed_back(error: &AnyError) -> bool {
    causes(error).filter_map(|cause| cause.downcast_ref::<h2::Error>()).any(|error| {
        let ends = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
        let refuses = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        error.is_remote() && (ends || refuses)
    })
}

fn causes(error: &AnyError) -> impl Iterator<Item = &AnyError> {
    std::iter::successors(error.source(), |cause| cause.source())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_take_too_much_together_wait() {
        let upstream = toml::from_str("url = 'http://127.0.0.1:1/v1'").unwrap();
        let servers = Servers::default();
        let [client, other] = [(); 2].map(|()| Client::new(&upstream, &servers).unwrap());
        let (mut one, mut two) = (client.share(), other.share());
        client.hold(&mut one, TOGETHER).unwrap();
        let told = client.hold(&mut two, 1).unwrap_err();
        assert_eq!((told.code, told.reason.as_deref()), (Code::ResourceExhausted, Some("overloaded")));
        assert!(told.message.contains("`127.0.0.1:1`") && told.retry_after.is_some(), "{told}");
        drop(one);
        client.hold(&mut two, 1).unwrap();
    }

    #[test]
    fn metrics_are_given_up_only_where_asking_again_is_of_no_use() {
        let refused =
            |status, flavour| refused_metrics(StatusCode::from_u16(status).unwrap(), flavour, "/metrics");
        for status in [301, 308, 400, 408, 429, 500, 503] {
            assert_eq!(refused(status, Flavour::Vllm), None, "{status}");
        }
        for (status, flavour, helps) in [
            (401, Flavour::Backplane, "only with an admin's key"),
            (403, Flavour::Vllm, "it wants a key"),
            (501, Flavour::LlamaCpp, "start it with `--metrics`"),
            (404, Flavour::Vllm, "say with `metrics` where they are"),
            (405, Flavour::Backplane, "`metrics = \"\"` does not ask"),
        ] {
            let why = refused(status, flavour).unwrap();
            assert!(why.contains(&format!("with {status}")) && why.contains(helps), "{why}");
        }
    }
}
