//! Pictures that a request names by their address. Off unless `fetch.hosts` names somebody.
//!
//! Who writes the address chooses what this host connects to, from where it stands. So each address, that of a redirect
//! too, is held against `fetch.hosts`; and a name is looked up once for each connection, by [`Lookup`], which gives
//! nothing that [`address::may_reach`] refuses, and whose answer is what is connected to. Nobody looks it up again. The
//! proxies of the environment are not asked, connections are not kept, and a caller is not told which address a name has.

mod address;
mod places;
#[cfg(test)]
mod tests;

use crate::error::reason;
use actix_web::http::header::{CONTENT_TYPE, LOCATION};
use backplane::config::FetchConfig;
use backplane::{Error, ErrorCode, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::future::BoxFuture;
use ipnet::IpNet;
use places::Places;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, Response, StatusCode, Url, redirect};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How often an address may lead on to another one.
const MAX_REDIRECTS: usize = 3;
/// Pictures that are fetched for one request.
const MAX_PICTURES: usize = 16;

/// Fetches pictures.
pub(crate) struct Fetcher {
    config: FetchConfig,
    names: Names,
    /// Made when it is first needed: it reads the system's certificates.
    client: OnceLock<Client>,
    places: Places,
}

/// What a name stands for.
type Names = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

impl Fetcher {
    pub(crate) fn new(config: FetchConfig) -> Self {
        let names = |name: String| -> BoxFuture<'static, _> {
            Box::pin(async move { Ok(tokio::net::lookup_host((name, 0)).await?.collect()) })
        };
        Self::with_names(config, Arc::new(names))
    }

    fn with_names(config: FetchConfig, names: Names) -> Self {
        Self { config, names, client: OnceLock::new(), places: Places::default() }
    }

    /// Puts what is found at each address in its place, as a `data:` URL. What is no address stays as it is. The names say
    /// where in the request each stands. All that one request has goes here together: its limits are for all of it.
    ///
    /// # Errors
    /// What must not be fetched, or cannot be, by its name.
    pub(crate) async fn inline(
        &self,
        texts: impl IntoIterator<Item = (String, &mut String)>,
        key: Option<&Arc<str>>,
        deadline: Option<Instant>,
    ) -> Result<()> {
        let mut texts: Vec<_> = texts.into_iter().filter(|(_, text)| is_address(text)).collect();
        let (first, count) = match texts.first() {
            Some((at, _)) => (at.clone(), texts.len()),
            None => return Ok(()),
        };
        if self.config.hosts.is_empty() {
            let message = format!(
                "`{first}` is an address, and this server fetches no pictures: send the picture itself, in base64 or as \
                 a `data:` URL, or have its operator name the host in `fetch.hosts`"
            );
            return Err(refused(&first, reason::FETCH_DISABLED, message));
        }
        if MAX_PICTURES < count {
            let message = format!(
                "the request has {count} pictures by their address, and {MAX_PICTURES} are fetched at most"
            );
            return Err(refused(&first, reason::FETCH_REFUSED, message));
        }
        let Some(_place) = self.places.take(key) else {
            return Err(Error::new(ErrorCode::Unavailable, "too many pictures are being fetched; try again")
                .with_reason("overloaded")
                .with_retry_after(Duration::from_secs(1)));
        };
        let until = Instant::now() + self.config.timeout;
        let until = deadline.map_or(until, |deadline| deadline.min(until));
        let mut left = self.config.max_bytes;
        for (at, text) in &mut texts {
            let fetched = tokio::time::timeout_at(until.into(), self.picture(at, text, left)).await;
            let (kind, file) = fetched.map_err(|_| {
                failed(
                    at,
                    "it did not come in time, which is `fetch.timeout` or the request's own".to_owned(),
                )
            })??;
            left -= file.len();
            **text = format!("data:{kind};base64,{}", STANDARD.encode(file));
        }
        Ok(())
    }

    /// The media type and the bytes of what is there.
    async fn picture(&self, at: &str, text: &str, most: usize) -> Result<(String, Vec<u8>)> {
        let no_address = |error| refused(at, reason::FETCH_REFUSED, format!("`{at}` is no address: {error}"));
        let mut url = Url::parse(text.trim()).map_err(no_address)?;
        for _ in 0..=MAX_REDIRECTS {
            let host = self.allowed(at, &url)?.to_owned();
            let response = self.client()?.get(url.clone()).send().await;
            let response = response.map_err(|error| unreached(at, &host, &error.without_url()))?;
            match response.status() {
                StatusCode::OK => return whole(at, response, most).await,
                status if status.is_redirection() => {
                    let target =
                        response.headers().get(LOCATION.as_str()).and_then(|value| value.to_str().ok());
                    url = target.and_then(|target| url.join(target).ok()).ok_or_else(|| {
                        failed(at, format!("`{host}` answered {status} without an address to go to"))
                    })?;
                }
                status => return Err(failed(at, format!("`{host}` answered {status}"))),
            }
        }
        Err(failed(at, format!("it leads on more than {MAX_REDIRECTS} times")))
    }

    /// The host of an address that may be asked.
    fn allowed<'a>(&self, at: &str, url: &'a Url) -> Result<&'a str> {
        let no =
            |why: String| Err(refused(at, reason::FETCH_REFUSED, format!("`{at}` is not fetched: {why}")));
        let usual = match url.scheme() {
            "http" => 80,
            "https" => 443,
            other => {
                return no(format!(
                    "it leads to an address of `{other}:`, and only `http:` and `https:` are asked"
                ));
            }
        };
        if !url.username().is_empty() || url.password().is_some() {
            return no("its address holds a name or a password; leave them out".to_owned());
        }
        let Some(host) = url.host_str() else { return no("its address has no host".to_owned()) };
        let port = url.port().unwrap_or(usual);
        if !self.config.hosts.iter().any(|site| site.covers(host, port, usual)) {
            let named = if port == usual { host.to_owned() } else { format!("{host}:{port}") };
            return no(format!(
                "`{named}` is not among the hosts that may be asked; its operator may add it to `fetch.hosts`"
            ));
        }
        // Names are looked at where they are looked up; the numbers of `0x7f.1` are read by now.
        let number = host.trim_matches(['[', ']']).parse::<IpAddr>();
        if number.is_ok_and(|number| !address::may_reach(number, &self.config.networks)) {
            return no(private(host));
        }
        Ok(host)
    }

    fn client(&self) -> Result<&Client> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let lookup = Lookup { names: self.names.clone(), networks: self.config.networks.clone().into() };
        let made = Client::builder()
            .user_agent(concat!("backplane/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .no_proxy()
            .pool_max_idle_per_host(0)
            .dns_resolver(lookup)
            .build();
        let made = made.map_err(|error| {
            tracing::error!(%error, "pictures cannot be fetched");
            Error::internal("pictures cannot be fetched; the log says why")
        })?;
        Ok(self.client.get_or_init(|| made))
    }
}

/// Whether a text is an address to be fetched, and not the picture itself.
fn is_address(text: &str) -> bool {
    let scheme = text.trim_start().split_once(':').map(|(scheme, _)| scheme);
    scheme.is_some_and(|scheme| ["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)))
}

/// Looks names up. What it gives is connected to; all of it may be reached, or none is given.
struct Lookup {
    names: Names,
    networks: Arc<[IpNet]>,
}

/// A name leads where nothing may be reached.
#[derive(Debug)]
struct Private;

impl std::fmt::Display for Private {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the name leads to an address that may not be reached")
    }
}

impl std::error::Error for Private {}

impl Resolve for Lookup {
    fn resolve(&self, name: Name) -> Resolving {
        let (found, networks) = ((self.names)(name.as_str().to_owned()), self.networks.clone());
        Box::pin(async move {
            let found = found.await?;
            if found.iter().any(|found| !address::may_reach(found.ip(), &networks)) {
                return Err(Private.into());
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// The body of an answer, if it is a picture and not more than it may be.
async fn whole(at: &str, mut response: Response, most: usize) -> Result<(String, Vec<u8>)> {
    let kind = response.headers().get(CONTENT_TYPE.as_str()).and_then(|value| value.to_str().ok());
    let kind = kind.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_word = |word: &str| word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-+.".contains(&b));
    let kind = match &*kind {
        // What stores of files say of everything.
        "application/octet-stream" | "binary/octet-stream" => "image/x-unknown".to_owned(),
        picture if picture.strip_prefix("image/").is_some_and(is_word) => kind,
        _ => return Err(failed(at, "by its `content-type` it is no picture".to_owned())),
    };
    let too_long =
        || failed(at, "it is larger than `fetch.max_bytes` allows for the pictures of a request".to_owned());
    if response.content_length().is_some_and(|length| most < length as usize) {
        return Err(too_long());
    }
    let mut file = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|error| {
        tracing::debug!(error = %error.without_url(), "a picture broke off");
        failed(at, "it broke off".to_owned())
    })? {
        if most - file.len() < piece.len() {
            return Err(too_long());
        }
        file.extend_from_slice(&piece);
    }
    Ok((kind, file))
}

/// No answer came. The address is in no log: it may hold a signature.
fn unreached(at: &str, host: &str, error: &reqwest::Error) -> Error {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    if causes.clone().any(|cause| cause.is::<Private>()) {
        return refused(at, reason::FETCH_REFUSED, format!("`{at}` is not fetched: {}", private(host)));
    }
    let causes: Vec<String> = causes.map(ToString::to_string).collect();
    tracing::debug!(host, causes = causes.join(": "), "a picture could not be fetched");
    failed(at, format!("`{host}` could not be reached"))
}

fn private(host: &str) -> String {
    format!("`{host}` is not on the public internet; its operator may list its network in `fetch.networks`")
}

fn failed(at: &str, why: String) -> Error {
    refused(at, reason::FETCH_FAILED, format!("`{at}` could not be fetched: {why}"))
}

fn refused(at: &str, reason: &'static str, message: String) -> Error {
    Error::invalid(message).with_reason(reason).with_param(at)
}
