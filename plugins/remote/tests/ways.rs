//! The ways to an upstream: by a proxy, by TLS, by both, by HTTP/2 without TLS.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

use backplane_testkit::{Answer, PluginTest};
use bytes::Bytes;
use h2::server::SendResponse;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;

/// A server that talks to whoever connects in this way, and its address.
fn listen(talk: impl Fn(TcpStream) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let talk = Arc::new(talk);
    // It ends with the test's process.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let talk = talk.clone();
            std::thread::spawn(move || talk(stream));
        }
    });
    address
}

/// The head of a request, whose body is read as well.
fn head(stream: &mut impl Read) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).ok()?;
    Some(head)
}

fn answer_chats(mut stream: impl Read + Write, heads: impl Fn(String)) {
    while let Some(head) = head(&mut stream) {
        heads(head);
        let message = json!({"role": "assistant", "content": "Hello"});
        let body =
            json!({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).to_string();
        let length = body.len();
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
        if stream.write_all(answer.as_bytes()).and_then(|()| stream.flush()).is_err() {
            return;
        }
    }
}

/// Asks a chat of this upstream.
fn ask(upstream: Value) -> Answer {
    let model = json!({"name": "m", "format": "openai", "capabilities": ["chat"],
        "parameters": {"discover": false, "upstream": upstream}});
    let plugin = PluginTest::of(backplane_remote::backplane_export::bp_entry_v1);
    let instance = plugin.open(&model.to_string()).unwrap().instance().unwrap();
    let params = json!({"messages": [{"role": "user", "content": "hi"}]}).to_string();
    let whole = backplane_testkit::RequestInput::new("chat", &params, vec![]);
    instance.send(backplane_testkit::RequestInput { flags: 0, ..whole }).wait()
}

fn text(answer: &Answer) -> &str {
    assert!(answer.is_done(), "{answer:?}");
    answer.chunks[0].json["content"].as_str().unwrap()
}

/// What a server for `localhost` has to show by TLS and speaks then, and a file with what is to be trusted for it.
fn certified(dir: &Path, speaks: &[&[u8]]) -> (Arc<ServerConfig>, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let ca = dir.join("ca.pem");
    std::fs::write(&ca, made.cert.pem()).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = speaks.iter().map(|protocol| protocol.to_vec()).collect();
    (Arc::new(config), ca.to_str().unwrap().to_owned())
}

/// A server for `localhost` by TLS, and a file with what is to be trusted for it.
fn secure(dir: &Path) -> (String, Receiver<String>, String) {
    let (config, ca) = certified(dir, &[b"http/1.1"]);
    let (sender, heads) = channel();
    let address = listen(move |stream| {
        let connection = ServerConnection::new(config.clone()).unwrap();
        answer_chats(StreamOwned::new(connection, stream), |head| sender.send(head).unwrap());
    });
    let port = address.rsplit_once(':').unwrap().1.to_owned();
    (port, heads, ca)
}

#[test]
fn a_request_to_http_is_passed_on_by_a_proxy() {
    let (sender, heads) = channel();
    let proxy = listen(move |stream| answer_chats(stream, |head| sender.send(head).unwrap()));
    let answer = ask(json!({"url": "http://far.example:81/v1/", "proxy": format!("http://me:pw@{proxy}")}));
    assert_eq!(text(&answer), "Hello");
    let head = heads.recv().unwrap();
    assert!(head.starts_with("POST http://far.example:81/v1/chat/completions HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("\r\nhost: far.example:81\r\n"), "{head}");
    assert!(head.contains("\r\nproxy-authorization: Basic bWU6cHc=\r\n"), "{head}");
}

#[test]
fn by_tls_only_to_who_has_a_certificate_that_is_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let (port, heads, ca) = secure(dir.path());
    let url = format!("https://localhost:{port}/v1");
    let answer = ask(json!({"url": url, "proxy": "", "ca": ca}));
    assert_eq!(text(&answer), "Hello");
    assert!(heads.recv().unwrap().starts_with("POST /v1/chat/completions HTTP/1.1\r\n"));
    let failed = ask(json!({"url": url, "proxy": ""}));
    let failure = failed.failure().unwrap();
    assert!(failure.message.contains("cannot be reached: invalid peer certificate"), "{}", failure.message);
    assert!(heads.try_recv().is_err(), "it was asked all the same");
}

#[test]
fn a_request_to_https_goes_through_a_tunnel() {
    let dir = tempfile::tempdir().unwrap();
    let (port, heads, ca) = secure(dir.path());
    let (sender, asked) = channel();
    let to = format!("127.0.0.1:{port}");
    let proxy = listen(move |mut near| {
        sender.send(head(&mut near).unwrap()).unwrap();
        near.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        let mut far = TcpStream::connect(&to).unwrap();
        let (mut back, mut from) = (near.try_clone().unwrap(), far.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut from, &mut back));
        std::io::copy(&mut near, &mut far).ok();
    });
    let answer = ask(json!({
        "url": format!("https://localhost:{port}/v1"), "proxy": format!("http://me:pw@{proxy}"), "ca": ca
    }));
    assert_eq!(text(&answer), "Hello");
    let asked = asked.recv().unwrap().to_lowercase();
    assert!(asked.starts_with(&format!("connect localhost:{port} http/1.1\r\n")), "{asked}");
    assert!(asked.contains("\r\nproxy-authorization: basic bwu6chc=\r\n"), "{asked}");
    let head = heads.recv().unwrap();
    assert!(head.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{head}");
    assert!(!head.contains("proxy-authorization"), "the server is told what is the proxy's: {head}");
}

#[test]
fn http2_is_spoken_to_who_cannot_announce_it() {
    let (sender, begins) = channel();
    let server = listen(move |mut stream| {
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).unwrap();
        sender.send(preface).unwrap();
    });
    let failed = ask(json!({"url": format!("http://{server}/v1"), "proxy": "", "http2": true}));
    assert_eq!(&begins.recv().unwrap(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    assert!(failed.failure().unwrap().message.contains("broke the connection"), "{failed:?}");
}

/// A server of HTTP/2, by TLS or not, that answers each of its requests, of all connections, as `turn` does by its number.
fn listen_http2(
    tls: Option<Arc<ServerConfig>>,
    turn: impl Fn(usize, SendResponse<Bytes>) + Send + 'static,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    listener.set_nonblocking(true).unwrap();
    // It ends with the test's process.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let mut number = 0;
            while let Ok((stream, _)) = listener.accept().await {
                let stream: Box<dyn Stream> = match &tls {
                    None => Box::new(stream),
                    Some(config) => Box::new(TlsAcceptor::from(config.clone()).accept(stream).await.unwrap()),
                };
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_, respond))) = connection.accept().await {
                    turn(number, respond);
                    number += 1;
                }
            }
        });
    });
    address
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

fn say_hello(mut respond: SendResponse<Bytes>) {
    let message = json!({"role": "assistant", "content": "Hello"});
    let body = json!({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]});
    let mut body_to = respond.send_response(hyper::Response::new(()), false).unwrap();
    body_to.send_data(body.to_string().into(), true).unwrap();
}

#[test]
fn http2_is_spoken_by_tls_with_who_offers_it() {
    let dir = tempfile::tempdir().unwrap();
    let (config, ca) = certified(dir.path(), &[b"h2", b"http/1.1"]);
    let (sender, turns) = channel();
    let server = listen_http2(Some(config), move |number, respond| {
        sender.send(number).unwrap();
        say_hello(respond);
    });
    let port = server.rsplit_once(':').unwrap().1;
    let answer = ask(json!({"url": format!("https://localhost:{port}/v1"), "proxy": "", "ca": ca}));
    assert_eq!(text(&answer), "Hello");
    assert_eq!(turns.try_iter().collect::<Vec<_>>(), [0]);
}

#[test]
fn what_an_http2_server_has_not_begun_with_is_sent_again_once() {
    for refusals in [0, 1, 2] {
        let server = listen_http2(None, move |number, mut respond| {
            if number < refusals {
                return respond.send_reset(h2::Reason::REFUSED_STREAM);
            }
            say_hello(respond);
        });
        let answer = ask(json!({"url": format!("http://{server}/v1"), "proxy": "", "http2": true}));
        match refusals {
            2 => assert!(answer.failure().unwrap().message.contains("broke the connection"), "{answer:?}"),
            _ => assert_eq!(text(&answer), "Hello"),
        }
    }
    // What may have been begun with is not.
    let (sender, asked) = channel();
    let server = listen_http2(None, move |number, mut respond| {
        sender.send(number).unwrap();
        respond.send_reset(h2::Reason::INTERNAL_ERROR);
    });
    let answer = ask(json!({"url": format!("http://{server}/v1"), "proxy": "", "http2": true}));
    assert!(answer.failure().unwrap().message.contains("broke the connection"), "{answer:?}");
    assert_eq!(asked.try_iter().collect::<Vec<_>>(), [0]);
}

#[test]
fn what_is_no_proxy_is_refused() {
    for (proxy, says) in
        [("socks5://127.0.0.1:1", "not by `socks5://`"), ("http://", "not the address of one")]
    {
        let model = json!({"name": "m", "format": "openai", "capabilities": ["chat"],
            "parameters": {"upstream": {"url": "http://127.0.0.1:1/v1", "proxy": proxy}}});
        let plugin = PluginTest::of(backplane_remote::backplane_export::bp_entry_v1);
        let told = plugin.open(&model.to_string()).err().map(|failure| failure.message).unwrap_or_default();
        assert!(told.contains("`proxy`") && told.contains(says), "{proxy}: {told}");
    }
}

/// This test again, alone, with these variables in its environment.
fn again(test: &str, variables: &[(&str, &str)]) {
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    for name in
        ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "all_proxy", "NO_PROXY", "no_proxy"]
    {
        child.env_remove(name);
    }
    let ran = child.args(["--exact", test]).envs(variables.iter().copied()).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn what_the_environment_says_of_proxies_is_kept_to() {
    let (sender, heads) = channel();
    let server = listen(move |stream| answer_chats(stream, |head| sender.send(head).unwrap()));
    let url = |host: &str| json!({"url": format!("http://{host}/v1")});
    match std::env::var("ALL_PROXY").as_deref() {
        Ok(socks) if socks.starts_with("socks5") => {
            let model = json!({"name": "m", "format": "openai", "capabilities": ["chat"],
                "parameters": {"upstream": url("far.example")}});
            let plugin = PluginTest::of(backplane_remote::backplane_export::bp_entry_v1);
            let told = plugin.open(&model.to_string()).err().unwrap().message;
            assert!(
                told.contains("`ALL_PROXY` of the environment") && told.contains("`proxy = \"\"`"),
                "{told}"
            );
        }
        // A proxy that does not answer: only who is not asked by it does.
        Ok(_) if std::env::var("NO_PROXY").is_ok() => {
            assert_eq!(text(&ask(url(&server))), "Hello");
            assert!(heads.recv().unwrap().starts_with("POST /v1/chat/completions HTTP/1.1\r\n"));
            assert!(ask(url("far.example")).failure().unwrap().message.contains("cannot be reached"));
        }
        _ => {
            let test = "what_the_environment_says_of_proxies_is_kept_to";
            again(test, &[("ALL_PROXY", "socks5://127.0.0.1:1")]);
            again(test, &[("ALL_PROXY", "http://127.0.0.1:1"), ("NO_PROXY", "127.0.0.1")]);
        }
    }
}

#[test]
fn a_file_without_a_certificate_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, "no certificate\n").unwrap();
    let model = json!({"name": "m", "format": "openai", "capabilities": ["chat"],
        "parameters": {"discover": false, "upstream": {"url": "https://127.0.0.1:1/v1", "proxy": "", "ca": ca}}});
    let plugin = PluginTest::of(backplane_remote::backplane_export::bp_entry_v1);
    let told = plugin.open(&model.to_string()).err().unwrap().message;
    assert!(told.contains("`ca` = `") && told.contains("there is no certificate (PEM) in it"), "{told}");
}

/// Linux leaves a connection unanswered where the listener has its fill of them.
#[cfg(target_os = "linux")]
#[test]
fn a_server_that_does_not_answer_is_waited_for_once() {
    use std::time::{Duration, Instant};
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let fill: Vec<_> =
        std::iter::from_fn(|| TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok())
            .take(16)
            .collect();
    assert!((1..16).contains(&fill.len()), "{}", fill.len());

    let begun = Instant::now();
    let failed = ask(json!({"url": format!("http://{address}/v1"), "proxy": "", "connect_timeout": "700ms"}));
    let message = &failed.failure().unwrap().message;
    assert!(message.ends_with("cannot be reached: it took too long"), "{message}");
    // Three times are 2.1 s and the waits between them.
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}
