//! A graph of a model, run through the host by whatever serves `tensor.infer`.

use crate::task::Job;
use backplane_plugin::Answer;
use backplane_plugin::payload::tensor;
use backplane_plugin::prelude::*;

/// A graph that the card lists under `[graphs]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    /// The host's name for it: `pp-ocr.det`.
    model: String,
}

impl Graph {
    /// The graph in the file with this role.
    ///
    /// # Errors
    /// When the card lists no such file.
    pub fn of(model: &ModelSpec, role: &str) -> Result<Self> {
        model.file(role)?;
        Ok(Self { model: format!("{}.{role}", model.name) })
    }

    /// Runs it on these tensors and waits for its outputs.
    ///
    /// # Errors
    /// Those of the host and of the plugin that runs it.
    pub fn run(&self, job: &Job<'_>, inputs: impl IntoIterator<Item = Tensor>) -> Result<Answer> {
        let call = job.request.call(tensor::CAPABILITY).model(&self.model);
        inputs.into_iter().fold(call, |call, input| call.tensor(input)).wait()
    }

    /// Runs it and gives its one output, or the first of several.
    ///
    /// # Errors
    /// As [`Graph::run`], and when it has no output of numbers in `sides` sides.
    pub fn run_to<T>(
        &self,
        job: &Job<'_>,
        input: Tensor,
        read: impl FnOnce(&[i64], &[f32]) -> Result<T>,
    ) -> Result<T> {
        let answer = self.run(job, [input])?;
        let Some(output) = answer.tensors.first() else { return Err(self.odd("gave no tensor")) };
        let output = output.view();
        let numbers = output.elements::<f32>().map_err(|error| self.odd(&error.message))?;
        read(output.shape(), &numbers)
    }

    /// The graph is not what the card says.
    pub fn odd(&self, what: &str) -> Error {
        Error::model_invalid(format!(
            "the graph `{}` {what}: it is not what its model's card is for",
            self.model
        ))
    }
}
