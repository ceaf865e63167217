//! What a request may ask of echo: `params` of the capability `echo/1`.

use backplane_plugin::payload::Usage;
use backplane_plugin::prelude::*;
use backplane_plugin::serde::Deserialize;
use backplane_plugin::serde_json::Map;
use std::time::Duration;

/// All pieces of an answer are cut before the first is sent.
const MAX_CHUNKS: usize = 1_000_000;

/// Parameters of a request. All may be left out; an unknown one is refused by its name.
#[derive(Debug, Deserialize)]
#[serde(crate = "backplane_plugin::serde", default, deny_unknown_fields)]
pub struct Params {
    /// Given back.
    pub text: String,
    /// In how many pieces: 0 answers with nothing but the end.
    pub chunks: usize,
    /// Wait before the first piece. Ends at once when the caller leaves.
    pub delay_ms: u64,
    /// Wait between pieces. Ends at once when the caller leaves.
    pub chunk_delay_ms: u64,
    /// Fail, instead of ending well.
    pub fail: Option<Fail>,
    /// Panic, to see that the host survives it.
    pub panic: bool,
    /// Sleep without looking at anything, to see that the host notices.
    pub hang_ms: u64,
    /// Ask another plugin, with the same tensors, and give its answer and its tensors back with the first piece.
    pub call: Option<Call>,
    /// Report this as consumed, instead of the number of words.
    pub usage: Option<Usage>,
    /// Report this probability that the answer is right.
    pub confidence: Option<f64>,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            text: String::new(),
            chunks: 1,
            delay_ms: 0,
            chunk_delay_ms: 0,
            fail: None,
            panic: false,
            hang_ms: 0,
            call: None,
            usage: None,
            confidence: None,
        }
    }
}

/// How to fail.
#[derive(Debug, Deserialize)]
#[serde(crate = "backplane_plugin::serde", deny_unknown_fields)]
pub struct Fail {
    /// A canonical code by its name: `"unavailable"`.
    pub code: String,
    #[serde(default)]
    pub message: String,
    /// A word for machines.
    pub reason: Option<String>,
    pub retry_after_ms: Option<u64>,
    /// After how many pieces.
    #[serde(default)]
    pub after: usize,
    /// Whether the instance is to be replaced.
    #[serde(default)]
    pub poisons: bool,
}

/// A question to another plugin.
#[derive(Debug, Deserialize)]
#[serde(crate = "backplane_plugin::serde", deny_unknown_fields)]
pub struct Call {
    pub capability: String,
    /// Empty: the host chooses.
    #[serde(default)]
    pub model: String,
    #[serde(default)]
    pub params: Map<String, Value>,
}

impl Params {
    /// Refuses what is more than there is memory for.
    pub fn check(&self) -> Result<()> {
        if self.chunks <= MAX_CHUNKS {
            return Ok(());
        }
        let what = format!("`chunks` is {}, and at most {MAX_CHUNKS} can be asked for", self.chunks);
        Err(Error::new(Code::OutOfRange, what).with_param("chunks"))
    }

    /// Tokens of the text, as this plugin counts them.
    pub fn words(&self) -> u64 {
        self.text.split_whitespace().count() as u64
    }

    /// The pieces of the text, as equal as whole characters allow; `chunks` of them, whatever its length.
    pub fn pieces(&self) -> Vec<String> {
        let characters: Vec<char> = self.text.chars().collect();
        let cut = |piece: usize| piece * characters.len() / self.chunks;
        (0..self.chunks).map(|piece| characters[cut(piece)..cut(piece + 1)].iter().collect()).collect()
    }
}

impl Fail {
    /// The error that was asked for.
    pub fn error(&self) -> Error {
        let known = Code::ALL.into_iter().find(|code| code.name() == self.code);
        let Some(code) = known else {
            let names = Code::ALL.map(Code::name).join("`, `");
            return Error::invalid(format!("`{}` is not a code, but `{names}` are", self.code))
                .with_param("fail.code");
        };
        let mut error = Error::new(code, &self.message);
        error.reason.clone_from(&self.reason);
        error.retry_after = self.retry_after_ms.map(Duration::from_millis);
        error.poisons = self.poisons;
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(text: &str, chunks: usize) -> Vec<String> {
        Params { text: text.to_owned(), chunks, ..Params::default() }.pieces()
    }

    #[test]
    fn a_text_is_cut_between_characters_into_as_many_pieces_as_asked_for() {
        assert_eq!(pieces("äöüß", 2), ["äö", "üß"]);
        assert_eq!(pieces("abc", 2).concat(), "abc");
        assert_eq!(pieces("a", 3).concat(), "a");
        assert_eq!(pieces("a", 3).len(), 3);
        assert!(pieces("abc", 0).is_empty());
    }

    #[test]
    fn more_pieces_than_there_is_memory_for_are_refused() {
        let asked = |chunks| Params { chunks, ..Params::default() }.check().map_err(|error| error.code);
        assert_eq!(asked(MAX_CHUNKS), Ok(()));
        assert_eq!(asked(MAX_CHUNKS + 1), Err(Code::OutOfRange));
        assert_eq!(asked(usize::MAX), Err(Code::OutOfRange));
    }

    #[test]
    fn an_unknown_code_is_refused_with_the_known_ones() {
        let asked = json!({"code": "lost"});
        let fail: Fail = backplane_plugin::serde_json::from_value(asked).unwrap();
        assert_eq!(fail.error().code, Code::InvalidArgument);
        assert!(fail.error().message.contains("`unavailable`"));
    }
}
