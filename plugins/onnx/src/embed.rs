//! `embed/1`: one vector for each text.

use crate::card::{Parameters, Pooling};
use crate::encoder::{self, Rows};
use crate::pooling;
use crate::session::{Port, Signature};
use crate::text::Task;
use crate::tokenize::{Tokenizer, Tokens};
use backplane_plugin::payload::embed::{EMBEDDINGS, Input, Params};
use backplane_plugin::prelude::*;
use std::sync::Arc;

/// A model that embeds.
pub struct Embed {
    tokenizer: Arc<Tokenizer>,
    /// `None`: the graph pools.
    pooling: Option<Pooling>,
    normalise: bool,
    prefix: String,
    dimensions: Option<u32>,
    matryoshka: bool,
}

impl Embed {
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
        // With `pooling` in the card the states of tokens are wanted, not a vector that the graph offers as well.
        let fits = |port: &Port| match port.shape.len() {
            3 => true,
            2 => parameters.pooling.is_none(),
            _ => false,
        };
        let named = parameters.output.as_deref();
        let output =
            encoder::choose(signature, named, &["last_hidden_state", "token_embeddings"], fits, model)?;
        let pooling = (output.shape.len() == 3).then(|| parameters.pooling.unwrap_or_default());
        let width = output.shape.last().and_then(|&width| u32::try_from(width).ok());
        if let (Some(width), Some(said)) = (width, parameters.dimensions)
            && width != said
        {
            return Err(Error::invalid(format!(
                "[parameters] of model `{model}`: `dimensions` is {said}, and its output `{}` has {width}",
                output.name
            ))
            .with_param("parameters"));
        }
        let task = Self {
            tokenizer,
            pooling,
            normalise: parameters.normalise,
            prefix: parameters.prefix.clone(),
            dimensions: width.or(parameters.dimensions),
            matryoshka: parameters.matryoshka,
        };
        Ok((task, output))
    }

    /// Length of its vectors.
    pub fn dimensions(&self) -> Option<u32> {
        self.dimensions
    }

    /// Tokens of the inputs.
    ///
    /// # Errors
    /// When one does not fit.
    pub fn tokens(&self, params: &Params) -> Result<Vec<Tokens>> {
        if params.input.is_empty() {
            return Err(Error::invalid("`input` is empty; at least one text is needed").with_param("input"));
        }
        let tokens = params.input.iter().enumerate().map(|(place, input)| {
            let name = format!("input[{place}]");
            match input {
                Input::Text(text) if self.prefix.is_empty() => {
                    self.tokenizer.text(&name, text, params.truncate)
                }
                Input::Text(text) => {
                    self.tokenizer.text(&name, &format!("{}{text}", self.prefix), params.truncate)
                }
                Input::Tokens(ids) => self.tokenizer.tokens(&name, ids, params.truncate),
            }
        });
        tokens.collect()
    }

    /// To how many dimensions vectors are to be cut.
    fn cut(&self, asked: Option<u32>) -> Result<Option<usize>> {
        let Some(asked) = asked.filter(|asked| Some(*asked) != self.dimensions) else { return Ok(None) };
        let most = self.dimensions.unwrap_or(u32::MAX);
        let wrong = |why: String| {
            Err(Error::invalid(format!("`dimensions` is {asked}, {why}")).with_param("dimensions"))
        };
        match (asked, self.matryoshka) {
            (0, _) => wrong("and must be at least 1".to_owned()),
            (_, false) => {
                let has = self.dimensions.map_or("a fixed number".to_owned(), |has| has.to_string());
                wrong(format!("and this model's vectors have {has}: it was not trained to be cut"))
            }
            (asked, true) if asked > most => wrong(format!("and this model's vectors have {most}")),
            (asked, true) => Ok(Some(asked as usize)),
        }
    }
}

impl Task for Embed {
    type Asked = Option<usize>;

    fn read(&self, request: &Request) -> Result<(Vec<Tokens>, Self::Asked)> {
        let params: Params = request.params()?;
        refuse_unknown::<Params>(&params.extra)?;
        let cut = self.cut(params.dimensions)?;
        Ok((self.tokens(&params)?, cut))
    }

    fn result(&self, rows: &Rows<'_>, row: usize, tokens: usize) -> Result<Vec<f32>> {
        let numbers = rows.row(row);
        match (self.pooling, &rows.sides[..]) {
            (Some(how), &[length, width]) if tokens <= length => {
                Ok(pooling::pool(how, &numbers[..tokens * width], width))
            }
            (None, [_]) => Ok(numbers.to_vec()),
            (_, sides) => {
                Err(Error::internal(format!("the graph gave {sides:?} for a row of {tokens} tokens")))
            }
        }
    }

    fn answer(&self, cut: Self::Asked, mut results: Vec<Vec<f32>>) -> Result<Chunk> {
        for vector in &mut results {
            if let Some(most) = cut {
                vector.truncate(most);
            }
            if self.normalise || cut.is_some() {
                pooling::normalise(vector);
            }
        }
        let shape = [results.len() as i64, results.first().map_or(0, Vec::len) as i64];
        Ok(Chunk::new().tensor(Tensor::new(EMBEDDINGS, &shape, results.concat())?))
    }
}
