//! How much memory answers may take: each by itself, and all of an upstream together.
//!
//! A server that means harm sends little that becomes much: `{},` is three bytes, and a choice with all its members once
//! it is read. So the values of an answer are counted before it is parsed, and count as memory beside its bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const MIB: usize = 1 << 20;

/// Most bytes of any answer.
const LARGEST: usize = 256 * MIB;
/// Most bytes that the answers of an upstream which are being read may take together.
pub const TOGETHER: usize = 512 * MIB;
/// What an answer may have beside its tokens or vectors.
const BESIDE: Limit = Limit { bytes: 8 * MIB, values: 1 << 16, each: 128 };
/// Tokens of an answer that nobody limited.
const UNSAID: u32 = 1 << 17;
/// Bytes of a token's text, its escapes included: far more than tokens have in the mean.
const TOKEN: usize = 256;
/// Bytes and values of a token with its probability: its text, that text's bytes as numbers, the probability.
const LIKELY: (usize, usize) = (512, 64);
/// Numbers of a vector, and bytes of one of them as text.
const VECTOR: (usize, usize) = (1 << 14, 32);

/// What an answer may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Most bytes of it.
    pub bytes: usize,
    /// Most values in its JSON.
    pub values: usize,
    /// About how many bytes a value takes once it is read.
    pub each: usize,
}

impl Limit {
    /// A chat or a completion of so many choices with so many tokens, each with so many alternatives if probabilities
    /// were asked for; `repeated` bytes of the prompt come back with each choice.
    pub fn generated(tokens: Option<u32>, choices: u32, alternatives: Option<u8>, repeated: usize) -> Self {
        let tokens = tokens.unwrap_or(UNSAID) as usize;
        let likely = alternatives.map_or(0, |top| usize::from(top) + 1);
        let of_all = |each: usize, more: usize| {
            tokens.saturating_mul(each).saturating_add(more).saturating_mul(choices as usize)
        };
        let bytes = of_all(TOKEN + likely * LIKELY.0, repeated).saturating_add(BESIDE.bytes).min(LARGEST);
        // Four values for what some servers tell of each token, such as its number.
        let values = of_all(4 + likely * LIKELY.1, 0).saturating_add(BESIDE.values);
        Self { bytes, values, ..BESIDE }
    }

    /// So many vectors.
    pub fn vectors(count: usize) -> Self {
        let numbers = count.saturating_mul(VECTOR.0);
        let bytes = numbers.saturating_mul(VECTOR.1).saturating_add(BESIDE.bytes).min(LARGEST);
        Self { bytes, values: numbers.saturating_add(BESIDE.values), each: 16 }
    }

    /// Tensors, whose size is the graph's affair. As JSON they take many times what they take as binary data, and what
    /// all answers may take together is what limits them.
    pub const TENSORS: Self = Self { bytes: LARGEST, values: usize::MAX, each: 64 };

    /// What a server says of itself and its models.
    pub const DESCRIPTION: Self = Self { bytes: 16 * MIB, values: 1 << 20, each: 128 };
}

/// How many values there are in JSON, or a little more; parsing it is not needed for that.
pub fn values(json: &[u8]) -> usize {
    let (mut count, mut rest) = (0, json);
    loop {
        let text = rest.iter().position(|byte| *byte == b'"').unwrap_or(rest.len());
        count += rest[..text].iter().filter(|byte| matches!(byte, b',' | b':' | b'[' | b'{')).count();
        let Some(after) = rest.get(text + 1..).and_then(behind_text) else { return count };
        rest = after;
    }
}

/// What follows the text that begins here. Most of an answer is text: of that only its end is looked for.
fn behind_text(mut json: &[u8]) -> Option<&[u8]> {
    loop {
        let at = json.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
        match json[at] {
            b'"' => return Some(&json[at + 1..]),
            _ => json = json.get(at + 2..)?,
        }
    }
}

/// The memory that the answers of an upstream take together.
#[derive(Clone, Debug, Default)]
pub struct Budget(Arc<AtomicUsize>);

/// The budget is used up.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

impl Budget {
    pub fn share(&self) -> Share {
        Share { of: self.clone(), held: 0 }
    }
}

/// What one answer takes of it, until it is dropped.
#[derive(Debug)]
pub struct Share {
    of: Budget,
    held: usize,
}

impl Share {
    /// Takes so many bytes in place of what it had.
    ///
    /// # Errors
    /// When there are not so many left; it then keeps what it had.
    pub fn hold(&mut self, bytes: usize) -> Result<(), Full> {
        let change = |used: usize| {
            let used = (used - self.held).checked_add(bytes)?;
            (bytes <= self.held || used <= TOGETHER).then_some(used)
        };
        self.of.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).map_err(|_| Full)?;
        self.held = bytes;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.0.fetch_sub(self.held, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_may_be_as_large_as_what_was_asked_for() {
        let of = Limit::generated;
        assert_eq!(of(Some(0), 1, None, 0), BESIDE);
        assert!(of(Some(5), 1, None, 0).bytes < 9 * MIB);
        assert_eq!(of(Some(1000), 4, None, 7).bytes, BESIDE.bytes + 4 * (256_000 + 7));
        assert!(of(Some(1000), 1, Some(20), 0).bytes > BESIDE.bytes + 21 * 1000 * 512);
        assert_eq!(of(Some(u32::MAX), u32::MAX, Some(255), usize::MAX).bytes, LARGEST);
        assert!(of(None, 1, None, 0).bytes < 64 * MIB);
        assert_eq!(Limit::vectors(usize::MAX).bytes, LARGEST);
    }

    #[test]
    fn values_are_counted_outside_of_text() {
        for (json, count) in [
            (r#""a,b:[{""#, 0),
            (r#"[1,2,{"a":"\",,"}]"#, 5),
            (r#"["\\",1]"#, 2),
            (r#"["\"",",\"",{"\\":1}]"#, 5),
            ("", 0),
            ("[0,0,0]", 3),
            (r#""ends in \"#, 0),
        ] {
            assert_eq!(values(json.as_bytes()), count, "{json}");
        }
    }

    #[test]
    fn what_one_holds_another_has_not() {
        let budget = Budget::default();
        let (mut one, mut two) = (budget.share(), budget.share());
        assert_eq!(one.hold(TOGETHER - 5), Ok(()));
        assert_eq!((two.hold(6), two.hold(5)), (Err(Full), Ok(())));
        assert_eq!(one.hold(TOGETHER), Err(Full));
        assert_eq!((one.hold(10), two.hold(TOGETHER - 10)), (Ok(()), Ok(())));
        drop(two);
        assert_eq!(one.hold(TOGETHER), Ok(()));
        assert_eq!(one.hold(usize::MAX), Err(Full));
        drop(one);
        assert_eq!(budget.0.load(Ordering::Relaxed), 0);
    }
}
