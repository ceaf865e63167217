//! The gate, row by row of `docs/http-gate.md`: raw bytes against a started server.

use crate::host::{Running, start, start_with};
use crate::raw::{Answer, Raw, refused};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const GET: &str = "GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n";

/// A GET with these header lines besides its host.
fn get(lines: &str) -> String {
    format!("GET /healthz HTTP/1.1\r\nhost: a\r\n{lines}\r\n")
}

/// The head of a question to the scripted model.
fn post(lines: &str) -> String {
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{lines}\r\n"
    )
}

fn question(script: &Value, stream: bool) -> String {
    let body = json!({
        "model": "script", "stream": stream, "messages": [{ "role": "user", "content": script.to_string() }],
    })
    .to_string();
    format!("{}{body}", post(&format!("content-length: {}\r\n", body.len())))
}

/// It still serves.
fn assert_serves(host: &Running) {
    assert_eq!(Raw::to(host).send(GET).answer().status, 200);
}

fn busy(host: &Running) -> u32 {
    host.host.model("script").unwrap().running.map_or(0, |running| running.busy)
}

async fn until(what: impl Fn() -> bool) {
    let started = Instant::now();
    while !what() {
        assert!(started.elapsed() < Duration::from_secs(20), "it never came");
        actix_web::rt::time::sleep(Duration::from_millis(5)).await;
    }
}

// ---- who is slow

#[actix_web::test]
async fn a_half_sent_header_is_closed() {
    let host = start_with(&[("server.header_timeout", "200ms")]);
    let answer = refused(&host, "GET /healthz HTTP/1.1\r\nhost: a\r\n");
    assert_eq!((answer.status, answer.code().as_str()), (408, "request_timeout"));
    assert!(answer.json()["error"]["message"].as_str().unwrap().contains("`server.header_timeout` is 200ms"));
    // Also when it trickles, and also on a connection that has served.
    let mut raw = Raw::to(&host);
    assert_eq!(raw.send(GET).answer().status, 200);
    for byte in GET.bytes().take(12) {
        raw.try_send([byte]).ok();
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(raw.answer().status, 408);
    raw.expect_end();
    assert_serves(&host);
    host.stop().await;
}

#[actix_web::test]
async fn a_connection_that_says_nothing_is_closed() {
    let host = start_with(&[("server.first_byte_timeout", "200ms")]);
    let connected = Instant::now();
    Raw::to(&host).expect_end();
    // Well before any time-out that was not set here.
    assert!(connected.elapsed() < Duration::from_secs(4));
    host.stop().await;
}

#[actix_web::test]
async fn a_body_that_pauses_is_refused() {
    let host = start_with(&[("server.body_timeout", "200ms")]);
    for head in [post("content-length: 100\r\n"), post("transfer-encoding: chunked\r\n") + "5\r\n"] {
        let answer = refused(&host, head + "{\"a");
        assert_eq!((answer.status, answer.code().as_str()), (408, "request_timeout"), "{answer:?}");
        assert!(answer.json()["error"]["message"].as_str().unwrap().contains("server.body_timeout"));
    }
    assert_serves(&host);
    host.stop().await;
}

/// Sends a byte of a body again and again, with pauses that alone are short enough.
fn trickle(host: &Running) -> Answer {
    let mut raw = Raw::to(host);
    raw.send(post("content-length: 100000\r\n"));
    for _ in 0..30 {
        raw.try_send(" ").ok();
        std::thread::sleep(Duration::from_millis(20));
    }
    let answer = raw.answer();
    raw.expect_end();
    answer
}

#[actix_web::test]
async fn a_body_that_trickles_is_refused() {
    let host = start_with(&[("server.body_timeout", "300ms"), ("server.body_rate", "1MiB")]);
    let answer = trickle(&host);
    assert_eq!(answer.status, 408);
    assert!(answer.json()["error"]["message"].as_str().unwrap().contains("server.body_rate"), "{answer:?}");
    host.stop().await;
}

#[actix_web::test]
async fn a_body_that_takes_too_long_is_refused() {
    let host = start_with(&[("server.body_total_timeout", "300ms"), ("server.body_rate", "0B")]);
    let answer = trickle(&host);
    assert_eq!(answer.status, 408);
    let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("server.body_total_timeout"), "{message}");
    host.stop().await;
}

#[actix_web::test]
async fn an_answer_that_nobody_reads_is_given_up() {
    let host = start_with(&[("server.send_timeout", "300ms")]);
    let chunks: Vec<Value> = (0..300).map(|_| json!({ "content": "x".repeat(100_000) })).collect();
    let mut raw = Raw::to(&host);
    raw.send(question(&json!({ "chunks": chunks }), true));
    until(|| busy(&host) == 1).await;
    until(|| busy(&host) == 0).await;
    assert_serves(&host);
    host.stop().await;
}

#[actix_web::test]
async fn an_idle_connection_is_closed() {
    let host = start_with(&[("server.keep_alive", "300ms")]);
    let mut raw = Raw::to(&host);
    assert_eq!(raw.send(GET).answer().status, 200);
    assert_eq!(raw.send(GET).answer().status, 200, "it is kept between requests");
    raw.expect_end();
    host.stop().await;
}

// ---- one reading only

#[actix_web::test]
async fn no_host_two_hosts_or_another_host_is_400() {
    let host = start();
    for head in [
        "GET /healthz HTTP/1.1\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nhost: a\r\nHOST: b\r\n\r\n",
        "GET http://b/healthz HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nhost: a b\r\n\r\n",
    ] {
        let answer = refused(&host, head);
        assert_eq!((answer.status, answer.code().as_str()), (400, "malformed_request"), "{head}");
    }
    assert_eq!(Raw::to(&host).send("GET http://A/healthz HTTP/1.1\r\nhost: a\r\n\r\n").answer().status, 200);
    host.stop().await;
}

#[actix_web::test]
async fn a_length_and_chunks_together_are_400() {
    let host = start();
    for lines in [
        "content-length: 4\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 0\r\n",
    ] {
        let smuggled = format!("{}0\r\n\r\n{GET}", get(lines));
        assert_eq!(refused(&host, smuggled).status, 400, "{lines}");
    }
    host.stop().await;
}

#[actix_web::test]
async fn bare_line_feeds_are_400() {
    let host = start();
    for head in [
        "GET /healthz HTTP/1.1\nhost: a\r\n\r\n".to_owned(),
        "GET /healthz HTTP/1.1\r\nhost: a\n\r\n".to_owned(),
        "GET /healthz HTTP/1.1\r\nhost: a\r\n\n".to_owned(),
        "GET /healthz HTTP/1.1\n\n".to_owned(),
        get("x: a\nb: c\r\n"),
    ] {
        assert_eq!(refused(&host, &head).status, 400, "{head:?}");
    }
    host.stop().await;
}

#[actix_web::test]
async fn two_lengths_are_400_even_when_equal() {
    let host = start();
    for lines in ["content-length: 0\r\ncontent-length: 0\r\n", "content-length: 1\r\nContent-Length: 2\r\n"]
    {
        assert_eq!(refused(&host, get(lines) + "ab").status, 400, "{lines}");
    }
    host.stop().await;
}

#[actix_web::test]
async fn a_length_over_the_limit_is_413_from_the_header_alone() {
    let host = start_with(&[("server.body_limit", "1MiB")]);
    for length in ["4611686018427387904", "1048577"] {
        // Nothing of the body is sent, and no `100 Continue` invites to.
        let mut raw = Raw::to(&host);
        raw.send(post(&format!("expect: 100-continue\r\ncontent-length: {length}\r\n")));
        let answer = raw.answer();
        assert_eq!((answer.status, answer.code().as_str()), (413, "body_too_large"));
        raw.expect_end();
    }
    host.stop().await;
}

#[actix_web::test]
async fn what_is_not_quite_http_is_400() {
    let host = start();
    let malformed = |head: String| {
        let answer = refused(&host, &head);
        assert_eq!((answer.status, answer.code().as_str()), (400, "malformed_request"), "{head:?}");
    };
    for value in ["+5", "-1", "18446744073709551616", "5, 5", "5 5", "0x5", ""] {
        malformed(get(&format!("content-length: {value}\r\n")));
    }
    for value in ["xchunked", "chunked, identity", "identity", "gzip, chunked", "\u{b}chunked"] {
        malformed(get(&format!("transfer-encoding: {value}\r\n")));
    }
    for line in ["a : b", " folded", "a: b\0c", "a: b\rc: d", ": b", "no colon"] {
        malformed(get(&format!("{line}\r\n")));
    }
    for line in ["GET  /healthz HTTP/1.1", "GET /healthz", "get /healthz HTTP/1.1", "GET /h ealthz HTTP/1.1"]
    {
        malformed(format!("{line}\r\nhost: a\r\n\r\n"));
    }
    host.stop().await;
}

#[actix_web::test]
async fn what_is_not_quite_a_chunk_is_400() {
    let host = start();
    for chunks in [
        "x\r\n",
        "\r\n",
        "-1\r\n",
        "1 \r\na\r\n",
        "ffffffffffffffff0\r\n",
        "1\r\nab\r\n0\r\n\r\n",
        "1\na\r\n0\r\n\r\n",
        "1\r\na\r\n0\n\n",
        "1;\0\r\na\r\n0\r\n\r\n",
    ] {
        let mut raw = Raw::to(&host);
        raw.send(post("transfer-encoding: chunked\r\n")).send(chunks).send(GET);
        let answer = raw.answer();
        assert_eq!((answer.status, answer.code().as_str()), (400, "malformed_request"), "{chunks:?}");
        raw.expect_end();
    }
    host.stop().await;
}

// ---- how much

#[actix_web::test]
async fn a_chunk_extension_of_20_kb_is_400() {
    let host = start();
    let chunk = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(20_000));
    assert_eq!(refused(&host, post("transfer-encoding: chunked\r\n") + &chunk).status, 400);
    host.stop().await;
}

#[actix_web::test]
async fn a_flood_of_small_chunks_is_400() {
    let host = start();
    let mut raw = Raw::to(&host);
    raw.send(post("transfer-encoding: chunked\r\n"));
    // The server stops reading in the midst of it.
    raw.try_send("1\r\na\r\n".repeat(500_000)).ok();
    let answer = raw.answer();
    assert_eq!((answer.status, answer.code().as_str()), (400, "malformed_request"));
    host.stop().await;
}

#[actix_web::test]
async fn a_flood_of_trailers_is_431() {
    let host = start();
    for trailers in ["a: b\r\n".repeat(97), format!("a: {}\r\n", "b".repeat(33_000))] {
        let body = format!("2\r\n{{}}\r\n0\r\n{trailers}");
        let answer = refused(&host, post("transfer-encoding: chunked\r\n") + &body);
        assert_eq!((answer.status, answer.code().as_str()), (431, "header_too_large"));
    }
    host.stop().await;
}

#[actix_web::test]
async fn too_many_or_too_large_headers_are_431() {
    let host = start();
    let header = |n: usize| get(&"a: b\r\n".repeat(n));
    assert_eq!(Raw::to(&host).send(header(95)).answer().status, 200);
    let answer = refused(&host, header(96));
    assert_eq!((answer.status, answer.code().as_str()), (431, "header_too_large"));
    assert_eq!(refused(&host, header(101)).status, 431);
    assert_eq!(refused(&host, get(&format!("a: {}\r\n", "b".repeat(64 * 1024)))).status, 431);
    host.stop().await;
}

#[actix_web::test]
async fn a_target_too_long_is_414() {
    let host = start();
    let target = |n: usize| format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "x".repeat(n - 1));
    assert_eq!(Raw::to(&host).send(target(8 * 1024)).answer().status, 404);
    let answer = refused(&host, target(8 * 1024 + 1));
    assert_eq!((answer.status, answer.code().as_str()), (414, "uri_too_long"));
    assert_eq!(refused(&host, target(64 * 1024)).status, 414);
    host.stop().await;
}

#[actix_web::test]
async fn a_body_over_the_limit_is_413() {
    let host = start_with(&[("server.body_limit", "1MiB")]);
    let large = " ".repeat(3 << 20);
    let mut raw = Raw::to(&host);
    raw.send(post(&format!("content-length: {}\r\n", large.len())));
    // A client that sends all before it reads gets its answer too.
    raw.try_send(&large).ok();
    assert_eq!(raw.answer().code(), "body_too_large");
    let mut raw = Raw::to(&host);
    raw.send(post("transfer-encoding: chunked\r\n"));
    for _ in 0..3 {
        raw.try_send(format!("100000\r\n{}\r\n", " ".repeat(1 << 20))).ok();
    }
    let answer = raw.answer();
    assert_eq!((answer.status, answer.code().as_str()), (413, "body_too_large"));
    host.stop().await;
}

#[actix_web::test]
async fn json_that_nests_too_deep_is_400() {
    let host = start_with(&[("server.json_depth", "8")]);
    let nested = |n: usize| format!("{{\"x\":{}{}}}", "[".repeat(n - 1), "]".repeat(n - 1));
    for path in ["/v1/chat/completions", "/v1/capabilities/test.unforeseen", "/v1/embeddings"] {
        let got = host.post_with(path, &[], nested(9)).await;
        assert_eq!(
            (got.status, got.json()["error"]["code"].as_str()),
            (400, Some("json_too_deep")),
            "{path}"
        );
        let got = host.post_with(path, &[], nested(8)).await;
        assert_ne!(got.json()["error"]["code"], "json_too_deep", "{path}");
        assert_eq!(host.post_with(path, &[], "[".repeat(100_000)).await.status, 400);
    }
    let got = host.post_with("/v2/models/script/infer", &[], nested(9)).await;
    assert!(got.json()["error"].as_str().unwrap().contains("server.json_depth"), "{}", got.text());
    host.stop().await;
}

#[actix_web::test]
async fn a_connection_too_many_is_503() {
    let host = start_with(&[("server.max_connections", "2")]);
    let (mut first, mut second) = (Raw::to(&host), Raw::to(&host));
    assert_eq!(first.send(GET).answer().status, 200);
    assert_eq!(second.send(GET).answer().status, 200);
    // It is told before it asks.
    let mut third = Raw::to(&host);
    let answer = third.answer();
    assert_eq!((answer.status, answer.code().as_str()), (503, "overloaded"));
    assert_eq!(answer.header("retry-after"), Some("1"));
    third.expect_end();
    drop((first, third));
    until(|| Raw::to(&host).send(GET).answer().status == 200).await;
    assert_eq!(second.send(GET).answer().status, 200, "who was there before is served on");
    host.stop().await;
}

// ---- many requests on a connection

#[actix_web::test]
async fn every_request_of_a_connection_is_inspected() {
    let host = start();
    let mut raw = Raw::to(&host);
    for _ in 0..3 {
        assert_eq!(raw.send(GET).answer().status, 200);
    }
    let body =
        question(&json!({ "chunks": [{ "content": "GET / HTTP/1.1", "finish_reason": "stop" }] }), false);
    assert_eq!(raw.send(body).answer().status, 200, "what looks like a head in a body is a body");
    assert_eq!(raw.send(get("content-length: 1\r\ncontent-length: 1\r\n")).answer().status, 400);
    raw.expect_end();
    host.stop().await;
}

#[actix_web::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let host = start();
    let slow = |text: &str| {
        question(&json!({ "chunks": [{ "content": text, "finish_reason": "stop" }], "delay_ms": 100 }), false)
    };
    let mut raw = Raw::to(&host);
    let head = "HEAD /healthz HTTP/1.1\r\nhost: a\r\n\r\n";
    // All at once, and the last is refused; nothing that comes after it is served.
    raw.send(format!("{}{head}{}{GET}GET / HTTP/1.1\n{GET}", slow("one"), slow("two")));
    let content = |answer: Answer| answer.json()["choices"][0]["message"]["content"].clone();
    assert_eq!(content(raw.answer()), "one");
    let answer = raw.answer_to("HEAD").unwrap();
    assert_eq!((answer.status, answer.body.len()), (200, 0));
    assert_eq!(content(raw.answer()), "two");
    let answer = raw.answer();
    assert_eq!((answer.status, answer.header("connection")), (200, None));
    assert_eq!(raw.answer().status, 400);
    raw.expect_end();
    host.stop().await;
}

#[actix_web::test]
async fn however_the_bytes_are_cut_the_answers_are_the_same() {
    let host = start();
    let body = question(&json!({ "chunks": [{ "content": "a", "finish_reason": "stop" }] }), false);
    let chunked = format!("{}2;x\r\n{{}}\r\n0\r\nx: y\r\n\r\n", post("transfer-encoding: chunked\r\n"));
    let all = format!("{GET}{body}{chunked}{GET}{}", get("a : b\r\n"));
    for size in [1, 3, 50, 1000, all.len()] {
        let mut raw = Raw::to(&host);
        for piece in all.as_bytes().chunks(size) {
            raw.send(piece);
        }
        let statuses: Vec<u16> = (0..5).map(|_| raw.answer().status).collect();
        assert_eq!(statuses, [200, 200, 400, 200, 400], "in pieces of {size}");
        raw.expect_end();
    }
    host.stop().await;
}

#[actix_web::test]
async fn nothing_is_served_after_the_last_request() {
    let host = start();
    let mut raw = Raw::to(&host);
    raw.send(get("connection: close\r\n") + GET);
    assert_eq!(raw.answer().status, 200);
    raw.expect_end();
    host.stop().await;
}

#[actix_web::test]
async fn http_2_without_tls_is_505_and_its_upgrade_is_ignored() {
    let host = start();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let answer = refused(&host, preface);
    assert_eq!((answer.status, answer.code().as_str()), (505, "http_version_not_supported"));
    // Nor later on a connection.
    let mut raw = Raw::to(&host);
    assert_eq!(raw.send(GET).answer().status, 200);
    assert_eq!(raw.send(preface).answer().status, 505);
    raw.expect_end();
    let upgrade =
        "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n";
    let answer = Raw::to(&host).send(get(upgrade)).answer();
    assert_eq!((answer.status, answer.header("upgrade")), (200, None));
    assert_eq!(refused(&host, get("connection: upgrade\r\nupgrade: websocket\r\n")).status, 400);
    host.stop().await;
}

#[actix_web::test]
async fn a_refusal_speaks_the_language_of_its_path() {
    let host = start();
    let answer = refused(&host, "GET /v2/models/x HTTP/1.1\r\na : b\r\n\r\n");
    assert!(answer.json()["error"].as_str().unwrap().contains("header"), "{answer:?}");
    let mut raw = Raw::to(&host);
    let answer = raw.send("HEAD /healthz HTTP/1.1\r\na : b\r\n\r\n").answer_to("HEAD").unwrap();
    assert_eq!(answer.status, 400);
    raw.expect_end();
    let text = host.get("/metrics").await.text().to_owned();
    assert!(text.contains("route=\"refused\",status=\"400\"} 2"), "{text}");
    host.stop().await;
}

// ---- who leaves

#[actix_web::test]
async fn a_client_that_leaves_cancels_its_request() {
    let host = start();
    let chunks: Vec<Value> = (0..3000).map(|count| json!({ "content": count.to_string() })).collect();
    for stream in [false, true] {
        let mut raw = Raw::to(&host);
        raw.send(question(&json!({ "chunks": chunks, "every_ms": 10 }), stream));
        until(|| busy(&host) == 1).await;
        drop(raw);
        until(|| busy(&host) == 0).await;
        // Who closes only the sending side has left as well.
        let mut raw = Raw::to(&host);
        raw.send(question(&json!({ "chunks": chunks, "every_ms": 10 }), stream));
        until(|| busy(&host) == 1).await;
        raw.shut();
        until(|| busy(&host) == 0).await;
    }
    // Unless the answer takes no waiting.
    let mut raw = Raw::to(&host);
    raw.send(GET).shut();
    assert_eq!(raw.answer().status, 200);
    host.stop().await;
}

#[actix_web::test]
async fn every_request_is_counted_by_its_route_and_to_its_end() {
    let host = start();
    let counted = async |line: &str| {
        let line = format!("backplane_http_requests_total{{{line}}} 1\n");
        host.get("/metrics").await.text().contains(&line)
    };
    let eventually = async |line: &str| {
        let started = Instant::now();
        while !counted(line).await {
            assert!(
                started.elapsed() < Duration::from_secs(20),
                "{line}: {}",
                host.get("/metrics").await.text()
            );
        }
    };
    Raw::to(&host).send(GET).answer();
    eventually("method=\"GET\",route=\"/healthz\",status=\"200\"").await;
    // A stream counts when it is over, and who left before an answer as 499.
    let chat = "method=\"POST\",route=\"/v1/chat/completions\"";
    let script = json!({ "chunks": [{ "content": "a" }, { "finish_reason": "stop" }], "every_ms": 700 });
    let mut raw = Raw::to(&host);
    raw.send(question(&script, true));
    until(|| busy(&host) == 1).await;
    assert!(!counted(&format!("{chat},status=\"200\"")).await);
    raw.answer();
    eventually(&format!("{chat},status=\"200\"")).await;
    raw.send(question(&script, false));
    until(|| busy(&host) == 1).await;
    drop(raw);
    eventually(&format!("{chat},status=\"499\"")).await;
    host.stop().await;
}

#[actix_web::test]
async fn a_stop_takes_readiness_first_and_finishes_what_is_open() {
    let host = start();
    let script = json!({ "chunks": [{ "content": "done", "finish_reason": "stop" }], "delay_ms": 1500 });
    let (mut open, mut kept) = (Raw::to(&host), Raw::to(&host));
    assert_eq!(kept.send(GET).answer().status, 200);
    open.send(question(&script, false));
    until(|| busy(&host) == 1).await;
    let stopping = {
        let handle = host.host.clone();
        std::thread::spawn(move || {
            actix_web::rt::System::new().block_on(handle.shutdown(Duration::from_secs(20)));
        })
    };
    let ready = get("").replace("/healthz", "/readyz");
    until(|| Raw::to(&host).send(&ready).answer().status == 503).await;
    let answer = kept.send(question(&script, false)).answer();
    assert_eq!((answer.status, answer.code().as_str()), (503, "shutting_down"));
    let answer = open.answer();
    assert_eq!(answer.json()["choices"][0]["message"]["content"], "done", "{answer:?}");
    stopping.join().unwrap();
    let address = host.address.strip_prefix("http://").unwrap().to_owned();
    host.stop().await;
    kept.expect_end();
    assert!(std::net::TcpStream::connect(address).is_err(), "nobody listens any more");
}

// ---- whose pages

#[actix_web::test]
async fn no_page_of_another_site_may_call() {
    let host = start();
    let origin = "origin: https://evil.example\r\n";
    let answer = Raw::to(&host).send(get(origin)).answer();
    assert_eq!(answer.header("access-control-allow-origin"), None);
    let asks = format!("{origin}access-control-request-method: POST\r\n");
    let answer = Raw::to(&host).send(get(&asks).replace("GET", "OPTIONS")).answer();
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (405, None));
    let got = host.post_with("/v1/chat/completions", &[("origin", "https://evil.example")], "{}").await;
    assert_eq!(got.status, 403, "{}", got.text());
    host.stop().await;
}

#[actix_web::test]
async fn a_page_that_is_listed_may_call() {
    let host = start_with(&[("server.cors_origins", "[\"https://good.example\"]")]);
    let origin = "origin: https://good.example\r\n";
    let asks = format!(
        "{origin}access-control-request-method: POST\r\naccess-control-request-headers: authorization\r\n"
    );
    let answer = Raw::to(&host).send(post(&asks).replace("POST /v1", "OPTIONS /v1")).answer();
    assert_eq!(answer.status, 204);
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://good.example"));
    assert_eq!(answer.header("access-control-allow-headers"), Some("authorization"));
    assert!(answer.header("access-control-allow-methods").unwrap().contains("POST"));
    // An answer can be read whether it is good or not.
    let headers = [("origin", "https://good.example")];
    for body in ["{}", "{\"model\":\"script\",\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}"] {
        let got = host.post_with("/v1/chat/completions", &headers, body).await;
        assert_eq!(got.header("access-control-allow-origin"), Some("https://good.example"), "{}", got.text());
        assert_eq!(got.header("vary"), Some("origin"));
    }
    let other = get("origin: https://evil.example\r\n");
    assert_eq!(Raw::to(&host).send(other).answer().header("access-control-allow-origin"), None);
    host.stop().await;
}
