//! A reader of fastText's quantised classifiers (`.ftz`), as `lid.176.ftz` is one.
//!
//! The score of a label is a walk down a Huffman tree of the labels, each step a logistic regression on the mean of the
//! vectors of a text's words and of the parts of these words (2 to 4 letters). All vectors are unpacked when it opens.
//!
//! # Source
//! fastText 0.9.2: `dictionary.cc`, `quantmatrix.cc`, `productquantizer.cc`, `loss.cc`; `tests/detect.rs` holds it to its
//! answers.

use crate::languages;
use backplane_plugin::payload::detect::Candidate;
use backplane_plugin::prelude::*;
use std::collections::HashMap;

const MAGIC: i32 = 793_712_314;
const VERSION: i32 = 12;
const HIERARCHICAL_SOFTMAX: i32 = 1;
const SUPERVISED: i32 = 3;
/// Vectors of one file, and labels: more would be no classifier of languages.
const MOST: usize = 1 << 24;
/// Branches of the tree less likely than this are not walked.
const UNLIKELY: f32 = 1e-3;
/// An opened model.
pub struct FastText {
    dim: usize,
    minn: usize,
    maxn: usize,
    bucket: u32,
    /// Words by their hash; two words with one hash are told apart by their letters.
    words: Words,
    nwords: u32,
    /// Where the vector of a part of a word is, for those that were not pruned.
    pruned: Option<HashMap<u32, u32, Plain>>,
    vectors: Vec<f32>,
    nodes: Vec<Node>,
    /// Vectors of the inner nodes.
    output: Vec<f32>,
    labels: Vec<&'static str>,
    other_labels: Vec<String>,
}

/// Words with their rows, by their hash.
type Words = HashMap<u32, Vec<(Box<[u8]>, u32)>, Plain>;

/// A node of the tree: two others, or nothing.
#[derive(Clone, Copy)]
struct Node {
    children: Option<(u32, u32)>,
}

/// Keys are hashes already.
#[derive(Clone, Copy, Default)]
struct Plain;

impl std::hash::BuildHasher for Plain {
    type Hasher = PlainHasher;
    fn build_hasher(&self) -> PlainHasher {
        PlainHasher(0)
    }
}

struct PlainHasher(u64);

impl std::hash::Hasher for PlainHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }
    fn write_u32(&mut self, key: u32) {
        // The table takes its place from the upper bits.
        self.0 = u64::from(key).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

impl FastText {
    /// Reads a file's bytes.
    ///
    /// # Errors
    /// `model_invalid`, when they are no quantised classifier.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let mut from = Reader { bytes };
        if (from.int()?, from.int()?) != (MAGIC, VERSION) {
            return Err(wrong("it does not begin as a file of fastText's version 12 does"));
        }
        let dim = from.size()?;
        let [_ws, _epoch, _min_count, _neg, _word_ngrams, loss, model] = from.ints()?;
        let bucket = from.size()?;
        let [minn, maxn] = [from.size()?, from.size()?];
        from.skip(4 + 8)?;
        if (loss, model) != (HIERARCHICAL_SOFTMAX, SUPERVISED) {
            return Err(wrong("it is no classifier with a hierarchical softmax"));
        }
        if dim == 0 || 1024 < dim || bucket == 0 || maxn < minn {
            return Err(wrong("its dimensions make no sense"));
        }

        let [size, nwords, nlabels] = [from.size()?, from.size()?, from.size()?];
        from.skip(8)?;
        let npruned = from.long()?;
        if size != nwords + nlabels || nlabels < 2 {
            return Err(wrong("its dictionary makes no sense"));
        }
        let mut words = Words::default();
        let (mut counts, mut names) = (Vec::new(), Vec::new());
        for index in 0..size {
            let word = from.text()?;
            let count = from.long()?;
            match from.byte()? {
                0 => words.entry(hash(word)).or_default().push((word.into(), index as u32)),
                _ => {
                    counts.push(count);
                    names.push(String::from_utf8_lossy(word).trim_start_matches("__label__").to_owned());
                }
            }
        }
        if names.len() != nlabels {
            return Err(wrong("its dictionary makes no sense"));
        }
        let pruned = match usize::try_from(npruned) {
            Err(_) => None,
            Ok(pairs) => {
                let mut pruned = HashMap::default();
                for _ in 0..pairs {
                    pruned.insert(from.size()? as u32, from.size()? as u32);
                }
                Some(pruned)
            }
        };

        if from.byte()? == 0 {
            return Err(wrong("it is not quantised; `.ftz` files are"));
        }
        let vectors = from.quantised(dim)?;
        let output = if from.byte()? == 0 { from.dense(dim)? } else { from.quantised(dim)? };
        let rows = nwords + pruned.as_ref().map_or(bucket, HashMap::len);
        let mapped = pruned.iter().flat_map(HashMap::values).all(|row| (*row as usize) < rows - nwords);
        if vectors.len() != rows * dim || output.len() < (nlabels - 1) * dim || !mapped {
            return Err(wrong("its matrices have not the sizes that its dictionary has"));
        }
        let mut labels = Vec::new();
        let mut other_labels = Vec::new();
        for name in names {
            labels.push(languages::find(&name).map_or("", |language| language.code));
            other_labels.push(name);
        }
        let nodes = tree(&counts);
        let (bucket, nwords) = (bucket as u32, nwords as u32);
        Ok(Self {
            dim,
            minn,
            maxn,
            bucket,
            words,
            nwords,
            pruned,
            vectors,
            nodes,
            output,
            labels,
            other_labels,
        })
    }

    /// How many languages it tells.
    pub fn languages(&self) -> usize {
        self.labels.len()
    }

    /// Bytes of memory it takes.
    pub fn bytes(&self) -> u64 {
        4 * (self.vectors.len() + self.output.len()) as u64
    }

    /// The likeliest languages.
    pub fn detect(&self, text: &str, top: usize) -> Vec<Candidate> {
        let mut scores = self.scores(text);
        scores.sort_unstable_by(|one, other| other.1.total_cmp(&one.1));
        scores.truncate(top.max(1));
        let name = |label: usize| match self.labels[label] {
            "" => self.other_labels[label].clone(),
            known => known.to_owned(),
        };
        let Some(&(_, first)) = scores.first() else { return Vec::new() };
        let first = f64::from(first).clamp(1e-9, 1.0 - 1e-9);
        let sure = calibrated(first, text.chars().filter(|c| c.is_alphabetic()).count());
        // What the first has more, the others have less.
        let others = (1.0 - sure) / (1.0 - first);
        let confidence = |place: usize, score: f32| if place == 0 { sure } else { f64::from(score) * others };
        (0..)
            .zip(scores)
            .map(|(place, (label, score))| Candidate {
                language: name(label),
                confidence: confidence(place, score),
            })
            .collect()
    }

    /// Labels with their probabilities, in no order, without the unlikely ones.
    pub fn scores(&self, text: &str) -> Vec<(usize, f32)> {
        let mut sum = vec![0.0_f32; self.dim];
        let mut count = 0_u32;
        let mut bounded = Vec::with_capacity(64);
        for word in
            text.as_bytes().split(|byte| matches!(byte, b' ' | b'\n' | b'\r' | b'\t' | 0x0b | 0x0c | 0))
        {
            if !word.is_empty() {
                bounded.clear();
                bounded.push(b'<');
                bounded.extend_from_slice(word);
                bounded.push(b'>');
                if let Some(row) = self.word(word) {
                    self.add(row, &mut sum, &mut count);
                }
                self.add_parts(&bounded, &mut sum, &mut count);
            }
        }
        // The end of a line is a word to it.
        if let Some(row) = self.word(b"</s>") {
            self.add(row, &mut sum, &mut count);
        }
        if count == 0 {
            return Vec::new();
        }
        sum.iter_mut().for_each(|value| *value /= count as f32);
        let mut scores = Vec::with_capacity(8);
        let mut open = vec![(self.nodes.len() as u32 - 1, 1.0_f32)];
        while let Some((node, probability)) = open.pop() {
            if probability < UNLIKELY {
                continue;
            }
            match self.nodes[node as usize].children {
                None => scores.push((node as usize, probability)),
                Some((left, right)) => {
                    let row = node as usize - self.labels.len();
                    let weights = &self.output[row * self.dim..(row + 1) * self.dim];
                    let dot: f32 = weights.iter().zip(&sum).map(|(one, other)| one * other).sum();
                    let goes_right = 1.0 / (1.0 + (-dot).exp());
                    open.push((left, probability * (1.0 - goes_right)));
                    open.push((right, probability * goes_right));
                }
            }
        }
        scores
    }

    fn word(&self, word: &[u8]) -> Option<u32> {
        let same = self.words.get(&hash(word))?;
        same.iter().find(|(other, _)| **other == *word).map(|(_, row)| *row)
    }

    fn add(&self, row: u32, sum: &mut [f32], count: &mut u32) {
        let at = row as usize * self.dim;
        let vector = &self.vectors[at..at + self.dim];
        sum.iter_mut().zip(vector).for_each(|(sum, value)| *sum += value);
        *count += 1;
    }

    /// The parts of a word, with its bounds.
    fn add_parts(&self, word: &[u8], sum: &mut [f32], count: &mut u32) {
        let is_inner = |byte: u8| byte & 0xC0 == 0x80;
        for start in 0..word.len() {
            if is_inner(word[start]) {
                continue;
            }
            let mut hash = HASH_START;
            let (mut end, mut letters) = (start, 0);
            while end < word.len() && letters < self.maxn {
                hash = hashed(hash, word[end]);
                end += 1;
                while end < word.len() && is_inner(word[end]) {
                    hash = hashed(hash, word[end]);
                    end += 1;
                }
                letters += 1;
                let bound_alone = letters == 1 && (start == 0 || end == word.len());
                if self.minn <= letters && !bound_alone {
                    let bucket = hash % self.bucket;
                    let row = match &self.pruned {
                        None => Some(bucket),
                        Some(kept) => kept.get(&bucket).copied(),
                    };
                    if let Some(row) = row {
                        self.add(self.nwords + row, sum, count);
                    }
                }
            }
        }
    }
}

/// What the model's probability of its first language is worth in a text of so many letters.
///
/// It is about right for a few words, and too modest the longer a text is: of the sentences that it is half sure of, it is right
/// about nine in ten. Fitted on one half of `tests/data/languages.tsv` and looked at on the other: the expected calibration error
/// falls from 0.07 to 0.02.
fn calibrated(score: f64, letters: usize) -> f64 {
    let long = ((letters as f64 - 15.0) / 40.0).clamp(0.0, 1.0);
    let temperature = 0.9 - 0.2 * long;
    let odds = (score / (1.0 - score)).ln() / temperature + 2.0 * long;
    1.0 / (1.0 + (-odds).exp())
}

const HASH_START: u32 = 2_166_136_261;

/// FNV-1a, with bytes as signed numbers.
fn hashed(hash: u32, byte: u8) -> u32 {
    (hash ^ i32::from(byte.cast_signed()).cast_unsigned()).wrapping_mul(16_777_619)
}

fn hash(word: &[u8]) -> u32 {
    word.iter().fold(HASH_START, |hash, byte| hashed(hash, *byte))
}

/// The Huffman tree over labels that come the commonest first.
fn tree(counts: &[i64]) -> Vec<Node> {
    let leaves = counts.len();
    let mut nodes = vec![Node { children: None }; leaves];
    let mut weights = counts.to_vec();
    let (mut leaf, mut inner) = (leaves, leaves);
    for _ in 1..leaves {
        let mut lightest = || {
            let next_inner = weights.get(inner).copied().unwrap_or(i64::MAX);
            if leaf > 0 && weights[leaf - 1] < next_inner {
                leaf -= 1;
                leaf
            } else {
                inner += 1;
                inner - 1
            }
        };
        let pair = (lightest(), lightest());
        nodes.push(Node { children: Some((pair.0 as u32, pair.1 as u32)) });
        weights.push(weights[pair.0].saturating_add(weights[pair.1]));
    }
    nodes
}

fn wrong(why: &str) -> Error {
    Error::model_invalid(format!("the file is no quantised classifier of fastText: {why}"))
}

/// Little-endian numbers of a file.
struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or_else(|| wrong("it ends too early"))?;
        self.bytes = rest;
        Ok(taken)
    }

    fn skip(&mut self, count: usize) -> Result<()> {
        self.take(count).map(drop)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn int(&mut self) -> Result<i32> {
        self.take(4)?.try_into().map(i32::from_le_bytes).map_err(|_| wrong("it ends too early"))
    }

    fn ints<const N: usize>(&mut self) -> Result<[i32; N]> {
        let mut ints = [0; N];
        for place in &mut ints {
            *place = self.int()?;
        }
        Ok(ints)
    }

    fn long(&mut self) -> Result<i64> {
        self.take(8)?.try_into().map(i64::from_le_bytes).map_err(|_| wrong("it ends too early"))
    }

    /// A count that memory can be taken for.
    fn size(&mut self) -> Result<usize> {
        let int = self.int()?;
        usize::try_from(int)
            .ok()
            .filter(|size| *size <= MOST)
            .ok_or_else(|| wrong("a size in it makes no sense"))
    }

    fn long_size(&mut self) -> Result<usize> {
        let long = self.long()?;
        usize::try_from(long)
            .ok()
            .filter(|size| *size <= MOST)
            .ok_or_else(|| wrong("a size in it makes no sense"))
    }

    fn text(&mut self) -> Result<&'a [u8]> {
        let end = self.bytes.iter().position(|byte| *byte == 0).ok_or_else(|| wrong("it ends too early"))?;
        let text = self.take(end)?;
        self.skip(1)?;
        Ok(text)
    }

    fn floats(&mut self, count: usize) -> Result<Vec<f32>> {
        let bytes = self.take(count.checked_mul(4).ok_or_else(|| wrong("a size in it makes no sense"))?)?;
        Ok(bytes
            .chunks_exact(4)
            .map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]))
            .collect())
    }

    fn dense(&mut self, dim: usize) -> Result<Vec<f32>> {
        let (rows, columns) = (self.long_size()?, self.long_size()?);
        if columns != dim {
            return Err(wrong("a matrix in it is not as wide as its vectors"));
        }
        self.floats(rows * columns)
    }

    /// Rows as numbers of centroids, and of a length; unpacked.
    fn quantised(&mut self, dim: usize) -> Result<Vec<f32>> {
        let normed = self.byte()? != 0;
        let (rows, columns) = (self.long_size()?, self.long_size()?);
        let size = self.size()?;
        let codes = self.take(size)?;
        let parts = Quantizer::read(self)?;
        if columns != dim || parts.dim != dim || size != rows * parts.count {
            return Err(wrong("a matrix in it is not as wide as its vectors"));
        }
        let lengths = if normed {
            let codes = self.take(rows)?;
            let quantizer = Quantizer::read(self)?;
            if quantizer.dim != 1 || quantizer.count != 1 {
                return Err(wrong("lengths in it make no sense"));
            }
            codes.iter().map(|code| quantizer.centroid(0, *code)[0]).collect()
        } else {
            vec![1.0; rows]
        };
        let mut unpacked = Vec::with_capacity(rows * dim);
        for (row, length) in codes.chunks_exact(parts.count).zip(lengths) {
            for (part, code) in row.iter().enumerate() {
                unpacked.extend(parts.centroid(part, *code).iter().map(|value| value * length));
            }
        }
        Ok(unpacked)
    }
}

/// 256 centroids for each part of a vector.
struct Quantizer {
    dim: usize,
    count: usize,
    width: usize,
    last_width: usize,
    centroids: Vec<f32>,
}

impl Quantizer {
    fn read(from: &mut Reader<'_>) -> Result<Self> {
        let [dim, count, width, last_width] = [from.size()?, from.size()?, from.size()?, from.size()?];
        let fits = count > 0
            && width > 0
            && 0 < last_width
            && last_width <= width
            && (count - 1) * width + last_width == dim;
        if !fits || 1024 < dim {
            return Err(wrong("its centroids make no sense"));
        }
        let centroids = from.floats(dim * 256)?;
        Ok(Self { dim, count, width, last_width, centroids })
    }

    fn centroid(&self, part: usize, code: u8) -> &[f32] {
        let code = usize::from(code);
        if part == self.count - 1 {
            let at = part * 256 * self.width + code * self.last_width;
            return &self.centroids[at..at + self.last_width];
        }
        let at = (part * 256 + code) * self.width;
        &self.centroids[at..at + self.width]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_puts_what_is_common_near_its_root() {
        let nodes = tree(&[50, 20, 10, 5]);
        assert_eq!(nodes.len(), 7);
        assert_eq!(nodes[4].children, Some((3, 2)));
        assert_eq!(nodes[5].children, Some((4, 1)));
        assert_eq!(nodes[6].children, Some((5, 0)));
    }

    #[test]
    fn what_is_no_model_is_refused_in_words() {
        for bytes in [&b""[..], b"hello world, this is no model at all", &MAGIC.to_le_bytes(), &[0xff; 400]] {
            let Err(error) = FastText::read(bytes) else { panic!("read") };
            assert!(error.message.contains("fastText"), "{}", error.message);
        }
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend([0x7f; 200]);
        assert!(FastText::read(&bytes).is_err());
    }
}
