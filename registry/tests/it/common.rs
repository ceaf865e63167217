//! A server on loopback that misbehaves as told, and what tests of pulls share.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backplane_registry::{Digest, Installed, Models, Progress, PullOptions, RegistryError, Settings};

/// What was asked of the server.
#[derive(Debug, Clone, Default)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    /// How many requests for this path came before.
    pub nth: usize,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn range_start(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

#[derive(Debug, Clone)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Bytes of the body after which the connection is cut.
    cut: Option<usize>,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), cut: None }
    }

    pub fn bytes(body: impl Into<Vec<u8>>) -> Self {
        Self { body: body.into(), ..Self::status(200) }
    }

    /// A file, or the rest of it where that is asked for. An empty tag is none.
    pub fn file(request: &Request, body: &[u8], etag: &str) -> Self {
        let same = request.header("if-range").is_none_or(|tag| tag == etag);
        let reply = match request.range_start().filter(|_| same) {
            Some(start) if start >= body.len() => {
                Self::status(416).with("content-range", &format!("bytes */{}", body.len()))
            }
            Some(start) => {
                let range = format!("bytes {start}-{}/{}", body.len() - 1, body.len());
                Self { status: 206, ..Self::bytes(&body[start..]) }.with("content-range", &range)
            }
            None => Self::bytes(body),
        };
        if etag.is_empty() { reply } else { reply.with("etag", etag) }
    }

    pub fn redirect(to: &str) -> Self {
        Self::status(302).with("location", to)
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn cut_after(mut self, bytes: usize) -> Self {
        self.cut = Some(bytes);
        self
    }
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

/// Serves until the test ends. Every connection carries one request.
pub struct Server {
    pub url: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub fn new(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (handler, seen): (Arc<Handler>, _) = (Arc::new(handler), requests.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (handler, seen) = (handler.clone(), seen.clone());
                std::thread::spawn(move || serve(&stream, &*handler, &seen));
            }
        });
        Self { url, requests }
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// Methods and start of the range of all requests so far, such as `GET 0`.
    pub fn log(&self) -> Vec<String> {
        self.requests().iter().map(|r| format!("{} {}", r.method, r.range_start().unwrap_or(0))).collect()
    }
}

fn serve(stream: &TcpStream, handler: &Handler, seen: &Mutex<Vec<Request>>) {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut lines = BufReader::new(stream).lines();
    let Some(Ok(first)) = lines.next() else { return };
    let mut words = first.split_whitespace().map(str::to_owned);
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return };
    let headers = lines
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(k, v)| (k.to_ascii_lowercase(), v.to_owned())))
        .collect();
    let mut request = Request { method, path, headers, nth: 0 };
    {
        let mut seen = seen.lock().unwrap();
        request.nth =
            seen.iter().filter(|other| other.path == request.path && other.method == request.method).count();
        seen.push(request.clone());
    }
    let reply = handler(&request);
    let mut head = format!(
        "HTTP/1.1 {} x\r\ncontent-length: {}\r\nconnection: close\r\n",
        reply.status,
        reply.body.len()
    );
    reply.headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
    let mut stream = stream;
    let _ = stream.write_all(format!("{head}\r\n").as_bytes());
    if request.method != "HEAD" {
        let _ = stream.write_all(&reply.body[..reply.cut.unwrap_or(reply.body.len()).min(reply.body.len())]);
    }
    let _ = stream.flush();
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = stream.read(&mut [0; 64]); // let the client read to the end before the socket is reset
}

/// A state directory, and what to pull into it.
pub struct Bench {
    pub folder: tempfile::TempDir,
    pub settings: Settings,
    /// Whether [`Bench::pull`] agrees to a download of any size.
    pub agrees: bool,
}

impl Bench {
    pub fn new() -> Self {
        let settings = Settings {
            retry_delay: Duration::from_millis(1),
            read_timeout: Duration::from_secs(5),
            python: "/nonexistent/python3".into(),
            ..Settings::default()
        };
        Self { folder: tempfile::tempdir().unwrap(), settings, agrees: false }
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    pub fn models(&self) -> Models {
        Models::with_settings(self.state(), self.settings.clone())
    }

    pub fn pull(&self, what: &str) -> Result<Installed, RegistryError> {
        self.pull_with(what, &PullOptions { allow_large: self.agrees, ..PullOptions::default() }).0
    }

    pub fn pull_with(
        &self,
        what: &str,
        options: &PullOptions,
    ) -> (Result<Installed, RegistryError>, Vec<Progress>) {
        let mut steps = Vec::new();
        let result = self.models().pull(what, options, &mut |step| steps.push(step));
        (result, steps)
    }

    /// Writes a card of one file beside the state directory and returns its path.
    pub fn card(&self, name: &str, file: &str) -> String {
        let path = self.path(&format!("{name}.toml"));
        let text = format!("name = '{name}'\nformat = 'gguf'\n[[files]]\nrole = 'model'\n{file}\n");
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// A card for a pinned file on the web.
    pub fn pinned(&self, name: &str, url: &str, body: &[u8]) -> String {
        self.card(name, &format!("sha256 = '{}'\nsize = {}\nsource = '{url}'", Digest::of(body), body.len()))
    }

    /// What lies among the partial downloads, by suffix.
    pub fn partials(&self) -> Vec<String> {
        let mut names: Vec<String> = files(&self.path("state/models/blobs/partial"))
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap()[64..].to_owned())
            .collect();
        names.sort();
        names
    }

    pub fn blobs(&self) -> usize {
        files(&self.path("state/models/blobs/sha256")).len()
    }
}

pub fn files(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}

/// Bytes without a pattern that a mistake in an offset could hide in.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    })
    .take(length)
    .collect()
}
