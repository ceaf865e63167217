//! What an engine gave back, woven into the sentence it was asked for: with everything kept once and in its place, or not at
//! all.

use super::Format;
use super::inline::{Kept, Place};
use super::sentences::Atom;
use super::spans;
use std::collections::HashMap;

/// A piece of a sentence on its way to an engine and back.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    Text(String),
    /// Something is kept here: its number in the sentence, from 0.
    Mark(usize),
}

/// The sentence as an engine is given it.
pub fn parts(atoms: &[Atom]) -> Vec<Part> {
    let mut marks = 0..;
    let part = |atom: &Atom| match atom {
        Atom::Text(text) => Part::Text(text.clone()),
        Atom::Kept(_) => Part::Mark(marks.next().unwrap_or_default()),
    };
    atoms.iter().map(part).collect()
}

/// The words of a sentence, for comparing.
pub fn words(atoms: &[Atom]) -> String {
    let text = |atom: &Atom| match atom {
        Atom::Text(text) => text.clone(),
        Atom::Kept(_) => " ".to_owned(),
    };
    atoms.iter().map(text).collect()
}

/// The translation of a sentence, if nothing that is kept came to harm.
pub fn weave(source: &[Atom], answer: &[Part], format: Format) -> Option<Vec<Atom>> {
    let kept: Vec<&Kept> = source
        .iter()
        .filter_map(|atom| match atom {
            Atom::Kept(kept) => Some(kept),
            Atom::Text(_) => None,
        })
        .collect();
    let marks: Vec<usize> = answer
        .iter()
        .filter_map(|part| match part {
            Part::Mark(mark) => Some(*mark),
            Part::Text(_) => None,
        })
        .collect();
    if !is_in_place(&kept, &marks) {
        return None;
    }
    let source_words = words(source);
    let mut woven: Vec<Atom> = Vec::new();
    for part in answer {
        match part {
            Part::Mark(mark) => woven.push(Atom::Kept((*kept.get(*mark)?).clone())),
            Part::Text(text) => super::sentences::push_text(&mut woven, &one_line(text)),
        }
    }
    for atom in &mut woven {
        if let Atom::Text(text) = atom {
            *text = format.tame(text, &source_words)?;
        }
    }
    woven.retain(|atom| !matches!(atom, Atom::Text(text) if text.is_empty()));
    let woven = spaced(source, woven, &marks);
    let woven_words = words(&woven);
    let numbers_kept = keeps_numbers(&source_words, &woven_words);
    // A number at an end would be read as a part of the one that stands beside the sentence.
    let ends = |words: &str| {
        let words = words.trim_matches(|c: char| c.is_whitespace() || ".,:/-\u{2013}\u{2019}'".contains(c));
        [words.starts_with(char::is_numeric), words.ends_with(char::is_numeric)]
    };
    let (old, new) = (ends(&source_words), ends(&woven_words));
    let numbers_kept = numbers_kept && (old[0] || !new[0]) && (old[1] || !new[1]);
    (numbers_kept && woven_words.chars().any(char::is_alphabetic)).then_some(woven)
}

/// Whether each number of a text is in another one as often.
pub fn keeps_numbers(source: &str, answer: &str) -> bool {
    let (before, after) = (counts(source), counts(answer));
    before.iter().all(|(number, count)| after.get(number) == Some(count))
}

/// How often each number is in a text.
fn counts(text: &str) -> HashMap<&str, usize> {
    let mut counts = HashMap::new();
    for number in spans::numbers(text) {
        *counts.entry(number).or_default() += 1;
    }
    counts
}

/// Whether each mark is there once, tags and what has no name in their order, and each in the tags that it was in.
fn is_in_place(kept: &[&Kept], marks: &[usize]) -> bool {
    let mut sorted = marks.to_vec();
    sorted.sort_unstable();
    if !sorted.into_iter().eq(0..kept.len()) {
        return false;
    }
    let ordered = |marks: &mut dyn Iterator<Item = usize>| -> Vec<usize> {
        marks.filter(|mark| kept[*mark].place != Place::Free).collect()
    };
    ordered(&mut marks.iter().copied()) == ordered(&mut (0..kept.len()))
        && around(kept, marks) == around(kept, &(0..kept.len()).collect::<Vec<_>>())
}

/// For each mark the tag that it is in, and how many tags ended before it that began in another sentence.
fn around(kept: &[&Kept], marks: &[usize]) -> Vec<(Option<usize>, usize)> {
    let mut around = vec![(None, 0); kept.len()];
    let (mut open, mut ended) = (Vec::new(), 0);
    for &mark in marks {
        if kept[mark].place == Place::Close && open.pop().is_none() {
            ended += 1;
        }
        around[mark] = (open.last().copied(), ended);
        if kept[mark].place == Place::Open {
            open.push(mark);
        }
    }
    around
}

/// Without line ends and control characters: a sentence is one line.
pub fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') { ' ' } else { c })
        .collect()
}

/// With white space beside what is kept as the source has it: tags touch what they enclose, a name touches no other word.
/// `marks` are those of the pieces that are kept, in their order.
fn spaced(source: &[Atom], woven: Vec<Atom>, marks: &[usize]) -> Vec<Atom> {
    let kept = |(at, atom): (usize, &Atom)| matches!(atom, Atom::Kept(_)).then_some(at);
    let places: Vec<usize> = source.iter().enumerate().filter_map(kept).collect();
    let mut places = marks.iter().map(|mark| places[*mark]);
    // What is beside a piece in the source: white space, and a word that it touches.
    let mut beside = || {
        let at = places.next().unwrap_or_default();
        let near = |atom: Option<&Atom>, sign: fn(&str) -> Option<char>| match atom {
            Some(Atom::Text(text)) => sign(text),
            _ => None,
        };
        let before =
            near(at.checked_sub(1).and_then(|before| source.get(before)), |text| text.chars().next_back());
        let after = near(source.get(at + 1), |text| text.chars().next());
        [before, after]
            .map(|sign| (sign.is_some_and(char::is_whitespace), sign.is_some_and(char::is_alphanumeric)))
    };
    let mut spaced: Vec<Atom> = Vec::new();
    // White space that is to begin the next words: some, none, or as they have it.
    let mut next: Option<bool> = None;
    for atom in woven {
        match atom {
            Atom::Text(mut text) => {
                match next.take() {
                    Some(true) if !text.starts_with(char::is_whitespace) && begins_word(&text) => {
                        text.insert(0, ' ')
                    }
                    Some(false) => text = text.trim_start().to_owned(),
                    _ => {}
                }
                if !text.is_empty() {
                    spaced.push(Atom::Text(text));
                }
            }
            Atom::Kept(kept) => {
                let [(before, touched_before), (after, touched_after)] = beside();
                let free = kept.place == Place::Free;
                let inner_end = kept.place == Place::Close && !before;
                if let Some(Atom::Text(last)) = spaced.last_mut() {
                    if inner_end {
                        last.truncate(last.trim_end().len());
                    } else if (before || free && !touched_before) && ends_word(last) {
                        last.push(' ');
                    }
                }
                spaced.pop_if(|last| matches!(last, Atom::Text(text) if text.is_empty()));
                next = match kept.place {
                    Place::Open if !after => Some(false),
                    _ => (after || free && !touched_after).then_some(true),
                };
                spaced.push(Atom::Kept(kept));
            }
        }
    }
    // What ends a sentence stands behind it without white space.
    if let Some(Atom::Text(first)) = spaced.first_mut() {
        *first = first.trim_start().to_owned();
    }
    if let Some(Atom::Text(last)) = spaced.last_mut() {
        last.truncate(last.trim_end().len());
    }
    spaced.retain(|atom| !matches!(atom, Atom::Text(text) if text.is_empty()));
    spaced
}

fn begins_word(text: &str) -> bool {
    text.chars().next().is_some_and(|c| c.is_alphanumeric() && !spans::is_unspaced(c))
}

fn ends_word(text: &str) -> bool {
    text.chars().next_back().is_some_and(|c| c.is_alphanumeric() && !spans::is_unspaced(c))
}

#[cfg(test)]
mod tests {
    use super::super::sentences::{Stretch, split};
    use super::super::spans::Rules;
    use super::*;

    fn check(source: &str, answer: &[Part]) -> Option<String> {
        let units = Format::Html.units(source, &Rules::default(), &|| false);
        let stretches = split(&units[0], 1000);
        let atoms = stretches.iter().find_map(|stretch| match stretch {
            Stretch::Sentence(atoms) => Some(atoms),
            Stretch::Between(_) => None,
        });
        let woven = weave(atoms.unwrap(), answer, Format::Html)?;
        let show = |atom: &Atom| match atom {
            Atom::Text(text) => text.clone(),
            Atom::Kept(kept) => kept.target.clone(),
        };
        Some(woven.iter().map(show).collect())
    }

    fn text(words: &str) -> Part {
        Part::Text(words.to_owned())
    }

    #[test]
    fn an_honest_answer_is_woven_with_the_white_space_of_the_source() {
        use Part::Mark;
        let source = "The <b>black</b> cat";
        let answer = [text("El gato "), Mark(0), text(" negro "), Mark(1)];
        assert_eq!(check(source, &answer).unwrap(), "El gato <b>negro</b>");
        let answer = [text("El gato"), Mark(0), text("negro"), Mark(1)];
        assert_eq!(check(source, &answer).unwrap(), "El gato<b>negro</b>".replace("gato<", "gato <"));
        let source = "{name} has {n} files";
        assert_eq!(check(source, &[Mark(1), text("файлов у"), Mark(0)]).unwrap(), "{n} файлов у {name}");
    }

    /// Of a long sentence in a tag only the second half.
    #[test]
    fn what_is_in_a_tag_that_began_before_stays_in_it() {
        let kept = |source: &str, place| Kept::new(source, place);
        let source = [kept("{a}", Place::Free), kept("</b>", Place::Close), kept("{c}", Place::Free)];
        let source: Vec<&Kept> = source.iter().collect();
        assert!(is_in_place(&source, &[0, 1, 2]));
        for moved in [[1, 0, 2], [2, 0, 1], [0, 2, 1]] {
            assert!(!is_in_place(&source, &moved), "{moved:?}");
        }
    }

    #[test]
    fn harm_is_refused() {
        use Part::Mark;
        let source = "Hi <b>you</b>, {a} and %s of 5";
        let good = [
            text("Hola "),
            Mark(0),
            text("tú"),
            Mark(1),
            text(", "),
            Mark(2),
            text(" y "),
            Mark(3),
            text(" de 5"),
        ];
        assert!(check(source, &good).is_some());
        let without = |index: usize| {
            let mut answer = good.to_vec();
            answer.remove(index);
            answer
        };
        assert_eq!(check(source, &without(5)), None, "dropped");
        assert_eq!(check(source, &[&good[..], &[Mark(2)]].concat()), None, "doubled");
        assert_eq!(check(source, &[&good[..], &[Mark(9)]].concat()), None, "added");
        assert_eq!(check(source, &[&good[..], &[text(" {b}")]].concat()), None, "a placeholder of its own");
        assert_eq!(check(source, &[&good[..], &[text(" <i>")]].concat()), None, "a tag of its own");
        assert_eq!(check(source, &good[..8]), None, "a number lost");
        let mut answer = good.to_vec();
        answer.swap(1, 3);
        assert_eq!(check(source, &answer), None, "tags the wrong way round");
        let mut answer = good.to_vec();
        answer.swap(2, 5);
        assert_eq!(check(source, &answer), None, "moved into a tag");
    }
}
