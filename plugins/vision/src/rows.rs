//! A graph's output as rows: one for each picture.

use crate::graph::Graph;
use crate::task::Job;
use backplane_plugin::prelude::*;

impl Graph {
    /// Runs it on `count` pictures and gives the numbers for each: those of the output with this name, else of the first.
    ///
    /// # Errors
    /// As [`Graph::run`], and when the output has not one row for each picture.
    pub fn rows(
        &self,
        job: &Job<'_>,
        input: Tensor,
        output: Option<&str>,
        count: usize,
    ) -> Result<Vec<Vec<f32>>> {
        let answer = self.run(job, [input])?;
        let output = match output {
            Some(name) => answer.tensor(name).map_err(|error| self.odd(&error.message))?,
            None => answer
                .tensors
                .first()
                .map(|tensor| tensor.view())
                .ok_or_else(|| self.odd("gave no tensor"))?,
        };
        let numbers = output.elements::<f32>().map_err(|error| self.odd(&error.message))?;
        let each = numbers.len().checked_div(count).unwrap_or_default();
        if output.shape().first() != Some(&(count as i64)) || each == 0 {
            return Err(self.odd(&format!("gave {:?} for {count} pictures", output.shape())));
        }
        Ok(numbers.chunks_exact(each).map(<[f32]>::to_vec).collect())
    }
}
