//! An embedding request as OpenAI's clients send it, and its answer.

use crate::openai::wire::{at_most, invalid};
use crate::options::KeepAliveField;
use backplane::payload::Usage as Counted;
use backplane::payload::embed as payload;
use backplane::{Answer, DType, Result};
use base64::Engine as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most inputs of a request, as OpenAI's.
pub(crate) const MAX_INPUTS: usize = 2048;

/// Texts to be embedded. What is not listed here is not read, and named in `x-ignored-params`.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "EmbeddingRequest")]
pub(crate) struct Request {
    /// A model, an alias or a route. Without it the router chooses.
    #[serde(default)]
    pub model: Option<String>,
    /// Text, tokens, or several of either.
    input: Inputs,
    /// `float` or `base64` (little-endian `float32`).
    #[serde(default)]
    encoding_format: Option<Encoding>,
    /// Cut each vector to this many dimensions; for models trained for that.
    #[serde(default)]
    dimensions: Option<u32>,
    /// Cut inputs that are too long instead of refusing them. Not OpenAI's.
    #[serde(default)]
    truncate: Option<bool>,
    /// How long the model stays open afterwards: `"5m"`, seconds, `0`, or `-1` for ever. Not OpenAI's.
    #[serde(default)]
    pub keep_alive: Option<KeepAliveField>,
}

/// How vectors are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Encoding {
    /// JSON numbers.
    #[default]
    Float,
    /// Base64 of little-endian `float32`.
    Base64,
}

/// Text, tokens, or several of either.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "expected a string, an array of strings, an array of tokens, or an array of such arrays"
)]
enum Inputs {
    /// Text.
    Text(String),
    /// Several texts.
    Texts(Vec<String>),
    /// Tokens of this model.
    Tokens(Vec<u32>),
    /// Several inputs of tokens.
    TokenLists(Vec<Vec<u32>>),
}

impl Request {
    /// The parameters of `embed/1`, and how the vectors are to be written.
    ///
    /// # Errors
    /// Whatever is out of range, by name.
    pub(crate) fn into_params(self) -> Result<(payload::Params, Encoding)> {
        use payload::Input;
        let input: Vec<Input> = match self.input {
            Inputs::Text(text) => vec![Input::Text(text)],
            Inputs::Texts(texts) => texts.into_iter().map(Input::Text).collect(),
            Inputs::Tokens(tokens) => vec![Input::Tokens(tokens)],
            Inputs::TokenLists(lists) => lists.into_iter().map(Input::Tokens).collect(),
        };
        at_most("input", input.len(), MAX_INPUTS)?;
        let empty = |input: &Input| match input {
            Input::Text(text) => text.is_empty(),
            Input::Tokens(tokens) => tokens.is_empty(),
        };
        if input.is_empty() {
            return Err(invalid("input", "`input` is an empty array; at least one is needed"));
        }
        if let Some(index) = input.iter().position(empty) {
            return Err(invalid(format!("input[{index}]"), format!("`input[{index}]` is empty")));
        }
        if self.dimensions == Some(0) {
            return Err(invalid("dimensions", "`dimensions` is 0; it must be at least 1"));
        }
        let params = payload::Params {
            input,
            dimensions: self.dimensions,
            truncate: self.truncate.unwrap_or_default(),
            extra: serde_json::Map::new(),
        };
        Ok((params, self.encoding_format.unwrap_or_default()))
    }
}

/// The vectors.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Embeddings")]
pub(crate) struct Embeddings<'a> {
    object: &'static str,
    data: Vec<Embedding<'a>>,
    model: &'a str,
    usage: Usage,
}

/// One vector.
#[derive(Debug, Serialize, JsonSchema)]
struct Embedding<'a> {
    object: &'static str,
    index: usize,
    embedding: Vector<'a>,
}

/// As numbers, or as base64 of little-endian `float32`.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
enum Vector<'a> {
    Numbers(&'a [f32]),
    Base64(String),
}

/// What was consumed.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "EmbeddingUsage")]
struct Usage {
    prompt_tokens: u64,
    total_tokens: u64,
}

impl From<&Counted> for Usage {
    fn from(counted: &Counted) -> Self {
        Self {
            prompt_tokens: counted.prompt_tokens,
            total_tokens: counted.prompt_tokens + counted.completion_tokens,
        }
    }
}

/// The vectors of an answer, as numbers, and how many each has; checked against the number of inputs.
///
/// # Errors
/// When the plugin does not keep to `embed/1`.
pub(crate) fn vectors(answer: &Answer, inputs: usize) -> Result<(Vec<f32>, usize)> {
    let fault = |what: &str| crate::fault::tensor(&answer.route.plugin, what);
    let tensor = answer.tensor(payload::EMBEDDINGS).ok_or_else(|| fault("a tensor `embeddings`"))?;
    let expected = || fault(&format!("a tensor `embeddings` of FP32 [{inputs}, dimensions]"));
    let ([rows, dimensions], DType::Fp32) =
        (tensor.shape[..].first_chunk::<2>().ok_or_else(expected)?, tensor.dtype)
    else {
        return Err(expected());
    };
    if tensor.shape.len() != 2 || usize::try_from(*rows) != Ok(inputs) {
        return Err(expected());
    }
    Ok((tensor.to_f32().ok_or_else(expected)?, usize::try_from(*dimensions).map_err(|_| expected())?))
}

impl<'a> Embeddings<'a> {
    /// Writes vectors of this many `dimensions` each.
    pub(crate) fn of(answer: &'a Answer, numbers: &'a [f32], dimensions: usize, encoding: Encoding) -> Self {
        let data = numbers.chunks_exact(dimensions.max(1)).enumerate().map(|(index, vector)| {
            let embedding = match encoding {
                Encoding::Float => Vector::Numbers(vector),
                Encoding::Base64 => {
                    let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
                    Vector::Base64(base64::engine::general_purpose::STANDARD.encode(bytes))
                }
            };
            Embedding { object: "embedding", index, embedding }
        });
        Self {
            object: "list",
            data: data.collect(),
            model: &answer.route.model,
            usage: Usage::from(&answer.done.usage),
        }
    }
}
