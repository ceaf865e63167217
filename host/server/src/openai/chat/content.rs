//! What a message says: text, or parts of text and pictures.

use crate::openai::wire::{invalid, unsupported};
use backplane::payload::chat as payload;
use backplane::{DType, Result, Tensor};
use base64::Engine as _;
use schemars::JsonSchema;
use serde::Deserialize;

/// Text, parts, or nothing.
#[derive(Debug, Default, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Content {
    /// Text.
    Text(String),
    /// Text and pictures in order.
    Parts(Vec<Part>),
    /// None: an assistant message that only calls tools.
    #[default]
    Absent,
}

/// A part of a message.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct Part {
    /// `text`, `image_url` (for models that see) or `refusal`.
    r#type: String,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    refusal: Option<String>,
    #[serde(default)]
    image_url: Option<ImageUrl>,
}

/// A picture.
#[derive(Debug, Deserialize, JsonSchema)]
struct ImageUrl {
    /// `data:image/png;base64,…`, or an address of `http:` or `https:` where the operator lets the host fetch pictures.
    url: String,
}

/// By hand, since an untagged enum would keep serde from telling which members were not read.
impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Content;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string or an array of parts")
            }

            fn visit_unit<E: serde::de::Error>(self) -> Result<Content, E> {
                Ok(Content::Absent)
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Content, E> {
                Ok(Content::Text(text.to_owned()))
            }

            fn visit_string<E: serde::de::Error>(self, text: String) -> Result<Content, E> {
                Ok(Content::Text(text))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, parts: A) -> Result<Content, A::Error> {
                Vec::deserialize(serde::de::value::SeqAccessDeserializer::new(parts)).map(Content::Parts)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl Content {
    /// Which part is the first picture.
    pub(crate) fn first_picture(&self) -> Option<usize> {
        let Content::Parts(parts) = self else { return None };
        parts.iter().position(|part| part.r#type == "image_url")
    }

    /// The URL of each picture, with where it stands.
    pub(crate) fn pictures(&mut self, at: &str) -> Vec<(String, &mut String)> {
        let Content::Parts(parts) = self else { return Vec::new() };
        let parts = parts.iter_mut().enumerate();
        parts
            .filter_map(|(index, part)| {
                Some((format!("{at}[{index}].image_url.url"), &mut part.image_url.as_mut()?.url))
            })
            .collect()
    }

    /// As `chat/1` has it; pictures are added to `pictures` as tensors.
    pub(crate) fn into_payload(self, at: &str, pictures: &mut Vec<Tensor>) -> Result<payload::Content> {
        let parts = match self {
            Content::Text(text) => return Ok(payload::Content::Text(text)),
            Content::Absent => return Ok(payload::Content::Absent),
            Content::Parts(parts) => parts,
        };
        if parts.is_empty() {
            return Err(invalid(at, format!("`{at}` has no parts")));
        }
        parts
            .into_iter()
            .enumerate()
            .map(|(index, part)| part.into_payload(&format!("{at}[{index}]"), pictures))
            .collect::<Result<_>>()
            .map(payload::Content::Parts)
    }
}

impl Part {
    fn into_payload(self, at: &str, pictures: &mut Vec<Tensor>) -> Result<payload::Part> {
        let missing = |member: &str| {
            let at = format!("{at}.{member}");
            invalid(at.clone(), format!("`{at}` is missing"))
        };
        match self.r#type.as_str() {
            "text" => Ok(payload::Part::Text { text: self.text.ok_or_else(|| missing("text"))? }),
            "refusal" => Ok(payload::Part::Text { text: self.refusal.ok_or_else(|| missing("refusal"))? }),
            "image_url" => {
                let url = self.image_url.ok_or_else(|| missing("image_url"))?.url;
                let name = format!("image_{}", pictures.len());
                pictures.push(picture(&name, &url, &format!("{at}.image_url.url"))?);
                Ok(payload::Part::Image { tensor: name })
            }
            other => {
                let message = format!("`{at}.type` is `{other}`; `text` and `image_url` are supported");
                Err(unsupported(format!("{at}.type"), message))
            }
        }
    }
}

/// The encoded file behind a `data:` URL, as a tensor.
fn picture(name: &str, url: &str, at: &str) -> Result<Tensor> {
    let Some((_, data)) = url.strip_prefix("data:image/").and_then(|rest| rest.split_once(";base64,")) else {
        let message = format!("`{at}` must be `data:image/…;base64,…`, or an address of `http:` or `https:`");
        return Err(unsupported(at, message));
    };
    let file = base64::engine::general_purpose::STANDARD
        .decode(data)
        .map_err(|error| invalid(at, format!("`{at}` is not base64: {error}")))?;
    Tensor::new(name, DType::Uint8, vec![file.len() as i64], file)
}
