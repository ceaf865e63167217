//! What a card and the files `config.json` and `generation_config.json` beside the graphs say of a model.

use super::search::{EarlyStopping, Rules};
use crate::engine::Pair;
use crate::languages;
use backplane_plugin::prelude::*;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Most translations of a sentence that are followed at once.
const BEAMS: usize = 32;
/// Most tokens of a sentence or its translation, whatever a model says.
const TOKENS: usize = 4096;

/// `[parameters]` of a card. A misspelt one is an error that names it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// `"en-de"`: what it translates. Without it, the first of the card's `languages` into the second.
    pub pairs: Vec<String>,
    /// The token that chooses a language to translate into, where a model has several: `{ de = ">>deu<<" }`.
    pub prefixes: BTreeMap<String, String>,
    /// Instead of `num_beams` of the model's own files.
    pub beams: Option<usize>,
    pub length_penalty: Option<f64>,
    pub early_stopping: Option<EarlyStopping>,
    /// Most tokens of a translated sentence.
    pub max_tokens: Option<usize>,
    /// Sentences that are translated at once.
    pub batch: Option<usize>,
}

impl Parameters {
    /// The pairs of languages that it is for.
    ///
    /// # Errors
    /// When a language is not known, or none is named.
    pub fn pairs(&self, model: &ModelSpec) -> Result<Vec<Pair>> {
        let wrong = |why: String| {
            Error::invalid(format!("[parameters] of model `{}`: {why}", model.name)).with_param("parameters")
        };
        let language = |code: &str| {
            languages::find(code).ok_or_else(|| wrong(format!("`pairs`: {}", languages::unknown(code))))
        };
        let listed: Vec<String> = match model.extra.get("languages") {
            Some(listed) if self.pairs.is_empty() => serde_json::from_value(listed.clone())?,
            _ => Vec::new(),
        };
        let mut named: Vec<(&str, &str)> = Vec::new();
        for pair in &self.pairs {
            let two = pair.split_once('-');
            named.push(two.ok_or_else(|| wrong(format!("`pairs`: `{pair}` is no pair such as `en-de`")))?);
        }
        if let [from, to] = &listed[..] {
            named.push((from, to));
        }
        if named.is_empty() {
            return Err(wrong("`pairs` is missing: what it translates, such as `[\"en-de\"]`".to_owned()));
        }
        named.into_iter().map(|(from, to)| Ok(Pair { from: language(from)?, to: language(to)? })).collect()
    }
}

/// `config.json` and `generation_config.json`, of which the second has the last word. What does not concern a translation is
/// passed over.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    bad_words_ids: Option<Vec<Vec<i64>>>,
    decoder_start_token_id: Option<i64>,
    early_stopping: Option<EarlyStopping>,
    eos_token_id: Option<Ids>,
    forced_eos_token_id: Option<Ids>,
    length_penalty: Option<f64>,
    max_length: Option<usize>,
    max_position_embeddings: Option<usize>,
    num_beams: Option<usize>,
    pad_token_id: Option<i64>,
    renormalize_logits: Option<bool>,
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Ids {
    One(i64),
    Several(Vec<i64>),
}

impl Ids {
    fn list(self) -> Vec<i64> {
        match self {
            Self::One(id) => vec![id],
            Self::Several(ids) => ids,
        }
    }
}

/// What changes which tokens are chosen and is not done here, with the values that ask for nothing.
const UNDONE: &[(&str, &[f64])] = &[
    ("do_sample", &[0.0]),
    ("diversity_penalty", &[0.0]),
    ("encoder_no_repeat_ngram_size", &[0.0]),
    ("encoder_repetition_penalty", &[1.0]),
    ("exponential_decay_length_penalty", &[]),
    ("forced_bos_token_id", &[]),
    ("force_words_ids", &[]),
    ("min_length", &[0.0]),
    ("min_new_tokens", &[0.0]),
    ("no_repeat_ngram_size", &[0.0]),
    ("num_beam_groups", &[1.0]),
    ("penalty_alpha", &[0.0]),
    ("repetition_penalty", &[1.0]),
    ("sequence_bias", &[]),
];

/// How a model is to be used.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub rules: Rules,
    pub pad: i64,
    /// Most tokens of a sentence, its end included.
    pub longest: usize,
    /// Sentences that are translated at once.
    pub batch: usize,
}

impl Settings {
    /// What the files with the roles `config` and `generation_config` say, and the card instead of them.
    ///
    /// # Errors
    /// When something that is needed is missing, wrong, or not done here.
    pub fn of(model: &ModelSpec, card: &Parameters) -> Result<Self> {
        let read = |role: &str| -> Result<Config> {
            let wrong = |why: String| {
                Error::model_invalid(format!("the file with role `{role}` of model `{}`: {why}", model.name))
            };
            let Some(path) = model.find_file(role) else { return Ok(Config::default()) };
            let text = std::fs::read(path).map_err(|error| wrong(format!("it cannot be read: {error}")))?;
            let config: Config = serde_json::from_slice(&text)
                .map_err(|error| wrong(format!("it is no configuration: {error}")))?;
            let asks = |(name, nothing): &&(&str, &[f64])| match config.rest.get(*name) {
                None | Some(Value::Null) | Some(Value::Bool(false)) => false,
                Some(value) => value.as_f64().is_none_or(|value| !nothing.contains(&value)),
            };
            match UNDONE.iter().find(asks) {
                Some((name, _)) => {
                    Err(wrong(format!("`{name}` asks for what is not done here; take it out")))
                }
                None => Ok(config),
            }
        };
        model.file("config")?;
        let (config, generation) = (read("config")?, read("generation_config")?);
        let needed = |name: &str, id: Option<i64>| {
            id.ok_or_else(|| {
                Error::model_invalid(format!(
                    "neither `config.json` nor `generation_config.json` of model `{}` has `{name}`",
                    model.name
                ))
            })
        };
        let ends = generation.eos_token_id.or(config.eos_token_id).map(Ids::list).unwrap_or_default();
        needed("eos_token_id", ends.first().copied())?;
        let pad = needed("pad_token_id", generation.pad_token_id.or(config.pad_token_id))?;
        let start = generation.decoder_start_token_id.or(config.decoder_start_token_id);
        let longest = config.max_position_embeddings.unwrap_or(512).min(TOKENS);
        // The start is one of the tokens that `max_length` counts.
        let model_limit =
            generation.max_length.or(config.max_length).unwrap_or(longest).min(longest).saturating_sub(1);
        let most = card.max_tokens.unwrap_or(model_limit).min(model_limit);
        let rules = Rules {
            beams: card.beams.or(generation.num_beams).or(config.num_beams).unwrap_or(1),
            length_penalty: card
                .length_penalty
                .or(generation.length_penalty)
                .or(config.length_penalty)
                .unwrap_or(1.0),
            early_stopping: card
                .early_stopping
                .or(generation.early_stopping)
                .or(config.early_stopping)
                .unwrap_or_default(),
            max_tokens: most,
            start: start.unwrap_or(pad),
            ends,
            forced_end: generation
                .forced_eos_token_id
                .or(config.forced_eos_token_id)
                .and_then(|ids| ids.list().first().copied()),
            banned: generation.bad_words_ids.or(config.bad_words_ids).unwrap_or_default(),
            renormalize: generation.renormalize_logits.or(config.renormalize_logits).unwrap_or_default(),
        };
        let within = |name: &str, value: usize, most: usize| match value {
            0 => Err(format!("`{name}` is 0, and must be at least 1")),
            value if most < value => Err(format!("`{name}` is {value}, and may be {most} at most")),
            _ => Ok(()),
        };
        let batch = card.batch.unwrap_or(8);
        within("beams", rules.beams, BEAMS)
            .and(within("batch", batch, 256))
            .and(within("max_tokens", rules.max_tokens, TOKENS))
            .and_then(|()| match rules.length_penalty.is_finite() {
                true => Ok(()),
                false => Err("`length_penalty` is no number".to_owned()),
            })
            .map_err(|why| Error::model_invalid(format!("model `{}`: {why}", model.name)))?;
        Ok(Self { rules, pad, longest, batch })
    }
}
