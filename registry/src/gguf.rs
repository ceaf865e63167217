//! How long a GGUF file has to be, by its own header: one whose download broke off is told before it is installed. What its
//! values mean is the plugin's to say.

use std::io::{self, BufReader, Read, Seek};

/// What a file is known to need: so many bytes from its beginning on, the last of them for this.
#[derive(Debug, PartialEq)]
pub(crate) struct Needs {
    pub bytes: u64,
    pub what: String,
}

/// More tensors, keys or bytes of a name no model has: such a header is damaged, and its plugin says how.
const MAX_TENSORS: u64 = 1 << 20;
const MAX_KEYS: u64 = 1 << 16;
const MAX_NAME: u64 = 1 << 16;

/// What is missing of a file of this length, if anything is. Of versions and types that are not known here nothing is said.
pub(crate) fn missing<R: Read + Seek>(file: &mut BufReader<R>, length: u64) -> io::Result<Option<Needs>> {
    file.rewind()?;
    match (Walk { file, at: 0, length }).whole() {
        Ok(()) | Err(Stop::Unknown) => Ok(None),
        Err(Stop::Missing(needs)) => Ok(Some(needs)),
        Err(Stop::Io(error)) => Err(error),
    }
}

enum Stop {
    Missing(Needs),
    Unknown,
    Io(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

struct Walk<'a, R> {
    file: &'a mut BufReader<R>,
    at: u64,
    length: u64,
}

impl<R: Read + Seek> Walk<'_, R> {
    fn whole(&mut self) -> Result<(), Stop> {
        self.skip(4, "the header")?;
        if !(2..=3).contains(&self.u32()?) {
            return Err(Stop::Unknown);
        }
        let (tensors, keys) = (self.u64()?, self.u64()?);
        if MAX_TENSORS < tensors || MAX_KEYS < keys {
            return Err(Stop::Unknown);
        }
        let mut alignment = 32;
        for _ in 0..keys {
            let key = self.text()?;
            match (key.as_str(), self.u32()?) {
                ("general.alignment", 4) => alignment = u64::from(self.u32()?),
                (_, kind) => self.value(kind)?,
            }
        }
        if !alignment.is_power_of_two() {
            return Err(Stop::Unknown);
        }
        let mut last = (0, String::new());
        for _ in 0..tensors {
            let (end, name) = self.tensor()?;
            if last.0 <= end {
                last = (end, name);
            }
        }
        let data = self.at.checked_next_multiple_of(alignment).ok_or(Stop::Unknown)?;
        let bytes = data.checked_add(last.0).ok_or(Stop::Unknown)?;
        if tensors != 0 && self.length < bytes {
            return Err(Stop::Missing(Needs { bytes, what: format!("tensor `{}`", last.1) }));
        }
        Ok(())
    }

    /// Its end, counted from where the data begin, and its name.
    fn tensor(&mut self) -> Result<(u64, String), Stop> {
        let name = self.text()?;
        let mut elements = 1_u64;
        for _ in 0..self.u32()?.min(8) {
            elements = elements.checked_mul(self.u64()?).ok_or(Stop::Unknown)?;
        }
        let (kind, offset) = (self.u32()?, self.u64()?);
        // Of a type that is newer than this table its place is known, and not its end.
        let block = BLOCKS.iter().find(|block| block.0 == kind);
        let bytes = block.map_or(Some(0), |(_, numbers, bytes)| (elements / numbers).checked_mul(*bytes));
        let end = bytes.and_then(|bytes| offset.checked_add(bytes)).ok_or(Stop::Unknown)?;
        Ok((end, name))
    }

    fn value(&mut self, kind: u32) -> Result<(), Stop> {
        match kind {
            8 => {
                let bytes = self.u64()?;
                self.skip(bytes, "the header")
            }
            9 => {
                let (kind, count) = (self.u32()?, self.u64()?);
                match size(kind) {
                    Some(size) => self.skip(count.checked_mul(size).ok_or(Stop::Unknown)?, "the header"),
                    // Each text has a length at the least, so the file ends before a count that is too large does.
                    None if kind == 8 => (0..count).try_for_each(|_| self.value(8)),
                    None => Err(Stop::Unknown),
                }
            }
            kind => self.skip(size(kind).ok_or(Stop::Unknown)?, "the header"),
        }
    }

    fn skip(&mut self, bytes: u64, what: &str) -> Result<(), Stop> {
        self.need(bytes, what)?;
        self.file.seek_relative(i64::try_from(bytes).map_err(|_| Stop::Unknown)?)?;
        self.at += bytes;
        Ok(())
    }

    fn need(&self, bytes: u64, what: &str) -> Result<(), Stop> {
        let end = self.at.checked_add(bytes).ok_or(Stop::Unknown)?;
        if self.length < end {
            return Err(Stop::Missing(Needs { bytes: end, what: what.to_owned() }));
        }
        Ok(())
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        self.need(N as u64, "the header")?;
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes)?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, Stop> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64, Stop> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    fn text(&mut self) -> Result<String, Stop> {
        let length = self.u64()?;
        if MAX_NAME < length {
            return Err(Stop::Unknown);
        }
        self.need(length, "the header")?;
        let mut bytes = vec![0; length as usize];
        self.file.read_exact(&mut bytes)?;
        self.at += length;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// Bytes of a value of this type, where all of it have as many.
fn size(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// Type, numbers in a block, bytes of a block: `enum ggml_type` of `ggml.h`, and `ggml-common.h`. The `llama` plugin has the
/// same table, since no plugin imports the registry.
const BLOCKS: [(u32, u64, u64); 29] = [
    (0, 1, 4),      // F32
    (1, 1, 2),      // F16
    (2, 32, 18),    // Q4_0
    (3, 32, 20),    // Q4_1
    (6, 32, 22),    // Q5_0
    (7, 32, 24),    // Q5_1
    (8, 32, 34),    // Q8_0
    (9, 32, 36),    // Q8_1
    (10, 256, 84),  // Q2_K
    (11, 256, 110), // Q3_K
    (12, 256, 144), // Q4_K
    (13, 256, 176), // Q5_K
    (14, 256, 210), // Q6_K
    (15, 256, 292), // Q8_K
    (16, 256, 66),  // IQ2_XXS
    (17, 256, 74),  // IQ2_XS
    (18, 256, 98),  // IQ3_XXS
    (19, 256, 50),  // IQ1_S
    (20, 32, 18),   // IQ4_NL
    (21, 256, 110), // IQ3_S
    (22, 256, 82),  // IQ2_S
    (23, 256, 136), // IQ4_XS
    (24, 1, 1),     // I8
    (25, 1, 2),     // I16
    (26, 1, 4),     // I32
    (27, 1, 8),     // I64
    (28, 1, 8),     // F64
    (29, 256, 56),  // IQ1_M
    (30, 1, 2),     // BF16
];

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    fn text(out: &mut Vec<u8>, text: &str) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    }

    /// A whole file: a text, an alignment, lists of numbers and of texts, two tensors.
    pub(crate) fn file() -> Vec<u8> {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend(2u64.to_le_bytes());
        out.extend(4u64.to_le_bytes());
        let key = |out: &mut Vec<u8>, name: &str, kind: u32| {
            text(out, name);
            out.extend(kind.to_le_bytes());
        };
        key(&mut out, "general.architecture", 8);
        text(&mut out, "llama");
        key(&mut out, "general.alignment", 4);
        out.extend(64u32.to_le_bytes());
        key(&mut out, "heads", 9);
        out.extend(4u32.to_le_bytes());
        out.extend(2u64.to_le_bytes());
        out.extend([3u32.to_le_bytes(), 4u32.to_le_bytes()].concat());
        key(&mut out, "tokenizer.ggml.tokens", 9);
        out.extend(8u32.to_le_bytes());
        out.extend(2u64.to_le_bytes());
        text(&mut out, "a");
        text(&mut out, "bc");
        for (name, side, kind, offset) in [("first", 64u64, 0u32, 0u64), ("second", 32, 8, 256)] {
            text(&mut out, name);
            out.extend(1u32.to_le_bytes());
            out.extend(side.to_le_bytes());
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(64) + 256 + 34, 0);
        out
    }

    fn look(bytes: &[u8]) -> Option<Needs> {
        missing(&mut BufReader::new(Cursor::new(bytes)), bytes.len() as u64).unwrap()
    }

    #[test]
    fn a_file_that_is_cut_anywhere_is_told_and_a_whole_one_is_let_in() {
        let whole = file();
        assert_eq!(look(&whole), None);
        assert_eq!(look(&[&whole[..], b"and more"].concat()), None, "padding");
        for length in 0..whole.len() {
            let needs = look(&whole[..length]).unwrap_or_else(|| panic!("cut at {length}"));
            assert!(
                length < needs.bytes as usize && needs.bytes as usize <= whole.len(),
                "{length}: {needs:?}"
            );
        }
        let needs = Needs { bytes: whole.len() as u64, what: "tensor `second`".to_owned() };
        assert_eq!(look(&whole[..whole.len() - 1]), Some(needs));
    }

    #[test]
    fn of_what_is_not_known_nothing_is_said() {
        let whole = file();
        let with = |at: usize, bytes: &[u8]| {
            let mut other = whole.clone();
            other[at..at + bytes.len()].copy_from_slice(bytes);
            other
        };
        assert_eq!(look(&with(4, &[9])), None, "a version");
        assert_eq!(look(&with(8, &u64::MAX.to_le_bytes())), None, "more tensors than any model has");
        assert_eq!(look(&with(24, &u64::MAX.to_le_bytes())), None, "a name beyond any");
    }

    proptest! {
        #[test]
        fn any_damage_is_looked_at(at in 0usize..400, with: u8, cut in 0usize..800) {
            let mut bytes = file();
            let at = at % bytes.len();
            bytes[at] = with;
            bytes.truncate(cut);
            look(&bytes);
        }
    }
}
