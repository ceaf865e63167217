//! A host with its HTTP front inside another program.
//!
//! ```text
//! cargo run -p backplane-server --example serve -- STATE_DIR PLUGIN_DIR
//! ```

use backplane::{Config, Host};
use backplane_server::Server;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(state), Some(plugins)) = (arguments.next(), arguments.next()) else {
        return Err("usage: serve STATE_DIR PLUGIN_DIR".into());
    };
    let host = Host::builder().config(Config::default()).state_dir(state).plugin_dir(plugins).start()?;
    let server = Server::start(host.clone(), host.config().server.clone())?;
    eprintln!("http://{}; Enter ends it", server.address());
    std::io::stdin().read_line(&mut String::new())?;
    futures::executor::block_on(async {
        server.stop(host.config().server.drain).await;
        host.shutdown(host.config().server.drain).await;
    });
    Ok(())
}
