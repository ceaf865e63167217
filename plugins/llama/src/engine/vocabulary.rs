//! What each token of a model stands for, as far as grammars ask.

use super::job::piece;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;

/// The texts of all tokens.
pub struct Vocabulary {
    bytes: Vec<u8>,
    tokens: Vec<Token>,
}

struct Token {
    /// Where in `bytes` its text ends; it begins where that of the one before ends.
    end: u32,
    /// It ends an answer.
    ends: bool,
    /// It has a text, and an answer shows it only where calls are read.
    hidden: bool,
}

impl Vocabulary {
    pub fn of(model: &LlamaModel) -> Self {
        let vocab = model.vocab();
        let (mut bytes, mut tokens) = (Vec::new(), Vec::new());
        for token in 0..vocab.n_tokens() {
            bytes.extend(piece(model, token, true));
            let ends = vocab.is_eog(LlamaToken(token));
            let hidden = vocab.is_control(LlamaToken(token));
            tokens.push(Token { end: bytes.len() as u32, ends, hidden });
        }
        Self { bytes, tokens }
    }

    /// What a token adds to an answer. `special`: those of control tokens too.
    pub fn text(&self, token: i32, special: bool) -> &[u8] {
        let Some((at, own)) = usize::try_from(token).ok().and_then(|at| Some((at, self.tokens.get(at)?)))
        else {
            return &[];
        };
        if own.hidden && !special {
            return &[];
        }
        let start = at.checked_sub(1).map_or(0, |before| self.tokens[before].end);
        &self.bytes[start as usize..own.end as usize]
    }

    /// Whether a token ends an answer.
    pub fn ends(&self, token: i32) -> bool {
        usize::try_from(token).ok().and_then(|at| self.tokens.get(at)).is_some_and(|token| token.ends)
    }
}
