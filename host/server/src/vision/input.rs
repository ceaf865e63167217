//! The parameters and the picture of a request, in whichever form they come.

use crate::call::Call;
use crate::error::reason;
use crate::multipart::{self, Part};
use crate::openai::wire::invalid;
use crate::parse;
use actix_web::http::header::CONTENT_TYPE;
use backplane::{DType, Error, Result, Tensor};
use bytes::Bytes;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Number, Value};

/// Parameters, and pictures beside them where they did not come in base64 within.
#[derive(Debug, Default)]
pub(crate) struct Input {
    pub params: Map<String, Value>,
    pub tensors: Vec<Tensor>,
}

/// The bodies that can hold a picture.
const TAKEN: &str = "the picture itself as `image/…` or `application/octet-stream`, a form (`multipart/form-data`) with it as the \
    file `image`, or JSON (`application/json`) with it in base64 as the member `image`";

impl Input {
    /// What a request has: a JSON object; a form whose files are the pictures and whose other fields are the parameters; or
    /// the bytes of the picture alone. Parameters may stand in the URL's query with each of them.
    ///
    /// # Errors
    /// When it is none of these, or a parameter is not of its kind in `P`.
    pub(crate) async fn read<P: JsonSchema>(call: &mut Call) -> Result<Self> {
        let kind = content_type(call);
        let body = call.bytes().await?;
        let (mut params, mut files) = (Map::new(), Vec::new());
        let mut fields = multipart::urlencoded(call.query().as_bytes())?;
        let json = is_json(&kind) || matches!(body.trim_ascii_start().first(), Some(b'{' | b'['));
        if body.is_empty() {
            if !fields.iter().any(|field| matches!(&*field.name, "image" | "images")) {
                return Err(
                    invalid("image", format!("the body is empty; send {TAKEN}")).with_reason("missing_param")
                );
            }
        } else if multipart::is_form(&kind) {
            for part in multipart::parse(&kind, body).await? {
                if let Some(field) = file_or_field(part, &mut files)? {
                    fields.push(field);
                }
            }
        } else if is_picture(&kind) {
            files.push(body);
        } else if json {
            params = parse::json::<Map<String, Value>>(&body, call.json_depth())?.value;
        } else {
            let what = if kind.is_empty() {
                "the body has no `content-type`".to_owned()
            } else {
                format!("the body's `content-type` is `{}`", multipart::essence(&kind))
            };
            let message = format!("{what}, and it is no JSON; send {TAKEN}");
            return Err(Error::invalid(message).with_reason(reason::UNSUPPORTED_MEDIA_TYPE));
        }
        for (name, value) in typed::<P>(&fields)? {
            if params.contains_key(&name) {
                return Err(twice(&name));
            }
            params.insert(name, value);
        }
        let tensors = if files.is_empty() { Vec::new() } else { vec![pictures(&files)?] };
        Ok(Self { params, tensors })
    }
}

fn is_json(content_type: &str) -> bool {
    let kind = multipart::essence(content_type).to_ascii_lowercase();
    kind == "application/json" || kind.ends_with("+json")
}

fn is_picture(content_type: &str) -> bool {
    let kind = multipart::essence(content_type).to_ascii_lowercase();
    kind.starts_with("image/") || kind == "application/octet-stream"
}

/// A part of a form: a file called `image`, `images` or `file` is a picture and goes to the files, any other a parameter.
fn file_or_field(part: Part, files: &mut Vec<Bytes>) -> Result<Option<Part>> {
    if matches!(part.name.as_str(), "image" | "images" | "file") && part.file_name.is_some() {
        files.push(part.data);
        return Ok(None);
    }
    // A browser names what it was given as a blob, be it text.
    if part.file_name.is_some() && part.text().is_err() {
        let what = "is a file, and pictures are in `image`, `images` or `file`";
        return Err(invalid(part.name.as_str(), format!("the field `{}` {what}", part.name)));
    }
    Ok(Some(part))
}

/// Fields of a form or of a query, which are all text, as the members of JSON that `P` has; one that it does not have is a
/// number or a truth value where it can be read so.
fn typed<P: JsonSchema>(fields: &[Part]) -> Result<Map<String, Value>> {
    let mut members = Map::new();
    if fields.is_empty() {
        return Ok(members);
    }
    let schema = P::json_schema(&mut SchemaGenerator::default());
    for field in fields {
        let (name, text) = (field.name.as_str(), field.text()?);
        let member = schema.get("properties").and_then(|all| all.get(name));
        let is = |kind: &str| match member.map(|member| &member["type"]) {
            Some(Value::Array(kinds)) => kinds.iter().any(|one| one == kind),
            one => one.is_some_and(|one| one == kind),
        };
        if let Some(there) = members.get_mut(name) {
            match there {
                Value::Array(list) => list.push(text.into()),
                _ => return Err(twice(name)),
            }
            continue;
        }
        let value = if is("array") {
            vec![text].into()
        } else if is("boolean") {
            flag(name, text)?.into()
        } else if is("number") || is("integer") {
            serde_json::from_str::<Number>(text.trim())
                .map_err(|_| invalid(name, format!("`{name}` is `{text}`, which is no number")))?
                .into()
        } else {
            match serde_json::from_str(text) {
                Ok(value @ (Value::Bool(_) | Value::Number(_))) if member.is_none() && name != "model" => {
                    value
                }
                _ => text.into(),
            }
        };
        members.insert(name.to_owned(), value);
    }
    Ok(members)
}

fn twice(name: &str) -> Error {
    invalid(name, format!("`{name}` is given twice")).with_reason("duplicate_param")
}

/// A truth value of a form or a query.
pub(super) fn flag(name: &str, text: &str) -> Result<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "on" | "yes" => Ok(true),
        "false" | "0" | "off" | "no" => Ok(false),
        _ => Err(invalid(name, format!("`{name}` is `{text}`, and is `true` or `false`"))),
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
    use backplane::payload::vision_detect::Params;
    use serde_json::json;

    fn part(name: &str, data: &'static [u8]) -> Part {
        Part { name: name.into(), file_name: Some("blob".into()), data: Bytes::from_static(data) }
    }

    #[test]
    fn a_file_that_is_text_is_a_parameter_and_any_other_a_picture_in_the_wrong_place() {
        let (picture, mut files) = (b"\x89PNG\r\n\x1a\n", Vec::new());
        assert_eq!(file_or_field(part("image", picture), &mut files).unwrap(), None);
        let field = file_or_field(part("min_score", b"0.5"), &mut files).unwrap().unwrap();
        assert_eq!((&typed::<Params>(&[field]).unwrap()["min_score"], files.len()), (&Value::from(0.5), 1));
        let refused = file_or_field(part("imag", picture), &mut files).unwrap_err();
        assert!(refused.message.contains("the field `imag` is a file"), "{refused}");
    }

    #[test]
    fn a_field_is_what_its_capability_says() {
        let read = |query: &str| typed::<Params>(&multipart::urlencoded(query.as_bytes()).unwrap());
        let members =
            read("labels=1&min_score=+0.5&draw=on&labels=cat&limit=3&image=1234&model=7&theirs=2&also=x");
        let expected = json!({
            "labels": ["1", "cat"], "min_score": 0.5, "draw": true, "limit": 3, "image": "1234", "model": "7",
            "theirs": 2, "also": "x",
        });
        assert_eq!(Value::from(members.unwrap()), expected);
        for (query, name, says) in [
            ("draw=maybe", "draw", "`draw` is `maybe`, and is `true` or `false`"),
            ("min_score=NaN", "min_score", "`min_score` is `NaN`, which is no number"),
            ("limit=1&limit=2", "limit", "`limit` is given twice"),
        ] {
            let refused = read(query).unwrap_err();
            assert_eq!((refused.param.as_deref(), &*refused.message), (Some(name), says));
        }
    }
}
