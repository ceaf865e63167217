//! The way to a server: its connections, TLS, a proxy in between.
//!
//! hyper-util's client, which keeps connections, on connectors of hyper and rustls. Whether there is a proxy is settled
//! once: all requests go to one server.

use crate::settings::Upstream;
use hyper::Uri;
use hyper::body::{Bytes, Incoming};
use hyper::header::HeaderValue;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls_platform_verifier::Verifier;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tower_service::Service;

/// How long a connection that nobody uses is kept, and how soon one is asked whether its other end is there still.
const IDLE: Duration = Duration::from_secs(90);
const ALIVE: Duration = Duration::from_secs(15);
/// How long what was sent may stay unacknowledged.
const UNHEARD: Duration = Duration::from_secs(30);

pub type Body = http_body_util::Full<Bytes>;
pub type Response = hyper::Response<Incoming>;
pub type Error = hyper_util::client::legacy::Error;
type Failure = Box<dyn StdError + Send + Sync>;

/// Asks a server.
pub struct Transport {
    http: hyper_util::client::legacy::Client<Connector, Body>,
    /// For a proxy that passes requests on and wants to know from whom.
    pub proxy_authorization: Option<HeaderValue>,
}

impl Transport {
    /// # Errors
    /// What is wrong with the settings, by their names.
    pub fn new(upstream: &Upstream, base: &Uri) -> Result<Self, String> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        // Of several addresses of a host each has its part of it.
        tcp.set_connect_timeout(Some(upstream.connect_timeout));
        tcp.set_tcp_user_timeout(Some(UNHEARD));
        tcp.set_keepalive(Some(ALIVE));
        tcp.set_keepalive_interval(Some(ALIVE));
        tcp.set_keepalive_retries(Some(3));
        let plain = tls(upstream)?;
        let mut both = plain.clone();
        both.alpn_protocols = match upstream.http2 {
            true => vec![b"h2".to_vec()],
            false => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        };
        let secure = base.scheme_str() == Some("https");
        let mut proxy_authorization = None;
        let way = match proxy(upstream, base)? {
            None => Way::Direct(tcp),
            Some(proxy) => {
                let to_proxy = HttpsConnector::from((tcp, Arc::new(plain)));
                match secure {
                    true => {
                        let tunnel = Tunnel::new(proxy.uri().clone(), to_proxy);
                        Way::Through(match proxy.basic_auth() {
                            Some(value) => tunnel.with_auth(value.clone()),
                            None => tunnel,
                        })
                    }
                    false => {
                        proxy_authorization = proxy.basic_auth().cloned();
                        Way::By(proxy.uri().clone(), to_proxy)
                    }
                }
            }
        };
        let connector = Connector {
            https: HttpsConnector::from((way, Arc::new(both))),
            timeout: upstream.connect_timeout,
        };
        let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .http2_only(upstream.http2)
            .build(connector);
        Ok(Self { http, proxy_authorization })
    }

    /// Sends a request and waits until its answer begins.
    ///
    /// # Errors
    /// That no connection could be made, or that it broke.
    pub async fn send(&self, request: hyper::Request<Body>) -> Result<Response, Error> {
        self.http.request(request).await
    }
}

/// Trusts what the system trusts, and what the settings name.
fn tls(upstream: &Upstream) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))?;
    let mut roots = Vec::new();
    if let Some(ca) = &upstream.ca {
        let unread = |error: &dyn fmt::Display| format!("`ca` = `{}`: {error}", ca.display());
        let pem = std::fs::read(ca).map_err(|error| unread(&error))?;
        for root in CertificateDer::pem_slice_iter(&pem) {
            roots.push(root.map_err(|error| unread(&error))?);
        }
        if roots.is_empty() {
            return Err(unread(&"there is no certificate (PEM) in it"));
        }
    }
    let verifier = match roots.is_empty() {
        true => Verifier::new(provider),
        false => Verifier::new_with_extra_roots(roots, provider),
    };
    let verifier = verifier.map_err(|error| format!("certificates to trust: {error}"))?;
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth())
}

/// The proxy for requests to `base`, if they go by one.
fn proxy(upstream: &Upstream, base: &Uri) -> Result<Option<Intercept>, String> {
    let proxy = match upstream.proxy.as_deref() {
        Some("") => return Ok(None),
        Some(said) => {
            let found = Matcher::builder().all(said).build().intercept(base);
            Some(found.ok_or("`proxy` is not the address of one: `http://proxy.example.org:3128`")?)
        }
        None => Matcher::from_env().intercept(base),
    };
    match proxy.as_ref().and_then(|proxy| proxy.uri().scheme_str()) {
        None | Some("http" | "https") => Ok(proxy),
        Some(other) => {
            let from = match upstream.proxy {
                Some(_) => "`proxy`".to_owned(),
                None => format!("{} of the environment", variable(other)),
            };
            Err(format!(
                "{from}: a proxy is asked by `http://` or `https://`, not by `{other}://`; `proxy = \"\"` goes by none"
            ))
        }
    }
}

/// The variable with a proxy of this scheme, of those that [`Matcher::from_env`] reads.
fn variable(scheme: &str) -> String {
    let names = ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];
    let is = |name: &&str| {
        let said = std::env::var(name).unwrap_or_default().to_lowercase();
        said.starts_with(&format!("{}://", scheme.to_lowercase()))
    };
    names.into_iter().find(is).map_or_else(|| "the proxy".to_owned(), |name| format!("`{name}`"))
}

/// Makes connections, in time.
#[derive(Clone)]
struct Connector {
    https: HttpsConnector<Way>,
    timeout: Duration,
}

/// It took longer than `connect_timeout`.
#[derive(Debug)]
pub struct TooLong;

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it took too long")
    }
}

impl StdError for TooLong {}

/// Whether an error is, or comes from, a wait that ended.
fn timed_out(error: &(dyn StdError + 'static)) -> bool {
    std::iter::successors(Some(error), |error| (*error).source()).any(|error| {
        error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::TimedOut)
    })
}

impl Service<Uri> for Connector {
    type Response = MaybeHttpsStream<Hop>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Failure>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.https.poll_ready(context)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let made = tokio::time::timeout(self.timeout, self.https.call(to));
        Box::pin(async move {
            match made.await {
                // The limit of each address ends with that of all of them, and is heard of first.
                Ok(Err(error)) if timed_out(&*error) => Err(TooLong.into()),
                Ok(made) => made,
                Err(_) => Err(TooLong.into()),
            }
        })
    }
}

/// How a server is reached.
#[derive(Clone)]
enum Way {
    Direct(HttpConnector),
    /// By a tunnel that a proxy keeps open.
    Through(Tunnel<HttpsConnector<HttpConnector>>),
    /// By a proxy that passes each request on.
    By(Uri, HttpsConnector<HttpConnector>),
}

impl Service<Uri> for Way {
    type Response = Hop;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Hop, Failure>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        match self {
            Self::Direct(tcp) => tcp.poll_ready(context).map_err(Into::into),
            Self::Through(tunnel) => tunnel.poll_ready(context).map_err(Into::into),
            Self::By(_, proxy) => proxy.poll_ready(context),
        }
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        match self {
            Self::Direct(tcp) => {
                let made = tcp.call(to);
                Box::pin(async move { Ok(Hop { io: MaybeHttpsStream::Http(made.await?), by_proxy: false }) })
            }
            Self::Through(tunnel) => {
                let made = tunnel.call(to);
                Box::pin(async move { Ok(Hop { io: made.await?, by_proxy: false }) })
            }
            Self::By(at, proxy) => {
                let made = proxy.call(at.clone());
                Box::pin(async move { Ok(Hop { io: made.await?, by_proxy: true }) })
            }
        }
    }
}

/// A connection to a server or to a proxy.
struct Hop {
    io: MaybeHttpsStream<TokioIo<TcpStream>>,
    /// Whether requests have to name the server.
    by_proxy: bool,
}

impl Connection for Hop {
    fn connected(&self) -> Connected {
        self.io.connected().proxy(self.by_proxy)
    }
}

impl Read for Hop {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, into)
    }
}

impl Write for Hop {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
