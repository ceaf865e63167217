//! Cuts a text into the pieces that are likeliest together.
//!
//! This is `EncodeOptimized` of Google's `unigram_model.cc`, down to the order of additions in 32 bits: where two ways to cut
//! are equally likely, rounding chooses, and it has to choose the same.

use super::model::{Kind, Piece};
use super::normalize;

/// What an unknown character costs beyond the rarest piece.
const UNKNOWN_PENALTY: f32 = 10.0;

/// Cuts texts.
pub struct Unigram {
    prefixes: Prefixes,
    /// By the number of a piece; an unused one has none.
    scores: Vec<Score>,
    /// Of a character that is no piece.
    unknown_score: f32,
    best_score: f32,
    unknown: u32,
}

enum Score {
    Of(f32),
    /// It is always taken.
    UserDefined,
    Unused,
}

/// The best way to cut a text up to a place.
#[derive(Clone, Copy, Default)]
struct Way {
    score: f32,
    /// Its last piece, and where that one begins; `None` where no way leads.
    last: Option<(u32, usize)>,
}

impl Way {
    /// Another way to the same place.
    fn offer(&mut self, score: f32, id: u32, start: usize) {
        if self.last.is_none() || self.score < score {
            *self = Self { score, last: Some((id, start)) };
        }
    }
}

impl Unigram {
    /// `prefixes` are those pieces that texts are cut into.
    pub fn of(pieces: &[Piece], prefixes: Prefixes, unknown: u32) -> Self {
        let normal = pieces.iter().filter(|piece| piece.kind == Kind::Normal).map(|piece| piece.score);
        let (mut worst, mut best) = (f32::MAX, f32::MIN_POSITIVE);
        normal.for_each(|score| (worst, best) = (worst.min(score), best.max(score)));
        let score = |piece: &Piece| match piece.kind {
            Kind::UserDefined => Score::UserDefined,
            Kind::Unused => Score::Unused,
            _ => Score::Of(piece.score),
        };
        Self {
            prefixes,
            scores: pieces.iter().map(score).collect(),
            unknown_score: worst - UNKNOWN_PENALTY,
            best_score: best,
            unknown,
        }
    }

    /// The pieces of a text and their numbers.
    pub fn cut<'a>(&self, text: &'a [u8]) -> Vec<(&'a [u8], u32)> {
        let mut ways = vec![Way::default(); text.len() + 1];
        let mut start = 0;
        while start < text.len() {
            let rest = &text[start..];
            let character = normalize::length(rest).min(rest.len());
            let until_here = ways[start].score;
            let mut is_piece = false;
            for (length, id) in self.prefixes.of_text(rest) {
                let score = match self.scores[id as usize] {
                    Score::Unused => continue,
                    Score::UserDefined => length as f32 * self.best_score - 0.1,
                    Score::Of(score) => score,
                };
                ways[start + length].offer(score + until_here, id, start);
                is_piece |= length == character;
            }
            if !is_piece {
                ways[start + character].offer(self.unknown_score + until_here, self.unknown, start);
            }
            start += character;
        }
        let mut pieces = Vec::new();
        let mut end = text.len();
        while let Some((id, start)) = ways[end].last {
            pieces.push((&text[start..end], id));
            end = start;
        }
        pieces.reverse();
        pieces
    }
}

/// Texts, each with a number, in which those are found that another text begins with.
#[derive(Default)]
pub struct Prefixes(Vec<(Vec<u8>, u32)>);

impl Prefixes {
    pub fn of(texts: impl Iterator<Item = (Vec<u8>, u32)>) -> Self {
        let mut texts: Vec<_> = texts.collect();
        texts.sort_unstable();
        Self(texts)
    }

    /// Lengths and numbers of those that `text` begins with, the shortest first.
    pub fn of_text<'a>(&'a self, text: &'a [u8]) -> impl Iterator<Item = (usize, u32)> + 'a {
        // Those that agree with the text so far: a run, for they are sorted, with the one that ends here at its beginning.
        let mut agreeing = &self.0[..];
        let at = move |depth: usize| {
            let byte = *text.get(depth)?;
            let from =
                agreeing.partition_point(|(other, _)| other.get(depth).is_none_or(|other| *other < byte));
            agreeing = &agreeing[from..];
            let to =
                agreeing.partition_point(|(other, _)| other.get(depth).is_none_or(|other| *other <= byte));
            agreeing = &agreeing[..to];
            let ends = agreeing.first()?.0.len() == depth + 1;
            Some(ends.then(|| (depth + 1, agreeing[0].1)))
        };
        (0..).map_while(at).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_text_begins_with_is_found() {
        let words = ["b", "a", "abc", "ab", "abd", "ä"];
        let prefixes = Prefixes::of((0..).zip(words).map(|(id, word)| (word.as_bytes().to_vec(), id)));
        let found = |text: &str| prefixes.of_text(text.as_bytes()).collect::<Vec<_>>();
        assert_eq!(found("abcd"), [(1, 1), (2, 3), (3, 2)]);
        assert_eq!(found("äb"), [(2, 5)]);
        assert_eq!(found("c"), []);
        assert_eq!(found(""), []);
    }
}
