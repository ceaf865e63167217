//! What a handler is given, and what it needs for every answer.

use crate::app::App;
use crate::error::reason;
use crate::gate::{Connection, Refusal};
use crate::head;
use crate::openai::wire::invalid;
use crate::options::Options;
use crate::parse::{self, Parsed};
use crate::route::path_param;
use crate::stream::{Body, Encoder};
use crate::translate::files::Files;
use actix_web::http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
};
use actix_web::{HttpRequest, HttpResponse, web};
use backplane::payload::{chat, complete};
use backplane::{Answer, Caller, Error, ErrorCode, Host, Reply, Request, Result, Tensor};
use bytes::Bytes;
use futures::future::LocalBoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::rc::Rc;
use std::time::Instant;

/// A request to a route.
pub(crate) struct Call {
    pub caller: Caller,
    /// Names it in headers, answers and logs.
    pub id: String,
    pub started: Instant,
    app: web::Data<App>,
    http: HttpRequest,
    payload: Option<web::Payload>,
}

impl Call {
    pub(crate) fn new(
        app: web::Data<App>,
        caller: Caller,
        http: HttpRequest,
        payload: web::Payload,
        id: String,
        started: Instant,
    ) -> Self {
        Self { caller, id, started, app, http, payload: Some(payload) }
    }

    pub(crate) fn host(&self) -> &Host {
        &self.app.host
    }

    /// Lets the caller in by the key in `authorization`, else by this one.
    ///
    /// # Errors
    /// When neither is a key.
    pub(crate) fn claim(&mut self, key: Option<&str>) -> Result<()> {
        self.caller = crate::caller::claim(&self.app, &self.http, key)?;
        Ok(())
    }

    /// What follows the path.
    pub(crate) fn query(&self) -> &str {
        self.http.query_string()
    }

    /// Where the client reaches this server.
    pub(crate) fn own_url(&self) -> String {
        let connection = self.http.connection_info();
        format!("{}://{}", connection.scheme(), connection.host())
    }

    /// Translated files that wait to be fetched.
    pub(crate) fn files(&self) -> &Files {
        &self.app.files
    }

    /// Puts pictures in the place of their addresses, each with the name of where it stands.
    pub(crate) async fn fetch(
        &self,
        texts: impl IntoIterator<Item = (String, &mut String)>,
        options: &Options,
    ) -> Result<()> {
        self.app.fetcher.inline(texts, self.caller.key.as_ref(), options.deadline).await
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        self.http.headers()
    }

    /// A parameter of the path, decoded; a tuple where there are several.
    pub(crate) async fn path<T: DeserializeOwned + 'static>(&self) -> Result<T> {
        path_param(&self.http).await
    }

    /// Whether the path that matched has this parameter.
    pub(crate) fn path_has(&self, name: &str) -> bool {
        self.http.match_info().get(name).is_some()
    }

    /// The body.
    pub(crate) async fn bytes(&mut self) -> Result<Bytes> {
        if let Some(coding) = self.headers().get(CONTENT_ENCODING)
            && coding != "identity"
        {
            let message = "`content-encoding` is not supported; send the body as it is";
            return Err(Error::invalid(message).with_reason(reason::UNSUPPORTED_MEDIA_TYPE));
        }
        let limit = self.app.body_limit;
        let Some(payload) = self.payload.take() else { return Ok(Bytes::new()) };
        match payload.to_bytes_limited(limit).await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(error)) => {
                let refused = self.http.conn_data::<Rc<Connection>>().and_then(|gate| gate.refused_body());
                Err(refused.map_or_else(
                    || Error::invalid(format!("the body could not be read: {error}")),
                    Refusal::error,
                ))
            }
            Err(_) => {
                let message = format!("the body is larger than {limit} bytes, which is `server.body_limit`");
                Err(Error::new(ErrorCode::OutOfRange, message).with_reason(reason::BODY_TOO_LARGE))
            }
        }
    }

    /// How deep JSON may nest.
    pub(crate) fn json_depth(&self) -> usize {
        self.app.json_depth
    }

    /// Names in the query, of which a route that reads its body alone makes nothing.
    pub(crate) fn unread_query(&self) -> impl Iterator<Item = String> {
        form_urlencoded::parse(self.query().as_bytes()).map(|(name, _)| name.into_owned())
    }

    /// The body as a type; the query has no effect.
    pub(crate) async fn json<T: DeserializeOwned>(&mut self) -> Result<Parsed<T>> {
        let mut parsed: Parsed<T> = parse::json(&self.bytes().await?, self.json_depth())?;
        parsed.ignored.extend(self.unread_query());
        Ok(parsed)
    }

    /// The body as a type, or its default where there is none.
    pub(crate) async fn json_or_default<T: DeserializeOwned + Default>(&mut self) -> Result<Parsed<T>> {
        match self.bytes().await? {
            bytes if bytes.is_empty() => Ok(Parsed { value: T::default(), ignored: Vec::new() }),
            bytes => parse::json(&bytes, self.json_depth()),
        }
    }

    /// What the headers ask for.
    pub(crate) fn options(&self) -> Result<Options> {
        Options::of(self.headers(), self.started)
    }

    /// A request to the host, from this caller, with what the headers ask for.
    pub(crate) fn request(
        &self,
        capability: &str,
        model: Option<String>,
        params: &impl Serialize,
        tensors: Vec<Tensor>,
        options: &Options,
    ) -> Result<Request> {
        let params = serde_json::to_string(params)
            .map_err(|error| Error::internal(format!("the parameters cannot be written: {error}")))?;
        let mut request = Request::named(self.id.clone(), self.caller.clone(), capability, params);
        request.model = model;
        request.tensors = tensors;
        request.traceparent =
            self.headers().get("traceparent").and_then(|value| value.to_str().ok()).map(str::to_owned);
        request.deadline = options.deadline;
        request.cache = options.cache;
        request.keep_alive = options.keep_alive;
        request.confidence = options.confidence;
        Ok(request)
    }

    /// Asks the host, and reads the answer to its end. Dropping the future cancels.
    pub(crate) async fn ask(&self, request: Request) -> Result<Answer> {
        self.host().serve(request).await?.collect().await
    }

    /// Asks the host for a reply to be streamed; the future does not borrow.
    pub(crate) fn asking(&self, mut request: Request) -> LocalBoxFuture<'static, Result<Reply>> {
        let host = self.host().clone();
        request.stream = true;
        Box::pin(async move { host.serve(request).await })
    }

    /// JSON with the headers that tell of an answer.
    pub(crate) fn answer(
        &self,
        capability: &str,
        answer: &Answer,
        ignored: &[String],
        body: &impl Serialize,
    ) -> Result<HttpResponse> {
        let mut response = json(body)?;
        self.tell(capability, answer, ignored, response.headers_mut());
        Ok(response)
    }

    /// Writes the headers that tell of an answer.
    pub(crate) fn tell(
        &self,
        capability: &str,
        answer: &Answer,
        ignored: &[String],
        headers: &mut HeaderMap,
    ) {
        head::route(&answer.route, answer.cache, headers);
        crate::limits::write(&answer.limits, headers);
        head::confidence(answer.done.confidence.or(answer.route.confidence), headers);
        // Others count words as tokens.
        let generated = matches!(capability, chat::CAPABILITY | complete::CAPABILITY);
        head::timing(&answer.done.timing, generated, self.started.elapsed(), headers);
        head::ignored(ignored, headers);
    }

    /// Streams replies. What fails before the first piece is an error here, and so gets a status.
    pub(crate) async fn stream<E: Encoder>(
        &self,
        replies: Vec<LocalBoxFuture<'static, Result<Reply>>>,
        ignored: &[String],
        encoder: E,
    ) -> Result<HttpResponse> {
        let body = Body::start(replies, encoder).await?;
        let known = body.head().cloned();
        let mut response = HttpResponse::Ok().streaming(body);
        let all = response.headers_mut();
        if let Some(known) = known {
            head::route(&known.route, known.cache, all);
            crate::limits::write(&known.limits, all);
        }
        head::ignored(ignored, all);
        all.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        all.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        all.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
        Ok(response)
    }
}

/// Refuses what would be ignored, where the caller wants that.
pub(crate) fn refuse_ignored(options: &Options, ignored: &[String]) -> Result<()> {
    match ignored.first() {
        Some(first) if options.strict => {
            let list = ignored.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            let message = format!("{list}: not supported, and `x-strict` asks for nothing to be ignored");
            Err(invalid(first.as_str(), message).with_reason(reason::IGNORED_PARAMS))
        }
        _ => Ok(()),
    }
}

/// A value as the body of a good answer.
pub(crate) fn json(value: &impl Serialize) -> Result<HttpResponse> {
    let body = serde_json::to_vec(value).map_err(|error| crate::fault::unwritable(&error))?;
    Ok(HttpResponse::Ok().content_type("application/json").body(body))
}
