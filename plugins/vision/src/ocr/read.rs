//! What is written in lines: a graph gives, for each column of a line, the probability of each letter.

use super::crop::Crop;
use super::ctc::{self, Letter};
use super::dictionary::Dictionary;
use super::strip::{runs, strips};
use crate::graph::Graph;
use crate::picture::{Channels, Numbers};
use crate::range::within;
use crate::task::Job;
use backplane_plugin::payload::ocr::Word;
use backplane_plugin::prelude::*;
use serde::Deserialize;

/// `[parameters.ocr.rec]` of a card.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Name of the graph's input.
    pub input: String,
    pub height: u32,
    /// A line is at least so wide, filled up or not.
    pub width: u32,
    /// How bytes become numbers.
    pub numbers: Numbers,
    /// Lines of one run of the graph.
    pub batch: usize,
    /// Columns of one run in all: of long lines, fewer share a run.
    pub columns: u32,
    /// Columns of one line: a longer one is squeezed.
    pub longest: u32,
}

impl Default for Settings {
    fn default() -> Self {
        let numbers =
            Numbers { channels: Channels::Bgr, mean: [0.5; 3], std: [0.5; 3], ..Numbers::default() };
        Self {
            input: "x".to_owned(),
            height: 48,
            width: 320,
            numbers,
            batch: 6,
            columns: 16_384,
            longest: 8_192,
        }
    }
}

impl Settings {
    /// # Errors
    /// What is out of range, by its name.
    pub fn check(&self) -> Result<(), String> {
        within("rec.height", self.height, 1..=4096)?;
        within("rec.longest", self.longest, 1..=65_536)?;
        within("rec.width", self.width, 1..=self.longest)?;
        within("rec.columns", self.columns, 1..=1_048_576)?;
        within("rec.batch", self.batch, 1..=1024)?;
        self.numbers.check("rec.numbers")
    }
}

/// Reads lines.
pub struct Reader {
    graph: Graph,
    settings: Settings,
    dictionary: Dictionary,
}

/// What was read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Read {
    pub text: String,
    /// The mean over its letters; 0 of nothing.
    pub score: f32,
    letters: Vec<Placed>,
}

/// A letter with its place, as a part of the line's length.
#[derive(Clone, Debug, PartialEq)]
struct Placed {
    text: String,
    score: f32,
    from: f32,
    to: f32,
}

impl Reader {
    /// # Errors
    /// When the card lists no graph `rec`, or there is no dictionary.
    pub fn of(model: &ModelSpec, settings: &Settings) -> Result<Self> {
        Ok(Self {
            graph: Graph::of(model, "rec")?,
            settings: settings.clone(),
            dictionary: Dictionary::of(model, "rec")?,
        })
    }

    /// What is written in each.
    ///
    /// # Errors
    /// What the graph said.
    pub fn read(&self, job: &Job<'_>, lines: &[&Crop]) -> Result<Vec<Read>> {
        let mut read = vec![Read::default(); lines.len()];
        for run in runs(lines, self.settings.batch) {
            let most = (self.settings.columns / self.width(run.iter().map(|place| lines[*place]))).max(1);
            for run in run.chunks(most as usize) {
                let texts = self.run(job, &run.iter().map(|place| lines[*place]).collect::<Vec<_>>())?;
                run.iter().zip(texts).for_each(|(place, text)| read[*place] = text);
            }
        }
        Ok(read)
    }

    /// The width that these lines need together.
    fn width<'a>(&self, lines: impl Iterator<Item = &'a Crop>) -> u32 {
        let Settings { height, width, longest, .. } = self.settings;
        let ratio = |line: &Crop| f64::from(line.picture.width()) / f64::from(line.picture.height());
        let widest = lines.map(ratio).fold(f64::from(width) / f64::from(height), f64::max);
        ((f64::from(height) * widest) as u32).clamp(1, longest.max(width))
    }

    fn run(&self, job: &Job<'_>, lines: &[&Crop]) -> Result<Vec<Read>> {
        let Settings { input, height, numbers, .. } = &self.settings;
        let width = self.width(lines.iter().copied());
        let strips = job.work(|| strips(input, lines, *height, width, numbers))??;
        let classes = self.dictionary.len();
        self.graph.run_to(job, strips, |shape, numbers| {
            let &[rows, columns, of] = shape else {
                return Err(self.graph.odd(&format!("gave {shape:?}, and not lines by columns by letters")));
            };
            if (rows, of) != (lines.len() as i64, classes as i64) {
                let message = format!(
                    "gave {shape:?} for {} lines, and the dictionary has {classes} letters",
                    lines.len()
                );
                return Err(self.graph.odd(&message));
            }
            let columns = columns as usize;
            job.work(|| {
                let rows = numbers.chunks_exact((columns * classes).max(1));
                let read = |(line, row): (&&Crop, &[f32])| {
                    // A line fills its strip from the left.
                    let own = (f64::from(*height) * f64::from(line.picture.width())
                        / f64::from(line.picture.height()))
                    .ceil()
                    .min(f64::from(width));
                    self.text(&ctc::decode(row, classes), columns as f32 * own as f32 / width as f32)
                };
                lines.iter().zip(rows).map(read).collect()
            })
        })
    }

    /// Text of letters; `columns` is how many of the strip the line fills.
    fn text(&self, letters: &[Letter], columns: f32) -> Read {
        let (mut text, mut sum) = (String::new(), 0.0);
        let mut placed = Vec::with_capacity(letters.len());
        // A letter reaches half way to its neighbours, and no further than letters of this line are wide.
        let centre = |letter: &Letter| letter.column as f32 + 0.5;
        let half = columns / letters.len().max(1) as f32 / 2.0;
        for (index, letter) in letters.iter().enumerate() {
            let own = self.dictionary.letter(letter.class);
            text.push_str(own);
            sum += letter.score;
            let (mut from, mut to) = (centre(letter) - half, centre(letter) + half);
            if let Some(before) = index.checked_sub(1).and_then(|before| letters.get(before)) {
                from = from.max(f32::midpoint(centre(before), centre(letter)));
            }
            if let Some(after) = letters.get(index + 1) {
                to = to.min(f32::midpoint(centre(letter), centre(after)));
            }
            let part = |column: f32| (column / columns.max(1.0)).clamp(0.0, 1.0);
            placed.push(Placed { text: own.to_owned(), score: letter.score, from: part(from), to: part(to) });
        }
        let score = if letters.is_empty() { 0.0 } else { sum / letters.len() as f32 };
        Read { text, score, letters: placed }
    }
}

impl Read {
    /// Its words; `corners` finds the corners of a part of the line.
    pub fn words(&self, corners: impl Fn(f32, f32) -> [[f32; 2]; 4]) -> Vec<Word> {
        let alone = |letter: &Placed| letter.text.chars().any(stands_alone);
        let words = self.letters.chunk_by(|a, b| !is_space(a) && !is_space(b) && !alone(a) && !alone(b));
        let word = |letters: &[Placed]| {
            let (first, last) = (letters.first()?, letters.last()?);
            (!is_space(first)).then(|| Word {
                text: letters.iter().map(|letter| &*letter.text).collect(),
                score: letters.iter().map(|letter| letter.score).sum::<f32>() / letters.len() as f32,
                corners: corners(first.from, last.to),
            })
        };
        words.filter_map(word).collect()
    }
}

fn is_space(letter: &Placed) -> bool {
    letter.text.chars().all(char::is_whitespace)
}

/// Letters of scripts that put no space between words: Chinese characters, kana, and their punctuation.
pub fn stands_alone(c: char) -> bool {
    matches!(c, '\u{2e80}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(letters: &[(&str, f32, f32)]) -> Read {
        let placed = |(text, from, to): &(&str, f32, f32)| Placed {
            text: (*text).to_owned(),
            score: 0.5,
            from: *from,
            to: *to,
        };
        Read { letters: letters.iter().map(placed).collect(), ..Read::default() }
    }

    #[test]
    fn words_stand_between_spaces() {
        let read = read(&[
            ("a", 0.0, 0.1),
            ("b", 0.1, 0.2),
            (" ", 0.2, 0.3),
            ("c", 0.3, 0.4),
            ("文", 0.4, 0.5),
            ("字", 0.5, 0.6),
        ]);
        let words = read.words(|from, to| [[from, 0.0], [to, 0.0], [to, 1.0], [from, 1.0]]);
        let found: Vec<_> =
            words.iter().map(|word| (&*word.text, word.corners[0][0], word.corners[1][0])).collect();
        assert_eq!(found, [("ab", 0.0, 0.2), ("c", 0.3, 0.4), ("文", 0.4, 0.5), ("字", 0.5, 0.6)]);
    }
}
