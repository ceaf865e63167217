//! SentencePiece's unigram models: a text as pieces, and pieces as a text, as Google's library has them, piece for piece.
//!
//! - [`model`]: the file.
//! - [`normalize`]: the text before it is cut.
//! - [`unigram`]: cutting it.

mod model;
mod normalize;
mod unigram;

use model::{Kind, Model};
use normalize::Normalizer;
use std::collections::HashMap;
use unigram::{Prefixes, Unigram};

/// What stands for a space.
const SPACE: &str = "\u{2581}";

/// A model that was read.
pub struct SentencePiece {
    pieces: Vec<model::Piece>,
    ids: HashMap<String, u32>,
    unknown: u32,
    unknown_text: String,
    byte_fallback: bool,
    /// White space before the first word is the model's own.
    trims: bool,
    normalizer: Normalizer,
    denormalizer: Option<Normalizer>,
    unigram: Option<Unigram>,
}

/// A piece of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub id: u32,
    /// A run of what the model does not know is one piece.
    pub piece: String,
}

impl SentencePiece {
    /// Reads a model.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn read(bytes: Vec<u8>) -> Result<Self, String> {
        let model =
            Model::read(bytes).map_err(|error| format!("it is no model of SentencePiece: {error}"))?;
        let Model { pieces, trainer, normalizer, denormalizer } = model;
        let unknown = pieces.iter().position(|piece| piece.kind == Kind::Unknown);
        let unknown = unknown.ok_or("no piece of it stands for what is unknown")? as u32;
        let ids: HashMap<String, u32> =
            (0..).zip(&pieces).map(|(id, piece)| (piece.text.clone(), id)).collect();
        let of_kind = |kinds: &[Kind]| {
            let numbered = (0..).zip(&pieces).filter(|(_, piece)| kinds.contains(&piece.kind));
            Prefixes::of(numbered.map(|(id, piece)| (piece.text.clone().into_bytes(), id)))
        };
        let own = of_kind(&[Kind::UserDefined]);
        let trims = normalizer.add_dummy_prefix || normalizer.remove_extra_whitespaces;
        let suffix = trainer.treat_whitespace_as_suffix;
        let unigram = trainer.is_unigram.then(|| {
            Unigram::of(&pieces, of_kind(&[Kind::Normal, Kind::UserDefined, Kind::Unused]), unknown)
        });
        Ok(Self {
            unknown,
            unknown_text: trainer.unk_surface.unwrap_or_else(|| " \u{2047} ".to_owned()),
            byte_fallback: trainer.byte_fallback,
            trims,
            normalizer: Normalizer::of(normalizer, suffix, own)?,
            denormalizer: denormalizer
                .filter(|spec| !spec.precompiled_charsmap.is_empty())
                .map(|spec| Normalizer::of(spec, false, Prefixes::default()))
                .transpose()?,
            unigram,
            pieces,
            ids,
        })
    }

    /// Whether it can cut texts: one of another algorithm can only put pieces together here.
    pub fn can_encode(&self) -> bool {
        self.unigram.is_some()
    }

    /// Cuts a text.
    pub fn encode(&self, text: &str) -> Vec<Token> {
        let Some(unigram) = &self.unigram else { return Vec::new() };
        let normalized = self.normalizer.normalize(text.as_bytes());
        let mut tokens: Vec<Token> = Vec::new();
        let mut run: Vec<u8> = Vec::new();
        let end_run = |run: &mut Vec<u8>, tokens: &mut Vec<Token>| {
            if !run.is_empty() {
                tokens.push(Token { id: self.unknown, piece: String::from_utf8_lossy(run).into_owned() });
                run.clear();
            }
        };
        for (piece, id) in unigram.cut(&normalized) {
            match id == self.unknown {
                true if self.byte_fallback => tokens.extend(piece.iter().map(|byte| self.byte(*byte))),
                true => run.extend(piece),
                false => {
                    end_run(&mut run, &mut tokens);
                    tokens.push(Token { id, piece: self.pieces[id as usize].text.clone() });
                }
            }
        }
        end_run(&mut run, &mut tokens);
        tokens
    }

    fn byte(&self, byte: u8) -> Token {
        let piece = format!("<0x{byte:02X}>");
        Token { id: self.id(&piece), piece }
    }

    fn id(&self, piece: &str) -> u32 {
        self.ids.get(piece).copied().unwrap_or(self.unknown)
    }

    /// Puts pieces together.
    pub fn decode<'a>(&self, pieces: impl IntoIterator<Item = &'a str>) -> String {
        let mut text = String::new();
        let mut bytes: Vec<u8> = Vec::new();
        // Whether the white space before the first word is still to come.
        let (mut begins, mut taken) = (true, false);
        for piece in pieces {
            let id = self.id(piece);
            let Some(known) = self.pieces.get(id as usize) else { continue };
            if let Some(byte) = known.byte() {
                bytes.push(byte);
                continue;
            }
            push_bytes(&mut text, &mut bytes);
            begins &= !taken && text.is_empty();
            taken = false;
            match known.kind {
                Kind::Control => {}
                Kind::Unknown if known.text == piece => text.push_str(&self.unknown_text),
                Kind::Unknown => text.push_str(piece),
                _ => {
                    let rest = piece.strip_prefix(SPACE).filter(|_| begins && self.trims);
                    taken = rest.is_some() && !self.normalizer.removes_extra_whitespace();
                    text.push_str(&rest.unwrap_or(piece).replace(SPACE, " "));
                }
            }
        }
        push_bytes(&mut text, &mut bytes);
        match &self.denormalizer {
            Some(denormalizer) => {
                String::from_utf8_lossy(&denormalizer.normalize(text.as_bytes())).into_owned()
            }
            None => text,
        }
    }
}

/// Bytes that stand for themselves; each that is no part of a character is a replacement character.
fn push_bytes(text: &mut String, bytes: &mut Vec<u8>) {
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let length = match normalize::character(rest) {
            Some(character) => {
                text.push_str(character);
                character.len()
            }
            None => {
                text.push(char::REPLACEMENT_CHARACTER);
                1
            }
        };
        rest = &rest[length..];
    }
    bytes.clear();
}
