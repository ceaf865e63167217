//! A web site on loopback that serves what a test tells it to: a model hub, a package index, files over TLS.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What was asked.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: HashMap<String, String>,
}

/// What is answered.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// After so many bytes of the body the connection is cut.
    pub cut: Option<usize>,
    /// How long the body is, the client learns at its end.
    pub no_length: bool,
}

impl Reply {
    pub fn of(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, body: body.into(), ..Self::default() }
    }

    pub fn missing() -> Self {
        Self { status: 404, ..Self::default() }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// A file, or the rest of it where that is asked for.
    pub fn file(request: &Request, body: &[u8], tag: &str) -> Self {
        let from = request.headers.get("range").and_then(|range| range.strip_prefix("bytes="));
        let from = from.and_then(|range| range.strip_suffix('-')?.parse::<usize>().ok());
        let same = request.headers.get("if-range").is_none_or(|given| given == tag);
        let reply = match from.filter(|from| same && *from < body.len()) {
            Some(from) => Self { status: 206, ..Self::of(&body[from..]) }
                .with("content-range", format!("bytes {from}-{}/{}", body.len() - 1, body.len())),
            None => Self::of(body),
        };
        reply.with("etag", tag).with("accept-ranges", "bytes")
    }
}

/// A site that serves until the test ends; each connection carries one request.
pub struct Site {
    /// `http://127.0.0.1:port` or `https://localhost:port`.
    pub url: String,
    log: Arc<Mutex<Vec<String>>>,
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

impl Site {
    pub fn plain(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::start(None, handler)
    }

    /// Over TLS, with a certificate of its own for `localhost`, which is returned as PEM.
    pub fn secure(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> (Self, String) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        (Self::start(Some(Arc::new(config)), handler), made.cert.pem())
    }

    fn start(
        tls: Option<Arc<rustls::ServerConfig>>,
        handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let url = match tls {
            Some(_) => format!("https://localhost:{port}"),
            None => format!("http://127.0.0.1:{port}"),
        };
        let log = Arc::new(Mutex::new(Vec::new()));
        let (handler, kept): (Arc<Handler>, _) = (Arc::new(handler), log.clone());
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let (handler, kept, tls) = (handler.clone(), kept.clone(), tls.clone());
                std::thread::spawn(move || serve(socket, tls, &*handler, &kept));
            }
        });
        Self { url, log }
    }

    /// What was asked and answered so far, one line each; forgets it.
    pub fn take_log(&self) -> String {
        std::mem::take(&mut *self.log.lock().unwrap()).join("\n")
    }
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

fn serve(
    socket: TcpStream,
    tls: Option<Arc<rustls::ServerConfig>>,
    handler: &Handler,
    log: &Mutex<Vec<String>>,
) -> Option<()> {
    socket.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let mut stream: Box<dyn Stream> = match tls {
        Some(config) => {
            let session = rustls::ServerConnection::new(config).ok()?;
            Box::new(rustls::StreamOwned::new(session, socket.try_clone().ok()?))
        }
        None => Box::new(socket.try_clone().ok()?),
    };
    let request = read(&mut *stream)?;
    let reply = handler(&request);
    let sent = reply.cut.unwrap_or(reply.body.len());
    let range = request.headers.get("range").map(|range| format!(" (Range: {range})")).unwrap_or_default();
    let end = match reply.cut {
        Some(cut) => format!(", cut after {cut} of {} bytes", reply.body.len()),
        None if request.method == "HEAD" => String::new(),
        None => format!(", {} bytes", reply.body.len()),
    };
    log.lock().unwrap().push(format!("{} {}{range} → {}{end}", request.method, request.path, reply.status));
    let mut head = format!("HTTP/1.1 {} x\r\nconnection: close\r\n", reply.status);
    if !reply.no_length {
        head.push_str(&format!("content-length: {}\r\n", reply.body.len()));
    }
    reply.headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
    stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
    if request.method != "HEAD" {
        stream.write_all(&reply.body[..sent]).ok()?;
    }
    stream.flush().ok()?;
    socket.shutdown(std::net::Shutdown::Write).ok()?;
    let mut rest = [0; 64];
    while (&socket).read(&mut rest).is_ok_and(|read| read > 0) {} // the client reads to the end before the socket goes
    Some(())
}

fn read(stream: &mut dyn Stream) -> Option<Request> {
    let mut lines = BufReader::with_capacity(1, stream).lines().map_while(Result::ok);
    let first = lines.next()?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let headers = lines.take_while(|line| !line.is_empty());
    let headers = headers.filter_map(|line| {
        let (name, value) = line.split_once(": ")?;
        Some((name.to_ascii_lowercase(), value.to_owned()))
    });
    Some(Request { method, path, headers: headers.collect() })
}
