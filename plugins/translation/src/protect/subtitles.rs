//! Subtitles, SubRip's and WebVTT's: what a cue says is translated. Its number and its times are kept, as are headers, notes and
//! styles, and tags as in HTML.

use super::html;
use super::inline::Unit;
use super::spans::Rules;
use regex::Regex;
use std::ops::Range;
use std::sync::LazyLock;

/// What sets the times of a cue apart.
const ARROW: &str = "-->";

/// Whether a line has the times of a cue: `00:00:01,000 --> 00:00:02,500`, with whatever says where it is shown.
fn is_times(line: &str) -> bool {
    let Some((from, to)) = line.split_once(ARROW) else { return false };
    let is_time = |c: char| c.is_ascii_digit() || c == ' ' || ":.,".contains(c);
    let from = from.trim();
    from.contains(':')
        && from.chars().all(is_time)
        && to.trim_start().starts_with(|c: char| c.is_ascii_digit())
}

/// What stands before the words of one who speaks.
const DASHES: [char; 3] = ['-', '\u{2013}', '\u{2014}'];

/// Lines with their ends: `\r\n`, `\n`, or `\r` alone, which WebVTT allows.
fn lines(mut rest: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let end = match rest.find(['\r', '\n']) {
            Some(at) if rest[at..].starts_with("\r\n") => at + 2,
            Some(at) => at + 1,
            None => rest.len(),
        };
        let (line, behind) = rest.split_at(end);
        rest = behind;
        (!line.is_empty()).then_some(line)
    })
}

/// Whether there is a cue at all.
pub fn has_cue(text: &str) -> bool {
    lines(text).any(is_times)
}

/// The units of subtitles: what each cue says, and of a dialogue what each says.
pub fn units(text: &str, rules: &Rules, over: &dyn Fn() -> bool) -> Vec<Unit> {
    let mut units = Vec::new();
    let mut says: Option<Range<usize>> = None;
    let mut at = 0;
    for line in lines(text) {
        if over() {
            break;
        }
        let end = at + line.len();
        says = match says {
            // After its times, until a line is empty.
            _ if is_times(line) => {
                push(&mut units, text, says, rules, over);
                Some(end..end)
            }
            Some(_) if line.trim().is_empty() => {
                push(&mut units, text, says, rules, over);
                None
            }
            // Another one speaks.
            Some(range) if line.trim_start().starts_with(DASHES) => {
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
    let Some(Range { mut start, end }) = says else { return };
    // The dash is no word of theirs: an engine that leaves it out would have two speak as one.
    let words = text[start..end].trim_start();
    if words.starts_with(DASHES) {
        start = end - words.trim_start_matches(|c: char| DASHES.contains(&c) || c.is_whitespace()).len();
    }
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
        || words.trim_start().starts_with(DASHES)
        || words.contains("{\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_as_webvtt_has_them() {
        let split = |text| lines(text).collect::<Vec<_>>();
        assert_eq!(split("a\r\nb\rc\nd\r\r\n\r"), ["a\r\n", "b\r", "c\n", "d\r", "\r\n", "\r"]);
        assert_eq!(split("\r\n\n"), ["\r\n", "\n"]);
        assert_eq!(split(""), [""; 0]);
    }

    #[test]
    fn who_speaks_is_kept_from_engines() {
        let text = "1\n00:01.000 --> 00:02.000\n- Where is it?\n \u{2013} Here,\nat the river.\n\n\
            2\n00:03.000 --> 00:04.000\n-\n\n3\n00:05.000 --> 00:06.000\nA well-known man.\n";
        let units = units(text, &Rules::default(), &|| false);
        let said: Vec<&str> = units.iter().map(|unit| text[unit.range()].trim()).collect();
        assert_eq!(said, ["Where is it?", "Here,\nat the river.", "A well-known man."]);
    }

    #[test]
    fn times_make_a_cue() {
        for times in
            ["00:01.000 --> 00:02.000 line:0", "1:00:01,0-->1:00:02,0", " 00:00:01,000 -->  00:00:02,000\r"]
        {
            assert!(has_cue(&format!("1\n{times}\nHi.\n")), "{times}");
        }
        for text in ["", "Hello.\n", "WEBVTT\n", "a --> b", "9 --> 10", "It is 9:00 --> 10:00"] {
            assert!(!has_cue(text), "{text}");
        }
    }
}
