//! The members of a request: from JSON, from a form, from a form with a file, or from the query.

use super::words;
use crate::call::Call;
use crate::error::reason;
use crate::multipart;
use crate::parse;
use actix_web::http::header::CONTENT_TYPE;
use backplane::{Error, Result};
use bytes::Bytes;
use serde_json::{Map, Value};

/// What was sent, once the key that came with it was looked at.
pub(crate) struct Fields {
    members: Map<String, Value>,
    pub file: Option<File>,
    /// Whether it came as JSON: forms have their own line ends.
    pub is_json: bool,
}

/// A file of a form.
pub(crate) struct File {
    pub name: String,
    pub bytes: Bytes,
}

impl Fields {
    /// Reads a request and lets its caller in, by the key in `authorization` or in the member `api_key`.
    ///
    /// # Errors
    /// When it cannot be read, or the key is none.
    pub(crate) async fn of(call: &mut Call) -> Result<Self> {
        let kind = call
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let body = call.bytes().await?;
        let is_json = essence == "application/json" || essence.ends_with("+json");
        let mut fields = Self { members: Map::new(), file: None, is_json };
        fields.add(call.query());
        match &*essence {
            _ if is_json => match parse::json::<Map<String, Value>>(&body, call.json_depth()) {
                Ok(parsed) => fields.members.extend(parsed.value),
                Err(error) if error.reason == "json_too_deep" => return Err(error),
                Err(_) => return Err(Error::invalid("Invalid JSON format").with_reason("invalid_json")),
            },
            "multipart/form-data" => fields.parts(&kind, body).await?,
            // Whatever else a client says, `curl -d` among them, is a form.
            _ => {
                let text = std::str::from_utf8(&body).map_err(|_| Error::invalid("the body is not UTF-8"))?;
                fields.add(text);
            }
        }
        let key = fields.text("api_key").map(str::to_owned);
        call.claim(key.as_deref()).map_err(words::key)?;
        Ok(fields)
    }

    /// Adds the pairs of a query or form; of several with a name the first counts.
    fn add(&mut self, text: &str) {
        for (name, value) in form_urlencoded::parse(text.as_bytes()) {
            self.members.entry(name.into_owned()).or_insert_with(|| value.into_owned().into());
        }
    }

    async fn parts(&mut self, kind: &str, body: Bytes) -> Result<()> {
        for part in multipart::parse(kind, body).await? {
            match part.file_name.clone() {
                Some(name) => _ = self.file.get_or_insert(File { name, bytes: part.data }),
                None => _ = self.members.entry(part.name.clone()).or_insert(part.text()?.into()),
            }
        }
        Ok(())
    }

    /// A member, if it is there and is not empty.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.members.get(name).filter(|value| match value {
            Value::Null => false,
            Value::String(text) => !text.is_empty(),
            Value::Array(list) => !list.is_empty(),
            _ => true,
        })
    }

    /// A member that is a text.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(Value::as_str)
    }

    /// A member that must be a text.
    pub(crate) fn required(&self, name: &'static str) -> Result<&str> {
        match self.get(name) {
            None => Err(words::missing(name)),
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(Error::invalid(format!("`{name}` must be a string"))
                .with_reason(reason::INVALID_TYPE)
                .with_param(name)),
        }
    }

    /// A member that is a number: forms have it as text. One below zero counts as zero, as it does to LibreTranslate.
    pub(crate) fn number(&self, name: &'static str) -> Result<u32> {
        let number = match self.get(name) {
            None => Some(0),
            Some(Value::String(text)) => text.trim().parse().ok(),
            Some(value) => value.as_i64(),
        };
        number.map(|number| u32::try_from(number.max(0)).unwrap_or(u32::MAX)).ok_or_else(|| {
            let message = format!("Invalid request: {name} parameter is not a number");
            Error::invalid(message).with_reason(reason::INVALID_TYPE).with_param(name)
        })
    }

    /// The texts of `q`, and whether they came as a list.
    pub(crate) fn texts(&self) -> Result<(Vec<String>, bool)> {
        let wrong = || {
            Error::invalid("`q` must be a string or a list of strings")
                .with_reason(reason::INVALID_TYPE)
                .with_param("q")
        };
        match self.get("q") {
            None => Err(words::missing("q")),
            Some(Value::String(text)) if self.is_json => Ok((vec![text.clone()], false)),
            Some(Value::String(text)) => Ok((vec![text.replace("\r\n", "\n").replace('\r', "\n")], false)),
            Some(Value::Array(list)) => {
                let texts = list.iter().map(|text| text.as_str().map(str::to_owned));
                Ok((texts.collect::<Option<Vec<_>>>().ok_or_else(wrong)?, true))
            }
            Some(_) => Err(wrong()),
        }
    }

    /// Members that nothing reads.
    pub(crate) fn ignored(&self, read: &[&str]) -> Vec<String> {
        let names = self.members.iter().filter(|(_, value)| !value.is_null()).map(|(name, _)| name);
        names.filter(|name| !read.contains(&&***name) && *name != "api_key").cloned().collect()
    }
}
