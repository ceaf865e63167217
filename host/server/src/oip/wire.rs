//! What travels: requests and answers of the protocol.

use backplane::DType;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// An inference to be made.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct InferRequest<'a> {
    /// Comes back with the answer.
    #[serde(default)]
    pub id: Option<String>,
    /// `timeout` in microseconds, `priority`, `binary_data_output`; the rest goes to the model.
    #[serde(default)]
    pub parameters: Option<Map<String, Value>>,
    /// The tensors.
    #[serde(borrow)]
    pub inputs: Vec<InputTensor<'a>>,
    /// Which outputs are wanted; all, if absent.
    #[serde(default)]
    pub outputs: Option<Vec<OutputSpec>>,
}

/// A tensor that comes with a request: its elements as JSON, or behind the JSON as binary data.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct InputTensor<'a> {
    pub name: String,
    pub shape: Vec<i64>,
    /// `FP32`, `INT64`, `BYTES` …
    pub datatype: String,
    /// `binary_data_size`: how many bytes of the binary data are this tensor's.
    #[serde(default)]
    pub parameters: Option<Map<String, Value>>,
    /// Its elements, row-major, flat or nested.
    #[serde(default, borrow)]
    #[schemars(with = "Option<Vec<Value>>")]
    pub data: Option<&'a RawValue>,
}

/// An output that is wanted.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct OutputSpec {
    pub name: String,
    /// `binary_data`: whether it is to come as binary data.
    #[serde(default)]
    pub parameters: Option<Map<String, Value>>,
}

/// An answer.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct InferResponse<'a> {
    pub model_name: &'a str,
    pub model_version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<&'a str>,
    pub outputs: Vec<OutputTensor<'a>>,
}

/// A tensor that comes with an answer.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct OutputTensor<'a> {
    pub name: &'a str,
    #[schemars(with = "String")]
    pub datatype: DType,
    pub shape: &'a [i64],
    /// `binary_data_size`, when it comes as binary data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters: Option<BinarySize>,
    /// Its elements, flat.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<Value>>")]
    pub data: Option<Data<'a>>,
}

/// How many bytes of the binary data are a tensor's.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub(crate) struct BinarySize {
    pub binary_data_size: usize,
}

/// Elements as JSON.
pub(crate) struct Data<'a>(pub crate::elements::Flat<'a>);

impl Serialize for Data<'_> {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(to)
    }
}

impl std::fmt::Debug for Data<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

/// The server.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ServerMetadata {
    pub name: &'static str,
    pub version: &'static str,
    pub extensions: &'static [&'static str],
}

/// A model's tensors.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ModelMetadata {
    pub name: String,
    pub versions: [&'static str; 1],
    pub platform: String,
    pub inputs: Vec<TensorMetadata>,
    pub outputs: Vec<TensorMetadata>,
}

/// A tensor of a model.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct TensorMetadata {
    pub name: String,
    #[schemars(with = "String")]
    pub datatype: DType,
    /// -1 where any length goes.
    pub shape: Vec<i64>,
}

/// A model's place in the repository.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct IndexEntry {
    pub name: String,
    pub version: &'static str,
    /// `READY`, `LOADING`, `UNLOADING` or `UNAVAILABLE`.
    pub state: &'static str,
    pub reason: String,
}

/// What part of the repository is wanted.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub(crate) struct IndexRequest {
    /// Only models that serve.
    #[serde(default)]
    pub ready: Option<bool>,
}

/// How a model is to be loaded or unloaded.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub(crate) struct RepositoryRequest {
    #[serde(default)]
    pub parameters: Option<Map<String, Value>>,
}
