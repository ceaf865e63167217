//! `classify/1`: labels with scores for each text.

use crate::card::{Activation, Parameters};
use crate::encoder::{self, Rows};
use crate::pooling::{sigmoid, softmax};
use crate::session::{Port, Signature};
use crate::text::Task;
use crate::tokenize::{Tokenizer, Tokens};
use backplane_plugin::payload::classify::{Chunk as Answer, Label, Params};
use backplane_plugin::prelude::*;
use std::sync::Arc;

/// A model that classifies: its graph gives one number for each label.
pub struct Classify {
    tokenizer: Arc<Tokenizer>,
    activation: Activation,
    labels: Vec<String>,
}

impl Classify {
    /// The task, and the output it reads.
    ///
    /// # Errors
    /// When card and graph do not fit together.
    pub fn of(
        parameters: &Parameters,
        signature: &Signature,
        tokenizer: Arc<Tokenizer>,
        model: &ModelSpec,
    ) -> Result<(Self, Port)> {
        let labels = model.labels()?;
        let count = labels.len() as i64;
        let fits = |port: &Port| matches!(port.shape[..], [_, numbers] if numbers == count || numbers == -1);
        let named = parameters.output.as_deref();
        let output =
            encoder::choose(signature, named, &["logits"], fits, &model.name).map_err(|mut error| {
                error.message.push_str(&format!("; its card has {count} labels"));
                error
            })?;
        let activation = parameters.activation.unwrap_or(Activation::Softmax);
        Ok((Self { tokenizer, activation, labels }, output))
    }

    /// Tokens of the inputs.
    ///
    /// # Errors
    /// When one does not fit.
    pub fn tokens(&self, params: &Params) -> Result<Vec<Tokens>> {
        if params.input.is_empty() {
            return Err(Error::invalid("`input` is empty; at least one text is needed").with_param("input"));
        }
        let texts = params.input.iter().enumerate();
        texts.map(|(place, text)| self.tokenizer.text(&format!("input[{place}]"), text, false)).collect()
    }
}

impl Task for Classify {
    type Asked = Option<u32>;

    fn read(&self, request: &Request) -> Result<(Vec<Tokens>, Self::Asked)> {
        let params: Params = request.params()?;
        refuse_unknown::<Params>(&params.extra)?;
        Ok((self.tokens(&params)?, params.top_k))
    }

    fn result(&self, rows: &Rows<'_>, row: usize, _tokens: usize) -> Result<Vec<f32>> {
        let mut scores = rows.row(row).to_vec();
        if scores.len() != self.labels.len() {
            return Err(Error::internal(format!(
                "the graph gave {:?} for a row, and there are {} labels",
                rows.sides,
                self.labels.len()
            )));
        }
        match self.activation {
            Activation::Softmax => softmax(&mut scores),
            Activation::Sigmoid => scores.iter_mut().for_each(|score| *score = sigmoid(*score)),
            Activation::None => {}
        }
        Ok(scores)
    }

    fn answer(&self, top: Self::Asked, results: Vec<Vec<f32>>) -> Result<Chunk> {
        let name = |scores: Vec<f32>| {
            let labels = self.labels.iter().zip(scores);
            let mut labels: Vec<Label> =
                labels.map(|(label, score)| Label { label: label.clone(), score }).collect();
            labels.sort_by(|one, other| other.score.total_cmp(&one.score));
            labels.truncate(top.map_or(usize::MAX, |top| top as usize));
            labels
        };
        Chunk::json(&Answer { results: results.into_iter().map(name).collect(), ..Answer::default() })
    }
}
