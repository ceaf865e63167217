//! A plugin asks another capability through the host.

use crate::request::Request;
use crate::{Error, Result, sys};
use backplane_abi::dtype::DType;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A call in the making. Identity, deadline, trace and depth come from the request it is made for.
#[derive(Debug)]
pub struct Call<'a> {
    pub(crate) request: &'a Request,
    pub(crate) capability: &'a str,
    pub(crate) model: &'a str,
    pub(crate) params: String,
}

impl<'a> Call<'a> {
    pub(crate) fn new(request: &'a Request, capability: &'a str) -> Self {
        Self { request, capability, model: "", params: "{}".to_owned() }
    }

    /// Which model is to answer; without it the router chooses.
    pub fn model(mut self, model: &'a str) -> Self {
        self.model = model;
        self
    }

    /// The parameters.
    ///
    /// # Errors
    /// When they cannot be written as JSON.
    pub fn params(mut self, params: &impl Serialize) -> Result<Self> {
        self.params = serde_json::to_string(params)?;
        Ok(self)
    }

    /// Sends it and waits for the whole answer. Only on a thread that may block: an instance of class SERIAL or
    /// CONCURRENT. When the own caller leaves meanwhile, the call is cancelled too.
    ///
    /// # Errors
    /// Those of the other plugin, and `FailedPrecondition` when the calls are nested too deep or would wait for
    /// themselves.
    pub fn wait(self) -> Result<Answer> {
        sys::call(self)
    }
}

/// The answer to a call.
#[derive(Debug, Default)]
pub struct Answer {
    /// The JSON of its chunks, in order; empty texts left out.
    pub json: Vec<String>,
    /// The tensors of its chunks, in order.
    pub tensors: Vec<AnswerTensor>,
    /// JSON of its usage, or empty.
    pub usage_json: String,
    /// Probability that it is right, if known.
    pub confidence: Option<f64>,
}

/// A tensor of an answer, owned.
#[derive(Clone, Debug, PartialEq)]
pub struct AnswerTensor {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Its sides.
    pub shape: Vec<i64>,
    /// Its memory, dense and row-major.
    pub data: Vec<u8>,
}

impl Answer {
    /// The chunks as a type.
    ///
    /// # Errors
    /// When one does not fit.
    pub fn chunks<T: DeserializeOwned>(&self) -> Result<Vec<T>> {
        self.json
            .iter()
            .map(|json| {
                serde_json::from_str(json)
                    .map_err(|error| Error::internal(format!("the answer is not what was expected: {error}")))
            })
            .collect()
    }
}
