//! Real connections to sites of this machine: 127.0.0.1 stands for the public internet, 127.0.0.2 for what nobody may reach.

use super::*;
use backplane::Config;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Mutex;

const PNG: &[u8] = b"\x89PNG, so to speak";

/// A site, and the paths that it was asked for.
struct Site {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Site {
    fn at(address: &str, answer: impl Fn(&str, &mut dyn Write) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let (address, asked) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let (log, answer) = (asked.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, log, answer) = (stream.unwrap(), log.clone(), answer.clone());
                std::thread::spawn(move || {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let mut byte = [0];
                        if stream.read(&mut byte).unwrap_or_default() == 0 {
                            return;
                        }
                        head.push(byte[0]);
                    }
                    let head = String::from_utf8(head).unwrap();
                    let path = head.split(' ').nth(1).unwrap().to_owned();
                    log.lock().unwrap().push(path.clone());
                    answer(&path, &mut stream);
                });
            }
        });
        Self { address, asked }
    }

    /// One that answers every path with a picture.
    fn of_pictures(address: &str) -> Self {
        Self::at(address, |_, to| send(to, "200 OK", "content-type: image/png\r\n", PNG))
    }

    fn url(&self, host: &str, path: &str) -> String {
        format!("http://{host}:{}{path}", self.address.port())
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn send(to: &mut dyn Write, status: &str, head: &str, body: &[u8]) {
    let length = body.len();
    write!(to, "HTTP/1.1 {status}\r\n{head}content-length: {length}\r\nconnection: close\r\n\r\n").ok();
    to.write_all(body).ok();
}

/// What each name stands for: the first answer, then the second, and so on; the last stays.
struct Dns {
    answers: HashMap<&'static str, Vec<Vec<&'static str>>>,
    asked: Mutex<HashMap<String, usize>>,
}

fn dns(answers: &[(&'static str, &[&[&'static str]])]) -> Arc<Dns> {
    let answers = answers.iter().map(|(name, all)| (*name, all.iter().map(|one| one.to_vec()).collect()));
    Arc::new(Dns { answers: answers.collect(), asked: Mutex::default() })
}

impl Dns {
    fn names(self: &Arc<Self>) -> Names {
        let dns = self.clone();
        Arc::new(move |name| {
            let mut asked = dns.asked.lock().unwrap();
            let count = asked.entry(name.clone()).or_default();
            *count += 1;
            let found = dns.answers.get(&*name).and_then(|all| all.get(*count - 1).or(all.last())).cloned();
            Box::pin(async move {
                let found = found.ok_or(io::ErrorKind::NotFound)?;
                Ok(found.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), 0)).collect())
            })
        })
    }

    fn asked(&self, name: &str) -> usize {
        self.asked.lock().unwrap().get(name).copied().unwrap_or_default()
    }
}

/// May ask anybody on the ports of these sites, on 127.0.0.1.
fn config(sites: &[&Site]) -> FetchConfig {
    let hosts = sites.iter().map(|site| format!("*:{}", site.address.port()).parse().unwrap()).collect();
    let networks = vec!["127.0.0.1/32".parse().unwrap()];
    FetchConfig { hosts, networks, max_bytes: 1000, timeout: Duration::from_secs(20) }
}

async fn fetch(fetcher: &Fetcher, url: &str) -> Result<String> {
    let mut text = url.to_owned();
    fetcher.inline([("image".to_owned(), &mut text)], None, None).await.map(|()| text)
}

/// Refused for this reason, in these words, and without a word of addresses.
async fn refuses(fetcher: &Fetcher, url: &str, reason: &str, words: &str) {
    let error = fetch(fetcher, url).await.expect_err(url);
    assert_eq!((error.code, &*error.reason), (ErrorCode::InvalidArgument, reason), "{url}: {error}");
    assert_eq!(error.param.as_deref(), Some("image"));
    assert!(error.message.contains(words), "{url}: {error}");
}

#[tokio::test]
async fn nothing_is_fetched_unless_the_operator_names_somebody() {
    let dns = dns(&[("pictures.test", &[&["127.0.0.1"]])]);
    let fetcher = Fetcher::with_names(Config::default().fetch, dns.names());
    for url in ["http://pictures.test/a.png", " HTTPS://pictures.test/a.png"] {
        refuses(&fetcher, url, reason::FETCH_DISABLED, "`fetch.hosts`").await;
    }
    assert_eq!(dns.asked("pictures.test"), 0);
}

#[tokio::test]
async fn a_picture_takes_the_place_of_its_address_and_what_is_none_stays() {
    let site = Site::of_pictures("127.0.0.1:0");
    let dns = dns(&[("pictures.test", &[&["127.0.0.1"]])]);
    let fetcher = Fetcher::with_names(config(&[&site]), dns.names());
    let mut texts = [site.url("pictures.test", "/a"), "iVBORw0KGgo=".to_owned(), site.url("127.0.0.1", "/b")];
    let named = texts.iter_mut().map(|text| ("image".to_owned(), text));
    fetcher.inline(named, None, None).await.unwrap();
    let picture = format!("data:image/png;base64,{}", STANDARD.encode(PNG));
    assert_eq!(texts, [picture.clone(), "iVBORw0KGgo=".to_owned(), picture]);
    assert_eq!(site.asked(), ["/a", "/b"]);
    // Other schemes are not ours: who reads the picture refuses them.
    for text in ["file:///etc/passwd", "gopher://pictures.test/", "data:image/png;base64,AAAA", "http"] {
        assert_eq!(fetch(&fetcher, text).await.unwrap(), text);
    }
}

#[tokio::test]
async fn no_spelling_of_a_private_address_is_asked() {
    let inner = Site::of_pictures("127.0.0.2:0");
    let dns = dns(&[
        ("inner.test", &[&["127.0.0.2"]]),
        ("mapped.test", &[&["::ffff:127.0.0.2"]]),
        ("metadata.test", &[&["169.254.169.254"]]),
        // One that may be reached does not excuse the other.
        ("both.test", &[&["127.0.0.1", "127.0.0.2"]]),
    ]);
    let fetcher = Fetcher::with_names(config(&[&inner]), dns.names());
    for host in [
        "127.0.0.2",
        "127.2",
        "2130706434",
        "0x7f000002",
        "0x7f.2",
        "0177.0.0.2",
        "127.0.0.2.",
        "[::1]",
        "[::ffff:127.0.0.2]",
        "[::ffff:7f00:2]",
        "[64:ff9b::7f00:2]",
        "[fd00::1]",
        "169.254.169.254",
        "0.0.0.0",
        "inner.test",
        "INNER.test",
        "mapped.test",
        "metadata.test",
        "both.test",
    ] {
        refuses(&fetcher, &inner.url(host, "/x"), reason::FETCH_REFUSED, "not on the public internet").await;
    }
    for host in ["inner.test", "mapped.test"] {
        let told = fetch(&fetcher, &inner.url(host, "/x")).await.unwrap_err().message;
        assert!(!told.contains("127."), "a caller learns what a name stands for: {told}");
    }
    assert!(inner.asked().is_empty(), "{:?}", inner.asked());
}

#[tokio::test]
async fn hosts_ports_and_passwords_are_looked_at() {
    let site = Site::of_pictures("127.0.0.1:0");
    let dns = dns(&[("pictures.test", &[&["127.0.0.1"]]), ("evil.test", &[&["127.0.0.1"]])]);
    let port = site.address.port();
    let hosts = vec![format!("pictures.test:{port}").parse().unwrap(), "pictures.test".parse().unwrap()];
    let fetcher = Fetcher::with_names(FetchConfig { hosts, ..config(&[]) }, dns.names());
    fetch(&fetcher, &site.url("pictures.test", "/")).await.unwrap();
    let refusals = [
        (site.url("evil.test", "/"), "`evil.test:"),
        (site.url("pictures.test.evil.test", "/"), "among the hosts"),
        ("http://pictures.test:22/".to_owned(), "`pictures.test:22`"),
        (format!("http://pictures.test:{port}@evil.test/"), "a password"),
        (format!("http://user@pictures.test:{port}/"), "a password"),
        ("http://".to_owned(), "no address"),
        ("https:///".to_owned(), "no address"),
    ];
    for (url, words) in refusals {
        refuses(&fetcher, &url, reason::FETCH_REFUSED, words).await;
    }
    assert_eq!((dns.asked("evil.test"), site.asked().len()), (0, 1));
}

#[tokio::test]
async fn each_redirect_is_looked_at() {
    let inner = Site::of_pictures("127.0.0.2:0");
    let port = inner.address.port();
    let site = Site::at("127.0.0.1:0", move |path, to| {
        let target = match path {
            "/to-a-name" => format!("http://inner.test:{port}/secret"),
            "/to-a-number" => format!("http://127.0.0.2:{port}/secret"),
            "/to-a-file" => "file:///etc/passwd".to_owned(),
            "/to-gopher" => "gopher://pictures.test/".to_owned(),
            "/to-nobody" => "http://evil.test/".to_owned(),
            "/3" | "/2" | "/1" => format!("./{}", path[1..].parse::<u32>().unwrap() - 1),
            "/0" => return send(to, "200 OK", "content-type: image/png\r\n", PNG),
            "/nowhere" => return send(to, "302 Found", "", b""),
            _ => "/4".to_owned(),
        };
        send(to, "302 Found", &format!("location: {target}\r\n"), b"");
    });
    let dns = dns(&[("pictures.test", &[&["127.0.0.1"]]), ("inner.test", &[&["127.0.0.2"]])]);
    let fetcher = Fetcher::with_names(config(&[&site, &inner]), dns.names());
    let url = |path: &str| site.url("pictures.test", path);
    fetch(&fetcher, &url("/3")).await.unwrap();
    for (path, reason, words) in [
        ("/to-a-name", reason::FETCH_REFUSED, "`inner.test` is not on the public internet"),
        ("/to-a-number", reason::FETCH_REFUSED, "not on the public internet"),
        ("/to-a-file", reason::FETCH_REFUSED, "`file:`"),
        ("/to-gopher", reason::FETCH_REFUSED, "`gopher:`"),
        ("/to-nobody", reason::FETCH_REFUSED, "`evil.test` is not among"),
        ("/nowhere", reason::FETCH_FAILED, "without an address"),
    ] {
        refuses(&fetcher, &url(path), reason, words).await;
    }
    let before = site.asked().len();
    refuses(&fetcher, &url("/4"), reason::FETCH_FAILED, "more than 3 times").await;
    assert_eq!(site.asked().len() - before, 1 + MAX_REDIRECTS);
    assert!(inner.asked().is_empty(), "{:?}", inner.asked());
}

#[tokio::test]
async fn a_name_that_changes_its_address_leads_nowhere_else() {
    let site = Site::at("127.0.0.1:0", |path, to| match path {
        "/again" => send(to, "302 Found", "location: /picture\r\n", b""),
        _ => send(to, "200 OK", "content-type: image/png\r\n", PNG),
    });
    // On the same port: whoever looked the name up again would get there.
    let inner = Site::of_pictures(&format!("127.0.0.2:{}", site.address.port()));
    let answers: &[(&'static str, &[&[&'static str]])] =
        &[("rebinding.test", &[&["127.0.0.1"], &["127.0.0.2"]])];
    let names = dns(answers);
    let fetcher = Fetcher::with_names(config(&[&site]), names.names());
    fetch(&fetcher, &site.url("rebinding.test", "/picture")).await.unwrap();
    assert_eq!(names.asked("rebinding.test"), 1, "what was looked at is what was connected to");
    let refused = "not on the public internet";
    refuses(&fetcher, &site.url("rebinding.test", "/picture"), reason::FETCH_REFUSED, refused).await;

    let names = dns(answers);
    let fetcher = Fetcher::with_names(config(&[&site]), names.names());
    refuses(&fetcher, &site.url("rebinding.test", "/again"), reason::FETCH_REFUSED, refused).await;
    assert_eq!(site.asked(), ["/picture", "/again"]);
    assert!(inner.asked().is_empty(), "{:?}", inner.asked());
}

#[tokio::test]
async fn no_more_is_taken_than_is_allowed() {
    let site = Site::at("127.0.0.1:0", |path, to| match path {
        "/announced" => send(to, "200 OK", "content-type: image/png\r\n", &[0; 1001]),
        "/endless" => {
            write!(to, "HTTP/1.1 200 OK\r\ncontent-type: image/png\r\nconnection: close\r\n\r\n").ok();
            // Ends when the other side has hung up.
            while to.write_all(&[0; 500]).is_ok() {}
        }
        "/cut" => {
            write!(to, "HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: 99\r\n\r\nhalf").ok();
        }
        _ => send(to, "200 OK", "content-type: image/png\r\n", &[0; 600]),
    });
    let fetcher = Fetcher::with_names(config(&[&site]), dns(&[]).names());
    let url = |path: &str| site.url("127.0.0.1", path);
    fetch(&fetcher, &url("/600")).await.unwrap();
    for path in ["/announced", "/endless"] {
        refuses(&fetcher, &url(path), reason::FETCH_FAILED, "`fetch.max_bytes`").await;
    }
    refuses(&fetcher, &url("/cut"), reason::FETCH_FAILED, "broke off").await;
    let mut two = [url("/600"), url("/600")];
    let named = two.iter_mut().enumerate().map(|(n, text)| (format!("images[{n}]"), text));
    let error = fetcher.inline(named, None, None).await.unwrap_err();
    assert_eq!(error.param.as_deref(), Some("images[1]"), "together they are too large: {error}");
    let mut many = vec![url("/600"); MAX_PICTURES + 1];
    let error = fetcher
        .inline(many.iter_mut().map(|text| ("images".to_owned(), text)), None, None)
        .await
        .unwrap_err();
    assert!(error.message.contains("17 pictures"), "{error}");
}

#[tokio::test]
async fn what_is_no_picture_or_does_not_come_is_refused() {
    let site = Site::at("127.0.0.1:0", |path, to| match path {
        "/page" => send(to, "200 OK", "content-type: text/html\r\n", b"<html>"),
        "/silent" => send(to, "200 OK", "", PNG),
        "/store" => send(to, "200 OK", "content-type: application/octet-stream\r\n", PNG),
        "/part" => send(to, "206 Partial Content", "content-type: image/png\r\n", PNG),
        "/drip" => {
            write!(to, "HTTP/1.1 200 OK\r\ncontent-type: image/png\r\n\r\n").ok();
            while to.write_all(&[0]).is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        _ => send(to, "404 Not Found", "content-type: image/png\r\n", PNG),
    });
    let quick = FetchConfig { timeout: Duration::from_millis(400), ..config(&[&site]) };
    let fetcher = Fetcher::with_names(quick, dns(&[]).names());
    let url = |path: &str| site.url("127.0.0.1", path);
    fetch(&fetcher, &url("/store")).await.unwrap();
    for (path, words) in [
        ("/page", "no picture"),
        ("/silent", "no picture"),
        ("/part", "206"),
        ("/missing", "404"),
        ("/drip", "`fetch.timeout`"),
    ] {
        refuses(&fetcher, &url(path), reason::FETCH_FAILED, words).await;
    }
    refuses(&fetcher, &site.url("nobody.test", "/"), reason::FETCH_FAILED, "could not be reached").await;
    let late = fetcher.inline([("image".to_owned(), &mut url("/store"))], None, Some(Instant::now())).await;
    assert_eq!(late.unwrap_err().reason, reason::FETCH_FAILED, "the request's own deadline counts, too");
}

#[tokio::test]
async fn no_more_requests_fetch_at_once_than_may() {
    let site = Site::of_pictures("127.0.0.1:0");
    let fetcher = Fetcher::with_names(config(&[&site]), dns(&[]).names());
    let taken: Vec<_> = (0..places::OF_ONE).map(|_| fetcher.places.take(None).unwrap()).collect();
    let error = fetch(&fetcher, &site.url("127.0.0.1", "/")).await.unwrap_err();
    assert_eq!((error.code, &*error.reason), (ErrorCode::Unavailable, "overloaded"));
    assert!(error.retry_after.is_some());
    assert_eq!(fetch(&fetcher, "AAAA").await.unwrap(), "AAAA", "who fetches nothing needs no place");
    drop(taken);
    fetch(&fetcher, &site.url("127.0.0.1", "/")).await.unwrap();
}
