//! Which language a text is in.
//!
//! Two detectors: `whatlang`, in the plugin, for 69 languages; and [`fasttext`], which reads a model file for 176. Both are
//! asked for a text as a whole, and for its sentences: where these differ, each language has its share of the letters.

pub mod fasttext;

use crate::languages::{self, Language};
use backplane_plugin::payload::Usage;
use backplane_plugin::payload::detect::{Candidate, Chunk as Answer, Detected, Params};
use backplane_plugin::prelude::*;
use fasttext::FastText;
use std::sync::Arc;

/// What tells languages.
#[derive(Clone)]
pub enum Detector {
    /// In the plugin.
    Whatlang,
    /// A model file.
    FastText(Arc<FastText>),
}

/// Texts are looked at so far: more tells no more.
const ENOUGH: usize = 2000;
/// Most texts in one request.
const MOST: usize = 10_000;

impl Detector {
    /// The languages a text may be in, likeliest first; none where it has no letters.
    pub fn detect(&self, text: &str, top: usize) -> Vec<Candidate> {
        let end = text.char_indices().nth(ENOUGH).map_or(text.len(), |(at, _)| at);
        let text = &text[..end];
        if !text.chars().any(char::is_alphabetic) {
            return Vec::new();
        }
        let stretches = stretches(text);
        if stretches.len() > 1 {
            let each: Vec<_> = stretches.iter().map(|stretch| self.whole(stretch, 1)).collect();
            let first = |found: &[Candidate]| found.first().map(|first| first.language.clone());
            if each.iter().any(|found| first(found) != first(&each[0])) {
                return mixed(&stretches, &each);
            }
        }
        self.whole(text, top)
    }

    /// The languages of a text in one language.
    fn whole(&self, text: &str, top: usize) -> Vec<Candidate> {
        match self {
            Detector::Whatlang => whatlang(text),
            Detector::FastText(model) => model.detect(text, top),
        }
    }

    /// Answers a request.
    ///
    /// # Errors
    /// When it asks for nothing, or for too much.
    pub fn serve(&self, request: &Request) -> Result<Done> {
        let params: Params = request.params()?;
        refuse_unknown::<Params>(&params.extra)?;
        if params.text.is_empty() {
            return Err(Error::invalid("`text` is empty; at least one text is needed").with_param("text"));
        }
        if MOST < params.text.len() {
            let message = format!("`text` has {} texts, and at most {MOST} are taken", params.text.len());
            return Err(Error::new(Code::OutOfRange, message).with_param("text"));
        }
        let top = params.top.unwrap_or(3).max(1) as usize;
        let mut results = Vec::with_capacity(params.text.len());
        for (index, text) in params.text.iter().enumerate() {
            if index % 1000 == 0 && request.is_cancelled() {
                return Err(Error::cancelled());
            }
            let mut languages = self.detect(text, top);
            languages.truncate(top);
            results.push(Detected { languages });
        }
        // Of several texts the least sure one.
        let confidence = results
            .iter()
            .map(|result| result.languages.first().map_or(0.0, |likeliest| likeliest.confidence))
            .min_by(f64::total_cmp);
        request.push_json(&Answer { results, ..Answer::default() })?;
        let usage = Usage {
            prompt_tokens: params.text.iter().map(|text| crate::words(text)).sum(),
            ..Usage::default()
        };
        Ok(Done { usage: Some(usage), confidence })
    }
}

/// Letters that a language can be told by.
const TELLING: usize = 20;

/// A text cut where sentences may end, each stretch long enough to tell its language by.
fn stretches(text: &str) -> Vec<&str> {
    let mut stretches = Vec::new();
    let (mut start, mut letters) = (0, 0);
    for (at, c) in text.char_indices() {
        letters += usize::from(c.is_alphabetic());
        let ends =
            matches!(c, '.' | '!' | '?' | '\n' | ';' | '\u{3002}' | '\u{FF01}' | '\u{FF1F}' | '\u{964}');
        if ends && TELLING <= letters {
            let end = at + c.len_utf8();
            stretches.push(&text[start..end]);
            (start, letters) = (end, 0);
        }
    }
    if TELLING <= letters {
        stretches.push(&text[start..]);
    }
    stretches
}

/// The languages of stretches that differ: each by its share of the letters.
fn mixed(stretches: &[&str], found: &[Vec<Candidate>]) -> Vec<Candidate> {
    let letters = |text: &str| text.chars().filter(|c| c.is_alphabetic()).count() as f64;
    let all: f64 = stretches.iter().map(|stretch| letters(stretch)).sum();
    let mut shares: Vec<Candidate> = Vec::new();
    for (stretch, found) in stretches.iter().zip(found) {
        let Some(likeliest) = found.first() else { continue };
        let share = likeliest.confidence * letters(stretch) / all.max(1.0);
        match shares.iter_mut().find(|other| other.language == likeliest.language) {
            Some(other) => other.confidence += share,
            None => shares.push(Candidate { confidence: share, ..likeliest.clone() }),
        }
    }
    shares.sort_by(|one, other| other.confidence.total_cmp(&one.confidence));
    shares
}

/// Its own confidence says how far the second likeliest language is behind, not how likely the first is: it is 1 for most
/// sentences and near 0 for two words. What it is worth was measured (README).
fn whatlang(text: &str) -> Vec<Candidate> {
    let Some(found) = ::whatlang::detect(text) else { return Vec::new() };
    let code = found.lang().code();
    let language = languages::find(code).map_or(code, |language| language.code).to_owned();
    vec![Candidate { language, confidence: 0.3 + 0.68 * found.confidence() }]
}

/// Letters that two languages are told apart by, and letters that one is told by among all. Of the sentences of
/// `tests/data/languages.tsv` the first says the wrong one of two for 0.2 % (1 % of pairs of words), the second for 0.4 %.
const APART: usize = 8;
const AMONG_ALL: usize = 40;

/// The language that a text is surely in instead of `to`: the one it was translated from, or a third. `None` as well where that
/// cannot be told.
pub fn other_than(to: &'static Language, from: &'static Language, text: &str) -> Option<&'static Language> {
    // It knows each language in its usual script.
    let from = from.in_any_script();
    let code =
        |language| ::whatlang::Lang::all().iter().find(|lang| known(**lang) == Some(language)).copied();
    let known_to = code(to).filter(|_| to != from)?;
    let letters = text.chars().filter(|c| c.is_alphabetic()).count();
    if APART <= letters
        && let Some(known_from) = code(from)
    {
        let found = ::whatlang::Detector::with_allowlist(vec![known_to, known_from]).detect(text);
        if found.is_some_and(|found| found.lang() == known_from && 0.5 <= found.confidence()) {
            return Some(from);
        }
    }
    if letters < AMONG_ALL {
        return None;
    }
    let found = ::whatlang::detect(text).filter(|found| 0.8 <= found.confidence())?;
    known(found.lang()).filter(|language| *language != to)
}

fn known(lang: ::whatlang::Lang) -> Option<&'static Language> {
    languages::find(lang.code())
}
