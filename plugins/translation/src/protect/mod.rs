//! Format protection: what is to be translated is taken out of a document, and put back without harm to the rest.
//!
//! ```text
//! text, Markdown, HTML, subtitles → units of inlines → sentences of parts → an engine → woven → checked → the document again
//! ```
//!
//! - [`plain`], [`markdown`], [`html`], [`subtitles`]: a document as *units*: a line, a paragraph, a cell, an element. Every byte outside of a
//!   unit is kept as it is.
//! - [`inline`]: what a unit is made of: text, what is kept (a tag, a link's address, a placeholder), line breaks.
//! - [`spans`]: what is kept within plain words: placeholders, addresses, terms of a glossary.
//! - [`sentences`]: a unit as sentences. An engine sees marks where something is kept.
//! - [`weave`]: what an engine gave back, with everything kept in its place; or a refusal, if it did harm.
//! - [`document`]: all of it, and what is done about harm: piece by piece, and at last the source itself.
//!
//! The promise: whatever an engine does, the structure of the document comes back as it was, and each kept span once,
//! intact, in its unit. Tags and unnamed placeholders (`%s`) keep their order; what names itself (`{name}`, an address, code)
//! may move within its sentence as the other language wants it, but not out of the tags that it is in.

pub mod document;
#[cfg(test)]
mod hostile;
mod html;
pub mod inline;
mod markdown;
mod plain;
mod sentences;
pub mod spans;
mod subtitles;
pub mod weave;

use inline::Unit;
use spans::Rules;

/// What a text is written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Lines.
    #[default]
    Text,
    /// CommonMark with GitHub's tables, footnotes, task lists and formulas.
    Markdown,
    /// HTML, a whole page or a part of one.
    Html,
    /// SubRip or WebVTT.
    Subtitles,
}

impl Format {
    /// The units of a document, in order. Where `over` says so, nobody waits for them any more, and some may be missing.
    pub fn units(self, text: &str, rules: &Rules, over: &dyn Fn() -> bool) -> Vec<Unit> {
        match self {
            Format::Text => plain::units(text, rules, over),
            Format::Markdown => markdown::units(text, rules, over),
            Format::Html => html::units(text, 0, rules, over),
            Format::Subtitles => subtitles::units(text, rules, over),
        }
    }

    /// Why a text is none of these.
    pub fn flaw(self, text: &str) -> Option<&'static str> {
        (self == Format::Subtitles && !subtitles::has_cue(text)).then_some(
            "has no subtitle in it: the times of one stand in a line such as `00:00:01,000 --> 00:00:02,500`, and what it says below",
        )
    }

    /// Words of an engine, as they may stand here; `None` if they would be more than words. `source` is what they translate.
    fn tame(self, words: &str, source: &str) -> Option<String> {
        let words = match self {
            Format::Markdown => markdown::tame(words, source),
            Format::Html if html::is_harmful(words) => return None,
            Format::Subtitles if subtitles::is_harmful(words) && !subtitles::is_harmful(source) => {
                return None;
            }
            Format::Text | Format::Html | Format::Subtitles => words.to_owned(),
        };
        (!spans::has_any(&words)).then_some(words)
    }

    /// What must be the same before and after.
    ///
    /// Two documents with one skeleton have the same bytes between their units, and in each unit the same kept spans.
    /// `over` as for [`Format::units`].
    pub fn skeleton<'a>(self, text: &'a str, over: &dyn Fn() -> bool) -> Vec<Bone<'a>> {
        let mut bones = Vec::new();
        let mut at = 0;
        for unit in self.units(text, &Rules::default(), over) {
            let range = unit.range();
            bones.push(Bone::Outside(&text[at..range.start]));
            bones.push(unit.bone());
            at = range.end;
        }
        bones.push(Bone::Outside(&text[at..]));
        bones
    }
}

/// A part of a skeleton.
#[derive(Debug, PartialEq, Eq)]
pub enum Bone<'a> {
    /// Bytes between units.
    Outside(&'a str),
    /// What a unit keeps: in order, and what may move, sorted.
    Unit {
        /// Tags, unnamed placeholders.
        ordered: Vec<String>,
        /// What names itself.
        free: Vec<String>,
    },
}
