//! Which tokens follow each other: greedy and beam search, apart from what computes their scores.
//!
//! The rules are those of Hugging Face's `generate`, which the settings of published models are written for: a translation's
//! score is the sum of the logarithms of its tokens' probabilities, divided by its length (the end counts) to the power of
//! `length_penalty`.

use backplane_plugin::prelude::*;
use serde::Deserialize;
use std::cmp::Ordering;

/// How to search.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// Translations of a sentence that are followed at once. With one, the likeliest token is taken each time.
    pub beams: usize,
    pub length_penalty: f64,
    pub early_stopping: EarlyStopping,
    /// Tokens of a translation, the end included.
    pub max_tokens: usize,
    /// What a translation begins after.
    pub start: i64,
    /// What ends it.
    pub ends: Vec<i64>,
    /// What ends a translation that has come to `max_tokens`; without it, it is just as long.
    pub forced_end: Option<i64>,
    /// Tokens one after the other that are never to be.
    pub banned: Vec<Vec<i64>>,
    /// Whether what banned tokens had of the probability goes to the others.
    pub renormalize: bool,
}

/// When a sentence has as many translations as beams: whether that is enough.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Value")]
pub enum EarlyStopping {
    /// It is.
    Yes,
    /// Not while one that is not ended would be better if it ended now.
    #[default]
    No,
    /// Not while one that is not ended could become better.
    Never,
}

impl TryFrom<Value> for EarlyStopping {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        match value {
            Value::Bool(true) => Ok(Self::Yes),
            Value::Bool(false) => Ok(Self::No),
            Value::String(word) if word == "never" => Ok(Self::Never),
            other => Err(format!("`early_stopping` is {other}, and may be true, false or \"never\"")),
        }
    }
}

/// A row of the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The row of the step before that it goes on from; of the first step, the sentence.
    pub parent: usize,
    /// What it reads.
    pub token: i64,
}

/// A translation.
#[derive(Clone, Debug, PartialEq)]
pub struct Hypothesis {
    /// Without the start and the end.
    pub tokens: Vec<i64>,
    /// The sum of the logarithms of the probabilities of its tokens, the end included.
    pub logprob: f64,
    /// Its tokens, the end included.
    pub length: usize,
}

impl Hypothesis {
    /// By which translations of a sentence are compared.
    pub fn score(&self, length_penalty: f64) -> f64 {
        score(self.logprob, self.length, length_penalty)
    }

    /// The geometric mean of its tokens' probabilities.
    pub fn confidence(&self) -> f64 {
        (self.logprob / self.length.max(1) as f64).exp().clamp(0.0, 1.0)
    }
}

fn score(logprob: f64, length: usize, length_penalty: f64) -> f64 {
    logprob / (length.max(1) as f64).powf(length_penalty)
}

/// A sentence on its way.
#[derive(Default)]
struct Sentence {
    beams: Vec<Beam>,
    /// The best first, no more than there are beams.
    ended: Vec<Hypothesis>,
    is_done: bool,
}

/// A translation that is not ended.
#[derive(Clone, Default)]
struct Beam {
    tokens: Vec<i64>,
    logprob: f64,
    /// Its row in the step before.
    row: usize,
}

/// Tokens that may come next.
struct Candidate {
    beam: usize,
    token: i64,
    logprob: f64,
}

/// Searches the translations of so many sentences, the best of each first. `step` gives the scores (logits) of all tokens for
/// each row, one row after the other.
///
/// # Errors
/// Those of `step`, and when it gives what are no scores.
pub fn search(
    sentences: usize,
    rules: &Rules,
    mut step: impl FnMut(&[Row]) -> Result<Vec<f32>>,
) -> Result<Vec<Vec<Hypothesis>>> {
    let begin = |row| Sentence { beams: vec![Beam { row, ..Beam::default() }], ..Sentence::default() };
    let mut all: Vec<Sentence> = (0..sentences).map(begin).collect();
    for taken in 0..rules.max_tokens {
        let open = || all.iter().filter(|sentence| !sentence.is_done);
        let row = |beam: &Beam| Row { parent: beam.row, token: *beam.tokens.last().unwrap_or(&rules.start) };
        let rows: Vec<Row> = open().flat_map(|sentence| sentence.beams.iter().map(row)).collect();
        if rows.is_empty() {
            break;
        }
        let mut logits = step(&rows)?;
        let vocabulary = logits.len() / rows.len();
        if vocabulary == 0 || logits.len() % rows.len() != 0 {
            return Err(Error::model_invalid("the decoder gives no scores for each of its rows"));
        }
        let mut scores = logits.chunks_exact_mut(vocabulary);
        let mut first = 0;
        for sentence in all.iter_mut().filter(|sentence| !sentence.is_done) {
            let beams = sentence.beams.len();
            let own: Vec<&mut [f32]> = scores.by_ref().take(beams).collect();
            sentence.go_on(own, first, taken + 1, rules)?;
            first += beams;
        }
    }
    Ok(all.into_iter().map(|sentence| sentence.ended).collect())
}

impl Sentence {
    /// Takes one more token. `first` is the row of its first beam in this step, `length` what translations have with it.
    fn go_on(&mut self, scores: Vec<&mut [f32]>, first: usize, length: usize, rules: &Rules) -> Result<()> {
        let is_last = length == rules.max_tokens;
        // Were half of them ends, there would still be as many as beams to go on with.
        let mut best = Best { most: rules.beams * (1 + rules.ends.len().max(1)), candidates: Vec::new() };
        for (at, (beam, scores)) in self.beams.iter().zip(scores).enumerate() {
            match rules.forced_end.filter(|_| is_last) {
                Some(token) => best.offer(Candidate { beam: at, token, logprob: beam.logprob }),
                None => {
                    to_logprobs(scores, &beam.tokens, rules)?;
                    for (token, logprob) in (0..).zip(scores.iter()) {
                        best.offer(Candidate {
                            beam: at,
                            token,
                            logprob: beam.logprob + f64::from(*logprob),
                        });
                    }
                }
            }
        }
        let highest = best.candidates.first().map_or(f64::NEG_INFINITY, |candidate| candidate.logprob);
        let mut beams: Vec<Beam> = Vec::with_capacity(rules.beams);
        for (rank, Candidate { beam, token, logprob }) in best.candidates.into_iter().enumerate() {
            let mut tokens = self.beams[beam].tokens.clone();
            if rules.ends.contains(&token) {
                if rank < rules.beams {
                    self.end(Hypothesis { tokens, logprob, length }, rules);
                }
                continue;
            }
            tokens.push(token);
            beams.push(Beam { tokens, logprob, row: first + beam });
            if beams.len() == rules.beams {
                break;
            }
        }
        if is_last {
            for Beam { tokens, logprob, .. } in std::mem::take(&mut beams) {
                self.end(Hypothesis { tokens, logprob, length }, rules);
            }
        }
        self.beams = beams;
        self.is_done = self.beams.is_empty() || self.is_enough(highest, length, rules);
        Ok(())
    }

    fn end(&mut self, hypothesis: Hypothesis, rules: &Rules) {
        let of = |hypothesis: &Hypothesis| hypothesis.score(rules.length_penalty);
        let place = self.ended.partition_point(|other| of(&hypothesis) <= of(other));
        self.ended.insert(place, hypothesis);
        self.ended.truncate(rules.beams);
    }

    /// Whether what has ended is all that is wanted. `highest` is the best sum of a translation of this length.
    fn is_enough(&self, highest: f64, length: usize, rules: &Rules) -> bool {
        let Some(worst) = self.ended.last().filter(|_| self.ended.len() == rules.beams) else { return false };
        let worst = worst.score(rules.length_penalty);
        match rules.early_stopping {
            _ if rules.beams == 1 => true,
            EarlyStopping::Yes => true,
            EarlyStopping::No => score(highest, length, rules.length_penalty) <= worst,
            // A sum only falls; what it is divided by may still grow.
            EarlyStopping::Never => {
                let longest = if rules.length_penalty > 0.0 { rules.max_tokens } else { length };
                score(highest, longest, rules.length_penalty) <= worst
            }
        }
    }
}

/// Makes logarithms of probabilities of a row of scores.
fn to_logprobs(scores: &mut [f32], tokens: &[i64], rules: &Rules) -> Result<()> {
    let mut total = normalizer(scores)?;
    for banned in &rules.banned {
        let Some((last, before)) = banned.split_last() else { continue };
        if tokens.ends_with(before)
            && let Some(score) = usize::try_from(*last).ok().and_then(|last| scores.get_mut(last))
        {
            *score = f32::NEG_INFINITY;
        }
    }
    if rules.renormalize {
        total = normalizer(scores)?;
    }
    scores.iter_mut().for_each(|score| *score -= total);
    Ok(())
}

/// The logarithm of what the scores' exponentials add up to.
fn normalizer(scores: &[f32]) -> Result<f32> {
    let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !highest.is_finite() || scores.iter().any(|score| score.is_nan()) {
        return Err(Error::model_invalid("the decoder gives scores that are no numbers"));
    }
    let sum: f64 = scores.iter().map(|score| f64::from(score - highest).exp()).sum();
    Ok(highest + sum.ln() as f32)
}

/// The best candidates so far, the best first; of equals the earlier.
struct Best {
    most: usize,
    candidates: Vec<Candidate>,
}

impl Best {
    fn offer(&mut self, candidate: Candidate) {
        let worst = self.candidates.last().filter(|_| self.candidates.len() == self.most);
        if candidate.logprob == f64::NEG_INFINITY
            || worst.is_some_and(|worst| candidate.logprob <= worst.logprob)
        {
            return;
        }
        let better = |other: &Candidate| other.logprob.total_cmp(&candidate.logprob) != Ordering::Less;
        let place = self.candidates.partition_point(better);
        self.candidates.insert(place, candidate);
        self.candidates.truncate(self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: i64 = 0;
    const VOCABULARY: i64 = 4;

    fn rules(beams: usize) -> Rules {
        Rules {
            beams,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::Never,
            max_tokens: 5,
            start: 3,
            ends: vec![END],
            forced_end: None,
            banned: Vec::new(),
            renormalize: true,
        }
    }

    /// The score of a token after others, which has nothing to do with the score of any other.
    fn logit(before: &[i64], token: i64) -> f32 {
        let mix = |hash: u64, token: &i64| {
            (hash ^ (*token as u64 + 1)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
        };
        let hash = before.iter().chain([&token]).fold(7, mix).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 40;
        hash as f32 / (1 << 24) as f32 * 6.0
    }

    /// A model that remembers what each of its rows has read.
    fn model() -> impl FnMut(&[Row]) -> Result<Vec<f32>> {
        let mut read: Vec<Vec<i64>> = (0..9).map(|sentence| vec![10 + sentence]).collect();
        move |rows| {
            read = rows.iter().map(|row| [&read[row.parent][..], &[row.token]].concat()).collect();
            Ok(read.iter().flat_map(|read| (0..VOCABULARY).map(|token| logit(read, token))).collect())
        }
    }

    /// The best of all translations that there are.
    fn best(sentence: i64, rules: &Rules) -> (Vec<i64>, f64) {
        let mut best = (Vec::new(), f64::NEG_INFINITY);
        let mut open = vec![(Vec::new(), 0.0)];
        while let Some((tokens, logprob)) = open.pop() {
            let read = [&[10 + sentence, rules.start], &tokens[..]].concat();
            let mut logits: Vec<f32> = (0..VOCABULARY).map(|token| logit(&read, token)).collect();
            to_logprobs(&mut logits, &tokens, rules).unwrap();
            for (token, score) in (0..).zip(logits) {
                let logprob = logprob + f64::from(score);
                let length = tokens.len() + 1;
                let longer = [&tokens[..], &[token]].concat();
                if token != END && length < rules.max_tokens {
                    open.push((longer, logprob));
                    continue;
                }
                let score = super::score(logprob, length, rules.length_penalty);
                if best.1 < score {
                    best = (if token == END { tokens.clone() } else { longer }, score);
                }
            }
        }
        best
    }

    #[test]
    fn as_many_beams_as_there_are_translations_find_the_best() {
        for length_penalty in [0.0, 0.5, 1.0, 2.0] {
            let mut rules = Rules { length_penalty, ..rules(400) };
            rules.banned = vec![vec![2, 2], vec![1, 3, 1]];
            let found = search(9, &rules, model()).unwrap();
            for (sentence, found) in (0..).zip(found) {
                let (tokens, score) = best(sentence, &rules);
                assert_eq!(found[0].tokens, tokens, "sentence {sentence}, length penalty {length_penalty}");
                assert!((found[0].score(length_penalty) - score).abs() < 1e-9);
                assert!(
                    found.is_sorted_by(|one, other| one.score(length_penalty) >= other.score(length_penalty))
                );
                assert!(found.iter().all(|one| !one.tokens.windows(2).any(|two| two == [2, 2])));
            }
        }
    }

    #[test]
    fn one_beam_takes_the_likeliest_token_each_time() {
        for early_stopping in [EarlyStopping::Yes, EarlyStopping::No, EarlyStopping::Never] {
            let rules = Rules { early_stopping, ..rules(1) };
            for (sentence, found) in (0..).zip(search(9, &rules, model()).unwrap()) {
                let mut read = vec![10 + sentence, rules.start];
                let likeliest =
                    |read: &[i64]| (0..VOCABULARY).max_by(|a, b| logit(read, *a).total_cmp(&logit(read, *b)));
                while let Some(token) = likeliest(&read).filter(|token| *token != END && read.len() < 7) {
                    read.push(token);
                }
                assert_eq!(found[0].tokens, read[2..]);
            }
        }
    }

    #[test]
    fn who_goes_on_longer_finds_nothing_worse() {
        let best = |early_stopping| -> Vec<f64> {
            let rules = Rules { early_stopping, max_tokens: 12, length_penalty: 1.5, ..rules(2) };
            search(9, &rules, model()).unwrap().iter().map(|found| found[0].score(1.5)).collect()
        };
        let [yes, no, never] = [EarlyStopping::Yes, EarlyStopping::No, EarlyStopping::Never].map(best);
        assert!(
            yes.iter().zip(&no).all(|(yes, no)| yes <= no)
                && no.iter().zip(&never).all(|(no, never)| no <= never)
        );
        assert!(yes != no && no != never, "they stop at the same time");
    }

    #[test]
    fn an_end_can_be_forced_and_costs_nothing() {
        let rules = Rules { forced_end: Some(END), max_tokens: 3, ..rules(4) };
        for found in search(9, &rules, model()).unwrap().concat() {
            assert!(found.tokens.len() < found.length && found.length <= 3, "{found:?}");
        }
        let free = Rules { forced_end: None, ..rules.clone() };
        let open = |rules| {
            search(9, rules, model()).unwrap().concat().iter().filter(|one| one.tokens.len() == 3).count()
        };
        assert!(0 < open(&free) && open(&rules) == 0);
    }

    #[test]
    fn what_gives_no_scores_is_refused() {
        let broken = |scores: Vec<f32>| search(1, &rules(2), |_| Ok(scores.clone())).unwrap_err().message;
        assert!(broken(vec![]).contains("no scores"));
        assert!(broken(vec![1.0, f32::NAN]).contains("no numbers"));
        assert!(broken(vec![f32::INFINITY, 0.0]).contains("no numbers"));
    }
}
