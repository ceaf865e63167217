//! What a route is, and the one way from an HTTP request to its handler.

use crate::app::App;
use crate::call::Call;
use crate::caller::{self, Scope};
use crate::count::{self, Counted};
use crate::error::{self, Dialect, reason};
use crate::gate::{Connection, cors};
use actix_web::dev::Payload;
use actix_web::http::header::{ALLOW, HeaderValue};
use actix_web::http::{ConnectionType, Method, StatusCode};
use actix_web::{FromRequest as _, HttpRequest, HttpResponse, Resource, web};
use backplane::{Error, ErrorCode, Result};
use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

type Handler = Arc<dyn Fn(Call) -> LocalBoxFuture<'static, Result<HttpResponse>> + Send + Sync>;
/// Gives the schema of a type.
pub(crate) type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// A route: where it is, who may use it, what serves it, and what the OpenAPI document says of it.
///
/// There is no way to make one without a [`Scope`].
#[derive(Clone)]
pub(crate) struct Route {
    pub method: Method,
    pub path: &'static str,
    /// Other paths that mean the same.
    pub aliases: &'static [&'static str],
    pub scope: Scope,
    pub dialect: Dialect,
    pub doc: Doc,
    handler: Handler,
}

/// What the OpenAPI document says of a route.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Doc {
    pub summary: &'static str,
    pub tag: &'static str,
    pub takes: Option<SchemaOf>,
    /// The fields of a form, where it takes one.
    pub form: Option<SchemaOf>,
    /// The parameters beside a picture, where it takes one by itself or as a file of a form.
    pub pictures: Option<SchemaOf>,
    pub gives: Option<SchemaOf>,
    /// The pieces of a stream, where the answer can be one.
    pub streams: Option<SchemaOf>,
    /// Media type of the answer.
    pub media: &'static str,
}

/// A route by GET.
pub(crate) fn get<F, Fut>(path: &'static str, scope: Scope, handler: F) -> Route
where
    F: Fn(Call) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<HttpResponse>> + 'static,
{
    route(Method::GET, path, scope, handler)
}

/// A route by POST.
pub(crate) fn post<F, Fut>(path: &'static str, scope: Scope, handler: F) -> Route
where
    F: Fn(Call) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<HttpResponse>> + 'static,
{
    route(Method::POST, path, scope, handler)
}

/// A route by PATCH.
pub(crate) fn patch<F, Fut>(path: &'static str, scope: Scope, handler: F) -> Route
where
    F: Fn(Call) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<HttpResponse>> + 'static,
{
    route(Method::PATCH, path, scope, handler)
}

/// A route by DELETE.
pub(crate) fn delete<F, Fut>(path: &'static str, scope: Scope, handler: F) -> Route
where
    F: Fn(Call) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<HttpResponse>> + 'static,
{
    route(Method::DELETE, path, scope, handler)
}

fn route<F, Fut>(method: Method, path: &'static str, scope: Scope, handler: F) -> Route
where
    F: Fn(Call) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<HttpResponse>> + 'static,
{
    let dialect = Dialect::of_path(path);
    let doc = Doc { media: "application/json", ..Doc::default() };
    let handler: Handler = Arc::new(move |call| Box::pin(handler(call)));
    Route { method, path, aliases: &[], scope, dialect, doc, handler }
}

impl Route {
    /// What is answered: who may GET may ask for the head alone.
    fn methods(&self) -> &[Method] {
        static READING: [Method; 2] = [Method::GET, Method::HEAD];
        if self.method == Method::GET { &READING } else { std::slice::from_ref(&self.method) }
    }

    /// Its line in the OpenAPI document.
    pub(crate) fn doc(mut self, tag: &'static str, summary: &'static str) -> Self {
        (self.doc.tag, self.doc.summary) = (tag, summary);
        self
    }

    /// Also at this path.
    pub(crate) fn also_at(mut self, aliases: &'static [&'static str]) -> Self {
        self.aliases = aliases;
        self
    }

    /// The body it takes.
    pub(crate) fn takes<T: JsonSchema>(mut self) -> Self {
        self.doc.takes = Some(SchemaGenerator::subschema_for::<T>);
        self
    }

    /// The form it takes.
    pub(crate) fn form<T: JsonSchema>(mut self) -> Self {
        self.doc.form = Some(SchemaGenerator::subschema_for::<T>);
        self
    }

    /// A picture by itself or as a file of a form, with these parameters in the query or as fields.
    pub(crate) fn pictures<T: JsonSchema>(mut self) -> Self {
        self.doc.pictures = Some(T::json_schema);
        self
    }

    /// The body it gives.
    pub(crate) fn gives<T: JsonSchema>(mut self) -> Self {
        self.doc.gives = Some(SchemaGenerator::subschema_for::<T>);
        self
    }

    /// The pieces it streams when asked to.
    pub(crate) fn streams<T: JsonSchema>(mut self) -> Self {
        self.doc.streams = Some(SchemaGenerator::subschema_for::<T>);
        self
    }

    /// The media type of what it gives, where that is not JSON.
    pub(crate) fn media(mut self, media: &'static str) -> Self {
        self.doc.media = media;
        self
    }
}

/// Puts routes into force, in their order: the first whose path matches answers.
pub(crate) fn register(routes: &[Route], config: &mut web::ServiceConfig) {
    let mut done: Vec<&str> = Vec::new();
    for route in routes {
        if done.contains(&route.path) {
            continue;
        }
        done.push(route.path);
        let of_path: Vec<&Route> = routes.iter().filter(|other| other.path == route.path).collect();
        // A resource for each: of several patterns actix-web would make expressions, where a path without parameters is
        // only compared.
        for path in std::iter::once(route.path).chain(route.aliases.iter().copied()) {
            config.service(resource(path, &of_path));
        }
    }
    config.default_service(web::to(|http: HttpRequest| std::future::ready(no_route(&http))));
}

/// What is at a path, by method.
fn resource(path: &str, routes: &[&Route]) -> Resource {
    let mut resource = web::resource(path);
    for route in routes {
        for method in route.methods() {
            let route = (*route).clone();
            resource = resource.route(web::method(method.clone()).to(
                move |http: HttpRequest, payload: web::Payload| {
                    let route = route.clone();
                    async move { dispatch(&route, http, payload).await }
                },
            ));
        }
    }
    let allowed: Vec<_> = routes.iter().flat_map(|route| route.methods()).map(Method::as_str).collect();
    let allowed = allowed.join(", ");
    resource
        .default_service(web::to(move |http: HttpRequest| std::future::ready(wrong_method(&http, &allowed))))
}

/// From an HTTP request to an answer: who asks, may they, then the handler; and whatever fails in the route's words.
async fn dispatch(route: &Route, http: HttpRequest, payload: web::Payload) -> HttpResponse {
    let started = Instant::now();
    let counted = Counted::new(&http, route.path, started);
    let id = request_id(&http);
    let Some(app) = http.app_data::<web::Data<App>>().cloned() else {
        return error::response(&Error::internal("the server has no host"), route.dialect);
    };
    let admitted = caller::admit(&app, route.scope, &http);
    let limited = admitted.as_ref().ok().cloned();
    let admin = admitted.is_ok() && route.scope == Scope::Admin;
    let answer = match admitted {
        Ok(caller) => {
            let call = Call::new(app.clone(), caller, http.clone(), payload, id.clone(), started);
            // What a panic left half done is dropped with the call.
            let handler = AssertUnwindSafe(async { (route.handler)(call).await });
            handler.catch_unwind().await.unwrap_or_else(|panic| Err(crate::fault::panicked(&*panic)))
        }
        Err(error) => Err(error),
    };
    let mut response = answer.unwrap_or_else(|error| {
        let mut response = error::response(&error, route.dialect);
        if let (StatusCode::TOO_MANY_REQUESTS, Some(caller)) = (response.status(), limited) {
            crate::limits::write(&app.host.limits(&caller), response.headers_mut());
        }
        tell(&http, &id, response.status(), &error);
        response
    });
    if admin && route.path.starts_with("/admin/") {
        license_state(&app, &mut response);
    }
    finish(&http, &mut response, &id);
    count::to_the_end(counted, response)
}

/// Notes in the log why a request got no answer, under the id that its answer has.
fn tell(http: &HttpRequest, id: &str, status: StatusCode, error: &Error) {
    macro_rules! told {
        ($level:ident, $text:literal) => {
            tracing::$level!(
                request = id,
                path = http.path(),
                status = status.as_u16(),
                code = error.code.name(),
                reason = %error.reason,
                error = %error.message,
                $text
            )
        };
    }
    if status.is_server_error() { told!(warn, "request failed") } else { told!(info, "request refused") }
}

/// How licences stand, for whoever may know it: `com.acme.trt=grace, com.acme.speech=valid`.
fn license_state(app: &App, response: &mut HttpResponse) {
    let states = app.host.license_states();
    if !states.is_empty() {
        let states: Vec<_> = states.into_iter().map(|(plugin, state)| format!("{plugin}={state}")).collect();
        crate::head::set("x-license-state", &states.join(", "), response.headers_mut());
    }
}

/// The id that the client sent, if it is one, else a new one.
fn request_id(http: &HttpRequest) -> String {
    let good = |id: &&str| {
        !id.is_empty()
            && id.len() <= 128
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let sent = http.headers().get("x-request-id").and_then(|id| id.to_str().ok()).filter(good);
    sent.map_or_else(new_id, str::to_owned)
}

/// An id for a request that has none.
pub(crate) fn new_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

/// What every answer has.
fn finish(http: &HttpRequest, response: &mut HttpResponse, id: &str) {
    name(response, id);
    cors::write(http, response.headers_mut());
    if http.conn_data::<Rc<Connection>>().is_some_and(|connection| connection.refused_body().is_some()) {
        response.head_mut().set_connection_type(ConnectionType::Close);
    }
}

/// Writes the request's id.
pub(crate) fn name(response: &mut HttpResponse, id: &str) {
    crate::head::set("x-request-id", id, response.headers_mut());
}

/// As what a request counts that no route takes.
const NO_ROUTE: &str = "none";

fn no_route(http: &HttpRequest) -> HttpResponse {
    if let Some(answer) = cors::preflight(http) {
        return answer;
    }
    let message =
        format!("there is no `{} {}`; `/openapi.json` lists what there is", http.method(), http.path());
    let error = Error::new(ErrorCode::NotFound, message).with_reason(reason::ROUTE_NOT_FOUND);
    let mut response = error::response(&error, Dialect::of_path(http.path()));
    let id = request_id(http);
    tell(http, &id, response.status(), &error);
    finish(http, &mut response, &id);
    count::to_the_end(Counted::new(http, NO_ROUTE, Instant::now()), response)
}

fn wrong_method(http: &HttpRequest, allowed: &str) -> HttpResponse {
    if let Some(answer) = cors::preflight(http) {
        return answer;
    }
    let message = format!("`{}` does not take {}, only {allowed}", http.path(), http.method());
    let error = Error::invalid(message).with_reason(reason::METHOD_NOT_ALLOWED);
    let mut response = error::response(&error, Dialect::of_path(http.path()));
    if let Ok(allowed) = HeaderValue::try_from(allowed) {
        response.headers_mut().insert(ALLOW, allowed);
    }
    let id = request_id(http);
    tell(http, &id, response.status(), &error);
    finish(http, &mut response, &id);
    count::to_the_end(Counted::new(http, NO_ROUTE, Instant::now()), response)
}

/// A parameter of the path, decoded.
pub(crate) async fn path_param<T: serde::de::DeserializeOwned + 'static>(http: &HttpRequest) -> Result<T> {
    web::Path::<T>::from_request(http, &mut Payload::None)
        .await
        .map(web::Path::into_inner)
        .map_err(|error| Error::invalid(format!("the path is not as expected: {error}")))
}
