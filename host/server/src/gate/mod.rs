//! What stands between the network and the routes: who may send what, how fast, and how much of it.
//!
//! `inspect.rs` decides by the bytes, `stream.rs` by the clock, `refusal.rs` has the words. `docs/http-gate.md` lists
//! what is let through and what is not, row by row, with the test of each.

mod connection;
pub(crate) mod cors;
mod inspect;
mod refusal;
mod stream;

pub(crate) use connection::Connection;
pub(crate) use refusal::Refusal;

use crate::app::App;
use crate::error::{self, Dialect};
use crate::route::{self, Route};
use actix_http::{HttpService, Request, Response};
use actix_server::{Server, ServerBuilder};
use actix_service::{
    IntoServiceFactory as _, Service as _, ServiceFactoryExt as _, apply_fn_factory, fn_service, map_config,
};
use actix_web::body::BoxBody;
use actix_web::dev::AppConfig;
use actix_web::rt::net::TcpStream;
use actix_web::{HttpResponse, web};
use backplane::config::ServerConfig;
use backplane::metrics::Metrics;
use futures::future::{Either, ready};
use inspect::Limits;
use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use stream::Gated;

/// Connections that a thread takes beyond `server.max_connections`, to tell them so. More wait in the system's queue.
const REFUSED_AT_ONCE: usize = 256;

/// What holds for every connection of a thread.
struct Rules {
    limits: Limits,
    /// Most bytes that are read of requests that are not passed on yet.
    held: usize,
    first_byte: Duration,
    header: Duration,
    body: Duration,
    body_total: Duration,
    /// Bytes a second; 0: any.
    body_rate: u64,
    send: Duration,
}

impl Rules {
    fn new(config: &ServerConfig) -> Self {
        let (uri, header) = (config.uri_limit, config.header_limit);
        Self {
            limits: Limits { uri, header, fields: config.max_headers, body: config.body_limit as u64 },
            held: uri + header + 8 * 1024,
            first_byte: config.first_byte_timeout,
            header: config.header_timeout,
            body: config.body_timeout,
            body_total: config.body_total_timeout,
            body_rate: config.body_rate,
            send: config.send_timeout,
        }
    }
}

/// Counts the connections of all threads.
#[derive(Clone)]
struct Counter {
    open: Arc<AtomicUsize>,
    limit: usize,
    metrics: Metrics,
}

impl Counter {
    fn count(&self) -> Open {
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        self.metrics.connection_opened();
        Open { counter: self.clone(), in_excess: self.limit <= before }
    }
}

/// An open connection.
struct Open {
    counter: Counter,
    in_excess: bool,
}

impl Open {
    fn refusal(&self) -> Option<Refusal> {
        self.in_excess.then_some(Refusal::TooManyConnections { limit: self.counter.limit })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.counter.open.fetch_sub(1, Ordering::Relaxed);
        self.counter.metrics.connection_closed();
    }
}

/// Serves these routes behind the gate.
///
/// # Errors
/// When the listener cannot be used.
pub(crate) fn serve(
    listener: TcpListener,
    shared: web::Data<App>,
    config: &ServerConfig,
    routes: impl Fn() -> Vec<Route> + Clone + Send + 'static,
) -> io::Result<Server> {
    let address = listener.local_addr()?;
    let counter = Counter {
        open: Arc::default(),
        limit: config.max_connections,
        metrics: shared.host.metrics().clone(),
    };
    let builder = ServerBuilder::new()
        .workers(workers(config))
        .max_concurrent_connections(config.max_connections.saturating_add(REFUSED_AT_ONCE))
        .shutdown_timeout(config.drain.as_secs().max(1))
        .disable_signals();
    let draining = builder.graceful_shutdown_signal();
    let config = config.clone();
    let builder = builder.listen("http", listener, move || {
        let (rules, counter, draining) = (Rc::new(Rules::new(&config)), counter.clone(), draining.clone());
        let routes = routes();
        let app = actix_web::App::new()
            .app_data(shared.clone())
            .configure(|config| route::register(&routes, config))
            .into_factory()
            .map_err(|error| error.error_response());
        let app = map_config(app, |()| AppConfig::default());
        let metrics = counter.metrics.clone();
        let watched = apply_fn_factory(app, move |request: Request, app| {
            let connection = request.conn_data::<Rc<Connection>>().cloned().unwrap_or_default();
            if let Some(refusal) = connection.take_refused_head() {
                return Either::Left(ready(Ok(refused(refusal, &request, &metrics))));
            }
            let answer = app.call(request);
            Either::Right(async move {
                let answer = answer.await;
                connection.answered();
                answer.map(Response::<BoxBody>::from)
            })
        });
        let http = HttpService::build()
            .graceful_shutdown_signal(move || {
                let draining = draining.clone();
                async move { draining.notified().await }
            })
            .keep_alive(config.keep_alive)
            // The gate's own are stricter.
            .client_request_timeout(Duration::ZERO)
            .client_disconnect_timeout(Duration::ZERO)
            .local_addr(address)
            .on_connect_ext(|io: &Gated, data| {
                data.insert(io.connection());
            })
            .h1(watched);
        fn_service(move |io: TcpStream| {
            let peer = io.peer_addr().ok();
            ready(Ok((Gated::new(io, Rc::clone(&rules), counter.count()), peer)))
        })
        .and_then(http)
    })?;
    Ok(builder.run())
}

/// One per core where none are configured.
fn workers(config: &ServerConfig) -> usize {
    match config.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        workers => workers,
    }
}

/// The answer to what was not let through.
fn refused(refusal: Refusal, request: &Request, metrics: &Metrics) -> Response<BoxBody> {
    let (started, error) = (Instant::now(), refusal.error());
    let mut response: HttpResponse = error::response(&error, Dialect::of_path(request.path()));
    let id = route::new_id();
    tracing::info!(
        request = id,
        peer = request.peer_addr().map(tracing::field::display),
        status = response.status().as_u16(),
        reason = %error.reason,
        message = %error.message,
        "refused"
    );
    route::name(&mut response, &id);
    metrics.http_ended("", "refused", response.status().as_u16(), started.elapsed());
    response.into()
}

#[cfg(test)]
mod tests;
