//! What is kept within words: placeholders, addresses, names of things, terms of a glossary.

use super::inline::{Kept, Place};
use regex::{Regex, RegexBuilder};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::LazyLock;

/// What the caller wants kept, beside what is always kept.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    terms: Option<Terms>,
}

#[derive(Clone, Debug)]
struct Terms {
    pattern: Regex,
    /// Terms in lower case, with what stands for each.
    targets: HashMap<String, String>,
}

/// More terms than this in one request are refused.
pub const MAX_TERMS: usize = 2000;
/// A longer term is refused: each word of a text may be the beginning of one.
const MAX_TERM: usize = 1000;
/// A placeholder in braces is not looked for further than this.
const MAX_BRACES: usize = 4096;

impl Rules {
    /// Terms to be kept as they are, and terms with what stands for them in the translation. The longest counts; case does
    /// not.
    ///
    /// # Errors
    /// In words, when there are too many, or one is empty.
    pub fn new(keep: &[String], glossary: &[(String, String)]) -> Result<Self, String> {
        let all = keep.iter().map(|term| (term, term)).chain(glossary.iter().map(|(from, to)| (from, to)));
        let mut targets: Vec<(String, String)> = Vec::new();
        for (term, target) in all {
            if term.trim().is_empty() {
                return Err(
                    "a term of `glossary` or `keep` is empty; give each at least one letter".to_owned()
                );
            }
            let length = term.chars().count();
            if MAX_TERM < length {
                return Err(format!(
                    "a term of `glossary` or `keep` has {length} characters, and at most {MAX_TERM} are taken: `{}…`",
                    term.chars().take(40).collect::<String>()
                ));
            }
            targets.push((term.trim().to_lowercase(), target.clone()));
        }
        if targets.is_empty() {
            return Ok(Self::default());
        }
        if MAX_TERMS < targets.len() {
            return Err(format!(
                "`glossary` and `keep` have {} terms, and at most {MAX_TERMS} are taken",
                targets.len()
            ));
        }
        targets.sort_by(|one, other| other.0.len().cmp(&one.0.len()).then_with(|| one.0.cmp(&other.0)));
        let pattern = targets.iter().map(|(term, _)| regex::escape(term)).collect::<Vec<_>>().join("|");
        let pattern =
            RegexBuilder::new(&pattern).case_insensitive(true).size_limit(64 << 20).build().map_err(
                |_| "the terms of `glossary` and `keep` are too long together; give fewer".to_owned(),
            )?;
        // Of two translations of a term the first counts.
        let targets = targets.into_iter().rev().collect();
        Ok(Self { terms: Some(Terms { pattern, targets }) })
    }
}

/// A span found in a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    pub range: Range<usize>,
    pub kept: Kept,
}

/// What may be kept, or begins it. No alternative may go on for long without a match: what begins later would be found only
/// when it is given up, and the search for the next one would begin anew from there. So what ends at a sign of its own is found
/// by its first sign, and an e-mail address by its `@`.
static SYNTAX: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let pattern = r#"(?x)
        (?P<url>  \b(?: https? | ftp | wss? | file | git | ssh )://[^\s<>"'`\u{27E6}\u{27E7}]+ | \bmailto:[^\s<>"'`]+ | \bwww\.[^\s<>"'`]+ )
      | (?P<mail> @[\w-]+(?:\.[\w-]+)+ )
      | (?P<named> %\(\w[\w.]*\)[-+\#0]*\d*(?:\.\d+)?[sdiufFeEgGxXor]
                | %\d+\$[-+\#0]*\d*(?:\.\d+)?(?:hh|ll|[hlLzjtq])?[sdiufFeEgGxXopcaA@]
                | \$\([A-Za-z_]\w*\) | \$[A-Za-z_]\w* )
      | (?P<unnamed> %[-+\#0]*(?:\d+|\*)?(?:\.(?:\d+|\*))?(?:hh|ll|[hlLzjtq])?[sdiufFeEgGxXopcaA@] | %% )
      | (?P<template> <% | \{% | \{\# )
      | (?P<entity> &(?:[A-Za-z][A-Za-z0-9]{1,31}|\#[0-9]{1,7}|\#[xX][0-9A-Fa-f]{1,6}); )
      | (?P<code> `[^`\n]+` | --[a-z][\w-]* | \b[\p{L}\p{N}]+(?:_+[\p{L}\p{N}]+)+\b )
      | (?P<brace> \$?\{ )
      | (?P<mark> [\u{27E6}\u{27E7}] )
    "#;
    Regex::new(pattern).ok()
});

/// The spans of a text, in order, none within another.
pub fn scan(text: &str, rules: &Rules) -> Vec<Span> {
    let mut spans = syntax(text);
    if let Some(terms) = &rules.terms {
        let mut found = Vec::new();
        let mut at = 0;
        for span in spans.iter().map(|span| span.range.clone()).chain(std::iter::once(text.len()..text.len()))
        {
            terms.find(text, at..span.start, &mut found);
            at = span.end;
        }
        spans.extend(found);
        spans.sort_by_key(|span| span.range.start);
    }
    spans
}

/// Whether words hold anything that would be kept.
pub fn has_any(text: &str) -> bool {
    !syntax(text).is_empty()
}

fn syntax(text: &str) -> Vec<Span> {
    let Some(pattern) = &*SYNTAX else { return Vec::new() };
    let mut spans: Vec<Span> = Vec::new();
    let mut ends = Ends::of(text);
    let mut at = 0;
    while let Some(found) = pattern.captures_at(text, at) {
        let Some(whole) = found.get(0) else { break };
        let (mut start, mut end) = (whole.start(), whole.end());
        let has = |name| found.name(name).is_some();
        let place = if has("brace") || has("template") {
            match ends.template(start).map(|end| (end, Place::Fixed)).or_else(|| ends.braces(start)) {
                Some((close, place)) => {
                    end = close;
                    Some(place)
                }
                None => {
                    end = start + 1;
                    None
                }
            }
        } else if has("url") {
            end = start + without_punctuation(&text[start..end]);
            Some(Place::Free)
        } else if has("mail") {
            start = mail(text, start, &mut spans);
            if start == whole.start() {
                end = start + 1;
            }
            (start < whole.start()).then_some(Place::Free)
        } else if has("unnamed") {
            is_unnamed(text, start..end).then_some(Place::Fixed)
        } else if has("entity") {
            Some(Place::Fixed)
        } else {
            Some(Place::Free)
        };
        if let Some(place) = place {
            spans.push(Span { range: start..end, kept: Kept::new(&text[start..end], place) });
        }
        at = end.max(start + 1);
        while !text.is_char_boundary(at) {
            at += 1;
        }
    }
    spans
}

/// Where an e-mail address begins whose `@` is here. What was found in its name is a part of it.
fn mail(text: &str, at: usize, spans: &mut Vec<Span>) -> usize {
    let floor = |spans: &[Span]| spans.last().map_or(0, |last| last.range.end);
    let is_name = |c: char| c.is_alphanumeric() || "_.+-".contains(c);
    let mut start = at;
    loop {
        let name = &text[floor(spans)..start];
        start -= name.len() - name.trim_end_matches(is_name).len();
        // Up to another span, all of which may be a part of the name.
        let Some(last) = spans.last().filter(|last| last.range.end == start) else { return start };
        if !last.kept.source.chars().all(is_name) {
            return start;
        }
        start = last.range.start;
        spans.pop();
    }
}

/// Where that ends which a sign of its own ends. Each text is searched once, however many beginnings it has.
struct Ends<'a> {
    text: &'a str,
    /// The next ends of templates and of the line, from where they were last looked for.
    next: [(&'static str, Option<usize>); 4],
    /// The braces that belong together, by the first.
    pairs: Option<Vec<(usize, usize)>>,
}

impl<'a> Ends<'a> {
    fn of(text: &'a str) -> Self {
        Self { text, next: [("%>", None), ("%}", None), ("#}", None), ("\n", None)], pairs: None }
    }

    /// The end of a template on this line: `<% x %>`, `{% x %}`, `{# x #}`.
    fn template(&mut self, start: usize) -> Option<usize> {
        let which = match self.text[start..].get(..2)? {
            "<%" => 0,
            "{%" => 1,
            "{#" => 2,
            _ => return None,
        };
        let close = self.next(which, start + 2);
        (close < self.next(3, start + 2)).then_some(close + 2)
    }

    /// Where the next of these signs is; the end of the text where there is none.
    fn next(&mut self, which: usize, from: usize) -> usize {
        let text = self.text;
        let (sign, known) = &mut self.next[which];
        match *known {
            Some(at) if from <= at => at,
            _ => *known.insert(text[from..].find(*sign).map_or(text.len(), |at| from + at)),
        }
    }

    /// A placeholder that begins with a brace, or with a dollar and a brace.
    fn braces(&mut self, start: usize) -> Option<(usize, Place)> {
        let text = self.text;
        let dollar = usize::from(text[start..].starts_with('$'));
        let pairs = self.pairs.get_or_insert_with(|| pairs(text));
        let pair = pairs.binary_search_by_key(&(start + dollar), |(open, _)| *open).ok()?;
        let end = pairs[pair].1 + 1;
        (end - start <= MAX_BRACES)
            .then(|| braces(&text[start..end], dollar))
            .flatten()
            .map(|place| (end, place))
    }
}

/// The braces of a text that belong together, by the first.
fn pairs(text: &str) -> Vec<(usize, usize)> {
    let (mut open, mut pairs) = (Vec::new(), Vec::new());
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => open.push(at),
            b'}' => pairs.extend(open.pop().map(|start| (start, at))),
            _ => {}
        }
    }
    pairs.sort_unstable();
    pairs
}

/// `100%discount` is no placeholder, `%d` and `%dpx` are.
fn is_unnamed(text: &str, range: Range<usize>) -> bool {
    let digit_before = text[..range.start].chars().next_back().is_some_and(char::is_numeric);
    let letter_after = text[range.end..].chars().next().is_some_and(char::is_alphabetic);
    !(digit_before && letter_after)
}

/// How much of an address is the address: the full stop after it ends the sentence, and a bracket that it did not open is
/// not its own.
fn without_punctuation(address: &str) -> usize {
    let count = |bracket| address.matches(bracket).count();
    let mut brackets =
        [('(', ')'), ('[', ']'), ('{', '}')].map(|(open, close)| (close, count(close), count(open)));
    let mut kept = address;
    while let Some(last) = kept.chars().next_back() {
        let bracket = brackets.iter_mut().find(|(close, ..)| *close == last);
        let own = match (bracket, last) {
            (Some((_, closed, opened)), _) if *opened < *closed => {
                *closed -= 1;
                false
            }
            (Some(_), _) => true,
            (None, '.' | ',' | ';' | ':' | '!' | '?' | '*' | '_' | '~' | '|' | '\\') => false,
            (None, last) => last.is_ascii() || last.is_alphanumeric(),
        };
        if own {
            break;
        }
        kept = &kept[..kept.len() - last.len_utf8()];
    }
    kept.len()
}

/// What a whole from brace to brace is, with a dollar before it or without; `None` when it is prose in braces.
///
/// `{}` has no name, and keeps its order. `{name}`, `{0}`, `{price:>10.2f}`, `{{ user.name }}` and the arguments of ICU's
/// MessageFormat, `{n, plural, one {# file} other {# files}}`, have one.
fn braces(whole: &str, dollar: usize) -> Option<Place> {
    let inner = &whole[dollar + 1..whole.len() - 1];
    let doubled = inner.starts_with('{') && inner.ends_with('}');
    if dollar == 1 || doubled {
        return (!whole.contains('\n')).then_some(Place::Free);
    }
    let name_ends = inner.find([',', ':', '!', '{']).unwrap_or(inner.len());
    let name = inner[..name_ends].trim();
    let is_name = name.chars().all(|c| c.is_alphanumeric() || "_.-[]$@#/".contains(c));
    let place = if name.is_empty() { Place::Fixed } else { Place::Free };
    (is_name && !(name.is_empty() && inner[name_ends..].starts_with(','))).then_some(place)
}

impl Terms {
    fn find(&self, text: &str, within: Range<usize>, spans: &mut Vec<Span>) {
        let mut at = within.start;
        while let Some(found) = self.pattern.find_at(&text[..within.end], at) {
            if is_word(text, found.range()) {
                let lower = found.as_str().to_lowercase();
                if let Some(target) = self.targets.get(&lower) {
                    let source = found.as_str().to_owned();
                    let target = if target.to_lowercase() == lower { source.clone() } else { target.clone() };
                    spans.push(Span {
                        range: found.range(),
                        kept: Kept { source, target, place: Place::Free },
                    });
                    at = found.end();
                    continue;
                }
            }
            // No term begins within a word.
            let rest = text[found.start()..within.end].char_indices().map(|(next, _)| found.start() + next);
            at = rest.skip(1).find(|next| !is_joined(text, *next)).unwrap_or(within.end);
        }
    }
}

/// Whether a term stands for itself there, and is no part of a longer word.
fn is_word(text: &str, range: Range<usize>) -> bool {
    !is_joined(text, range.start) && !is_joined(text, range.end)
}

/// Whether a word goes on here. Scripts without spaces have no such places.
fn is_joined(text: &str, at: usize) -> bool {
    let letter = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() && !is_unspaced(c));
    letter(text[..at].chars().next_back()) && letter(text[at..].chars().next())
}

/// Whether a letter is of a script that puts no spaces between words.
pub fn is_unspaced(c: char) -> bool {
    matches!(u32::from(c),
        0x0E00..=0x0EFF | 0x1000..=0x109F | 0x1780..=0x17FF | 0x3040..=0x30FF | 0x3400..=0x9FFF | 0xF900..=0xFAFF | 0x20000..=0x3FFFF)
}

/// Numbers of a text: `1`, `1,234.5`, `2026-11-21`, `10:30`.
pub fn numbers(text: &str) -> Vec<&str> {
    number_ranges(text).into_iter().map(|range| &text[range]).collect()
}

/// Where the numbers of a text are.
pub fn number_ranges(text: &str) -> Vec<Range<usize>> {
    static NUMBER: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"\p{Nd}+(?:[.,:/\-\u{2013}\u{2019}']\p{Nd}+)*").ok());
    NUMBER
        .as_ref()
        .map_or_else(Vec::new, |pattern| pattern.find_iter(text).map(|found| found.range()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        scan(text, &Rules::default()).into_iter().map(|span| span.kept.source).collect()
    }

    #[test]
    fn placeholders_and_addresses_are_found_whole() {
        for (text, expected) in [
            ("Hello {name}, you have %d of %s", vec!["{name}", "%d", "%s"]),
            (
                "{0} and {} and {{ user.name }} and ${HOME} and $PATH",
                vec!["{0}", "{}", "{{ user.name }}", "${HOME}", "$PATH"],
            ),
            ("%(count)d files, %1$s, %-5.2f, 100%%", vec!["%(count)d", "%1$s", "%-5.2f", "%%"]),
            (
                "{n, plural, one {# file} other {# files}} left",
                vec!["{n, plural, one {# file} other {# files}}"],
            ),
            ("{price:>10.2f} {x!r} {a[0].b}", vec!["{price:>10.2f}", "{x!r}", "{a[0].b}"]),
            (
                "see https://example.com/a_(b)?q=1. Or (www.example.org)!",
                vec!["https://example.com/a_(b)?q=1", "www.example.org"],
            ),
            ("write to a.b+c@example.co.uk, please", vec!["a.b+c@example.co.uk"]),
            (
                "run `make test` with --no-cache and max_tokens",
                vec!["`make test`", "--no-cache", "max_tokens"],
            ),
            (
                "{% if x %}yes{% endif %} {# note #} <%= y %>",
                vec!["{% if x %}", "{% endif %}", "{# note #}", "<%= y %>"],
            ),
            ("&nbsp;&#169;&#xA9;", vec!["&nbsp;", "&#169;", "&#xA9;"]),
        ] {
            assert_eq!(found(text), expected, "{text}");
        }
    }

    #[test]
    fn prose_is_no_placeholder() {
        for text in [
            "100% sure",
            "a 50%discount",
            "{this is prose}",
            "Tom & Jerry; done",
            "a - b",
            "{ open",
            "well-known",
        ] {
            assert_eq!(found(text), Vec::<String>::new(), "{text}");
        }
    }

    /// Half an hour, where each sign that is taken off has all of them counted.
    #[test]
    fn signs_behind_an_address_are_counted_once() {
        let signs = ")".repeat(1_000_000);
        assert_eq!(without_punctuation(&format!("https://a{signs}")), 9);
        assert_eq!(without_punctuation(&format!("https://a({signs}")), 11);
        assert_eq!(without_punctuation("https://a_(b)/[c]}]."), 17);
    }

    /// Minutes, where each beginning has the rest of the text looked through for its end.
    #[test]
    fn ends_are_looked_for_once() {
        let openings = "<%{%{#".repeat(200_000) + "%>";
        let mut ends = Ends::of(&openings);
        let found = |start: usize| (ends.template(start).is_some(), ends.braces(start).is_some());
        let found: Vec<_> = (0..openings.len() - 2).step_by(2).map(found).collect();
        // Only the first sign has an end, and only behind all of them.
        assert!(found.iter().enumerate().all(|(at, found)| *found == (at % 3 == 0, false)));
    }

    #[test]
    fn a_name_is_a_part_of_its_address() {
        for (text, expected) in [
            ("to first_last@example.org now", vec!["first_last@example.org"]),
            ("to a-b.c_d+e_f@example.org, {x}@example.org", vec!["a-b.c_d+e_f@example.org", "{x}"]),
            ("@user_name and a_b @x.y", vec!["user_name", "a_b"]),
            ("--from-me@a.b c@d", vec!["--from-me@a.b"]),
            ("<% a_b {% c %} {# d", vec!["a_b", "{% c %}"]),
            ("<% a\n%> {%d}", vec!["%d"]),
        ] {
            assert_eq!(found(text), expected, "{text}");
        }
    }

    #[test]
    fn the_longest_term_counts_and_words_are_whole() {
        let glossary = [("cat".to_owned(), "gato".to_owned()), ("Black Cat".to_owned(), "GN".to_owned())];
        let rules = Rules::new(&["Backplane".to_owned()], &glossary).unwrap();
        let spans = scan("BACKPLANE has a black cat, a Cat and a category", &rules);
        let pairs: Vec<_> = spans.iter().map(|span| (&*span.kept.source, &*span.kept.target)).collect();
        assert_eq!(pairs, [("BACKPLANE", "BACKPLANE"), ("black cat", "GN"), ("Cat", "gato")]);
        assert_eq!(scan("我喜欢猫咪", &Rules::new(&["猫".to_owned()], &[]).unwrap()).len(), 1);
        assert!(Rules::new(&[" ".to_owned()], &[]).unwrap_err().contains("empty"));
        assert!(Rules::new(&["x".repeat(1001)], &[]).unwrap_err().contains("1001 characters"));
    }

    #[test]
    fn a_number_is_found_with_its_separators() {
        assert_eq!(numbers("1,234.5 on 2026-11-21 at 10:30, or 7."), ["1,234.5", "2026-11-21", "10:30", "7"]);
    }
}
