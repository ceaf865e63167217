//! Who asks, and whether they may.

use crate::app::App;
use actix_web::HttpRequest;
use actix_web::http::Method;
use actix_web::http::header::{AUTHORIZATION, FORWARDED, HOST, ORIGIN, VIA, X_FORWARDED_FOR};
use actix_web::http::uri::Authority;
use backplane::{Caller, Error, ErrorCode, Result};
use std::net::IpAddr;

/// Who may use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Anybody: the process's health and the page's own files.
    Open,
    /// Whoever has a key.
    User,
    /// The same, where the key may also be in the body: the handler lets the caller in, by [`Call::claim`](crate::call::Call::claim).
    InBody,
    /// Administrators.
    Admin,
    /// Anybody on this machine that no proxy speaks for, else administrators.
    Metrics,
}

/// Lets a caller in, or says why not.
///
/// # Errors
/// 401 without a good key, 403 without the right role, from a page of another site, or by a name that is not this
/// server's.
pub(crate) fn admit(app: &App, scope: Scope, http: &HttpRequest) -> Result<Caller> {
    if scope != Scope::Open {
        check_host(app, http)?;
    }
    check_origin(app, http)?;
    match scope {
        Scope::Open | Scope::InBody => Ok(Caller::internal("anonymous")),
        Scope::Metrics if is_local(http) => Ok(Caller::internal("anonymous")),
        Scope::User => identify(app, http),
        Scope::Admin | Scope::Metrics => {
            let caller = identify(app, http)?;
            if caller.is_admin() { Ok(caller) } else { Err(not_admin()) }
        }
    }
}

fn not_admin() -> Error {
    Error::new(ErrorCode::PermissionDenied, "this needs a key with the role `admin`")
        .with_reason("admin_only")
}

fn identify(app: &App, http: &HttpRequest) -> Result<Caller> {
    identify_by(app, http, credential(http)?)
}

/// Lets a caller in who may show the key in the body instead of the header.
///
/// # Errors
/// As [`admit`].
pub(crate) fn claim(app: &App, http: &HttpRequest, key: Option<&str>) -> Result<Caller> {
    identify_by(app, http, credential(http)?.or(key))
}

fn identify_by(app: &App, http: &HttpRequest, credential: Option<&str>) -> Result<Caller> {
    // The peer, whatever a header says: no proxy is told to be believed, and a guesser could name any address.
    match http.peer_addr() {
        Some(peer) => app.host.identify_from(credential, peer.ip()),
        None => app.host.identify(credential),
    }
}

/// The key in `authorization: Bearer …`.
fn credential(http: &HttpRequest) -> Result<Option<&str>> {
    let mut values = http.headers().get_all(AUTHORIZATION);
    let Some(value) = values.next() else { return Ok(None) };
    let bearer =
        |text: &'static str| Error::new(ErrorCode::Unauthenticated, text).with_reason("invalid_api_key");
    if values.next().is_some() {
        return Err(bearer("there are two `authorization` headers; send one"));
    }
    let text = value.to_str().map_err(|_| bearer("the `authorization` header is not plain text"))?;
    match text.split_once(' ') {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Some(key.trim())),
        _ => Err(bearer("the `authorization` header must be `Bearer <key>`")),
    }
}

/// Where keys are off, whoever reaches the server is an administrator, and so would be a web page whose own name is made
/// to lead to 127.0.0.1: to a browser it is the server's own page. What such a page cannot do is ask by another name
/// than its own. An address is no name, and `localhost` is nobody's to lead elsewhere.
fn check_host(app: &App, http: &HttpRequest) -> Result<()> {
    let config = app.host.config();
    if config.auth.enabled {
        return Ok(());
    }
    let origins = &config.server.cors_origins;
    let foreign = http
        .headers()
        .get_all(HOST)
        .map(|host| String::from_utf8_lossy(host.as_bytes()))
        .find(|host| !is_own_name(host, origins));
    foreign.map_or(Ok(()), |host| {
        let name = host_of(&host).unwrap_or_default();
        let message = format!(
            "this server does not answer to the name `{name}` while `auth.enabled` is false; ask `localhost` or an \
             address, add `http://{name}` to `server.cors_origins`, or turn keys on"
        );
        Err(Error::new(ErrorCode::PermissionDenied, message).with_reason("host_not_allowed"))
    })
}

fn is_own_name(host: &str, origins: &[String]) -> bool {
    let Some(name) = host_of(host) else { return false };
    name.parse::<IpAddr>().is_ok()
        || name == "localhost"
        || name.ends_with(".localhost")
        || origins
            .iter()
            .filter_map(|origin| origin.split_once("://"))
            .any(|(_, listed)| host_of(listed).is_some_and(|listed| listed == name))
}

/// The name or address in `name:port` or `[address]:port`, in lower case.
fn host_of(authority: &str) -> Option<String> {
    let authority: Authority = authority.parse().ok()?;
    let host = authority.host();
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Some(host.to_ascii_lowercase())
}

/// A browser sends `origin` with every POST. One of another site is refused unless the configuration allows it: where
/// keys are off, any page the operator visits could otherwise act as an administrator.
fn check_origin(app: &App, http: &HttpRequest) -> Result<()> {
    if matches!(*http.method(), Method::GET | Method::HEAD) {
        return Ok(());
    }
    let Some(origin) = http.headers().get(ORIGIN).map(|origin| origin.as_bytes()) else { return Ok(()) };
    let host = http.headers().get(HOST).map(|host| host.as_bytes()).unwrap_or_default();
    let own = [&b"http://"[..], b"https://"].iter().any(|scheme| origin.strip_prefix(*scheme) == Some(host));
    if own || app.allows_origin(origin) {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::PermissionDenied,
        "this page's origin may not call the server; add it to `server.cors_origins` if it should",
    )
    .with_reason("origin_not_allowed"))
}

/// Whether somebody on this machine asks for themselves: a proxy on it speaks for anybody.
fn is_local(http: &HttpRequest) -> bool {
    let proxied = [FORWARDED, X_FORWARDED_FOR, VIA].iter().any(|name| http.headers().contains_key(name));
    !proxied && http.peer_addr().is_some_and(|peer| peer.ip().to_canonical().is_loopback())
}
