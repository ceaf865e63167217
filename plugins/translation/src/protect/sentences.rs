//! A unit as sentences, each of which an engine translates by itself.

use super::inline::{Inline, Kept, Piece, Place, Unit};
use super::spans;
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

/// The sentences of a unit. One longer than `longest` characters is cut where it can be.
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
    let cuts = cuts(&shadow, &depths(&unit.inlines, &starts, shadow.len()), longest);
    let mut stretches = Vec::new();
    for pair in cuts.windows(2) {
        let atoms = slice(&unit.inlines, &starts, pair[0], pair[1]);
        stretches.extend(peel(atoms));
    }
    stretches
}

/// How many tags are open before each byte.
fn depths(inlines: &[Inline], starts: &[usize], length: usize) -> Vec<usize> {
    let mut depths = vec![0; length + 1];
    let mut depth = 0_usize;
    for (index, inline) in inlines.iter().enumerate() {
        let end = starts.get(index + 1).copied().unwrap_or(length);
        match &inline.piece {
            Piece::Kept(Kept { place: Place::Open, .. }) => depth += 1,
            Piece::Kept(Kept { place: Place::Close, .. }) => depth = depth.saturating_sub(1),
            _ => {}
        }
        depths[starts[index] + 1..=end].fill(depth);
    }
    depths
}

/// Where sentences begin and end.
fn cuts(shadow: &str, depths: &[usize], longest: usize) -> Vec<usize> {
    let mut cuts = vec![0];
    for (at, sentence) in shadow.split_sentence_bound_indices() {
        let end = at + sentence.len();
        let last = cuts.last().copied().unwrap_or_default();
        if end < shadow.len() && (depths[end] > 0 || ends_abbreviated(&shadow[last..end])) {
            continue;
        }
        cut_long(shadow, depths, last, end, longest, &mut cuts);
        cuts.push(end);
    }
    if cuts.last() != Some(&shadow.len()) {
        cuts.push(shadow.len());
    }
    cuts
}

fn ends_abbreviated(sentence: &str) -> bool {
    let Some(words) = sentence.trim_end().strip_suffix('.') else { return false };
    let last = words.rsplit(|c: char| c.is_whitespace() || "([\"'".contains(c)).next().unwrap_or_default();
    ABBREVIATIONS.contains(&&*last.to_lowercase())
        || last.chars().count() == 1 && last.chars().all(|c| c.is_uppercase() && c != STAND_IN)
}

/// Cuts a sentence that is too long after a comma, else after a word, where no tag is open.
fn cut_long(shadow: &str, depths: &[usize], start: usize, end: usize, longest: usize, cuts: &mut Vec<usize>) {
    let mut start = start;
    while let Some((reach, _)) = shadow[start..end].char_indices().nth(longest) {
        let window = &shadow[start..start + reach];
        let open = |at: &usize| depths[start + at] == 0;
        let after = |sign: char| {
            window
                .rmatch_indices(sign)
                .map(|(at, found)| at + found.len())
                .find(open)
                .filter(|at| *at * 3 > reach)
        };
        let found = [';', ',', '\u{3001}', '\u{FF0C}', ' '].into_iter().find_map(after).or_else(|| {
            // No space in reach: a script without any, or no words at all.
            window.char_indices().map(|(at, _)| at).rev().find(|at| *at > 0 && open(at))
        });
        let Some(cut) = found else { return };
        start += cut;
        cuts.push(start);
    }
}

/// The pieces between two places of the shadow.
fn slice(inlines: &[Inline], starts: &[usize], from: usize, to: usize) -> Vec<Atom> {
    let mut atoms = Vec::new();
    for (inline, start) in inlines.iter().zip(starts) {
        match &inline.piece {
            Piece::Text(text) => {
                let here = from.clamp(*start, start + text.len())..to.clamp(*start, start + text.len());
                if here.start < here.end {
                    push_text(&mut atoms, &text[here.start - start..here.end - start]);
                }
            }
            Piece::Wrap(_) if (from..to).contains(start) => push_text(&mut atoms, " "),
            Piece::Kept(kept) if (from..to).contains(start) => atoms.push(Atom::Kept(kept.clone())),
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

/// Takes off what stands at the ends of a sentence and is kept whatever an engine does: white space, tags around all of it.
fn peel(mut atoms: Vec<Atom>) -> Vec<Stretch> {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    loop {
        let length = before.len() + after.len();
        if let Some(Atom::Text(first)) = atoms.first_mut() {
            let words = first.trim_start().to_owned();
            let blank = first[..first.len() - words.len()].to_owned();
            if !blank.is_empty() {
                before.push(Atom::Text(blank));
                *first = words;
            }
        }
        if let Some(Atom::Text(last)) = atoms.last_mut() {
            let words = last.trim_end().to_owned();
            let blank = last[words.len()..].to_owned();
            if !blank.is_empty() {
                after.push(Atom::Text(blank));
                *last = words;
            }
        }
        atoms.retain(|atom| !matches!(atom, Atom::Text(text) if text.is_empty()));
        let place = |atom: Option<&Atom>| match atom {
            Some(Atom::Kept(kept)) => Some(kept.place),
            _ => None,
        };
        if place(atoms.first()) == Some(Place::Fixed) {
            before.push(atoms.remove(0));
        } else if place(atoms.last()) == Some(Place::Fixed) {
            after.extend(atoms.pop());
        } else if is_wrapped(&atoms) {
            before.push(atoms.remove(0));
            after.extend(atoms.pop());
        }
        if length == before.len() + after.len() {
            break;
        }
    }
    after.reverse();
    let has_words =
        atoms.iter().any(|atom| matches!(atom, Atom::Text(text) if text.chars().any(char::is_alphabetic)));
    if !has_words {
        let whole = before.into_iter().chain(atoms).chain(after).collect();
        return vec![Stretch::Between(whole)];
    }
    vec![Stretch::Between(before), Stretch::Sentence(atoms), Stretch::Between(after)]
}

/// Whether the first piece is a tag that the last one ends.
fn is_wrapped(atoms: &[Atom]) -> bool {
    let mut depth = 0_usize;
    for (at, atom) in atoms.iter().enumerate() {
        match atom {
            Atom::Kept(Kept { place: Place::Open, .. }) => depth += 1,
            Atom::Kept(Kept { place: Place::Close, .. }) => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at + 1 == atoms.len();
                }
            }
            _ => {}
        }
        if depth == 0 {
            return false;
        }
    }
    false
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
        let units = Format::Markdown.units(text, &Rules::default());
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
    }
}
