//! What passing a chat on costs: a model of the `remote` plugin, beside nginx passing the same bytes, in the same run.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a benchmark that cannot measure says so and ends")]

mod support;

use serde_json::json;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use support::Against::{AtMost, Nothing, Peer};
use support::{Child, Table, median, wire};

const ROUNDS: usize = 5;
/// Chats at once.
const CONNECTIONS: usize = 16;
/// Pieces of a streamed answer, and how far apart the upstream sends them: 500 tokens a second for each chat.
const PIECES: usize = 64;
const PACE: Duration = Duration::from_millis(2);

/// One way to the upstream.
struct Way {
    name: &'static str,
    /// The process that passes it on; the upstream itself has none that could be told from the client.
    server: Option<u32>,
    address: SocketAddr,
    key: String,
    whole: Vec<Round>,
    streamed: Vec<Round>,
}

struct Round {
    /// CPU microseconds of the process in between, for each answer.
    busy: f64,
    /// Microseconds until the first byte of an answer, p50.
    first: f64,
}

fn main() {
    let upstream = upstream();
    let state = tempfile::tempdir().unwrap();
    let plugins = support::plugins(&["backplane-remote"]);
    let (backplane, ours) = backplane(state.path(), plugins.path(), upstream);
    let key = std::fs::read_to_string(state.path().join("admin.key")).unwrap().trim().to_owned();
    let nginx = nginx(state.path(), upstream);
    let way = |name, server: Option<&Child>, address, key: &str| Way {
        name,
        server: server.map(|child| child.0.id()),
        address,
        key: key.to_owned(),
        whole: Vec::new(),
        streamed: Vec::new(),
    };
    let mut ways = vec![
        way("asked directly", None, upstream, ""),
        way("through `remote`", Some(&backplane), ours, &key),
    ];
    match &nginx {
        Some((nginx, address)) => ways.push(way("through nginx", Some(nginx), *address, "")),
        None => eprintln!("there is no nginx here to compare with: `apt-get install nginx-light`"),
    }
    for way in &ways {
        ask(way, false, 20);
        ask(way, true, 1);
    }
    for _ in 0..ROUNDS {
        for way in &mut ways {
            let whole = ask(way, false, 60);
            way.whole.push(whole);
            let streamed = ask(way, true, 4);
            way.streamed.push(streamed);
        }
        support::progress();
    }

    let mut table = Table::new("remote");
    let busy = |rounds: &[Round]| median(rounds.iter().map(|round| round.busy).collect());
    let first = |rounds: &[Round]| median(rounds.iter().map(|round| round.first).collect());
    for (what, rounds) in [
        ("a chat answered at once", (|way| &way.whole) as fn(&Way) -> &Vec<Round>),
        ("a chat streamed in 64 pieces", |way| &way.streamed),
    ] {
        let peer = ways.get(2).map(|way| busy(rounds(way)));
        let bar = peer.map_or(Nothing, |nginx| AtMost(2.0 * nginx));
        table.row(format!("{what}, through `remote`"), busy(rounds(&ways[1])), "µs CPU", bar);
        if let Some(nginx) = peer {
            table.row("  beside nginx", busy(rounds(&ways[1])), "µs CPU", Peer("nginx", nginx));
        }
        for way in &ways {
            table.row(format!("  first byte, {}", way.name), first(rounds(way)), "µs p50", Nothing);
        }
    }
}

fn backplane(state: &Path, plugins: &Path, upstream: SocketAddr) -> (Child, SocketAddr) {
    let card = state.join("far.toml");
    std::fs::write(
        &card,
        format!(
            "name = 'far'\nformat = 'openai'\n[parameters]\ndiscover = false\n\
             upstream = {{ url = 'http://{upstream}/v1', proxy = '' }}\n"
        ),
    )
    .unwrap();
    let config = state.join("bench.toml");
    let text = format!(
        "[server]\nworkers = 1\n[models]\ncards = ['{}']\n[cache]\nenabled = false\n\
         [plugins.isolation]\n'*' = 'in-process'\n",
        card.display()
    );
    std::fs::write(&config, text).unwrap();
    let address = support::free_address();
    let mut command = Command::new(support::program());
    command.arg("serve").arg("--config").arg(&config).arg("--state").arg(state);
    command.arg("--plugin-dir").arg(plugins).env("BACKPLANE__SERVER__ADDRESS", address.to_string());
    (support::started(&mut command, address), address)
}

/// One process, which keeps its connections to the upstream and hands on what comes when it comes.
fn nginx(dir: &Path, upstream: SocketAddr) -> Option<(Child, SocketAddr)> {
    let address = support::free_address();
    let config = format!(
        "daemon off; master_process off; worker_processes 1; pid {0}/nginx.pid; error_log {0}/nginx.log;\n\
         events {{ worker_connections 256; }}\n\
         http {{ access_log off; client_body_temp_path {0}/body; proxy_temp_path {0}/proxy;\n\
         fastcgi_temp_path {0}/f; uwsgi_temp_path {0}/u; scgi_temp_path {0}/s; keepalive_requests 1000000;\n\
         upstream far {{ server {upstream}; keepalive 64; keepalive_requests 1000000; }}\n\
         server {{ listen {address}; location / {{ proxy_pass http://far; proxy_http_version 1.1;\n\
         proxy_set_header Connection ''; proxy_buffering off; }} }} }}\n",
        dir.display()
    );
    let file = dir.join("nginx.conf");
    std::fs::write(&file, config).unwrap();
    Command::new("nginx").arg("-v").output().ok()?;
    Some((support::started(Command::new("nginx").arg("-c").arg(&file), address), address))
}

/// Every connection asks so many times, one after the other, all connections at once.
fn ask(way: &Way, stream: bool, times: usize) -> Round {
    let body = json!({"model": "far", "stream": stream, "temperature": 0.5, "max_tokens": PIECES,
        "messages": [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]})
    .to_string();
    let request = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        way.key,
        body.len()
    );
    let before = way.server.map_or(0.0, support::cpu_of);
    let one = || {
        let mut connection = wire::connect(way.address);
        let mut first = Vec::new();
        for _ in 0..times {
            let asked = Instant::now();
            connection.get_mut().write_all(request.as_bytes()).unwrap();
            connection.fill_buf().unwrap();
            first.push(asked.elapsed().as_secs_f64() * 1e6);
            let answer = wire::message(&mut connection).unwrap();
            assert!(answer.head.starts_with("HTTP/1.1 200"), "{}", answer.head);
            let pieces = String::from_utf8(answer.body).unwrap().matches("a piece").count();
            assert_eq!(pieces, PIECES, "an answer is not whole");
        }
        first
    };
    let first: Vec<f64> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(one)).collect();
        asking.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let busy = way.server.map_or(0.0, support::cpu_of) - before;
    Round { busy: busy / (CONNECTIONS * times) as f64 * 1e6, first: median(first) }
}

const CHAT: &str = "/v1/chat/completions";

/// A server that answers every chat with the same text, at once or piece by piece, as its members say.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            connection.set_nodelay(true).unwrap();
            std::thread::spawn(move || {
                let mut connection = BufReader::new(connection);
                while let Some(request) = wire::message(&mut connection) {
                    let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
                    let sent = if body["stream"] == true {
                        in_pieces(connection.get_mut())
                    } else {
                        at_once(connection.get_mut())
                    };
                    if sent.is_err() {
                        break;
                    }
                }
            });
        }
    });
    address
}

fn at_once(to: &mut TcpStream) -> std::io::Result<()> {
    let message = json!({"role": "assistant", "content": "a piece ".repeat(PIECES)});
    let body = json!({"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "far",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 20, "completion_tokens": PIECES, "total_tokens": 20 + PIECES}})
    .to_string();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: ";
    to.write_all(format!("{head}{}\r\n\r\n{body}", body.len()).as_bytes())
}

fn in_pieces(to: &mut TcpStream) -> std::io::Result<()> {
    to.write_all(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
    )?;
    let event = |delta: serde_json::Value, finish: Option<&str>| {
        let data = json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "far",
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]});
        format!("data: {data}\n\n")
    };
    let mut send = |text: &str| to.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes());
    for _ in 0..PIECES {
        send(&event(json!({"content": "a piece "}), None))?;
        std::thread::sleep(PACE);
    }
    let usage = json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "far",
        "choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": PIECES, "total_tokens": 20 + PIECES}});
    send(&format!("{}data: {usage}\n\ndata: [DONE]\n\n", event(json!({}), Some("stop"))))?;
    to.write_all(b"0\r\n\r\n")
}
