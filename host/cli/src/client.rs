//! HTTP to a running server.

use crate::context::Key;
use crate::exit::{Exit, Failure, Result};
use reqwest::Url;
use reqwest::blocking::{self, Response};
use reqwest::header::HeaderMap;
use serde_json::{Map, Value};
use std::time::Duration;

/// How long a server may take to say that it lives.
const PROBE: Duration = Duration::from_secs(2);
/// How long it may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// What helps where something else answers.
const ANOTHER: &str =
    "name the address of a Backplane with `--host`; a proxy in front of one has to pass its answers on";

/// What helps where the state directory's own key does not work any more.
const REVOKED: &str = "the key in `admin.key` of the state directory was revoked, or is of another server: set \
    `BACKPLANE_API_KEY` to one that works, or start the server again, which makes one where no administrator's is left";

/// What helps where the server's state directory has no key any more.
const LOST: &str = "`admin.key` of the state directory is not there: set `BACKPLANE_API_KEY`; if no administrator's key is left, \
    end the server and start it with `backplane serve --new-admin-key`";

/// Where a server is.
#[derive(Clone, Debug, PartialEq)]
pub struct Address(Url);

impl Address {
    /// `127.0.0.1:8484`, `gpu-box:8484`, `https://models.example.com`.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = || {
            Failure::usage(format!("`{text}` is not the address of a server"))
                .next("write it as in `--host 127.0.0.1:8484` or `--host https://models.example.com`")
        };
        let with_scheme = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let url = Url::parse(&with_scheme).map_err(|_| wrong())?;
        let fine =
            matches!(url.scheme(), "http" | "https") && url.host_str().is_some_and(|host| !host.is_empty());
        if fine { Ok(Self(url)) } else { Err(wrong()) }
    }

    /// Whether it is on this machine.
    pub fn is_local(&self) -> bool {
        let host = self.0.host_str().unwrap_or_default().trim_matches(['[', ']']);
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// Without the slash at its end.
    pub fn url(&self) -> &str {
        self.0.as_str().trim_end_matches('/')
    }

    /// Host and port, to bind to.
    pub fn to_bind(&self) -> String {
        let host = self.0.host_str().unwrap_or("127.0.0.1");
        let host = if host == "localhost" { "127.0.0.1" } else { host };
        format!("{host}:{}", self.0.port().unwrap_or(crate::context::DEFAULT_ADDRESS.1))
    }
}

/// Asks one server.
#[derive(Debug)]
pub struct Client {
    pub address: Address,
    key: Option<String>,
    /// Whether that key is the state directory's.
    own: bool,
    /// Whether the server is the state directory's, and its key is not there any more.
    lost: bool,
    http: blocking::Client,
    verbose: bool,
}

impl Client {
    pub fn new(address: Address, key: Key, verbose: bool) -> Result<Self> {
        // The key of the state directory is an administrator's: it never leaves for another machine.
        let (own, lost) = (key.given.is_none(), key.given.is_none() && key.lost);
        let key = key.given.or(key.own.filter(|_| key.ours || address.is_local()));
        let own = own && key.is_some();
        let mut builder = blocking::Client::builder().timeout(None).connect_timeout(CONNECT);
        if address.is_local() {
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|error| Failure::failed(format!("no HTTP client: {error}")))?;
        Ok(Self { address, key, own, lost, http, verbose })
    }

    /// The key it shows, if it has one.
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// Whether a Backplane answers there.
    pub fn is_up(&self) -> bool {
        let url = format!("{}/healthz", self.address.url());
        self.http
            .get(url)
            .timeout(PROBE)
            .send()
            .ok()
            .filter(|answer| answer.status().is_success())
            .and_then(|answer| answer.json::<Value>().ok())
            .is_some_and(|body| body["version"].is_string())
    }

    /// Who answers there, if it is no Backplane.
    pub fn stranger(&self) -> Option<Failure> {
        let url = format!("{}/healthz", self.address.url());
        let answer = self.http.get(url).timeout(PROBE).send().ok()?;
        let (status, body) = (answer.status().as_u16(), answer.text().unwrap_or_default());
        let json = serde_json::from_str::<Value>(&body).unwrap_or_default();
        if json["version"].is_string() || json["error"].is_object() {
            return None;
        }
        let failure = stranger(status, &body);
        Some(Failure { what: format!("{} {}", self.address.url(), failure.what), ..failure })
    }

    /// `GET` of JSON.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.read(self.request("GET", path))
    }

    /// `POST` of JSON, for JSON.
    pub fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.read(self.request("POST", path).json(body))
    }

    /// `PATCH` of JSON, for JSON.
    pub fn patch(&self, path: &str, body: &Value) -> Result<Value> {
        self.read(self.request("PATCH", path).json(body))
    }

    /// `DELETE`, for JSON.
    pub fn delete(&self, path: &str) -> Result<Value> {
        self.read(self.request("DELETE", path))
    }

    /// `POST` of JSON; the answer is read piece by piece.
    pub fn stream(&self, path: &str, body: &Value) -> Result<Response> {
        self.send(self.request("POST", path).json(body))
    }

    fn request(&self, method: &str, path: &str) -> blocking::RequestBuilder {
        let method = method.parse().unwrap_or(reqwest::Method::GET);
        let request = self.http.request(method, format!("{}{path}", self.address.url()));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Says, with `--verbose`, what became of a request, and what the log calls it.
    pub fn tell(&self, what: &str, headers: &HeaderMap, end: &str) {
        let id = headers.get("x-request-id").and_then(|id| id.to_str().ok());
        if let Some(id) = id.filter(|_| self.verbose) {
            crate::logging::say(&format!("{what}: {end} (request {id})"));
        }
    }

    fn read(&self, request: blocking::RequestBuilder) -> Result<Value> {
        let answer = self.send(request)?;
        answer.json().map_err(|error| {
            Failure::failed(format!(
                "{} did not answer with JSON, as a Backplane does: {error}",
                self.address.url()
            ))
            .next(ANOTHER)
            .code("not_a_backplane")
        })
    }

    fn send(&self, request: blocking::RequestBuilder) -> Result<Response> {
        let (http, request) = request.build_split();
        let request = request.map_err(|error| unreachable(&self.address, &error))?;
        let what = format!("{} {}", request.method(), request.url().path());
        let answer = http.execute(request).map_err(|error| unreachable(&self.address, &error))?;
        self.tell(&what, answer.headers(), answer.status().as_str());
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status().as_u16();
        let failure = refused(status, &answer.text().unwrap_or_default());
        Err(match failure.code.as_deref() {
            Some("not_a_backplane") => {
                Failure { what: format!("{} {}", self.address.url(), failure.what), ..failure }
            }
            Some("invalid_api_key") if self.own => failure.next(REVOKED),
            Some("missing_api_key") if self.lost => failure.next(LOST),
            _ => failure,
        })
    }
}

/// Nobody is there, or not who we thought.
pub fn unreachable(address: &Address, error: &reqwest::Error) -> Failure {
    if error.is_connect() {
        return Failure::failed(format!("no server answers at {}", address.url()))
            .next("start one with `backplane serve`, or name it with `--host`")
            .code("no_server");
    }
    let mut why = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        why = cause.to_string();
        source = cause.source();
    }
    Failure::failed(format!("{} broke off: {why}", address.url()))
        .next("the log says more: `backplane logs`")
        .code("connection")
}

/// What a refusal means, in OpenAI's words or in plain text.
pub fn refused(status: u16, body: &str) -> Failure {
    let error =
        serde_json::from_str::<Value>(body).ok().map(|mut body| body["error"].take()).unwrap_or_default();
    failure_of(status, &error, body)
}

/// The same for an error that came inside a stream, which has no status.
pub fn failure_of(status: u16, error: &Value, body: &str) -> Failure {
    let mut details = error.as_object().cloned().unwrap_or_else(Map::new);
    let mut take = |name: &str| match details.shift_remove(name) {
        Some(Value::String(text)) if !text.is_empty() => Some(text),
        _ => None,
    };
    let Some(message) = take("message").or_else(|| error.as_str().map(str::to_owned)) else {
        return stranger(status, body);
    };
    let code = take("code").unwrap_or_default();
    let kind = take("type");
    take("param");
    details.retain(|_, value| !value.is_null());
    let (exit, next) = match (status, code.as_str()) {
        (_, "no_memory") => {
            (Exit::NoMemory, Some("what is open: `backplane ps`; close one: `backplane stop NAME`"))
        }
        (401, _) | (_, "too_many_invalid_keys") => (
            Exit::Denied,
            Some("set `BACKPLANE_API_KEY`, or run as the user whose state directory the server uses"),
        ),
        (_, code) if code.starts_with("plugin_license_") && status != 503 => {
            (Exit::Denied, Some("how it stands with its licence: `backplane license status`"))
        }
        // The key has a limit, and has reached it.
        (429, _) | (_, "insufficient_quota" | "rate_limit_exceeded") => {
            (Exit::Denied, Some("what your key has left, and until when: `backplane key show`"))
        }
        (403, "admin_only") => (
            Exit::Denied,
            Some("your own key: `backplane key show`; what it may not do, an administrator does"),
        ),
        (403, _) => (Exit::Denied, None),
        (_, "model_not_found") => {
            (Exit::NotFound, Some("installed: `backplane ls`; can be pulled: `backplane ls --available`"))
        }
        (_, "capability_not_found") => (Exit::NotFound, Some("what is served: `backplane plugin ls`")),
        (404, _) => (Exit::NotFound, None),
        (_, "load_failed" | "plugin_fault" | "plugin_stuck") => {
            (Exit::Failure, Some("the log says more: `backplane logs`"))
        }
        (_, code) if FAILED.contains(&code) => (Exit::Failure, None),
        // What the server does not take of a request, the command line said. A stream has no status.
        (400, _) => (Exit::Usage, None),
        (0, _) if kind.as_deref() == Some("invalid_request_error") => (Exit::Usage, None),
        _ => (Exit::Failure, None),
    };
    // The server may have said so itself.
    let next = next.filter(|_| exit != Exit::NotFound || !message.contains("`backplane "));
    Failure {
        exit,
        what: message,
        next: next.map(str::to_owned),
        code: Some(code).filter(|code| !code.is_empty()),
        details,
    }
}

/// What the server refuses with 400 though the parameters of the request are not at fault.
const FAILED: [&str; 5] =
    ["config_invalid", "fetch_failed", "key_revoked", "malformed_request", "request_crashes_plugin"];

/// An answer that no Backplane gives. Of a page its beginning says enough.
fn stranger(status: u16, body: &str) -> Failure {
    let said: String = crate::output::printable(body.trim()).chars().take(80).collect();
    let what = match said.is_empty() {
        true => format!("answered {status}, and not as a Backplane does"),
        false => format!("answered {status}, and not as a Backplane does: {said}"),
    };
    let exit = if matches!(status, 401 | 403) { Exit::Denied } else { Exit::Failure };
    Failure::new(exit, what).next(ANOTHER).code("not_a_backplane")
}

/// A name as a part of a path.
pub fn segment(name: &str) -> String {
    let mut out = String::new();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' | b'/' => {
                out.push(byte.into())
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn addresses_are_read_as_people_write_them() {
        let url = |text: &str| Address::parse(text).unwrap().url().to_owned();
        assert_eq!(url("127.0.0.1:8484"), "http://127.0.0.1:8484");
        assert_eq!(url("http://localhost:1/"), "http://localhost:1");
        assert_eq!(url("https://models.example.com/team/"), "https://models.example.com/team");
        for text in ["", "http://", "ftp://x", "a b", ":1"] {
            assert_eq!(Address::parse(text).unwrap_err().exit, Exit::Usage, "{text}");
        }
    }

    #[test]
    fn the_admin_key_stays_on_this_machine() {
        let key = |address: &str, ours: bool| {
            let key = Key { given: None, own: Some("secret".into()), ours, lost: false };
            Client::new(Address::parse(address).unwrap(), key, false).unwrap().key
        };
        assert_eq!(key("127.0.0.1:1", false).as_deref(), Some("secret"));
        assert_eq!(key("[::1]:1", false).as_deref(), Some("secret"));
        assert_eq!(key("10.0.0.7:1", true).as_deref(), Some("secret"));
        assert_eq!(key("10.0.0.7:1", false), None);
        assert_eq!(key("localhost.evil.example:1", false), None);
    }

    #[test]
    fn a_refusal_says_what_the_server_said_and_exits_accordingly() {
        let body = |code: &str| {
            format!(r#"{{"error":{{"message":"no","type":"x","param":null,"code":"{code}","free":1}}}}"#)
        };
        let failure = refused(503, &body("no_memory"));
        assert_eq!((failure.exit, failure.what.as_str()), (Exit::NoMemory, "no"));
        assert_eq!(failure.details.get("free"), Some(&Value::from(1)));
        assert_eq!(failure.details.len(), 1);
        assert_eq!(refused(401, &body("invalid_api_key")).exit, Exit::Denied);
        assert_eq!(refused(429, &body("too_many_invalid_keys")).exit, Exit::Denied);
        assert_eq!(refused(429, &body("insufficient_quota")).exit, Exit::Denied);
        assert_eq!(refused(429, &body("rate_limit_exceeded")).exit, Exit::Denied);
        assert_eq!(refused(403, &body("host_not_allowed")).next, None);
        let licence = refused(403, &body("plugin_license_expired"));
        assert!(
            licence.exit == Exit::Denied && licence.next.is_some_and(|next| next.contains("license status"))
        );
        assert_eq!(refused(404, &body("model_not_found")).exit, Exit::NotFound);
        assert_eq!(refused(404, &body("key_not_found")).exit, Exit::NotFound);
        assert_eq!(refused(400, &body("invalid_type")).exit, Exit::Usage);
        assert_eq!(
            refused(400, &body("capability_not_served")).exit,
            Exit::Usage,
            "as `run` says of such a model"
        );
        assert_eq!(refused(400, r#"{"error":"plain"}"#).what, "plain");
        let stream =
            json!({ "message": "no", "type": "invalid_request_error", "code": "context_length_exceeded" });
        assert_eq!(failure_of(0, &stream, "").exit, Exit::Usage, "a stream has no status");
    }

    #[test]
    fn who_answers_like_no_backplane_is_told_so() {
        let page = format!("<!DOCTYPE html>\n<title>\x1b{}</title>", "x".repeat(500));
        for status in [404, 502] {
            let failure = refused(status, &page);
            assert_eq!(failure.exit, Exit::Failure, "a page that is not there is no model that is not there");
            assert_eq!(failure.code.as_deref(), Some("not_a_backplane"));
            assert!(
                failure
                    .what
                    .starts_with(&format!("answered {status}, and not as a Backplane does: <!DOCTYPE"))
            );
            assert!(failure.what.len() < 200 && !failure.what.contains('\x1b'), "{failure}");
        }
        assert_eq!(refused(401, "").exit, Exit::Denied);
    }

    #[test]
    fn what_is_refused_for_its_parameters_is_wrong_usage_as_the_page_says() {
        let page = include_str!("../../../docs/errors.md");
        let rows = page.lines().filter_map(|line| {
            let cells: Vec<&str> = line.strip_prefix("| `")?.split(" | ").collect();
            (cells.len() == 4).then(|| (cells[0].split('`').step_by(2), cells[1]))
        });
        let (mut usage, mut failed) = (0, Vec::new());
        for (codes, _) in rows.filter(|(_, status)| *status == "400") {
            for code in codes.filter(|code| !code.trim_matches([',', ' ']).is_empty()) {
                let body =
                    json!({ "error": { "message": "no", "type": "invalid_request_error", "code": code } });
                match refused(400, &body.to_string()).exit {
                    Exit::Usage => usage += 1,
                    Exit::Failure => failed.push(code),
                    other => panic!("`{code}` exits with {other:?}"),
                }
            }
        }
        failed.sort_unstable();
        assert!(15 < usage, "the page is not read as it should be: {usage}");
        let row = page.lines().find(|line| line.starts_with("| 1 | failed")).unwrap();
        assert!(
            failed.iter().all(|code| row.contains(&format!("`{code}`"))),
            "{failed:?} are not all in {row}"
        );
        assert!(failed.iter().all(|code| FAILED.contains(code)));
    }

    #[test]
    fn a_name_cannot_leave_its_place_in_a_path() {
        assert_eq!(segment("acme/vision:v2"), "acme/vision:v2");
        assert_eq!(segment("a?b#c d"), "a%3Fb%23c%20d");
    }
}
