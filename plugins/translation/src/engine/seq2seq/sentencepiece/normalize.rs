//! A text before it is cut: characters in one form of several, white space made visible.
//!
//! Which characters become which is in the model: a trie of what is replaced (a double array, as Darts writes it), and the
//! replacements, each ended by a zero byte. The longest one that fits is taken.

use super::SPACE;
use super::model::NormalizerSpec;
use super::unigram::Prefixes;

/// Bytes that one character may become; of Unicode's own there are 33 at the most.
const LONGEST: usize = 256;

/// What a model does to a text.
pub struct Normalizer {
    /// Units of the double array.
    units: Vec<u32>,
    replacements: Vec<u8>,
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
    escape_whitespaces: bool,
    /// The visible space stands behind a word instead of before it.
    suffix: bool,
    /// What stays as it is.
    own: Prefixes,
}

impl Normalizer {
    /// As the model says; `own` are the symbols that its user defined.
    ///
    /// # Errors
    /// When its table is broken.
    pub fn of(spec: NormalizerSpec, suffix: bool, own: Prefixes) -> Result<Self, String> {
        let (units, replacements) = match &spec.precompiled_charsmap[..] {
            [] => (Vec::new(), Vec::new()),
            table => {
                let broken = "its table of characters is broken";
                let (length, rest) = table.split_first_chunk::<4>().ok_or(broken)?;
                let (trie, replacements) =
                    rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or(broken)?;
                // A character may become a few; one that became megabytes would fill the memory, sentence by sentence.
                if replacements.split(|byte| *byte == 0).any(|text| LONGEST < text.len()) {
                    return Err(broken.to_owned());
                }
                let units = trie.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
                (units, replacements.to_vec())
            }
        };
        Ok(Self {
            units,
            replacements,
            add_dummy_prefix: spec.add_dummy_prefix,
            remove_extra_whitespaces: spec.remove_extra_whitespaces,
            escape_whitespaces: spec.escape_whitespaces,
            suffix,
            own,
        })
    }

    pub fn removes_extra_whitespace(&self) -> bool {
        self.remove_extra_whitespaces
    }

    /// The text as it is cut.
    pub fn normalize(&self, text: &[u8]) -> Vec<u8> {
        let space = if self.escape_whitespaces { SPACE.as_bytes() } else { b" " };
        let mut rest = text;
        if self.remove_extra_whitespaces {
            while let (b" ", length) = self.next(rest) {
                rest = &rest[length..];
            }
        }
        if rest.is_empty() {
            return Vec::new();
        }
        let mut normalized = Vec::with_capacity(rest.len() * 2);
        if self.add_dummy_prefix && !self.suffix {
            normalized.extend(space);
        }
        let mut after_space = self.remove_extra_whitespaces;
        while !rest.is_empty() {
            let (mut next, length) = self.next(rest);
            while after_space && let Some(behind) = next.strip_prefix(b" ") {
                next = behind;
            }
            for byte in next {
                match byte {
                    b' ' => normalized.extend(space),
                    byte => normalized.push(*byte),
                }
            }
            if let Some(last) = next.last() {
                after_space = *last == b' ' && self.remove_extra_whitespaces;
            }
            rest = &rest[length..];
        }
        if self.remove_extra_whitespaces {
            while normalized.ends_with(space) {
                normalized.truncate(normalized.len() - space.len());
            }
        }
        if self.add_dummy_prefix && self.suffix {
            normalized.extend(space);
        }
        normalized
    }

    /// What the text begins with, normalised, and how many bytes that was.
    fn next<'a>(&'a self, text: &'a [u8]) -> (&'a [u8], usize) {
        if let Some((length, _)) = self.own.of_text(text).last() {
            return (&text[..length], length);
        }
        if let Some((length, place)) = self.longest(text) {
            let replacement = self.replacements.get(place..).unwrap_or_default();
            let end = replacement.iter().position(|byte| *byte == 0).unwrap_or(replacement.len());
            return (&replacement[..end], length);
        }
        match (text, character(text)) {
            ([], _) => (text, 0),
            (_, Some(character)) => (character.as_bytes(), character.len()),
            (_, None) => ("\u{FFFD}".as_bytes(), 1),
        }
    }

    /// The longest text of the table that this one begins with: its length, and where its replacement is.
    fn longest(&self, text: &[u8]) -> Option<(usize, usize)> {
        let offset = |unit: u32| (unit >> 10) << ((unit & (1 << 9)) >> 6);
        let label = |unit: u32| unit & (1 << 31 | 0xFF);
        let has_leaf = |unit: u32| unit >> 8 & 1 == 1;
        let mut place = offset(*self.units.first()?);
        let mut longest = None;
        for (at, byte) in text.iter().enumerate() {
            place ^= u32::from(*byte);
            let Some(unit) = self.units.get(place as usize).filter(|unit| label(**unit) == u32::from(*byte))
            else {
                break;
            };
            place ^= offset(*unit);
            if has_leaf(*unit)
                && let Some(leaf) = self.units.get(place as usize)
            {
                longest = Some((at + 1, (leaf & !(1 << 31)) as usize));
            }
        }
        longest
    }
}

/// The character that these bytes begin with, if they begin with one.
pub fn character(bytes: &[u8]) -> Option<&str> {
    let length = length(bytes).min(bytes.len());
    std::str::from_utf8(&bytes[..length]).ok().filter(|character| !character.is_empty())
}

/// How long the character is that these bytes begin with, by its first byte.
pub fn length(bytes: &[u8]) -> usize {
    match bytes.first() {
        None => 0,
        Some(0xF0..) => 4,
        Some(0xE0..) => 3,
        Some(0xC0..) => 2,
        Some(_) => 1,
    }
}
