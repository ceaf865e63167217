//! The HTTP front of a Backplane host: OpenAI's API, the Open Inference Protocol, any capability, administration, and
//! a page.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use backplane::{Config, Host};
//! use backplane_server::Server;
//!
//! let host = Host::builder().config(Config::default()).start()?;
//! let server = Server::start(host.clone(), host.config().server.clone())?;
//! println!("listening on {}", server.address());
//! # Ok(())
//! # }
//! ```
//!
//! `app.rs` lists every route; `route.rs` is the way from a request to its handler; `error.rs` alone knows statuses of
//! failures. What a connection must survive is in `gate`.

mod admin;
mod app;
#[doc(hidden)]
pub mod bench;
mod call;
mod caller;
mod capabilities;
mod count;
mod elements;
mod error;
mod fault;
mod fetch;
mod gate;
mod head;
mod health;
mod limits;
mod multipart;
mod oip;
mod openai;
mod openapi;
mod options;
mod page;
mod parse;
mod route;
mod sse;
mod stream;
mod translate;
mod vision;

use actix_web::{dev, web};
use backplane::Host;
use backplane::config::ServerConfig;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

/// How long it takes at most to end what is not to finish.
const AT_ONCE: Duration = Duration::from_secs(1);

/// A server that runs.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    handle: dev::ServerHandle,
    thread: std::thread::JoinHandle<io::Result<()>>,
}

impl Server {
    /// Listens, and answers with what the host says. Runs on a thread of its own with as many workers as configured.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn start(host: Host, config: ServerConfig) -> io::Result<Server> {
        Self::start_as(host, config, |listener, shared, config| {
            gate::serve(listener, shared, config, app::routes)
        })
    }

    fn start_as(
        host: Host,
        config: ServerConfig,
        serve: impl FnOnce(TcpListener, web::Data<app::App>, &ServerConfig) -> io::Result<dev::Server>
        + Send
        + 'static,
    ) -> io::Result<Server> {
        let listener = TcpListener::bind(config.address)?;
        let address = listener.local_addr()?;
        let (body_limit, json_depth) = (config.body_limit, config.json_depth);
        let fetcher = fetch::Fetcher::new(host.config().fetch.clone());
        let shared =
            web::Data::new(app::App { host, body_limit, json_depth, fetcher, files: Default::default() });
        let (sender, receiver) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name("server".to_owned()).spawn(move || {
            actix_web::rt::System::new().block_on(async move {
                let server = serve(listener, shared, &config)?;
                sender.send(server.handle()).ok();
                server.await
            })
        })?;
        let handle = receiver.recv().map_err(|_| io::Error::other("the server's thread ended at once"))?;
        Ok(Server { address, handle, thread })
    }

    /// Where it listens: the port that the system chose where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more connections and lets open requests finish, unless `drain` is zero; returns when they have, or
    /// after `drain`. What is still open then ends after `server.drain`, or with the process.
    pub async fn stop(self, drain: Duration) {
        let stopped = self.handle.stop(!drain.is_zero());
        // A thread, since the caller's executor may have no clock.
        let (late, too_late) = futures::channel::oneshot::channel();
        std::thread::spawn(move || {
            std::thread::sleep(drain.max(AT_ONCE));
            late.send(()).ok();
        });
        futures::future::select(std::pin::pin!(stopped), too_late).await;
        drop(self.thread);
    }
}
