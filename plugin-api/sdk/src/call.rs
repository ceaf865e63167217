//! A plugin asks another capability through the host.

use crate::device::DeviceTensor;
use crate::request::Request;
use crate::tensor::{Tensor, TensorView};
use crate::{Error, Result, sys};
use backplane_abi::dtype::DType;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Instant;

/// A call in the making. Identity, deadline, trace and depth come from the request it is made for.
///
/// ```
/// use backplane_plugin::prelude::*;
///
/// /// Embeds with whatever model serves `tensor.infer` here, and gives its first row back.
/// fn first_row(request: &Request) -> Result<Done> {
///     let ids = Tensor::new("input_ids", &[1, 3], vec![101_i64, 7592, 102])?;
///     let answer = request.call("tensor.infer").model("minilm").tensor(ids).wait()?;
///     let rows = answer.tensor("last_hidden_state")?;
///     let width = rows.shape().last().map_or(0, |side| *side as usize);
///     let first = rows.elements::<f32>()?[..width].to_vec();
///     request.push(&Chunk::new().tensor(Tensor::new("row", &[width as i64], first)?))?;
///     Ok(Done::new())
/// }
/// ```
#[derive(Debug)]
pub struct Call<'a> {
    pub(crate) request: &'a Request,
    pub(crate) capability: &'a str,
    pub(crate) model: &'a str,
    pub(crate) params: String,
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) deadline: Option<Instant>,
    pub(crate) device: bool,
}

impl<'a> Call<'a> {
    pub(crate) fn new(request: &'a Request, capability: &'a str) -> Self {
        let (params, tensors) = ("{}".to_owned(), Vec::new());
        Self { request, capability, model: "", params, tensors, deadline: None, device: false }
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

    /// Adds a tensor: one of its own, or one that came with a request or an answer. A large one of its own is handed
    /// over without a copy.
    pub fn tensor(mut self, tensor: impl Into<Tensor>) -> Self {
        self.tensors.push(tensor.into());
        self
    }

    /// When its answer is of no use any more. The deadline of the request holds all the same.
    pub fn deadline(mut self, deadline: Instant) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Tensors of the answer may stay on a device, for one who hands them on: [`Answer::pass_on`].
    pub fn keep_on_device(mut self) -> Self {
        self.device = true;
        self
    }

    /// Sends it and waits for the whole answer. Only on a thread that may block: an instance of class SERIAL or
    /// CONCURRENT. When the own caller leaves meanwhile, the call is cancelled too.
    ///
    /// # Errors
    /// Those of the other plugin, and `FailedPrecondition` when the calls are nested too deep or would wait for
    /// themselves.
    pub fn wait(self) -> Result<Answer> {
        sys::call(self.landed()?)
    }
}

impl Call<'_> {
    /// Nothing of ours is on a device where the host knows none.
    fn landed(mut self) -> Result<Self> {
        if !sys::can_share(self.request.host) {
            for tensor in &mut self.tensors {
                tensor.land()?;
            }
        }
        Ok(self)
    }
}

/// The answer to a call.
#[derive(Debug, Default)]
pub struct Answer {
    /// The JSON of its chunks, in order; empty texts left out.
    pub json: Vec<String>,
    /// The tensors of its chunks, in order.
    pub tensors: Vec<AnswerTensor>,
    /// Those that stayed on a device: none, unless [`Call::keep_on_device`] was said.
    pub on_device: Vec<DeviceTensor>,
    /// JSON of its usage, or empty.
    pub usage_json: String,
    /// Which model answered; empty if the host does not say.
    pub model: String,
    /// Probability that it is right, if known.
    pub confidence: Option<f64>,
}

/// A tensor of an answer, owned. Its parts fit together, which is why they are not to be changed.
#[derive(Clone, Debug, PartialEq)]
pub struct AnswerTensor {
    name: String,
    dtype: DType,
    shape: Vec<i64>,
    data: Vec<u8>,
}

impl AnswerTensor {
    pub(crate) fn copy(tensor: &TensorView<'_>) -> Self {
        Self {
            name: tensor.name.to_owned(),
            dtype: tensor.dtype,
            shape: tensor.shape.to_vec(),
            data: tensor.data.to_vec(),
        }
    }

    /// The way to its elements, or into another call or piece.
    pub fn view(&self) -> TensorView<'_> {
        TensorView { name: &self.name, dtype: self.dtype, shape: &self.shape, data: &self.data }
    }
}

impl Answer {
    /// The first tensor with this name.
    ///
    /// # Errors
    /// When none came.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        let found = self.tensors.iter().find(|tensor| tensor.name == name);
        found.map(AnswerTensor::view).ok_or_else(|| {
            let came: Vec<_> = self.tensors.iter().map(|tensor| &*tensor.name).collect();
            Error::internal(format!("the answer has no tensor `{name}`, but `{}`", came.join("`, `")))
        })
    }

    /// The first tensor with this name, wherever it is, for another call or a piece of the own result.
    ///
    /// # Errors
    /// When none came.
    pub fn pass_on(&self, name: &str) -> Result<Tensor> {
        match self.on_device.iter().find(|tensor| tensor.name == name) {
            Some(tensor) => Ok(tensor.clone().into()),
            None => self.tensor(name).map(Tensor::from),
        }
    }

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
