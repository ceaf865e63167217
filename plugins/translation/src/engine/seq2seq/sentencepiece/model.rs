//! The file of a model: `ModelProto` of SentencePiece's `sentencepiece_model.proto`.

use crate::engine::seq2seq::protobuf::{Field, Message};
use std::io::{self, Cursor};

/// What is needed of it.
#[derive(Default)]
pub struct Model {
    /// By their numbers.
    pub pieces: Vec<Piece>,
    pub trainer: Trainer,
    pub normalizer: NormalizerSpec,
    pub denormalizer: Option<NormalizerSpec>,
}

/// A piece of texts.
pub struct Piece {
    pub text: String,
    /// The logarithm of its probability.
    pub score: f32,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// How it was trained.
pub struct Trainer {
    pub is_unigram: bool,
    pub treat_whitespace_as_suffix: bool,
    pub byte_fallback: bool,
    /// What the unknown piece stands for in a text.
    pub unk_surface: Option<String>,
}

impl Default for Trainer {
    fn default() -> Self {
        Self { is_unigram: true, treat_whitespace_as_suffix: false, byte_fallback: false, unk_surface: None }
    }
}

/// What happens to a text before it is cut.
pub struct NormalizerSpec {
    /// What becomes of which characters: [`super::normalize`] reads it.
    pub precompiled_charsmap: Vec<u8>,
    pub add_dummy_prefix: bool,
    pub remove_extra_whitespaces: bool,
    pub escape_whitespaces: bool,
}

impl Default for NormalizerSpec {
    fn default() -> Self {
        Self {
            precompiled_charsmap: Vec::new(),
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
        }
    }
}

/// Bytes of a piece. A text is as many of them as it has tokens.
const LONGEST: usize = 4096;

type Fields = Message<Cursor<Vec<u8>>>;

impl Model {
    /// Reads a file's content.
    ///
    /// # Errors
    /// When it is of another format.
    pub fn read(bytes: Vec<u8>) -> io::Result<Self> {
        let mut message = Message::of(bytes);
        let mut model = Self::default();
        while let Some((number, field)) = message.field()? {
            let Field::Bytes(length) = field else { continue };
            match number {
                1 => model.pieces.push(Piece::read(Message::of(message.bytes(length)?))?),
                2 => model.trainer = Trainer::read(Message::of(message.bytes(length)?))?,
                3 => model.normalizer = NormalizerSpec::read(Message::of(message.bytes(length)?))?,
                5 => model.denormalizer = Some(NormalizerSpec::read(Message::of(message.bytes(length)?))?),
                _ => message.pass(length)?,
            }
        }
        Ok(model)
    }
}

impl Piece {
    fn read(mut message: Fields) -> io::Result<Self> {
        let mut piece = Self { text: String::new(), score: 0.0, kind: Kind::Normal };
        while let Some((number, field)) = message.field()? {
            match (number, field) {
                (1, Field::Bytes(length)) => piece.text = message.text(length)?,
                (2, Field::Fixed32(bits)) => piece.score = f32::from_bits(bits),
                (3, Field::Number(kind)) => {
                    piece.kind = match kind {
                        2 => Kind::Unknown,
                        3 => Kind::Control,
                        4 => Kind::UserDefined,
                        5 => Kind::Unused,
                        6 => Kind::Byte,
                        _ => Kind::Normal,
                    }
                }
                (_, Field::Bytes(length)) => message.pass(length)?,
                _ => {}
            }
        }
        match piece.text.len() {
            0 => Err(io::Error::new(io::ErrorKind::InvalidData, "a piece of it is empty")),
            1..=LONGEST => Ok(piece),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "a piece of it is too long")),
        }
    }

    /// The byte that it stands for, if it is one: `<0xE2>`.
    pub fn byte(&self) -> Option<u8> {
        if self.kind != Kind::Byte {
            return None;
        }
        u8::from_str_radix(self.text.strip_prefix("<0x")?.strip_suffix('>')?, 16).ok()
    }
}

impl Trainer {
    fn read(mut message: Fields) -> io::Result<Self> {
        let mut trainer = Self::default();
        while let Some((number, field)) = message.field()? {
            match (number, field) {
                (3, Field::Number(algorithm)) => trainer.is_unigram = algorithm == 1,
                (24, Field::Number(flag)) => trainer.treat_whitespace_as_suffix = flag != 0,
                (35, Field::Number(flag)) => trainer.byte_fallback = flag != 0,
                (44, Field::Bytes(length)) if length <= LONGEST as u64 => {
                    trainer.unk_surface = Some(message.text(length)?)
                }
                (_, Field::Bytes(length)) => message.pass(length)?,
                _ => {}
            }
        }
        Ok(trainer)
    }
}

impl NormalizerSpec {
    fn read(mut message: Fields) -> io::Result<Self> {
        let mut spec = Self::default();
        while let Some((number, field)) = message.field()? {
            match (number, field) {
                (2, Field::Bytes(length)) => spec.precompiled_charsmap = message.bytes(length)?,
                (3, Field::Number(flag)) => spec.add_dummy_prefix = flag != 0,
                (4, Field::Number(flag)) => spec.remove_extra_whitespaces = flag != 0,
                (5, Field::Number(flag)) => spec.escape_whitespaces = flag != 0,
                (_, Field::Bytes(length)) => message.pass(length)?,
                _ => {}
            }
        }
        Ok(spec)
    }
}
