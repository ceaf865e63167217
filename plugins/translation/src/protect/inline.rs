//! What a unit is made of.

use super::Bone;
use std::ops::Range;

/// A piece of a unit, with the bytes of the document that it stands for.
#[derive(Clone, Debug, PartialEq)]
pub struct Inline {
    pub range: Range<usize>,
    pub piece: Piece,
}

/// What a piece is.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Words to translate, as a reader sees them.
    Text(String),
    /// What is kept.
    Kept(Kept),
    /// The end of a line that means no more than a space, with what the next line begins with (`"\n> "`).
    Wrap(String),
}

/// What is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// What it is in the document.
    pub source: String,
    /// What stands for it in the translation: the same, but for a term of a glossary.
    pub target: String,
    pub place: Place,
}

/// Where it may stand in the translation. Never outside of the tags that it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Anywhere in its sentence: it names itself.
    Free,
    /// After what was before it, before what was after it.
    Fixed,
    /// As [`Place::Fixed`]; begins what [`Place::Close`] ends.
    Open,
    /// See [`Place::Open`].
    Close,
}

impl Kept {
    pub fn new(source: impl Into<String>, place: Place) -> Self {
        let source = source.into();
        Self { target: source.clone(), source, place }
    }
}

/// A stretch of text that is translated by itself. Its pieces follow each other without a gap.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Unit {
    pub inlines: Vec<Inline>,
}

impl Unit {
    /// Its bytes in the document.
    pub fn range(&self) -> Range<usize> {
        let start = self.inlines.first().map_or(0, |first| first.range.start);
        start..self.inlines.last().map_or(start, |last| last.range.end)
    }

    pub fn push(&mut self, range: Range<usize>, piece: Piece) {
        if !range.is_empty() {
            self.inlines.push(Inline { range, piece });
        }
    }

    /// Without white space at its ends; with tags that have no partner as what only keeps its place. `None` if nothing is
    /// left.
    pub fn settled(mut self) -> Option<Unit> {
        let blank = |inline: &Inline| match &inline.piece {
            Piece::Text(text) => text.trim().is_empty(),
            Piece::Wrap(_) => true,
            Piece::Kept(_) => false,
        };
        while self.inlines.pop_if(|last| blank(last)).is_some() {}
        let leading = self.inlines.iter().take_while(|inline| blank(inline)).count();
        self.inlines.drain(..leading);
        let mut open = Vec::new();
        let mut single = Vec::new();
        for (at, inline) in self.inlines.iter().enumerate() {
            match &inline.piece {
                Piece::Kept(Kept { place: Place::Open, .. }) => open.push(at),
                Piece::Kept(Kept { place: Place::Close, .. }) if open.pop().is_none() => single.push(at),
                _ => {}
            }
        }
        for at in single.into_iter().chain(open) {
            if let Piece::Kept(kept) = &mut self.inlines[at].piece {
                kept.place = Place::Fixed;
            }
        }
        (!self.inlines.is_empty()).then_some(self)
    }

    /// What must be the same before and after.
    pub fn bone(&self) -> Bone<'static> {
        let (mut ordered, mut free) = (Vec::new(), Vec::new());
        for inline in &self.inlines {
            if let Piece::Kept(kept) = &inline.piece {
                let list = if kept.place == Place::Free { &mut free } else { &mut ordered };
                list.push(kept.source.clone());
            }
        }
        free.sort();
        Bone::Unit { ordered, free }
    }
}
