//! `rerank/1`: how well each document answers a query, by a cross-encoder that reads both at once.

use crate::card::{Activation, Parameters};
use crate::encoder::{self, Rows};
use crate::pooling::sigmoid;
use crate::session::{Port, Signature};
use crate::text::Task;
use crate::tokenize::{Tokenizer, Tokens};
use backplane_plugin::payload::rerank::{Chunk as Answer, Params, Ranked};
use backplane_plugin::prelude::*;
use std::sync::Arc;

/// A model that reranks: its graph gives one number for each row.
pub struct Rerank {
    tokenizer: Arc<Tokenizer>,
    activation: Activation,
}

impl Rerank {
    /// The task, and the output it reads.
    ///
    /// # Errors
    /// When card and graph do not fit together.
    pub fn of(
        parameters: &Parameters,
        signature: &Signature,
        tokenizer: Arc<Tokenizer>,
        model: &str,
    ) -> Result<(Self, Port)> {
        let fits = |port: &Port| match port.shape[..] {
            [_] => true,
            [_, numbers] => numbers == 1 || numbers == -1,
            _ => false,
        };
        let output = encoder::choose(signature, parameters.output.as_deref(), &["logits"], fits, model)?;
        let activation = parameters.activation.unwrap_or(Activation::Sigmoid);
        if activation == Activation::Softmax {
            return Err(Error::invalid(format!(
                "[parameters] of model `{model}`: `activation` is `softmax`, and one number has no other to share with; \
                 `sigmoid` and `none` go"
            ))
            .with_param("parameters"));
        }
        Ok((Self { tokenizer, activation }, output))
    }

    /// Tokens of each document with the query.
    ///
    /// # Errors
    /// When one does not fit.
    pub fn tokens(&self, params: &Params) -> Result<Vec<Tokens>> {
        if params.documents.is_empty() {
            return Err(
                Error::invalid("`documents` is empty; at least one is needed").with_param("documents")
            );
        }
        let documents = params.documents.iter().enumerate();
        let pair = |(place, document): (usize, &String)| {
            self.tokenizer.pair(&format!("documents[{place}]"), &params.query, document, false)
        };
        documents.map(pair).collect()
    }
}

impl Task for Rerank {
    type Asked = Option<u32>;

    fn read(&self, request: &Request) -> Result<(Vec<Tokens>, Self::Asked)> {
        let params: Params = request.params()?;
        refuse_unknown::<Params>(&params.extra)?;
        Ok((self.tokens(&params)?, params.top_n))
    }

    fn result(&self, rows: &Rows<'_>, row: usize, _tokens: usize) -> Result<Vec<f32>> {
        match (rows.row(row), self.activation) {
            (&[number], Activation::None) => Ok(vec![number]),
            (&[number], _) => Ok(vec![sigmoid(number)]),
            _ => Err(Error::internal(format!("the graph gave {:?} for a row, not one number", rows.sides))),
        }
    }

    fn answer(&self, top: Self::Asked, results: Vec<Vec<f32>>) -> Result<Chunk> {
        let mut results: Vec<Ranked> =
            (0..).zip(results.concat()).map(|(index, score)| Ranked { index, score }).collect();
        // Stable: equals keep the order of the request.
        results.sort_by(|one, other| other.score.total_cmp(&one.score));
        results.truncate(top.map_or(usize::MAX, |top| top as usize));
        Chunk::json(&Answer { results, ..Answer::default() })
    }
}
