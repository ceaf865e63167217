//! Text to tokens, and how many of them an input may have.

use backplane_plugin::prelude::*;
use std::path::Path;
use tokenizers::{Encoding, PostProcessor, TruncationDirection};

/// Tokens of one input, with everything the graph wants to know about them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tokens {
    pub ids: Vec<u32>,
    /// Which of two texts each belongs to.
    pub types: Vec<u32>,
}

impl Tokens {
    pub fn len(&self) -> usize {
        self.ids.len()
    }
}

impl From<Encoding> for Tokens {
    fn from(encoding: Encoding) -> Self {
        Self { ids: encoding.get_ids().to_vec(), types: encoding.get_type_ids().to_vec() }
    }
}

/// More bytes than a token has on the average, in whatever language.
const BYTES_OF_A_TOKEN: usize = 64;
/// Tokens that a text may have for a model that says nothing of it.
const LONG: usize = 16 << 10;
/// Bytes that are always tokenized, white space and all.
const PIECE: usize = 64 << 10;

/// A tokenizer with the model's limit.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    max_length: Option<usize>,
    vocabulary: usize,
    pad: u32,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`. Without a `max_length` its own truncation is the limit.
    ///
    /// # Errors
    /// `model_invalid` when it is none.
    pub fn open(path: &Path, model: &str, max_length: Option<usize>) -> Result<Self> {
        let invalid = |why: String| {
            Error::model_invalid(format!("the tokenizer of model `{model}` cannot be used: {why}"))
        };
        let bytes = std::fs::read(path).map_err(|error| invalid(error.to_string()))?;
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| {
            let why = error.to_string();
            invalid(why.chars().take(300).collect())
        })?;
        let max_length = max_length.or(inner.get_truncation().map(|truncation| truncation.max_length));
        let pad = inner.get_padding().map(|padding| padding.pad_id);
        let pad = pad.or_else(|| ["[PAD]", "<pad>"].iter().find_map(|pad| inner.token_to_id(pad)));
        // Inputs are cut only when the request asks for it, and padded to the longest of their run.
        inner.with_truncation(None).map_err(|error| invalid(error.to_string()))?;
        inner.with_padding(None);
        let vocabulary = inner.get_vocab_size(true);
        let tokenizer = Self { inner, max_length, vocabulary, pad: pad.unwrap_or(0) };
        match max_length {
            Some(most) if most <= tokenizer.added(true) => Err(Error::invalid(format!(
                "[parameters] of model `{model}`: `max_length` is {most}, which the special tokens fill alone"
            ))),
            _ => Ok(tokenizer),
        }
    }

    /// Tokens an input may have, special ones included.
    pub fn max_length(&self) -> Option<usize> {
        self.max_length
    }

    /// Lowers the limit to what the graph takes.
    pub fn limit(&mut self, most: Option<usize>) {
        self.max_length = self.max_length.into_iter().chain(most).min();
    }

    /// What fills rows up to the longest.
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// Tokens of a text. `name` says which input it is, should it be too long.
    ///
    /// # Errors
    /// `OutOfRange` with the counts when it is too long and not to be cut.
    pub fn text(&self, name: &str, text: &str, truncate: bool) -> Result<Tokens> {
        let mut encoding = self.encode(self.within(name, text, truncate)?)?;
        self.fit(name, &mut encoding, self.added(false), truncate)?;
        Ok(self.inner.post_process(encoding, None, true).map_err(|error| failed(name, &error))?.into())
    }

    /// Tokens of two texts in one row; the second is the one that is cut.
    ///
    /// # Errors
    /// As [`Tokenizer::text`].
    pub fn pair(&self, name: &str, first: &str, second: &str, truncate: bool) -> Result<Tokens> {
        let first = self.encode(self.within(name, first, false)?)?;
        let mut second = self.encode(self.within(name, second, truncate)?)?;
        self.fit(name, &mut second, self.added(true) + first.len(), truncate)?;
        let types = vec![1; second.len()];
        second.set_type_ids(types);
        Ok(self.inner.post_process(first, Some(second), true).map_err(|error| failed(name, &error))?.into())
    }

    /// Tokens as the request brings them, with whatever special tokens it put there.
    ///
    /// # Errors
    /// When there are none, one is not of this model, or as [`Tokenizer::text`].
    pub fn tokens(&self, name: &str, ids: &[u32], truncate: bool) -> Result<Tokens> {
        let wrong = |what: String| Error::invalid(format!("`{name}` {what}")).with_param(name);
        if ids.is_empty() {
            return Err(wrong("is empty".to_owned()));
        }
        if let Some(place) = ids.iter().position(|&id| id as usize >= self.vocabulary) {
            let (id, count) = (ids[place], self.vocabulary);
            return Err(wrong(format!(
                "has the token {id} at {place}, and the model knows tokens below {count}"
            )));
        }
        let most = self.max_length.unwrap_or(usize::MAX);
        if ids.len() > most && !truncate {
            return Err(too_long(name, ids.len(), most));
        }
        let ids = ids[..ids.len().min(most)].to_vec();
        Ok(Tokens { types: vec![0; ids.len()], ids })
    }

    /// As much of a text as may be looked at: no text of more fits, and tokenizing takes hundreds of bytes of memory for
    /// each of its own.
    fn within<'a>(&self, name: &str, text: &'a str, truncate: bool) -> Result<&'a str> {
        let most = self.max_length.unwrap_or(LONG);
        let bytes = most.saturating_mul(BYTES_OF_A_TOKEN).max(PIECE);
        if text.len() <= bytes {
            return Ok(text);
        }
        if !truncate {
            let message = format!(
                "`{name}` has {} bytes, and the model takes {most} tokens, which no text of more than {bytes} bytes fits; \
                 with `truncate` what is too much would be cut off",
                text.len()
            );
            let error = Error::new(Code::OutOfRange, message).with_reason("context_length_exceeded");
            return Err(error.with_param(name).with_detail("n_ctx", most));
        }
        let (kept, _) = text.split_at(text.floor_char_boundary(bytes));
        Ok(kept.rfind(char::is_whitespace).map_or(kept, |space| &kept[..space]))
    }

    fn encode(&self, text: &str) -> Result<Encoding> {
        self.inner.encode_fast(text, false).map_err(|error| failed("input", &error))
    }

    /// Special tokens around one text, or around and between two.
    fn added(&self, pair: bool) -> usize {
        self.inner.get_post_processor().map_or(0, |processor| processor.added_tokens(pair))
    }

    /// Cuts `encoding` so that it fits beside `others` tokens, if it may be cut.
    fn fit(&self, name: &str, encoding: &mut Encoding, others: usize, truncate: bool) -> Result<()> {
        let Some(most) = self.max_length.filter(|&most| encoding.len() + others > most) else {
            return Ok(());
        };
        match most.checked_sub(others) {
            Some(room) if truncate && room > 0 => {
                encoding.truncate(room, 0, TruncationDirection::Right);
                encoding.take_overflowing();
                Ok(())
            }
            _ => Err(too_long(name, encoding.len() + others, most)),
        }
    }
}

fn too_long(name: &str, tokens: usize, most: usize) -> Error {
    let message = format!(
        "`{name}` has {tokens} tokens, and the model takes {most}; with `truncate` the last {} would be cut off",
        tokens - most
    );
    Error::new(Code::OutOfRange, message)
        .with_reason("context_length_exceeded")
        .with_param(name)
        .with_detail("n_prompt", tokens)
        .with_detail("n_ctx", most)
}

fn failed(name: &str, error: &tokenizers::Error) -> Error {
    Error::invalid(format!("`{name}` cannot be tokenized: {error}")).with_param(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words `a`..`j`, unknown ones as `?`, between `[` and `]`.
    fn tokenizer(max_length: Option<usize>, truncation: Option<usize>) -> Result<Tokenizer> {
        let vocabulary: serde_json::Map<_, _> =
            "?[]abcdefghij".chars().enumerate().map(|(id, word)| (word.to_string(), json!(id))).collect();
        let truncation = truncation.map(
            |most| json!({"direction": "Right", "max_length": most, "strategy": "LongestFirst", "stride": 0}),
        );
        let special = |id: u32, text: &str| {
            json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        };
        let json = json!({
            "version": "1.0", "truncation": truncation, "padding": null,
            "added_tokens": [special(1, "["), special(2, "]")],
            "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "decoder": null,
            "post_processor": {"type": "BertProcessing", "sep": ["]", 2], "cls": ["[", 1]},
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "?"},
        });
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), json.to_string()).unwrap();
        Tokenizer::open(file.path(), "m", max_length)
    }

    #[test]
    fn of_what_is_far_too_long_no_more_is_looked_at_than_may_fit() {
        let tokenizer = tokenizer(Some(6), None).unwrap();
        let long = "a b c ".repeat(1 << 20);
        let cut = tokenizer.text("t", &long, true).unwrap();
        assert_eq!(cut.ids, [1, 3, 4, 5, 3, 2]);
        let refused = tokenizer.text("t", &long, false).unwrap_err();
        assert_eq!(
            (refused.code, refused.reason.as_deref()),
            (Code::OutOfRange, Some("context_length_exceeded"))
        );
        assert!(refused.message.starts_with("`t` has 6291456 bytes"), "{}", refused.message);
        assert!(
            tokenizer.pair("t", "a", &long, true).is_ok() && tokenizer.pair("t", &long, "a", true).is_err()
        );
        // White space is no token.
        assert_eq!(tokenizer.text("t", &format!("a{}", " ".repeat(60_000)), false).unwrap().ids, [1, 3, 2]);
    }

    #[test]
    fn special_tokens_stand_around_and_between() {
        let tokenizer = tokenizer(None, None).unwrap();
        assert_eq!(
            tokenizer.text("t", "a b", false).unwrap(),
            Tokens { ids: vec![1, 3, 4, 2], types: vec![0; 4] }
        );
        let pair = tokenizer.pair("t", "a", "b c", false).unwrap();
        assert_eq!(pair, Tokens { ids: vec![1, 3, 2, 4, 5, 2], types: vec![0, 0, 0, 1, 1, 1] });
        assert_eq!(tokenizer.text("t", "", false).unwrap().ids, [1, 2]);
    }

    #[test]
    fn what_is_too_long_is_refused_with_counts_or_cut_on_request() {
        let tokenizer = tokenizer(Some(5), Some(3)).unwrap();
        let refused = tokenizer.text("input[7]", "a b c d", false).unwrap_err();
        assert_eq!(
            (refused.code, refused.reason.as_deref()),
            (Code::OutOfRange, Some("context_length_exceeded"))
        );
        assert_eq!((&refused.details["n_prompt"], &refused.details["n_ctx"]), (&json!(6), &json!(5)));
        assert_eq!(refused.details["param"], "input[7]");
        assert_eq!(tokenizer.text("t", "a b c d", true).unwrap().ids, [1, 3, 4, 5, 2], "`]` stays");
        assert_eq!(
            tokenizer.pair("t", "a", "b c d", true).unwrap().ids,
            [1, 3, 2, 4, 2],
            "the second is cut"
        );
        assert!(tokenizer.pair("t", "a b c", "d", true).is_err(), "the first alone does not fit");
        assert_eq!(tokenizer.tokens("t", &[3; 6], true).unwrap().len(), 5);
        assert!(tokenizer.tokens("t", &[3; 6], false).is_err());
    }

    #[test]
    fn tokens_of_another_model_are_named() {
        let tokenizer = tokenizer(None, None).unwrap();
        let refused = tokenizer.tokens("input[0]", &[3, 99], false).unwrap_err();
        assert!(
            refused.message.contains("token 99 at 1") && refused.message.contains("below 13"),
            "{refused}"
        );
        assert!(tokenizer.tokens("input[0]", &[], false).unwrap_err().message.contains("is empty"));
    }

    #[test]
    fn the_limit_is_the_cards_or_the_tokenizers_own() {
        assert_eq!(tokenizer(Some(5), Some(9)).unwrap().max_length(), Some(5));
        assert_eq!(tokenizer(None, Some(9)).unwrap().max_length(), Some(9));
        assert_eq!(tokenizer(None, None).unwrap().max_length(), None);
        let mut limited = tokenizer(Some(9), None).unwrap();
        limited.limit(Some(4));
        limited.limit(None);
        assert_eq!(limited.max_length(), Some(4));
        assert!(tokenizer(Some(2), None).err().unwrap().message.contains("special tokens"));
    }

    #[test]
    fn a_file_that_is_no_tokenizer_is_the_models_fault() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for content in ["", "{}", "not json", "[1]"] {
            std::fs::write(file.path(), content).unwrap();
            let refused = Tokenizer::open(file.path(), "m", None).err().unwrap();
            assert_eq!(refused.reason.as_deref(), Some("model_invalid"), "{content}: {refused}");
        }
    }
}
