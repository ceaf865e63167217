//! `[parameters]` of a model's card, as this plugin reads them.

use backplane_plugin::prelude::*;
use serde::Deserialize;

/// What a card may say. A key that is not here is refused by its name.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// CPU threads of one run. More than one spreads a single run over cores; several clients are served better by
    /// several instances.
    pub threads: u32,
    /// Most requests of one call, and most rows of one run of `tensor.infer`.
    pub max_batch: u32,
    /// Whether the rows along the first side of every tensor are independent, so that requests may share a run of
    /// `tensor.infer`. Absent: when the graph names the first side of every input as a batch.
    pub batch: Option<bool>,

    /// The output to read. Absent: the one output that fits.
    pub output: Option<String>,
    /// Tokens of an input, special ones included. Absent: the card's `context`, else the tokenizer's own limit.
    pub max_length: Option<usize>,
    /// Padded tokens of one run. More at once compute no faster on a CPU, take more memory, and keep others waiting.
    pub max_batch_tokens: usize,

    /// `embed`: how the states of the tokens become one vector.
    pub pooling: Option<Pooling>,
    /// `embed`: vectors of length 1.
    pub normalise: bool,
    /// `embed`: put before every text.
    pub prefix: String,
    /// `embed`: length of the vectors, where the graph does not say.
    pub dimensions: Option<u32>,
    /// `embed`: trained so that the first dimensions of a vector are a shorter vector.
    pub matryoshka: bool,

    /// `rerank`, `classify`: what makes scores of the graph's numbers.
    pub activation: Option<Activation>,
}

/// How the states of the tokens become one vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// Their mean, padding left out.
    #[default]
    Mean,
    /// The state of the first token.
    Cls,
    /// The greatest of each dimension, padding left out.
    Max,
}

/// What makes scores of a graph's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// One of several is right: the scores of an input add up to 1.
    Softmax,
    /// Each is right or not.
    Sigmoid,
    /// The graph does it.
    None,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            threads: 1,
            max_batch: 32,
            batch: None,
            output: None,
            max_length: None,
            max_batch_tokens: 512,
            pooling: None,
            normalise: true,
            prefix: String::new(),
            dimensions: None,
            matryoshka: false,
            activation: None,
        }
    }
}

impl Parameters {
    /// Those of a card.
    ///
    /// # Errors
    /// When one is unknown, of the wrong type or out of range.
    pub fn of(model: &ModelSpec) -> Result<Self> {
        let parameters: Self = model.parameters()?;
        let within = |name: &str, value: usize, most: usize| match value {
            0 => Err(format!("`{name}` is 0, and must be at least 1")),
            value if value > most => Err(format!("`{name}` is {value}, and may be {most} at most")),
            _ => Ok(()),
        };
        within("threads", parameters.threads as usize, 1024)
            .and(within("max_batch", parameters.max_batch as usize, 4096))
            .and(within("max_batch_tokens", parameters.max_batch_tokens, 1 << 24))
            .and(within("max_length", parameters.max_length.unwrap_or(1), 1 << 24))
            .and(within("dimensions", parameters.dimensions.unwrap_or(1) as usize, 1 << 24))
            .map_err(|wrong| {
                Error::invalid(format!("[parameters] of model `{}`: {wrong}", model.name))
                    .with_param("parameters")
            })?;
        Ok(parameters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(parameters: Value) -> Result<Parameters> {
        let Value::Object(parameters) = parameters else { panic!("an object") };
        Parameters::of(&ModelSpec { name: "m".to_owned(), parameters, ..ModelSpec::default() })
    }

    #[test]
    fn a_card_needs_to_say_nothing() {
        let parameters = parse(json!({})).unwrap();
        assert_eq!((parameters.threads, parameters.normalise, parameters.matryoshka), (1, true, false));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (parameters, names) in [
            (json!({"poling": "mean"}), "`poling`"),
            (json!({"pooling": "median"}), "`median`"),
            (json!({"threads": 0}), "`threads` is 0"),
            (json!({"max_length": 0}), "`max_length` is 0"),
            (json!({"max_batch": 5000}), "4096 at most"),
            (json!({"threads": -1}), "-1"),
        ] {
            let refused = parse(parameters).unwrap_err();
            assert_eq!(refused.code, Code::InvalidArgument);
            assert!(refused.message.contains(names) && refused.message.contains("`m`"), "{refused}");
        }
    }
}
