//! A graph at a server that speaks the Open Inference Protocol: looked up once, then asked with tensors.

use crate::client::Client;
use crate::discover::PATIENCE;
use crate::fault::{self, UNREACHABLE};
use crate::memory::Limit;
use crate::settings::InferenceParameters;
use crate::threads;
use crate::wire::tensor::{self, BINARY, HEADER_LENGTH, Metadata, Server};
use backplane_plugin::payload::tensor::Params;
use backplane_plugin::prelude::*;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use url::Url;

/// Where it is asked, and how.
#[derive(Debug)]
pub struct Graph {
    /// `models/{model}` or `models/{model}/versions/{version}`.
    path: String,
    /// Whether tensors travel behind the JSON.
    binary: bool,
}

impl Graph {
    /// Asks the server what the model is, and whether tensors may travel as binary data.
    ///
    /// # Errors
    /// When the server cannot be asked, refuses our key, or does not have the model.
    pub async fn find(client: &Client, name: &str, card: &InferenceParameters) -> Result<(Self, Metadata)> {
        let mut path = format!("models/{}", segment(name));
        if let Some(version) = &card.version {
            path.push_str(&format!("/versions/{}", segment(version)));
        }
        let asked = async {
            let about = Limit::DESCRIPTION;
            let (metadata, _): (Metadata, _) =
                client.json(client.get(&path).await?, about, Some(PATIENCE)).await?;
            let binary = match card.binary {
                Some(binary) => binary,
                None => {
                    let (server, _): (Server, _) =
                        client.json(client.get("").await?, about, Some(PATIENCE)).await?;
                    server.extensions.iter().any(|extension| extension == BINARY)
                }
            };
            Ok((binary, metadata))
        };
        let slow = || {
            let message = format!("upstream `{}` did not describe `{name}` in time", client.name);
            Error::new(Code::Unavailable, message).with_reason(UNREACHABLE)
        };
        let (binary, metadata) =
            tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| Err(slow()))?;
        Ok((Self { path, binary }, metadata))
    }

    /// Serves a request.
    ///
    /// # Errors
    /// The request's, or [`fault`]'s.
    pub async fn infer(&self, client: &Client, request: &Request) -> Result<Vec<Tensor>> {
        let params: Params = request.params()?;
        let sent = threads::work(threads::asked(request), || {
            tensor::request(params, &request.tensors()?, self.binary)
        })?;
        let mut headers = HeaderMap::new();
        let kind = if sent.json.is_some() { "application/octet-stream" } else { "application/json" };
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        if let Some(length) = sent.json {
            headers.insert(HEADER_LENGTH, length.into());
        }
        let answer = client.post_bytes(&format!("{}/infer", self.path), sent.body, headers, request).await?;
        let malformed = |what: String| fault::malformed(&client.name, what);
        let json = match answer.headers().get(HEADER_LENGTH) {
            None => None,
            Some(length) => {
                let length = length.to_str().ok().and_then(|length| length.parse::<usize>().ok());
                Some(length.ok_or_else(|| malformed(format!("`{HEADER_LENGTH}` is no number")))?)
            }
        };
        let (body, mut share) = client.body(answer, Limit::TENSORS, None).await?;
        let text = &body[..json.unwrap_or(body.len()).min(body.len())];
        // The bytes of tensors are there twice while they are copied out.
        let values = threads::work(text.len(), || client.count(text, Limit::TENSORS))?;
        client.hold(&mut share, 2 * body.len() + values)?;
        threads::work(body.len(), || tensor::answer(&body, json)).map_err(malformed)
    }
}

/// A name as a part of a path.
fn segment(name: &str) -> String {
    let mut url = Url::parse("http://x").ok();
    if let Some(mut segments) = url.as_mut().and_then(|url| url.path_segments_mut().ok()) {
        segments.pop_if_empty().push(name);
    }
    url.map(|url| url.path().trim_start_matches('/').to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_one_part_of_the_path() {
        assert_eq!(segment("densenet_onnx"), "densenet_onnx");
        assert_eq!(segment("acme/x y?"), "acme%2Fx%20y%3F");
    }
}
