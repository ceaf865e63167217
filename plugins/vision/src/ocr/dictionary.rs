//! The letters that a graph tells apart: a file with one a line, or what the graph's own file says of itself.

use backplane_plugin::prelude::*;

/// The letters by class. Class 0 is no letter, and the last one is the space.
#[derive(Debug, PartialEq)]
pub struct Dictionary(Vec<String>);

impl Dictionary {
    /// That of a model: its file with the role `dictionary`, or else what the graph in the file with role `graph` has under
    /// `character`.
    ///
    /// # Errors
    /// When there is neither.
    pub fn of(model: &ModelSpec, graph: &str) -> Result<Self> {
        let read = |role: &str| {
            std::fs::read(model.file(role)?).map_err(|error| {
                Error::model_invalid(format!(
                    "the file with role `{role}` of model `{}` cannot be read: {error}",
                    model.name
                ))
            })
        };
        let text = match model.find_file("dictionary") {
            Some(_) => read("dictionary")?,
            None => entry(&read(graph)?, b"character").map(<[u8]>::to_vec).ok_or_else(|| {
                Error::model_invalid(format!(
                    "model `{}` has no dictionary: neither a file with the role `dictionary` nor the entry `character` in its graph `{graph}`",
                    model.name
                ))
            })?,
        };
        Ok(Self::parse(&String::from_utf8_lossy(&text)))
    }

    fn parse(text: &str) -> Self {
        let lines =
            text.strip_suffix('\n').unwrap_or(text).split('\n').map(|line| line.trim_end_matches('\r'));
        Self(std::iter::once("").chain(lines).chain([" "]).map(str::to_owned).collect())
    }

    /// How many classes there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// What a class stands for.
    pub fn letter(&self, class: usize) -> &str {
        self.0.get(class).map_or("", String::as_str)
    }
}

/// What an ONNX file says of itself under `key`: its field 14 is a list of pairs, of which 1 is the key and 2 the value.
/// Protocol Buffers need no more than this to be read.
fn entry<'a>(model: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    const METADATA: u64 = 14;
    for (number, content) in Fields(model) {
        if number == METADATA {
            let part =
                |wanted: u64| Fields(content).find(|(number, _)| *number == wanted).map(|(_, part)| part);
            if part(1) == Some(key) {
                return part(2);
            }
        }
    }
    None
}

/// The fields of a message that have a length, with their numbers. The others are passed over.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn varint(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let tag = self.varint()?;
            let length = match tag & 7 {
                0 => {
                    self.varint()?;
                    continue;
                }
                1 => 8,
                2 => usize::try_from(self.varint()?).ok()?,
                5 => 4,
                _ => return None,
            };
            let (content, rest) = self.0.split_at_checked(length)?;
            self.0 = rest;
            if tag & 7 == 2 {
                return Some((tag >> 3, content));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_class_is_no_letter_and_the_last_is_the_space() {
        let dictionary = Dictionary::parse("a\r\n文\n");
        assert_eq!(dictionary, Dictionary(["", "a", "文", " "].map(str::to_owned).to_vec()));
        assert_eq!((dictionary.len(), dictionary.letter(2), dictionary.letter(9)), (4, "文", ""));
    }

    #[test]
    fn a_graph_says_what_it_tells_apart() {
        let pair = |key: &str, value: &str| {
            let mut pair = vec![0x0a, key.len() as u8];
            pair.extend(key.bytes());
            pair.extend([0x12, value.len() as u8]);
            pair.extend(value.bytes());
            [vec![0x72, pair.len() as u8], pair].concat()
        };
        // A version, a name, a field of eight bytes; then what it says.
        let head = [&[0x08, 0x96, 0x01, 0x12, 0x02, b'h', b'i', 0x79][..], &[0; 8]].concat();
        let model = [head, pair("other", "x"), pair("character", "a\nb")].concat();
        assert_eq!(entry(&model, b"character"), Some(&b"a\nb"[..]));
        assert_eq!(entry(&model, b"nothing"), None);
        for cut in 0..model.len() {
            assert_eq!(entry(&model[..cut], b"character"), None, "cut at {cut}");
        }
    }
}
