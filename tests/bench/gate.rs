//! What the gate costs: the same routes behind it and without it, on one connection. `docs/http-gate.md` has figures.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot measure says so and ends")]

mod support;

use backplane::config::LoadOptions;
use backplane::{Config, Host};
use backplane_server::{Server, bench};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use support::Against::{Nothing, Peer};
use support::{Table, cpu, median, thread_cpu};

const ROUNDS: usize = 15;

fn main() {
    let state = tempfile::tempdir().unwrap();
    let overrides = [("server.address", "127.0.0.1:0"), ("server.workers", "1"), ("auth.enabled", "false")];
    let overrides = overrides.map(|(key, value)| (key.to_owned(), value.to_owned())).into_iter().collect();
    let config = Config::load(LoadOptions { overrides, ..LoadOptions::default() }).unwrap();
    let host = Host::builder().config(config).state_dir(state.path()).start().unwrap();
    let settings = || host.config().server.clone();
    let gated = Server::start(host.clone(), settings()).unwrap();
    let plain = bench::without_gate(host.clone(), settings()).unwrap();

    let mut table = Table::new("gate");
    let headers = "host: localhost\r\nuser-agent: OpenAI/Python 1.99.0\r\naccept: application/json\r\n\
        authorization: Bearer bp-0123456789abcdef0123456789abcdef\r\ncontent-type: application/json\r\n\
        accept-encoding: gzip, deflate\r\nx-stainless-lang: python\r\nx-stainless-os: Linux\r\n";
    let get = format!("GET /healthz HTTP/1.1\r\n{headers}\r\n");
    // No model has this name: the body is read and parsed, and that is all.
    let post = |size: usize| {
        let body = format!("{{\"model\":\"none\",\"messages\":[],\"user\":\"{}\"}}", "x".repeat(size));
        format!("POST /v1/chat/completions HTTP/1.1\r\n{headers}content-length: {}\r\n\r\n{body}", body.len())
    };
    for (name, request, count) in [
        ("GET, 300 bytes of header", get, 4000),
        ("POST, 1 KB of JSON", post(1000), 4000),
        ("POST, 1 MB of JSON", post(1_000_000), 40),
    ] {
        // Side by side, so that what else the machine does meets both.
        let pairs: Vec<(f64, f64)> = (0..ROUNDS)
            .map(|_| (ask(plain.address(), &request, count), ask(gated.address(), &request, count)))
            .collect();
        let without = median(pairs.iter().map(|pair| pair.0).collect());
        let with = median(pairs.iter().map(|pair| pair.1).collect());
        table.row(format!("{name}: the server's CPU time"), with, "µs", Peer("without the gate", without));
        let gate = median(pairs.iter().map(|pair| pair.1 - pair.0).collect());
        table.row("  of that the gate's", gate, "µs", Nothing);
    }
}

/// The server's CPU time for a request, in microseconds.
fn ask(address: SocketAddr, request: &str, count: usize) -> f64 {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut buffer = vec![0; 64 * 1024];
    let mut once = || {
        stream.write_all(request.as_bytes()).unwrap();
        let mut read = 0;
        // The body of each answer is JSON, and comes with or after the header.
        while !(read != 0 && buffer[read - 1] == b'}') {
            let size = stream.read(&mut buffer[read..]).unwrap();
            assert_ne!(size, 0, "closed");
            read += size;
        }
    };
    (0..count / 10).for_each(|_| once());
    let before = cpu() - thread_cpu();
    (0..count).for_each(|_| once());
    (cpu() - thread_cpu() - before) / count as f64 * 1e6
}
