//! A request that a plugin serves.

use crate::device::Input;
use crate::plugin::Done;
use crate::tensor::{Tensor, TensorView};
use crate::{Error, Host, Result, sys};
use backplane_abi::table::bp_request;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::{Duration, Instant};

/// A request. It is the plugin's until it is finished, and may move between threads.
///
/// Dropping it unfinished finishes it with an error, so that a caller never waits for nothing.
pub struct Request {
    pub(crate) raw: bp_request,
    pub(crate) host: Host,
    pub(crate) finished: bool,
}

/// What became of a chunk that was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It is on its way.
    Taken,
    /// The reader is behind: offer it again later.
    Full,
    /// The caller has left: stop and finish.
    Cancelled,
}

impl Request {
    /// Names it to [`crate::Instance::cancel`].
    pub fn id(&self) -> u64 {
        self.raw.id
    }

    /// Names it in the logs.
    pub fn request_id(&self) -> &str {
        sys::text(&self.raw.request_id)
    }

    /// The capability asked for.
    pub fn capability(&self) -> &str {
        sys::text(&self.raw.capability)
    }

    /// The tenant who asks.
    pub fn tenant(&self) -> &str {
        sys::text(&self.raw.tenant)
    }

    /// The parameters, as JSON text.
    pub fn params_json(&self) -> &str {
        sys::text(&self.raw.params_json)
    }

    /// The parameters as a type.
    ///
    /// # Errors
    /// When they do not fit; the message names the member.
    pub fn params<T: DeserializeOwned>(&self) -> Result<T> {
        let text = sys::bytes(&self.raw.params_json);
        // A list would do for serde: it fills the members of a struct in order.
        if text.trim_ascii_start().first() != Some(&b'{') {
            return Err(Error::invalid("the parameters are not a JSON object").with_reason("invalid_type"));
        }
        Error::of_params(text)
    }

    /// Its tensors.
    ///
    /// # Errors
    /// When one has a type or layout the SDK cannot show.
    pub fn tensors(&self) -> Result<Vec<TensorView<'_>>> {
        sys::tensors(self)
    }

    /// The same, those among them that are on a device where they are: for a model that [takes](crate::Model::takes) them.
    ///
    /// # Errors
    /// As [`Request::tensors`].
    pub fn inputs(&self) -> Result<Vec<Input<'_>>> {
        sys::inputs(self)
    }

    /// The tensor with this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        self.tensors()?
            .into_iter()
            .find(|tensor| tensor.name() == name)
            .ok_or_else(|| Error::invalid(format!("tensor `{name}` is missing")).with_param(name))
    }

    /// Whether the caller has left: read it at every step, and finish soon.
    pub fn is_cancelled(&self) -> bool {
        sys::is_cancelled(self)
    }

    /// When the answer is of no use any more.
    pub fn deadline(&self) -> Option<Instant> {
        backplane_abi::clock::instant(self.raw.deadline_ns)
    }

    /// Whether the host wants [`Done::confidence`], even if it costs a little.
    pub fn wants_confidence(&self) -> bool {
        self.raw.flags & backplane_abi::table::BP_REQUEST_CONFIDENCE != 0
    }

    /// Whether the caller reads piece by piece.
    pub fn is_stream(&self) -> bool {
        self.raw.flags & backplane_abi::table::BP_REQUEST_STREAM != 0
    }

    /// Whether who asks takes tensors of the result where they are: [`Tensor::on_device`].
    pub fn keeps_on_device(&self) -> bool {
        self.raw.flags & backplane_abi::table::BP_REQUEST_DEVICE != 0 && sys::can_share(self.host)
    }

    /// Higher first.
    pub fn priority(&self) -> i32 {
        self.raw.priority
    }

    /// Offers a piece of the result without waiting. A tensor on a device is taken only where
    /// [`keeps_on_device`](Self::keeps_on_device) says so.
    pub fn try_push(&self, chunk: &Chunk) -> Pushed {
        sys::push(self, chunk)
    }

    /// Hands over a piece of the result; waits while the reader is behind. A tensor on a device is copied for a reader who
    /// does not take it there.
    ///
    /// # Errors
    /// `Cancelled` when the caller has left, `DeadlineExceeded` when the deadline passed meanwhile; of the owner of a tensor
    /// that has to be copied.
    pub fn push(&self, chunk: &Chunk) -> Result<()> {
        let landed;
        let chunk = match chunk.tensors.iter().any(Tensor::is_on_device) && !self.keeps_on_device() {
            false => chunk,
            true => {
                landed = chunk.landed()?;
                &landed
            }
        };
        let mut wait = Duration::from_micros(50);
        loop {
            match self.try_push(chunk) {
                Pushed::Taken => return Ok(()),
                Pushed::Cancelled => return Err(Error::cancelled()),
                Pushed::Full => {
                    if self.deadline().is_some_and(|deadline| deadline <= Instant::now()) {
                        return Err(Error::new(
                            backplane_abi::code::Code::DeadlineExceeded,
                            "the reader did not keep up before the deadline",
                        ));
                    }
                    std::thread::sleep(wait);
                    wait = (wait * 2).min(Duration::from_millis(5));
                }
            }
        }
    }

    /// Hands over a piece of JSON. See [`Request::push`].
    ///
    /// # Errors
    /// As [`Request::push`], and when `value` is not JSON.
    pub fn push_json(&self, value: &impl Serialize) -> Result<()> {
        self.push(&Chunk::json(value)?)
    }

    /// Ends it.
    pub fn finish(mut self, result: Result<Done>) {
        self.finished = true;
        sys::finish(&self, result);
    }

    /// Asks another capability on behalf of this request.
    pub fn call<'a>(&'a self, capability: &'a str) -> crate::call::Call<'a> {
        crate::call::Call::new(self, capability)
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if !self.finished {
            let error = if std::thread::panicking() {
                Error::panic("see the log".to_owned())
            } else {
                Error::internal("the plugin dropped the request without finishing it")
            };
            sys::finish(self, Err(error));
        }
    }
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").field("capability", &self.capability()).field("id", &self.raw.id).finish()
    }
}

/// A piece of a result: JSON, tensors, or both.
#[derive(Debug, Default)]
pub struct Chunk {
    pub(crate) json: String,
    pub(crate) tensors: Vec<Tensor>,
}

impl Chunk {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// This value, an object.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn json(value: &impl Serialize) -> Result<Self> {
        let json = serde_json::to_string(value)
            .map_err(|error| Error::internal(format!("the result cannot be written as JSON: {error}")))?;
        Ok(Self { json, tensors: Vec::new() })
    }

    /// The same in CPU memory.
    fn landed(&self) -> Result<Self> {
        let landed = |tensor: &Tensor| {
            let mut tensor = tensor.share();
            tensor.land()?;
            Ok(tensor)
        };
        let tensors = self.tensors.iter().map(landed).collect::<Result<_>>()?;
        Ok(Self { json: self.json.clone(), tensors })
    }

    /// Adds a tensor: one of its own, or one that came with a request or an answer.
    pub fn tensor(mut self, tensor: impl Into<Tensor>) -> Self {
        self.tensors.push(tensor.into());
        self
    }
}
