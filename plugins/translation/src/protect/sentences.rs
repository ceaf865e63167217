//! A unit as sentences, each of which an engine translates by itself.

use super::inline::{Inline, Kept, Piece, Place, Unit};
use super::spans;
use regex::Regex;
use std::cmp::Reverse;
use std::ops::Range;
use std::sync::LazyLock;
use unicode_segmentation::UnicodeSegmentation;

/// A piece of a sentence, as an engine is given it.
#[derive(Clone, Debug, PartialEq)]
pub enum Atom {
    Text(String),
    Kept(Kept),
}

/// A unit taken apart: what stands between sentences is kept.
#[derive(Clone, Debug, PartialEq)]
pub enum Stretch {
    /// White space, or a sentence with nothing to translate.
    Between(Vec<Atom>),
    Sentence(Vec<Atom>),
}

/// A capital letter, so that what is kept can begin a sentence.
const STAND_IN: char = 'Ж';

/// Words that end with a full stop and end no sentence.
const ABBREVIATIONS: &[&str] = &[
    "mr", "mrs", "ms", "dr", "prof", "sr", "sra", "jr", "st", "vs", "e.g", "i.e", "eg", "ie", "cf", "no",
    "nr", "vol", "pp", "p", "fig", "approx", "inc", "ltd", "co", "z.b", "d.h", "u.a", "bzw", "ca", "usw",
    "mme", "mlle", "av", "art", "ej",
];

/// The sentences of a unit. They end where no tag is open but those around all of its words; one longer than `longest`
/// characters is cut where as few are open as can be.
pub fn split(unit: &Unit, longest: usize) -> Vec<Stretch> {
    // What the rules of sentences see: a bracket for a tag, a letter for anything else that is kept.
    let mut shadow = String::new();
    let mut starts = Vec::new();
    for inline in &unit.inlines {
        starts.push(shadow.len());
        match &inline.piece {
            Piece::Text(text) => shadow.push_str(text),
            Piece::Wrap(_) => shadow.push(' '),
            Piece::Kept(Kept { place: Place::Open, .. }) => shadow.push('('),
            Piece::Kept(Kept { place: Place::Close, .. }) => shadow.push(')'),
            Piece::Kept(_) => shadow.push(STAND_IN),
        }
    }
    let cuts = cuts(&shadow, &Depths::of(unit, &starts), longest);
    let mut stretches = Vec::new();
    for pair in cuts.windows(2) {
        let atoms = slice(&unit.inlines, &starts, pair[0], pair[1]);
        stretches.extend(peel(atoms));
    }
    stretches
}

/// How many tags are open at a place of the shadow.
struct Depths<'a> {
    starts: &'a [usize],
    /// Behind each inline.
    behind: Vec<usize>,
    /// Around anything but tags.
    least: usize,
}

impl<'a> Depths<'a> {
    fn of(unit: &Unit, starts: &'a [usize]) -> Self {
        let mut behind = Vec::with_capacity(unit.inlines.len());
        let (mut depth, mut least) = (0_usize, usize::MAX);
        for inline in &unit.inlines {
            match &inline.piece {
                Piece::Kept(Kept { place: Place::Open, .. }) => depth += 1,
                Piece::Kept(Kept { place: Place::Close, .. }) => depth = depth.saturating_sub(1),
                Piece::Text(text) if text.trim().is_empty() => {}
                Piece::Wrap(_) => {}
                Piece::Text(_) | Piece::Kept(_) => least = least.min(depth),
            }
            behind.push(depth);
        }
        Self { starts, behind, least }
    }

    /// Before this byte.
    fn at(&self, place: usize) -> usize {
        let inlines = self.starts.partition_point(|start| *start < place);
        inlines.checked_sub(1).map_or(0, |last| self.behind[last])
    }
}

/// Where sentences begin and end.
fn cuts(shadow: &str, depths: &Depths<'_>, longest: usize) -> Vec<usize> {
    let mut cuts = vec![0];
    // Ends of sentences within tags.
    let mut inner = Vec::new();
    for end in bounds(shadow) {
        let last = cuts.last().copied().unwrap_or_default();
        if end < shadow.len() {
            let begins = inner.last().copied().unwrap_or(last);
            if ends_abbreviated(&shadow[begins..end]) {
                continue;
            }
            if depths.least < depths.at(end) {
                inner.push(end);
                continue;
            }
        }
        cut_long(shadow, depths, last..end, &inner, longest, &mut cuts);
        cuts.push(end);
        inner.clear();
    }
    if cuts.last() != Some(&shadow.len()) {
        cuts.push(shadow.len());
    }
    cuts
}

/// Where sentences end by Unicode's rules. At each sign behind a full stop these look for the next letter, so that many such
/// signs would be looked through as often: a sentence ends among them.
fn bounds(shadow: &str) -> Vec<usize> {
    static SIGNS: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"[\p{sb=Close}\p{sb=Sp}\p{sb=Extend}\p{sb=Format}]+").ok());
    let runs = SIGNS.as_ref().into_iter().flat_map(|signs| signs.find_iter(shadow));
    let cuts = runs.flat_map(|run| {
        run.as_str().char_indices().step_by(MOST_SIGNS).skip(1).map(move |(at, _)| run.start() + at)
    });
    let (mut bounds, mut start) = (Vec::new(), 0);
    for end in cuts.chain(std::iter::once(shadow.len())) {
        let sentences = shadow[start..end].split_sentence_bound_indices();
        bounds.extend(sentences.map(|(at, sentence)| start + at + sentence.len()));
        start = end;
    }
    bounds
}

/// See [`bounds`].
const MOST_SIGNS: usize = 64;

fn ends_abbreviated(sentence: &str) -> bool {
    let Some(words) = sentence.trim_end().strip_suffix('.') else { return false };
    let last = words.rsplit(|c: char| c.is_whitespace() || "([\"'".contains(c)).next().unwrap_or_default();
    ABBREVIATIONS.contains(&&*last.to_lowercase())
        || last.chars().count() == 1 && last.chars().all(|c| c.is_uppercase() && c != STAND_IN)
}

/// Cuts a sentence that is too long where one ends within tags, else after a comma, else after a word: not near its beginning,
/// and of several places at the last one of those where the fewest tags are open.
fn cut_long(
    shadow: &str,
    depths: &Depths<'_>,
    sentence: Range<usize>,
    inner: &[usize],
    longest: usize,
    cuts: &mut Vec<usize>,
) {
    let Range { mut start, end } = sentence;
    while let Some((reach, _)) = shadow[start..end].char_indices().nth(longest.max(1)) {
        let near = start + reach / 3;
        let best = |places: &mut dyn Iterator<Item = usize>| {
            places
                .filter(|at| near < *at && !is_in_number(shadow, *at))
                .min_by_key(|at| (depths.at(*at), Reverse(*at)))
        };
        let window = &shadow[start..start + reach];
        let after =
            |sign: char| best(&mut window.match_indices(sign).map(|(at, found)| start + at + found.len()));
        let ends = inner.partition_point(|at| *at <= start)..inner.partition_point(|at| *at <= start + reach);
        let cut = best(&mut inner[ends].iter().copied())
            .or_else(|| [';', ',', '\u{3001}', '\u{FF0C}', ' '].into_iter().find_map(after))
            // No space in reach: a script without any, or no words at all.
            .or_else(|| best(&mut [start + reach].into_iter()))
            .or_else(|| best(&mut window.char_indices().map(|(at, _)| start + at)))
            .unwrap_or(start + reach);
        start = cut;
        cuts.push(start);
    }
}

/// Whether a number would be two, cut there: `1,|234.5`.
fn is_in_number(shadow: &str, at: usize) -> bool {
    let (before, after) = shadow.split_at(at);
    after.starts_with(char::is_numeric) && before.trim_end_matches([',', '.']).ends_with(char::is_numeric)
}

/// The pieces between two places of the shadow.
fn slice(inlines: &[Inline], starts: &[usize], from: usize, to: usize) -> Vec<Atom> {
    let mut atoms = Vec::new();
    let first = starts.partition_point(|start| *start <= from).saturating_sub(1);
    for (inline, start) in inlines.iter().zip(starts).skip(first).take_while(|(_, start)| **start < to) {
        match &inline.piece {
            Piece::Text(text) => {
                let here = from.clamp(*start, start + text.len())..to.clamp(*start, start + text.len());
                if here.start < here.end {
                    push_text(&mut atoms, &text[here.start - start..here.end - start]);
                }
            }
            Piece::Wrap(_) if from <= *start => push_text(&mut atoms, " "),
            Piece::Kept(kept) if from <= *start => atoms.push(Atom::Kept(kept.clone())),
            _ => {}
        }
    }
    atoms
}

pub fn push_text(atoms: &mut Vec<Atom>, words: &str) {
    match atoms.last_mut() {
        Some(Atom::Text(last)) => last.push_str(words),
        _ => atoms.push(Atom::Text(words.to_owned())),
    }
}

/// Takes off what stands at the ends of a sentence and is kept whatever an engine does: white space, what keeps its order, tags
/// around all of it and those whose other half is in another sentence.
fn peel(mut atoms: Vec<Atom>) -> Vec<Stretch> {
    let partners = partners(&atoms);
    // What keeps its order keeps its place at an end, and so does a tag whose other half is elsewhere.
    let stays = |at: usize| match &atoms[at] {
        Atom::Text(text) => text.trim().is_empty(),
        Atom::Kept(kept) => match kept.place {
            Place::Fixed => true,
            Place::Open | Place::Close => partners[at].is_none(),
            Place::Free => false,
        },
    };
    let (mut start, mut end) = (0, atoms.len());
    while start < end {
        if stays(start) {
            start += 1;
        } else if stays(end - 1) {
            end -= 1;
        } else if start + 1 < end && partners[start] == Some(end - 1) {
            (start, end) = (start + 1, end - 1);
        } else {
            break;
        }
    }
    let has_words = atoms[start..end]
        .iter()
        .any(|atom| matches!(atom, Atom::Text(text) if text.chars().any(char::is_alphabetic)));
    if !has_words {
        return vec![Stretch::Between(atoms)];
    }
    let mut after = atoms.split_off(end);
    let mut sentence = atoms.split_off(start);
    let mut before = atoms;
    if let Some(Atom::Text(first)) = sentence.first_mut() {
        let words = first.trim_start().to_owned();
        push_blank(&mut before, first[..first.len() - words.len()].to_owned());
        *first = words;
    }
    if let Some(Atom::Text(last)) = sentence.last_mut() {
        let blank = last.split_off(last.trim_end().len());
        let mut ends = Vec::new();
        push_blank(&mut ends, blank);
        after.splice(0..0, ends);
    }
    vec![Stretch::Between(before), Stretch::Sentence(sentence), Stretch::Between(after)]
}

fn push_blank(atoms: &mut Vec<Atom>, blank: String) {
    if !blank.is_empty() {
        atoms.push(Atom::Text(blank));
    }
}

/// For each tag the one that ends it, or that it ends, where it is among these pieces.
fn partners(atoms: &[Atom]) -> Vec<Option<usize>> {
    let mut partners = vec![None; atoms.len()];
    let mut open = Vec::new();
    for (at, atom) in atoms.iter().enumerate() {
        match atom {
            Atom::Kept(Kept { place: Place::Open, .. }) => open.push(at),
            Atom::Kept(Kept { place: Place::Close, .. }) => {
                if let Some(start) = open.pop() {
                    (partners[start], partners[at]) = (Some(at), Some(start));
                }
            }
            _ => {}
        }
    }
    partners
}

/// The same with numbers taken out of the words.
pub fn without_numbers(atoms: &[Atom]) -> Vec<Atom> {
    let mut apart = Vec::new();
    for atom in atoms {
        let Atom::Text(text) = atom else {
            apart.push(atom.clone());
            continue;
        };
        let mut at = 0;
        for range in spans::number_ranges(text) {
            if at < range.start {
                apart.push(Atom::Text(text[at..range.start].to_owned()));
            }
            apart.push(Atom::Kept(Kept::new(&text[range.clone()], Place::Fixed)));
            at = range.end;
        }
        if at < text.len() {
            apart.push(Atom::Text(text[at..].to_owned()));
        }
    }
    apart
}

#[cfg(test)]
mod tests {
    use super::super::Format;
    use super::super::spans::Rules;
    use super::*;

    fn sentences(text: &str, longest: usize) -> Vec<String> {
        let show = |atoms: &[Atom]| {
            atoms
                .iter()
                .map(|atom| match atom {
                    Atom::Text(text) => text.clone(),
                    Atom::Kept(kept) => format!("«{}»", kept.source),
                })
                .collect::<String>()
        };
        let units = Format::Markdown.units(text, &Rules::default(), &|| false);
        let stretches = units.iter().flat_map(|unit| split(unit, longest));
        stretches
            .filter_map(|stretch| match stretch {
                Stretch::Sentence(atoms) => Some(show(&atoms)),
                Stretch::Between(_) => None,
            })
            .collect()
    }

    #[test]
    fn a_unit_is_cut_between_sentences_and_not_in_tags() {
        for (text, expected) in [
            ("One. Two! Three?", vec!["One.", "Two!", "Three?"]),
            ("Mr. Smith met Dr. J. Doe. They left.", vec!["Mr. Smith met Dr. J. Doe.", "They left."]),
            ("**One. Two.** Three.", vec!["One. Two.", "Three."]),
            ("Ask **it. Now** or not. Yes.", vec!["Ask «**»it. Now«**» or not.", "Yes."]),
            ("猫が好き。犬も好き。", vec!["猫が好き。", "犬も好き。"]),
            ("Use `x`. Then {name} goes.", vec!["Use «`x`».", "Then «{name}» goes."]),
            ("12.5 - 3", vec![]),
            ("%d files of %s", vec!["files of"]),
            ("\\* One two %s three. &amp; %s", vec!["One two «%s» three."]),
            // Tags around all of it.
            ("**One. Two.**", vec!["One.", "Two."]),
            ("[**One. *Two. Three.*** Four.](u)", vec!["One. «*»Two. Three.«*»", "Four."]),
        ] {
            assert_eq!(sentences(text, 1000), expected, "{text}");
        }
    }

    #[test]
    fn a_long_sentence_is_cut_after_a_comma_or_a_word() {
        assert_eq!(
            sentences("one two three, four five six seven", 16),
            ["one two three,", "four five six", "seven"]
        );
        assert_eq!(sentences(&"猫".repeat(25), 10).len(), 3);
        // Not within a number.
        assert_eq!(sentences("it said 1,234.5 to me", 12), ["it said", "1,234.5 to", "me"]);
        assert_eq!(sentences("猫猫猫猫猫猫猫1234猫猫猫", 10), ["猫猫猫猫猫猫猫", "1234猫猫猫"]);
    }

    /// The units of a text as sentences, each with how many characters it has.
    #[test]
    fn no_sentence_is_longer_than_an_engine_takes_whatever_tags_it_is_in() {
        let words = "one two three, four five. ".repeat(40);
        for text in [
            format!("<p><span>{words}</span></p>"),
            format!("<b><i>{words}</i></b>"),
            format!("see <b>{words}</b> there"),
            format!("see <a href=x>{}</a> there", "word ".repeat(300)),
            format!("<b>a <i>{words}</i> b</b> c {{name}} <i>{words}</i>"),
            format!("<b>{}</b>", "猫".repeat(300)),
            "<b>".repeat(200) + "one two three" + &"</b>".repeat(200),
        ] {
            for unit in Format::Html.units(&text, &Rules::default(), &|| false) {
                for stretch in split(&unit, 100) {
                    let Stretch::Sentence(atoms) = stretch else { continue };
                    let length = |atom: &Atom| match atom {
                        Atom::Text(text) => text.chars().count(),
                        Atom::Kept(_) => 1,
                    };
                    let length: usize = atoms.iter().map(length).sum();
                    assert!(length <= 100, "{length}: {text}");
                }
            }
        }
        // A sentence within a tag before a comma outside of it, a comma outside of a tag before one in it.
        assert_eq!(
            sentences("one, two **three. Four five six** seven", 30),
            ["one, two «**»three.", "Four five six«**» seven"]
        );
        assert_eq!(sentences("one two three, **four, five** six seven", 30)[0], "one two three,");
    }

    /// Minutes, where all of a unit is looked through for each sentence.
    #[test]
    fn a_unit_of_many_sentences_is_gone_through_once() {
        let mut unit = Unit::default();
        for at in 0..60_000 {
            unit.push(2 * at..2 * at + 1, Piece::Text("A b. ".to_owned()));
            unit.push(2 * at + 1..2 * at + 2, Piece::Kept(Kept::new("{x}", Place::Free)));
        }
        let sentences =
            split(&unit, 1000).into_iter().filter(|stretch| matches!(stretch, Stretch::Sentence(_)));
        assert_eq!(sentences.count(), 60_000);
    }
}
