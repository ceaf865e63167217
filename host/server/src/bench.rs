//! For `tests/bench` and the gate's own tests only: the same routes without the gate.

use crate::{Server, app, route};
use actix_web::{App as Web, HttpServer};
use backplane::Host;
use backplane::config::ServerConfig;
use std::io;

/// A server as actix-web makes it, with its own defaults.
///
/// # Errors
/// When the address cannot be had.
pub fn without_gate(host: Host, config: ServerConfig) -> io::Result<Server> {
    Server::start_as(host, config, |listener, shared, config| {
        let server = HttpServer::new(move || {
            let routes = app::routes();
            Web::new().app_data(shared.clone()).configure(|config| route::register(&routes, config))
        });
        Ok(server.workers(config.workers.max(1)).disable_signals().listen(listener)?.run())
    })
}
