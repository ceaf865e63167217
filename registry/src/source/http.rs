//! Downloads over HTTP that survive a cut.
//!
//! What has arrived stays in the destination file. The next attempt, in this process or another, asks for the rest by
//! `Range`, guarded by `If-Range` with the validator that the server gave: its entity tag, or when the file was changed.
//! The rest is appended if its answer has the same validator, or if the SHA-256 of the whole is known, which then decides.
//! Else it starts over.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::blocking::{Client, Response};
use reqwest::header::{self, HeaderMap};
use reqwest::{Method, StatusCode, Url, redirect};

use super::uri::is_loopback;
use super::watch::{CopyError, Watch, copy};
use crate::digest::Digest;
use crate::error::{RegistryError, Result};
use crate::settings::{Settings, Token};

const MAX_REDIRECTS: usize = 10;
/// An attempt that brought this much was no failure, however it ended.
const PROGRESS: u64 = 1 << 20;
/// Pages of an index are small; this is for one that is not.
const MAX_PAGE: u64 = 64 << 20;

pub(crate) struct Http {
    client: Client,
    attempts: u32,
    retry_delay: Duration,
}

/// One address, and what may be told to whom.
pub(crate) struct Target<'a> {
    /// How the user named it; errors say this and not the address, which may carry a signature.
    pub label: String,
    pub url: Url,
    /// Sent to the origin of `url` alone.
    pub token: Option<&'a Token>,
    /// What helps when access is refused.
    pub hint: &'static str,
}

/// What a download turned out to be.
#[derive(Default)]
pub(crate) struct Fetched {
    /// The SHA-256 that the hub states for a file.
    pub stated: Option<Digest>,
    /// It was put together of several answers.
    pub joined: bool,
}

/// What ended one attempt.
enum Stop {
    Retry(String),
    Fail(RegistryError),
}

impl From<RegistryError> for Stop {
    fn from(error: RegistryError) -> Self {
        Stop::Fail(error)
    }
}

impl Http {
    pub fn new(settings: &Settings) -> Result<Self> {
        let mut builder = Client::builder()
            .user_agent(concat!("backplane/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .connect_timeout(Duration::from_secs(20))
            // The blocking client applies this to each read, not to the whole body.
            .timeout(settings.read_timeout);
        for path in &settings.certificates {
            let unusable = |reason: String| RegistryError::InvalidFile { path: path.clone(), reason };
            if path.is_dir() {
                continue;
            }
            let pem = fs::read(path).map_err(RegistryError::io("read the certificates in", path))?;
            let certificates = reqwest::Certificate::from_pem_bundle(&pem)
                .map_err(|error| unusable(format!("not a PEM bundle of certificates: {error}")))?;
            builder = builder.tls_certs_merge(certificates);
        }
        let client = builder.build().map_err(|error| RegistryError::Transfer {
            source_uri: "the HTTP client".into(),
            reason: chain(&error),
        })?;
        Ok(Self { client, attempts: settings.attempts.max(1), retry_delay: settings.retry_delay })
    }

    /// Length of what is at the address, if the server says.
    pub fn length(&self, target: &Target<'_>) -> Result<Option<u64>> {
        match self.send(Method::HEAD, target, &HeaderMap::new()) {
            Ok((response, _)) if response.status().is_success() => {
                Ok(number(response.headers(), "content-length"))
            }
            Ok((response, _)) => match refusal(target, response.status()) {
                Stop::Fail(error) if !matches!(error, RegistryError::Transfer { .. }) => Err(error),
                _ => Ok(None), // a server that cannot do HEAD may still do GET
            },
            Err(Stop::Fail(error)) => Err(error),
            Err(Stop::Retry(reason)) => {
                Err(RegistryError::Transfer { source_uri: target.label.clone(), reason })
            }
        }
    }

    /// A small document, with its content type.
    pub fn page(
        &self,
        target: &Target<'_>,
        accept: &'static str,
        watch: &mut Watch<'_>,
    ) -> Result<(String, Vec<u8>)> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, header::HeaderValue::from_static(accept));
        self.attempt(target, watch, |_, _| {
            use std::io::Read as _;
            let (response, _) = self.send(Method::GET, target, &headers)?;
            if !response.status().is_success() {
                return Err(refusal(target, response.status()));
            }
            let kind = text(response.headers(), "content-type").unwrap_or_default();
            let mut body = Vec::new();
            response.take(MAX_PAGE).read_to_end(&mut body).map_err(|error| Stop::Retry(chain(&error)))?;
            Ok((kind, body))
        })
    }

    /// Brings the file at the address to `to`, going on from what is there. More than `limit` bytes are refused. `pinned`:
    /// the caller knows the SHA-256 of the whole and will compare it.
    pub fn download(
        &self,
        target: &Target<'_>,
        to: &Path,
        limit: Option<u64>,
        pinned: bool,
        watch: &mut Watch<'_>,
    ) -> Result<Fetched> {
        let mut fetched = Fetched::default();
        self.attempt(target, watch, |watch, progressed| {
            self.download_once(target, to, limit, pinned, watch, &mut fetched, progressed)
        })?;
        let _ = fs::remove_file(validator_path(to));
        Ok(fetched)
    }

    #[expect(clippy::too_many_arguments, reason = "the state of one download, told from its attempts")]
    fn download_once(
        &self,
        target: &Target<'_>,
        to: &Path,
        limit: Option<u64>,
        pinned: bool,
        watch: &mut Watch<'_>,
        fetched: &mut Fetched,
        progressed: &mut bool,
    ) -> Result<(), Stop> {
        let mut file =
            File::options().create(true).append(true).open(to).map_err(RegistryError::io("open", to))?;
        let mut have = file.metadata().map_err(RegistryError::io("read", to))?.len();
        let mut headers = HeaderMap::new();
        let part_of = fs::read_to_string(validator_path(to)).ok();
        let known = |fetched: &Fetched| pinned || fetched.stated.is_some();
        if have > 0 && part_of.is_none() && !known(fetched) {
            restart(&mut file, to)?; // nothing could ever show that the rest belongs to it
            have = 0;
        }
        if have > 0 {
            let range = format!("bytes={have}-");
            headers.insert(
                header::RANGE,
                header::HeaderValue::from_str(&range).map_err(|e| Stop::Retry(e.to_string()))?,
            );
            if let Some(value) = part_of.as_ref().and_then(|text| header::HeaderValue::from_str(text).ok()) {
                headers.insert(header::IF_RANGE, value);
            }
        }
        let (mut response, stated) = self.send(Method::GET, target, &headers)?;
        fetched.stated = stated.or(fetched.stated);
        let answer = response.headers();
        // Not every server heeds `If-Range`, and not every one that does says of which version its answer is.
        let now = validator(answer);
        let same = part_of.is_some() && now == part_of;
        let total = match response.status() {
            StatusCode::PARTIAL_CONTENT if !same && part_of.is_some() && now.is_some() => {
                restart(&mut file, to)?;
                return Err(Stop::Retry("the file on the server changed".into()));
            }
            StatusCode::PARTIAL_CONTENT if !same && !known(fetched) => {
                restart(&mut file, to)?;
                return Err(Stop::Retry("the server does not say whether the file is still the same".into()));
            }
            StatusCode::PARTIAL_CONTENT => match content_range(answer) {
                Some((start, total)) if start == have => {
                    fetched.joined |= have > 0;
                    total.or(number(answer, "content-length").map(|n| n + have))
                }
                _ => {
                    restart(&mut file, to)?;
                    return Err(Stop::Retry("the server sent another range than asked for".into()));
                }
            },
            StatusCode::OK => {
                if have > 0 {
                    restart(&mut file, to)?; // the server does not resume, or the file changed
                    have = 0;
                }
                number(answer, "content-length")
            }
            StatusCode::RANGE_NOT_SATISFIABLE if have > 0 => {
                if unsatisfied_total(answer) == Some(have) && (same || known(fetched)) {
                    fetched.joined = true;
                    return Ok(()); // all of it had arrived
                }
                restart(&mut file, to)?;
                return Err(Stop::Retry("the file on the server is another by now".into()));
            }
            status => return Err(refusal(target, status)),
        };
        if let Some(validator) = now {
            let path = validator_path(to);
            fs::write(&path, validator).map_err(RegistryError::io("write", path))?;
        }
        if let (Some(limit), Some(found)) = (limit, total)
            && found > limit
        {
            return Err(self.discard(target, to, limit, found).into());
        }
        if let Some(total) = total {
            super::space::require(to, total.saturating_sub(have))?;
        }
        file.seek(SeekFrom::End(0)).map_err(RegistryError::io("write", to))?;
        watch.downloaded(have, total, have);
        let copied = copy(&mut response, &mut file, to, watch, |watch, done| {
            *progressed |= done >= PROGRESS;
            if limit.is_some_and(|limit| have + done > limit) {
                return Err(self.discard(target, to, limit.unwrap_or_default(), have + done));
            }
            watch.downloaded(have + done, total, have);
            Ok(())
        });
        match copied {
            Ok(copied) if total.is_some_and(|total| have + copied < total) => Err(Stop::Retry(format!(
                "the connection ended after {} of {} bytes",
                have + copied,
                total.unwrap_or(0)
            ))),
            Ok(_) => Ok(()),
            Err(CopyError::Read(error)) => Err(Stop::Retry(broken(&file, total, &error))),
            Err(CopyError::Other(error)) => Err(error.into()),
        }
    }

    /// Sends one request, following redirects by hand: the token stays with its origin, and nothing leaves TLS.
    fn send(
        &self,
        method: Method,
        target: &Target<'_>,
        headers: &HeaderMap,
    ) -> Result<(Response, Option<Digest>), Stop> {
        let mut url = target.url.clone();
        let mut stated = None;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.client.request(method.clone(), url.clone()).headers(headers.clone());
            let home = url.origin() == target.url.origin();
            if let Some(token) =
                target.token.filter(|_| home && (url.scheme() == "https" || is_loopback(&url)))
            {
                request = request.bearer_auth(token.reveal());
            }
            let response = request.send().map_err(|error| Stop::Retry(chain(&error.without_url())))?;
            stated =
                stated.or_else(|| text(response.headers(), "x-linked-etag")?.trim_matches('"').parse().ok());
            if !response.status().is_redirection() {
                return Ok((response, stated));
            }
            let Some(next) = text(response.headers(), "location").and_then(|to| url.join(&to).ok()) else {
                return Err(Stop::Fail(self.failed(target, "it redirects to nowhere")));
            };
            if !may_lead_to(&target.url, &next) {
                return Err(Stop::Fail(
                    self.failed(target, "it redirects to an address that is not `https:`"),
                ));
            }
            url = next;
        }
        Err(Stop::Fail(self.failed(target, "it redirects in a circle")))
    }

    /// Runs `work` until it succeeds, fails for good, or has made no progress `attempts` times.
    fn attempt<T>(
        &self,
        target: &Target<'_>,
        watch: &mut Watch<'_>,
        mut work: impl FnMut(&mut Watch<'_>, &mut bool) -> Result<T, Stop>,
    ) -> Result<T> {
        let mut failures = 0;
        loop {
            watch.check()?;
            let mut progressed = false;
            match work(watch, &mut progressed) {
                Ok(value) => return Ok(value),
                Err(Stop::Fail(error)) => return Err(error),
                Err(Stop::Retry(reason)) => {
                    failures = if progressed { 1 } else { failures + 1 };
                    if failures >= self.attempts {
                        return Err(self.failed(target, &reason));
                    }
                    watch.retrying(failures + 1, &reason);
                    watch.pause(self.retry_delay.saturating_mul(1 << (failures - 1).min(5)))?;
                }
            }
        }
    }

    fn failed(&self, target: &Target<'_>, reason: &str) -> RegistryError {
        RegistryError::Transfer { source_uri: target.label.clone(), reason: reason.to_owned() }
    }

    fn discard(&self, target: &Target<'_>, path: &Path, expected: u64, found: u64) -> RegistryError {
        let _ = fs::remove_file(path);
        let _ = fs::remove_file(validator_path(path));
        RegistryError::WrongSize { source_uri: target.label.clone(), expected, found }
    }
}

/// Whether an answer of `from` may send us to `next`: an address in the clear only on this machine or where we had been
/// told to go in the clear anyway.
pub(crate) fn may_lead_to(from: &Url, next: &Url) -> bool {
    next.scheme() == "https"
        || (next.scheme() == "http" && (is_loopback(next) || next.origin() == from.origin()))
}

/// Beside a download lies the validator of the version that it is a part of.
pub(crate) fn validator_path(path: &Path) -> PathBuf {
    path.with_added_extension("etag")
}

/// What tells one version of a file from another: its entity tag, if that is a strong one, else when it was changed.
fn validator(headers: &HeaderMap) -> Option<String> {
    let tag = text(headers, "etag").filter(|tag| !tag.starts_with("W/"));
    tag.or_else(|| text(headers, "last-modified"))
}

fn restart(file: &mut File, path: &Path) -> Result<()> {
    let _ = fs::remove_file(validator_path(path));
    file.set_len(0).map_err(RegistryError::io("truncate", path))
}

fn refusal(target: &Target<'_>, status: StatusCode) -> Stop {
    let source_uri = target.label.clone();
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Stop::Fail(RegistryError::AccessDenied {
            source_uri,
            status: status.as_u16(),
            hint: target.hint.to_owned(),
        }),
        StatusCode::NOT_FOUND | StatusCode::GONE => {
            let file = target.url.path().rsplit('/').find(|part| !part.is_empty()).unwrap_or_default();
            Stop::Fail(RegistryError::SourceNotFound { source_uri, what: format!("`{file}`") })
        }
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Stop::Retry(format!("HTTP {status}")),
        _ if status.is_server_error() => Stop::Retry(format!("HTTP {status}")),
        _ => Stop::Fail(RegistryError::Transfer { source_uri, reason: format!("HTTP {status}") }),
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    text(headers, name)?.parse().ok()
}

/// Why a transfer broke, in words that do not depend on the layers it came through.
fn broken(file: &File, total: Option<u64>, error: &io::Error) -> String {
    let have = file.metadata().map_or(0, |meta| meta.len());
    let so_far = total.map_or_else(|| format!("{have} bytes"), |total| format!("{have} of {total} bytes"));
    let why = chain(error);
    if why.contains("timed out") {
        format!("the server was silent for too long after {so_far}")
    } else if why.contains("end of file") || why.contains("reset") {
        format!("the connection ended after {so_far}")
    } else {
        format!("the connection broke after {so_far}: {why}")
    }
}

/// `bytes 5-9/10` as (5, Some(10)).
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let value = text(headers, "content-range")?;
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()))
}

/// `bytes */10` as 10.
fn unsatisfied_total(headers: &HeaderMap) -> Option<u64> {
    text(headers, "content-range")?.strip_prefix("bytes */")?.parse().ok()
}

/// An error with all its causes: the outermost alone says "error sending request".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
