//! `embed/1` as `/embeddings`.

use super::{Body, no_word_for, put};
use crate::fault;
use crate::settings::Flavour;
use backplane_plugin::payload::embed::{Input, Params};
use backplane_plugin::prelude::*;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Deserializer, de};
use serde_json::Value;

/// What is sent: vectors are asked for in base64, a quarter of the text and none of the parsing.
///
/// # Errors
/// Texts beside tokens, for which the API has no form; `truncate` where there is no word for it.
pub fn request(params: Params, model: &str, flavour: Flavour) -> Result<Body> {
    let (mut texts, mut tokens) = (Vec::new(), Vec::new());
    for input in params.input {
        match input {
            Input::Text(text) => texts.push(Value::from(text)),
            Input::Tokens(list) => tokens.push(Value::from(list)),
        }
    }
    let input = match (texts.is_empty(), tokens.is_empty()) {
        (true, true) => return Err(Error::invalid("`input` is empty").with_param("input")),
        (false, true) => texts,
        (true, false) => tokens,
        (false, false) => {
            return Err(
                Error::invalid("`input` mixes texts and tokens: send two requests").with_param("input")
            );
        }
    };
    let mut body = Body::new();
    body.insert("model".to_owned(), model.into());
    body.insert("input".to_owned(), Value::Array(input));
    body.insert("encoding_format".to_owned(), "base64".into());
    put(&mut body, "dimensions", params.dimensions);
    if params.truncate {
        match flavour {
            Flavour::Vllm => put(&mut body, "truncate_prompt_tokens", Some(-1)),
            Flavour::Backplane => put(&mut body, "truncate", Some(true)),
            // It does so unasked.
            Flavour::Ollama => {}
            Flavour::Openai | Flavour::LlamaCpp => return Err(no_word_for("truncate", flavour)),
        }
    }
    body.extend(params.extra);
    Ok(body)
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Answer {
    data: Vec<Vector>,
    pub usage: Option<super::TheirUsage>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Vector {
    index: Option<usize>,
    embedding: Numbers,
}

/// As numbers, or their bytes in base64: some servers ignore what was asked for.
#[derive(Debug)]
enum Numbers {
    List(Vec<f32>),
    Base64(String),
}

impl Default for Numbers {
    fn default() -> Self {
        Self::List(Vec::new())
    }
}

/// By hand: an untagged enum would keep a list as values of eight times its size before it becomes numbers.
impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Numbers;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list of numbers, or base64")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Numbers, E> {
                Ok(Numbers::Base64(text.to_owned()))
            }

            fn visit_string<E: de::Error>(self, text: String) -> Result<Numbers, E> {
                Ok(Numbers::Base64(text))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Numbers, A::Error> {
                let mut numbers = Vec::new();
                while let Some(number) = list.next_element()? {
                    numbers.push(number);
                }
                Ok(Numbers::List(numbers))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl Answer {
    /// The vectors one after the other in the order of the inputs, and how long each is.
    ///
    /// # Errors
    /// When they are not `count` vectors of one length.
    pub fn vectors(self, server: &str, count: usize) -> Result<(Vec<f32>, usize)> {
        let wrong = |what: String| fault::malformed(server, what);
        if self.data.len() != count {
            return Err(wrong(format!("it gave {} vectors for {count} inputs", self.data.len())));
        }
        let mut rows: Vec<Option<Vec<f32>>> = vec![None; count];
        for (place, vector) in self.data.into_iter().enumerate() {
            let index = vector.index.unwrap_or(place);
            let row = rows.get_mut(index).filter(|row| row.is_none());
            let row =
                row.ok_or_else(|| wrong(format!("its vector {index} is there twice, or of no input")))?;
            *row = Some(
                vector.embedding.list().ok_or_else(|| wrong("a vector is not base64 of floats".into()))?,
            );
        }
        let rows: Vec<_> = rows.into_iter().flatten().collect();
        let length = rows.first().map_or(0, Vec::len);
        if length == 0 || rows.iter().any(|row| row.len() != length) {
            return Err(wrong("its vectors are empty, or of several lengths".into()));
        }
        Ok((rows.concat(), length))
    }
}

impl Numbers {
    fn list(self) -> Option<Vec<f32>> {
        match self {
            Self::List(list) => Some(list),
            Self::Base64(text) => {
                let bytes = BASE64_STANDARD.decode(text).ok()?;
                let (floats, rest) = bytes.as_chunks::<4>();
                rest.is_empty().then(|| floats.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vectors(body: Value, count: usize) -> Result<(Vec<f32>, usize)> {
        serde_json::from_value::<Answer>(body).unwrap().vectors("h", count)
    }

    #[test]
    fn vectors_come_in_the_order_of_the_inputs() {
        let encoded = BASE64_STANDARD.encode([1.0f32, -2.5].map(f32::to_le_bytes).concat());
        let body =
            json!({"data": [{"index": 1, "embedding": [3.0, 4.0]}, {"index": 0, "embedding": encoded}]});
        assert_eq!(vectors(body, 2).unwrap(), (vec![1.0, -2.5, 3.0, 4.0], 2));
    }

    #[test]
    fn what_are_not_vectors_is_refused() {
        for (data, count) in [
            (json!([{"embedding": [1.0]}]), 2),
            (json!([{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}]), 2),
            (json!([{"index": 7, "embedding": [1.0]}]), 1),
            (json!([{"embedding": "AAA="}]), 1),
            (json!([{"embedding": "?"}]), 1),
            (json!([{"embedding": [1.0]}, {"embedding": [1.0, 2.0]}]), 2),
            (json!([{"embedding": []}]), 1),
        ] {
            assert_eq!(vectors(json!({"data": data}), count).unwrap_err().code, Code::Unavailable, "{data}");
        }
    }
}
