//! The parameters and the picture of a request, in whichever form they come.

use crate::call::Call;
use crate::multipart::{self, Part};
use crate::openai::wire::invalid;
use crate::parse::{self, Parsed};
use actix_web::http::header::CONTENT_TYPE;
use backplane::{DType, Result, Tensor};
use bytes::Bytes;
use serde_json::{Map, Value};

/// Parameters, and a picture beside them where it did not come in base64 within.
#[derive(Debug, Default)]
pub(crate) struct Input {
    pub params: Map<String, Value>,
    pub tensors: Vec<Tensor>,
    pub ignored: Vec<String>,
}

impl Input {
    /// What a request has: a JSON object; a form whose files are the pictures and whose other fields are the parameters; or
    /// the bytes of the picture alone, as `image/…` or `application/octet-stream`.
    ///
    /// # Errors
    /// When it is none of these.
    pub(crate) async fn read(call: &mut Call) -> Result<Self> {
        let kind = content_type(call);
        let body = call.bytes().await?;
        if multipart::is_form(&kind) {
            return Self::of_form(multipart::parse(&kind, body).await?);
        }
        if kind.starts_with("image/") || kind == "application/octet-stream" {
            return Ok(Self { tensors: vec![pictures(&[body])?], ..Self::default() });
        }
        let Parsed { value: params, ignored } = parse::json(&body, call.json_depth())?;
        Ok(Self { params, tensors: Vec::new(), ignored })
    }

    /// A file called `image`, `images` or `file` is a picture. Other fields are JSON where they can be read so, else text.
    fn of_form(parts: Vec<Part>) -> Result<Self> {
        let (mut input, mut files) = (Self::default(), Vec::new());
        for part in parts {
            if matches!(part.name.as_str(), "image" | "images" | "file") && part.file_name.is_some() {
                files.push(part.data);
                continue;
            }
            // A browser names what it was given as a blob, be it text.
            if part.file_name.is_some() && part.text().is_err() {
                let what = "is a file, and pictures are in `image`, `images` or `file`";
                return Err(invalid(part.name.as_str(), format!("the field `{}` {what}", part.name)));
            }
            let text = part.text()?;
            let value = match serde_json::from_str(text) {
                Ok(value @ (Value::Bool(_) | Value::Number(_))) => value,
                _ => Value::from(text),
            };
            if input.params.insert(part.name.clone(), value).is_some() {
                return Err(invalid(
                    part.name.as_str(),
                    format!("the form has the field `{}` twice", part.name),
                ));
            }
        }
        if !files.is_empty() {
            input.tensors.push(pictures(&files)?);
        }
        Ok(input)
    }
}

/// The members that hold a picture in base64, or where it is: `image`, and each of `images`.
pub(crate) fn texts(params: &mut Map<String, Value>) -> Vec<(String, &mut String)> {
    let mut found = Vec::new();
    for (name, value) in params {
        match value {
            Value::String(text) if name == "image" => found.push((name.clone(), text)),
            Value::Array(several) if name == "images" => {
                let texts = several.iter_mut().enumerate().filter_map(|(place, value)| match value {
                    Value::String(text) => Some((format!("images[{place}]"), text)),
                    _ => None,
                });
                found.extend(texts);
            }
            _ => {}
        }
    }
    found
}

/// The media type of a body, with its parameters.
pub(crate) fn content_type(call: &Call) -> String {
    let header = call.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    header.unwrap_or_default().trim().to_owned()
}

/// The bytes of files, as the tensor that a plugin takes beside the parameters.
pub(crate) fn pictures(files: &[Bytes]) -> Result<Tensor> {
    let mut data = Vec::with_capacity(files.iter().map(|file| file.len() + 4).sum());
    for file in files {
        let length = u32::try_from(file.len());
        let length = length.map_err(|_| invalid("image", "the picture has more than 4 GiB"))?;
        data.extend_from_slice(&length.to_le_bytes());
        data.extend_from_slice(file);
    }
    Tensor::new("image", DType::Bytes, vec![files.len() as i64], data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_text_is_a_parameter_and_any_other_a_picture_in_the_wrong_place() {
        let part = |name: &str, data: &'static [u8]| Part {
            name: name.into(),
            file_name: Some("blob".into()),
            data: Bytes::from_static(data),
        };
        let picture = b"\x89PNG\r\n\x1a\n";
        let input = Input::of_form(vec![part("image", picture), part("min_score", b"0.5")]).unwrap();
        assert_eq!((&input.params["min_score"], input.tensors.len()), (&Value::from(0.5), 1));
        let refused = Input::of_form(vec![part("imag", picture)]).unwrap_err();
        assert!(refused.message.contains("the field `imag` is a file"), "{refused}");
    }
}
