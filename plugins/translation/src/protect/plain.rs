//! Plain text: each line is a unit, and in it each column that tabs set apart, so that lines stay lines.

use super::inline::{Piece, Unit};
use super::spans::{self, Rules};
use std::ops::Range;

pub fn units(text: &str, rules: &Rules, over: &dyn Fn() -> bool) -> Vec<Unit> {
    let mut units = Vec::new();
    let mut at = 0;
    for line in text.split_inclusive(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}', '\u{c}', '\u{b}', '\t']) {
        if over() {
            break;
        }
        let mut unit = Unit::default();
        let trimmed = line.trim_end();
        let start = at + (trimmed.len() - trimmed.trim_start().len());
        push_words(&mut unit, text, start..at + trimmed.len(), rules);
        units.extend(unit.settled());
        at += line.len();
    }
    units
}

/// Words of a document with what is kept in them.
pub fn push_words(unit: &mut Unit, text: &str, range: Range<usize>, rules: &Rules) {
    let words = &text[range.clone()];
    let mut at = 0;
    for span in spans::scan(words, rules) {
        push_text(unit, text, range.start + at..range.start + span.range.start);
        unit.push(range.start + span.range.start..range.start + span.range.end, Piece::Kept(span.kept));
        at = span.range.end;
    }
    push_text(unit, text, range.start + at..range.end);
}

/// Words of a document with nothing in them.
fn push_text(unit: &mut Unit, text: &str, range: Range<usize>) {
    let words = text[range.clone()].to_owned();
    unit.push(range, Piece::Text(words));
}
