//! Which web pages may call the server: those of `server.cors_origins`, and without it none but its own.

use crate::app::App;
use actix_web::http::Method;
use actix_web::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, HeaderValue, ORIGIN, VARY,
};
use actix_web::{HttpRequest, HttpResponse, web};

/// How long a browser need not ask again, in seconds.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");
const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, PATCH, DELETE");

/// Tells a browser that the page may read the answer, where it may.
pub(crate) fn write(http: &HttpRequest, headers: &mut HeaderMap) {
    if let Some(origin) = allowed(http) {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("*"));
        headers.append(VARY, HeaderValue::from_static("origin"));
    }
}

/// Answers a browser that asks first, for a page that may call. Others get what any unknown method gets.
pub(crate) fn preflight(http: &HttpRequest) -> Option<HttpResponse> {
    let asked = http.headers();
    if *http.method() != Method::OPTIONS || !asked.contains_key(ACCESS_CONTROL_REQUEST_METHOD) {
        return None;
    }
    allowed(http)?;
    let mut response = HttpResponse::NoContent().finish();
    let headers = response.headers_mut();
    write(http, headers);
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    headers.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    if let Some(wanted) = asked.get(ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
    }
    Some(response)
}

fn allowed(http: &HttpRequest) -> Option<&HeaderValue> {
    let origin = http.headers().get(ORIGIN)?;
    http.app_data::<web::Data<App>>()?.allows_origin(origin.as_bytes()).then_some(origin)
}
