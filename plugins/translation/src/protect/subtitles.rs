//! Subtitles, SubRip's and WebVTT's: what a cue says is translated. Its number and its times are kept, as are headers, notes and
//! styles, and tags as in HTML.

use super::html;
use super::inline::Unit;
use super::spans::Rules;
use regex::Regex;
use std::ops::Range;
use std::sync::LazyLock;

/// What sets the times of a cue apart.
pub const ARROW: &str = "-->";

/// The units of subtitles: what each cue says, and of a dialogue what each says.
pub fn units(text: &str, rules: &Rules, over: &dyn Fn() -> bool) -> Vec<Unit> {
    let mut units = Vec::new();
    let mut says: Option<Range<usize>> = None;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if over() {
            break;
        }
        let end = at + line.len();
        says = match says {
            // After its times, until a line is empty.
            _ if line.contains(ARROW) => {
                push(&mut units, text, says, rules, over);
                Some(end..end)
            }
            Some(_) if line.trim().is_empty() => {
                push(&mut units, text, says, rules, over);
                None
            }
            // Another one speaks.
            Some(range) if line.trim_start().starts_with(['-', '\u{2013}', '\u{2014}']) => {
                push(&mut units, text, Some(range), rules, over);
                Some(at..end)
            }
            Some(range) => Some(range.start..end),
            None => None,
        };
        at = end;
    }
    push(&mut units, text, says, rules, over);
    units
}

fn push(
    units: &mut Vec<Unit>,
    text: &str,
    says: Option<Range<usize>>,
    rules: &Rules,
    over: &dyn Fn() -> bool,
) {
    // WebVTT's times within a cue, and places on the screen as SubRip's players read them: what they part is said apart.
    static PARTS: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"<[0-9:.]+>|\{\\[^}\n]*\}").ok());
    let Some(Range { start, end }) = says else { return };
    let said = &text[start..end];
    let mut at = 0;
    let parts = PARTS.as_ref().into_iter().flat_map(|parts| parts.find_iter(said));
    for part in parts.map(|part| part.range()).chain(std::iter::once(said.len()..said.len())) {
        units.extend(html::units(&said[at..part.start], start + at, rules, over));
        at = part.end;
    }
}

/// Whether words of an engine would be more than words here.
pub fn is_harmful(words: &str) -> bool {
    html::is_harmful(words)
        || words.contains(ARROW)
        || words.trim_start().starts_with(['-', '\u{2013}', '\u{2014}'])
        || words.contains("{\\")
}
