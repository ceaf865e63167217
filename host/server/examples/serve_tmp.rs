//! tmp
use backplane::{Config, Host};
#[allow(clippy::unwrap_used, clippy::print_stdout, reason = "tmp")]
fn main() {
    let state = std::env::args().nth(1).unwrap();
    let overrides: Vec<(String,String)> = std::env::args().skip(2).filter_map(|a| a.split_once('=').map(|(k,v)| (k.to_owned(), v.to_owned()))).collect();
    let config = Config::load(backplane::config::LoadOptions { overrides, ..Default::default() }).unwrap();
    let host = Host::builder().config(config).state_dir(state).start().unwrap();
    for plugin in host.plugins() { println!("{plugin:?}"); }
    let server = backplane_server::Server::start(host.clone(), host.config().server.clone()).unwrap();
    println!("{} {:?}", server.address(), host.first_key().map(|k| k.secret));
    std::thread::park();
}
