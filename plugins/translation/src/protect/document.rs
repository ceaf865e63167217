//! A whole document: taken apart, translated, put together, looked at.

use super::Format;
use super::inline::{Inline, Kept, Piece, Unit};
use super::sentences::{self, Atom, Stretch};
use super::spans::Rules;
use super::weave::{Part, one_line, parts, weave, words};

/// What an engine made of a sentence.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendering {
    pub parts: Vec<Part>,
    /// Probability that it is right, uncalibrated, 0..=1.
    pub confidence: f64,
}

/// A translated document.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub text: String,
    /// The mean over its sentences, by their length.
    pub confidence: f64,
    /// Sentences that were translated.
    pub sentences: usize,
    /// Of these, sentences that had to be translated piece by piece, for what is kept in them had come to harm.
    pub pieced: usize,
    /// Pieces that stand in the source's language, for no translation of them was without harm.
    pub untranslated: usize,
}

/// What is partly in the source's language is no more likely right than wrong, however sure the rest is.
const PARTIAL: f64 = 0.5;

/// A piece-by-piece translation lacks the order of words of the other language.
const PIECED: f64 = 0.7;

/// Translates a document. `engine` is given sentences, and gives each back; how many at once is its own business. `check` is
/// asked between any two steps whether somebody still waits.
///
/// # Errors
/// Those of the engine, and what `check` says.
pub fn translate<E>(
    text: &str,
    format: Format,
    rules: &Rules,
    longest: usize,
    check: &dyn Fn() -> Result<(), E>,
    mut engine: impl FnMut(&[Vec<Part>]) -> Result<Vec<Rendering>, E>,
) -> Result<Outcome, E> {
    let units = format.units(text, rules, &|| check().is_err());
    let mut drafts = Vec::with_capacity(units.len());
    for unit in &units {
        check()?;
        drafts.push(Draft { stretches: sentences::split(unit, longest), rendered: None });
    }
    check()?;
    let asked: Vec<Vec<Part>> = drafts.iter().flat_map(Draft::sentences).map(|atoms| parts(atoms)).collect();
    let answers = if asked.is_empty() { Vec::new() } else { engine(&asked)? };
    let mut tally = Tally { sentences: asked.len(), ..Tally::default() };

    // What came to no harm, in the order of the sentences; the others are cut into what is between what is kept.
    let sources: Vec<Vec<Atom>> = drafts.iter().flat_map(Draft::sentences).cloned().collect();
    let mut woven: Vec<Option<(Vec<Atom>, f64)>> = Vec::with_capacity(sources.len());
    for (at, source) in sources.iter().enumerate() {
        check()?;
        let answer = answers.get(at);
        woven
            .push(answer.and_then(|answer| Some((weave(source, &answer.parts, format)?, answer.confidence))));
    }
    let apart: Vec<(usize, Vec<Atom>)> = (0..)
        .zip(&sources)
        .filter(|(at, _)| woven.get(*at).is_some_and(Option::is_none))
        .map(|(at, source)| (at, sentences::without_numbers(source)))
        .collect();
    let runs: Vec<Vec<Part>> = apart.iter().flat_map(|(_, source)| source.iter().filter_map(run)).collect();
    let pieces = if runs.is_empty() { Vec::new() } else { engine(&runs)? };
    let mut pieces = pieces.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
    tally.pieced = apart.len();
    for (at, source) in apart {
        let pieced = piece_by_piece(&source, &mut pieces, format, &mut tally);
        if let Some(place) = woven.get_mut(at) {
            *place = Some(pieced);
        }
    }

    let mut woven = woven.into_iter().flatten();
    for (unit, draft) in units.iter().zip(&mut drafts) {
        check()?;
        draft.rendered = Some(draft.render(unit, text, &mut woven, &mut tally));
    }
    let pieces: Vec<Option<String>> = drafts.into_iter().map(|draft| draft.rendered).collect();
    let (text, refused) = assemble(text, format, &units, &pieces, check)?;
    let confidence = if tally.weight > 0.0 { tally.confidence / tally.weight } else { 1.0 };
    let lost = refused as f64 / units.len().max(1) as f64;
    let untranslated = tally.untranslated + refused;
    let most = if untranslated == 0 { 1.0 } else { PARTIAL };
    Ok(Outcome {
        text,
        confidence: (confidence * (1.0 - lost)).clamp(0.0, most),
        sentences: tally.sentences,
        pieced: tally.pieced,
        untranslated,
    })
}

#[derive(Default)]
struct Tally {
    sentences: usize,
    pieced: usize,
    untranslated: usize,
    confidence: f64,
    weight: f64,
}

/// A unit on its way.
struct Draft {
    stretches: Vec<Stretch>,
    rendered: Option<String>,
}

impl Draft {
    fn sentences(&self) -> impl Iterator<Item = &Vec<Atom>> {
        self.stretches.iter().filter_map(|stretch| match stretch {
            Stretch::Sentence(atoms) => Some(atoms),
            Stretch::Between(_) => None,
        })
    }

    /// The unit as text again.
    fn render(
        &self,
        unit: &Unit,
        document: &str,
        woven: &mut impl Iterator<Item = (Vec<Atom>, f64)>,
        tally: &mut Tally,
    ) -> String {
        let mut atoms = Vec::new();
        let mut same = true;
        for stretch in &self.stretches {
            let (new, source) = match stretch {
                Stretch::Between(source) => (source.clone(), source),
                Stretch::Sentence(source) => {
                    let (new, confidence) = woven.next().unwrap_or_else(|| (source.clone(), 0.0));
                    let weight = words(source).chars().count() as f64;
                    tally.confidence += confidence * weight;
                    tally.weight += weight;
                    (new, source)
                }
            };
            same &= one_line(&flat(&new)) == one_line(&flat_source(source));
            atoms.extend(new);
        }
        if same {
            return document[unit.range()].to_owned();
        }
        rewrapped(unit, &atoms)
    }
}

/// The words between two pieces that are kept, if there is anything to translate.
fn run(atom: &Atom) -> Option<Vec<Part>> {
    match atom {
        Atom::Text(text) if text.chars().any(char::is_alphabetic) => {
            Some(vec![Part::Text(text.trim().to_owned())])
        }
        _ => None,
    }
}

/// A sentence whose words were translated between what is kept.
fn piece_by_piece(
    source: &[Atom],
    answers: &mut impl Iterator<Item = Option<Rendering>>,
    format: Format,
    tally: &mut Tally,
) -> (Vec<Atom>, f64) {
    let (mut atoms, mut confidence, mut weight) = (Vec::new(), 0.0, 0.0);
    for atom in source {
        let (Atom::Text(text), Some(_)) = (atom, run(atom)) else {
            atoms.push(atom.clone());
            continue;
        };
        let words = text.trim();
        let plain = [Atom::Text(words.to_owned())];
        let answer = answers.next().flatten();
        let translated = answer.and_then(|answer| {
            let text =
                answer.parts.into_iter().filter(|part| matches!(part, Part::Text(_))).collect::<Vec<_>>();
            // A number here would be one too many: those of the sentence are kept apart.
            let woven = weave(&plain, &text, format)
                .filter(|woven| super::spans::numbers(&flat(woven)).is_empty())?;
            Some((flat(&woven), answer.confidence))
        });
        if translated.is_none() {
            tally.untranslated += 1;
        }
        let (translated, sure) = translated.unwrap_or_else(|| (words.to_owned(), 0.0));
        let length = words.chars().count() as f64;
        (confidence, weight) = (confidence + sure * length, weight + length);
        let lead = &text[..text.len() - text.trim_start().len()];
        let trail = &text[text.trim_end().len()..];
        atoms.push(Atom::Text(format!("{lead}{translated}{trail}")));
    }
    (atoms, if weight > 0.0 { PIECED * confidence / weight } else { 0.0 })
}

/// As it is to be read in the translation.
fn flat(atoms: &[Atom]) -> String {
    let text = |atom: &Atom| match atom {
        Atom::Text(text) => text.clone(),
        Atom::Kept(kept) => kept.target.clone(),
    };
    atoms.iter().map(text).collect()
}

/// As it was.
fn flat_source(atoms: &[Atom]) -> String {
    let text = |atom: &Atom| match atom {
        Atom::Text(text) => text.clone(),
        Atom::Kept(kept) => kept.source.clone(),
    };
    atoms.iter().map(text).collect()
}

/// The translation of a unit with as many line ends as its source has, each after the word that is as far along.
fn rewrapped(unit: &Unit, atoms: &[Atom]) -> String {
    let (mut length, mut wraps) = (0_usize, Vec::new());
    for Inline { piece, .. } in &unit.inlines {
        match piece {
            Piece::Text(text) => length += text.chars().count(),
            Piece::Kept(kept) => length += kept.source.chars().count(),
            Piece::Wrap(end) => {
                wraps.push((length, end.as_str()));
                length += 1;
            }
        }
    }
    let text = flat(atoms);
    if wraps.is_empty() {
        return text;
    }
    // Spaces between words, of which any can be a line's end: bytes, and characters before.
    let mut spaces = Vec::new();
    let (mut bytes, mut chars) = (0, 0);
    for atom in atoms {
        let (Atom::Text(piece) | Atom::Kept(Kept { target: piece, .. })) = atom;
        if matches!(atom, Atom::Text(_)) {
            let mut signs = piece.char_indices().enumerate().peekable();
            while let Some((before, (at, sign))) = signs.next() {
                let next = signs.peek().map(|(_, (_, next))| *next);
                if sign == ' ' && next.is_some_and(char::is_alphabetic) {
                    spaces.push((bytes + at, chars + before));
                }
            }
        }
        bytes += piece.len();
        chars += piece.chars().count();
    }
    let mut result = String::with_capacity(text.len() + 8 * wraps.len());
    let mut at = 0;
    let mut free = spaces.as_slice();
    for (index, (place, end)) in wraps.iter().enumerate() {
        // The others want a space each, too.
        let Some(usable) = free.len().checked_sub(wraps.len() - index - 1).filter(|usable| *usable > 0)
        else {
            continue;
        };
        let wanted = place * chars / length.max(1);
        // The nearest is the last one before it, or the first one behind.
        let behind = free[..usable].partition_point(|(_, before)| *before < wanted);
        let around = behind.saturating_sub(1)..usable.min(behind + 1);
        let Some((nearest, (space, _))) =
            around.map(|at| (at, free[at])).min_by_key(|(_, (_, before))| before.abs_diff(wanted))
        else {
            continue;
        };
        result.push_str(&text[at..space]);
        result.push_str(end);
        at = space + 1;
        free = &free[nearest + 1..];
    }
    result.push_str(&text[at..]);
    result
}

/// The document with its units replaced. One that would change the structure around it stays as it was; how many did is told.
fn assemble<E>(
    text: &str,
    format: Format,
    units: &[Unit],
    rendered: &[Option<String>],
    check: &dyn Fn() -> Result<(), E>,
) -> Result<(String, usize), E> {
    let build = |use_unit: &[bool]| {
        let mut built = String::with_capacity(text.len() + text.len() / 4);
        let mut at = 0;
        for ((unit, new), wanted) in units.iter().zip(rendered).zip(use_unit) {
            let range = unit.range();
            built.push_str(&text[at..range.start]);
            match new {
                Some(new) if *wanted => built.push_str(new),
                _ => built.push_str(&text[range.clone()]),
            }
            at = range.end;
        }
        built.push_str(&text[at..]);
        built
    };
    let over = || check().is_err();
    let expected = format.skeleton(text, &over);
    let fits = |wanted: &[bool]| {
        let fits = format.skeleton(&build(wanted), &over) == expected;
        check().map(|()| fits)
    };
    let mut wanted = vec![true; units.len()];
    if fits(&wanted)? {
        return Ok((build(&wanted), 0));
    }
    wanted.fill(false);
    let mut left = (READ / text.len().max(1)).clamp(LEAST_LOOKS, MOST_LOOKS);
    add(&mut wanted, 0..units.len(), &fits, &mut left)?;
    let refused = wanted.iter().filter(|wanted| !**wanted).count();
    Ok((build(&wanted), refused))
}

/// How often a document is looked at to find out which unit does harm: so many bytes of it, and not more or less often than
/// this. One unit among a million is found by forty looks.
const READ: usize = 64 << 20;
const MOST_LOOKS: usize = 400;
const LEAST_LOOKS: usize = 48;

/// Adds units while they fit: all of a range, else the halves of it.
fn add<E>(
    wanted: &mut [bool],
    range: std::ops::Range<usize>,
    fits: &impl Fn(&[bool]) -> Result<bool, E>,
    left: &mut usize,
) -> Result<(), E> {
    if *left == 0 || range.is_empty() {
        return Ok(());
    }
    *left -= 1;
    wanted[range.clone()].fill(true);
    if fits(wanted)? {
        return Ok(());
    }
    wanted[range.clone()].fill(false);
    if range.len() > 1 {
        let middle = range.start + range.len() / 2;
        add(wanted, range.start..middle, fits, left)?;
        add(wanted, middle..range.end, fits, left)?;
    }
    Ok(())
}
