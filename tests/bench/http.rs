//! What HTTP costs: the server in a process of its own with one worker, beside actix-web alone in the same arrangement.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot measure says so and ends")]

mod support;

use actix_web::{App, HttpResponse, HttpServer, web};
use serde_json::{Value, json};
use std::io::Write;
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};
use support::Against::{AtMost, Nothing, Peer};
use support::{Child, Table, median, wire};

const CONNECTIONS: usize = 32;
const ROUNDS: usize = 9;
/// How long a round asks a server.
const SPAN: Duration = Duration::from_millis(700);

/// The argument that makes this program the peer.
const PEER: &str = "--plain";

/// One kind of request to one server.
struct Way {
    name: &'static str,
    server: u32,
    address: SocketAddr,
    request: Vec<u8>,
    /// At 32 connections: CPU microseconds of the server for each request, and requests per second.
    many: Vec<(f64, f64)>,
    /// At one connection: microseconds from request to answer, p50 of a round.
    one: Vec<f64>,
}

fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip_while(|argument| argument != PEER).skip(1);
    if let Some(address) = arguments.next() {
        return plain(&address);
    }
    let plugins = support::plugins(&["backplane-echo"]);
    let state = tempfile::tempdir()?;
    let config = state.path().join("bench.toml");
    std::fs::write(
        &config,
        "[server]\nworkers = 1\n[cache]\ncapabilities = ['echo']\n[plugins.isolation]\n'*' = 'in-process'\n",
    )?;
    let ours = support::free_address();
    let mut command = Command::new(support::program());
    command.arg("serve").arg("--config").arg(&config).arg("--state").arg(state.path());
    command.arg("--plugin-dir").arg(plugins.path()).env("BACKPLANE__SERVER__ADDRESS", ours.to_string());
    let backplane = support::started(&mut command, ours);
    let theirs = support::free_address();
    let mut command = Command::new(std::env::current_exe()?);
    let actix = support::started(command.args([PEER, &theirs.to_string()]), theirs);

    let key = std::fs::read_to_string(state.path().join("admin.key"))?;
    let body = json!({"model": "echo", "params": {"text": "hello"}}).to_string();
    let request = |headers: &str| {
        format!(
            "POST /v1/capabilities/echo HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\
             content-type: application/json\r\n{headers}content-length: {}\r\n\r\n{body}",
            key.trim(),
            body.len()
        )
        .into_bytes()
    };
    let way = |name, server: &Child, address, request| Way {
        name,
        server: server.0.id(),
        address,
        request,
        many: Vec::new(),
        one: Vec::new(),
    };
    let mut ways = [
        way("actix-web alone: parse JSON, answer it", &actix, theirs, request("")),
        way("answered from the exact cache", &backplane, ours, request("")),
        way("echo, through the plugin", &backplane, ours, request("cache-control: no-store\r\n")),
    ];
    for way in &ways {
        closed_loop(way.address, &way.request, CONNECTIONS, Duration::from_millis(300));
    }
    assert!(ask(&ways[1]).contains("\r\nx-cache: exact\r\n"), "the cache did not answer");
    assert!(!ask(&ways[2]).contains("\r\nx-cache: exact\r\n"), "the cache answered instead of the plugin");
    for _ in 0..ROUNDS {
        for way in &mut ways {
            let before = support::cpu_of(way.server);
            let times = closed_loop(way.address, &way.request, CONNECTIONS, SPAN);
            let busy = (support::cpu_of(way.server) - before) / times.len() as f64 * 1e6;
            way.many.push((busy, times.len() as f64 / SPAN.as_secs_f64()));
            way.one.push(median(closed_loop(way.address, &way.request, 1, SPAN / 3)));
        }
        support::progress();
    }

    let mut table = Table::new("http");
    let busy = |way: &Way| median(way.many.iter().map(|(busy, _)| *busy).collect());
    let plain = (busy(&ways[0]), median(ways[0].one.clone()));
    for way in &ways {
        let cached = way.name.contains("cache");
        let peer = |value| if way.server == actix.0.id() { Nothing } else { Peer("actix-web", value) };
        let name = format!("HTTP, {}", way.name);
        table.row(name, busy(way), "µs CPU", if cached { AtMost(12.0) } else { peer(plain.0) });
        if cached {
            table.row("  beside actix-web alone", busy(way), "µs CPU", peer(plain.0));
        }
        table.row("  one connection", median(way.one.clone()), "µs p50", peer(plain.1));
        let rate = median(way.many.iter().map(|(_, rate)| *rate).collect());
        table.row(format!("  {CONNECTIONS} connections"), rate, "requests/s", Nothing);
    }
    Ok(())
}

/// What our server is held against: the framework it stands on, doing nothing else.
fn plain(address: &str) -> std::io::Result<()> {
    let echo = |body: web::Json<Value>| async move {
        let text = body["params"]["text"].clone();
        HttpResponse::Ok().json(json!({"chunks": [{"text": text}], "usage": {"prompt_tokens": 1}}))
    };
    let app = move || App::new().route("/v1/capabilities/{capability}", web::post().to(echo));
    let server = HttpServer::new(app).workers(1).bind(address)?;
    actix_web::rt::System::new().block_on(server.run())
}

/// Asks on so many connections, a new request on each as soon as all have their answer; microseconds of each.
fn closed_loop(address: SocketAddr, request: &[u8], connections: usize, span: Duration) -> Vec<f64> {
    let mut streams: Vec<_> = (0..connections).map(|_| wire::connect(address)).collect();
    let (began, mut times) = (Instant::now(), Vec::new());
    while began.elapsed() < span {
        let asked = Instant::now();
        streams.iter_mut().for_each(|stream| stream.get_mut().write_all(request).unwrap());
        for stream in &mut streams {
            let head = wire::message(stream).unwrap().head;
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
            times.push(asked.elapsed().as_secs_f64() * 1e6);
        }
    }
    times
}

fn ask(way: &Way) -> String {
    let mut stream = wire::connect(way.address);
    stream.get_mut().write_all(&way.request).unwrap();
    wire::message(&mut stream).unwrap().head
}
