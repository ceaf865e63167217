//! A text as the numbers that a model of Marian's reads, and back. A text is cut by the SentencePiece model of its language,
//! and the vocabulary has the number of each piece.

use super::sentencepiece::SentencePiece;
use backplane_plugin::prelude::*;
use std::collections::HashMap;

/// What stands in a vocabulary for what is not in it.
const UNKNOWN: &str = "<unk>";
/// What stands for a space in a piece.
const SPACE: &str = "\u{2581}";
/// A greater number is no place in a list of tokens.
const MOST: u32 = 1 << 22;

/// Bytes of a token. A translation is as long as all of its tokens.
const LONGEST: usize = 4096;

/// The vocabulary of a model.
pub struct Vocabulary {
    source: SentencePiece,
    target: SentencePiece,
    ids: HashMap<String, u32>,
    /// Of the target, by their numbers.
    tokens: Vec<String>,
    unknown: u32,
}

/// A sentence for a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    pub ids: Vec<i64>,
    /// How many of them stand for what the model does not know.
    pub unknown: usize,
}

impl Vocabulary {
    /// Reads the files with the roles `source`, `target`, `vocabulary` and, if there is one, `target_vocabulary`.
    ///
    /// # Errors
    /// When a file is missing or is not what it should be.
    pub fn open(model: &ModelSpec) -> Result<Self> {
        let read = |role: &str| {
            std::fs::read(model.file(role)?)
                .map_err(|error| wrong(model, role, &format!("it cannot be read: {error}")))
        };
        let pieces = |role| SentencePiece::read(read(role)?).map_err(|why| wrong(model, role, &why));
        let vocabulary = |role: &str| -> Result<HashMap<String, u32>> {
            let ids: HashMap<String, u32> = serde_json::from_slice(&read(role)?).map_err(|error| {
                wrong(model, role, &format!("it is no object of pieces and their numbers: {error}"))
            })?;
            if ids.keys().any(|token| LONGEST < token.len()) {
                return Err(wrong(model, role, &format!("it has a token of more than {LONGEST} bytes")));
            }
            match ids.values().find(|id| MOST <= **id) {
                Some(id) => {
                    Err(wrong(model, role, &format!("it has the number {id}, and {MOST} is the limit")))
                }
                None => Ok(ids),
            }
        };
        let (source, target, ids) = (pieces("source")?, pieces("target")?, vocabulary("vocabulary")?);
        if !source.can_encode() {
            return Err(wrong(
                model,
                "source",
                "it is of another algorithm than unigram, which is the one that is known here",
            ));
        }
        let of_target = match model.find_file("target_vocabulary") {
            Some(_) => vocabulary("target_vocabulary")?,
            None => ids.clone(),
        };
        let unknown = *ids.get(UNKNOWN).ok_or_else(|| wrong(model, "vocabulary", "it has no `<unk>`"))?;
        let mut tokens = vec![String::new(); of_target.values().max().map_or(0, |most| *most as usize + 1)];
        for (token, id) in of_target {
            tokens[id as usize] = token;
        }
        Ok(Self { source, target, ids, tokens, unknown })
    }

    /// The number of a token, if it is one.
    pub fn id(&self, token: &str) -> Option<i64> {
        self.ids.get(token).map(|id| i64::from(*id))
    }

    /// Its tokens that choose a language to translate into: `>>deu<<`.
    pub fn languages(&self) -> impl Iterator<Item = &str> {
        self.ids.keys().map(String::as_str).filter(|token| token.starts_with(">>") && token.ends_with("<<"))
    }

    /// The numbers of a text's pieces.
    pub fn encode(&self, text: &str) -> Encoded {
        let id = |piece: &str| self.ids.get(piece).copied().unwrap_or(self.unknown);
        let ids: Vec<i64> =
            self.source.encode(text).iter().map(|token| i64::from(id(&token.piece))).collect();
        let unknown = ids.iter().filter(|id| **id == i64::from(self.unknown)).count();
        Encoded { ids, unknown }
    }

    /// The text of these numbers. Those of `special` tokens and of the unknown one have none.
    pub fn decode(&self, ids: &[i64], special: &[i64]) -> String {
        let token = |id: &i64| {
            let shown = *id != i64::from(self.unknown) && !special.contains(id);
            self.tokens.get(usize::try_from(*id).ok()?).filter(|_| shown).map(String::as_str)
        };
        // A piece that is only in the vocabulary comes back as it is.
        self.target.decode(ids.iter().filter_map(token)).replace(SPACE, " ").trim().to_owned()
    }
}

fn wrong(model: &ModelSpec, role: &str, why: &str) -> Error {
    Error::model_invalid(format!("the file with role `{role}` of model `{}`: {why}", model.name))
}
