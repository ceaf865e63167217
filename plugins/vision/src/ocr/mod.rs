//! `vision.ocr`: finds the lines of a picture, turns those that stand on their head, and reads them: models of the
//! PP-OCR family, whose three graphs the card lists as `det`, `cls` and `rec`.
//!
//! - [`page`]: the picture in the size that the graphs are fed with, and the way back.
//! - [`find`]: where the lines are, by the graph `det`; [`blobs`] and [`boxes`] make places of its map.
//! - [`crop`]: a line cut out and straightened.
//! - [`turn`]: which of them stand on their head, by the graph `cls`.
//! - [`read`]: what is written, by the graph `rec`; [`ctc`] makes text of its numbers, [`dictionary`] has the letters.
//! - [`layout`]: reading order, rows, paragraphs, headings.

mod blobs;
mod boxes;
mod crop;
mod ctc;
mod dictionary;
mod find;
mod layout;
mod page;
mod read;
mod strip;
mod turn;

use crate::card::{Section, Sections};
use crate::picture::Picture;
use crate::range::within;
use crate::task::{Job, Place, Task};
use backplane_plugin::payload::ocr::{Chunk as Answer, Line, Params};
use backplane_plugin::prelude::*;
use boxes::Quad;
use crop::Crop;
use page::Page;
use serde::Deserialize;

/// `[parameters.ocr]` of a card. Every default is PP-OCR's.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// Lines that are less certain are left out.
    min_score: f32,
    page: page::Settings,
    det: find::Settings,
    cls: turn::Settings,
    rec: read::Settings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            min_score: 0.5,
            page: Default::default(),
            det: Default::default(),
            cls: Default::default(),
            rec: Default::default(),
        }
    }
}

impl Section for Settings {
    fn check(&self) -> Result<(), String> {
        within("min_score", self.min_score, 0.0..=1.0)?;
        self.page.check()?;
        self.det.check()?;
        self.cls.check()?;
        self.rec.check()
    }
}

/// A model that reads.
pub struct Ocr {
    settings: Settings,
    finder: find::Finder,
    /// Where the model has a graph for it.
    turner: Option<turn::Turner>,
    reader: read::Reader,
}

impl Ocr {
    /// As the card says.
    ///
    /// # Errors
    /// When a graph or the dictionary is missing, or a parameter does not fit.
    pub fn of(model: &ModelSpec, sections: &Sections<'_>) -> Result<Self> {
        let settings: Settings = sections.read("ocr")?;
        let finder = find::Finder::of(model, &settings.det)?;
        let turner = match model.find_file("cls") {
            Some(_) => Some(turn::Turner::of(model, &settings.cls)?),
            None => None,
        };
        let reader = read::Reader::of(model, &settings.rec)?;
        Ok(Self { settings, finder, turner, reader })
    }

    /// The lines of a page: where they are, how certain that is, and what they look like.
    fn find(&self, job: &Job<'_>, picture: &Picture, wanted: bool) -> Result<Vec<Found>> {
        if !wanted {
            let (width, height) = (picture.width() as f32, picture.height() as f32);
            let corners = [[0.0, 0.0], [width, 0.0], [width, height], [0.0, height]];
            return Ok(vec![Found { corners, score: 1.0, crop: Crop::whole(picture) }]);
        }
        let page = job.work(|| Page::of(picture, &self.settings.page))??;
        let mut lines = self.finder.find(job, &page.picture)?;
        job.work(|| {
            layout::sort(&mut lines);
            let found = |(quad, score): &(Quad, f32)| Found {
                corners: page.original(quad),
                score: *score,
                crop: Crop::of(&page.picture, quad),
            };
            lines.iter().map(found).collect()
        })
    }
}

/// A line that was found.
struct Found {
    /// In the picture that was sent.
    corners: Quad,
    score: f32,
    crop: Crop,
}

impl Task for Ocr {
    fn serve(&self, job: &Job<'_>) -> Result<Done> {
        let params: Params = job.request.params()?;
        refuse_unknown::<Params>(&params.extra)?;
        let turns = turns(&params, self.turner.as_ref())?;
        let detect = params.detect.unwrap_or(true);
        // A line that was not found but given is no mistake of the finder's: as with RapidOCR, it stays, however uncertain.
        let min_score = min_score(&params, if detect { self.settings.min_score } else { 0.0 })?;
        let pictures = job.pictures(params.image.as_deref(), &params.images, false)?;
        job.each(&pictures, |picture, Place { image, page }| {
            let lines = self.read(job, picture, &params, turns, min_score)?;
            let confidence = confidence(&lines);
            let answer = Answer {
                image,
                page,
                width: picture.width(),
                height: picture.height(),
                text: layout::text(&lines),
                markdown: layout::markdown(&lines),
                lines,
                ..Answer::default()
            };
            Ok((Chunk::json(&answer)?, confidence))
        })
    }
}

impl Ocr {
    fn read(
        &self,
        job: &Job<'_>,
        picture: &Picture,
        params: &Params,
        turns: Option<&turn::Turner>,
        min_score: f32,
    ) -> Result<Vec<Line>> {
        let mut found = self.find(job, picture, params.detect.unwrap_or(true))?;
        if let Some(turner) = turns {
            turner.turn(job, found.iter_mut().map(|line| &mut line.crop).collect())?;
        }
        Ok(if params.recognize.unwrap_or(true) {
            let texts = self.reader.read(job, &found.iter().map(|line| &line.crop).collect::<Vec<_>>())?;
            let words = params.words.unwrap_or_default();
            let line = |(found, text): (&Found, read::Read)| Line {
                words: if words {
                    text.words(|from, to| found.crop.part(&found.corners, from, to))
                } else {
                    Vec::new()
                },
                corners: found.corners,
                score: text.score,
                text: text.text,
            };
            found.iter().zip(texts).map(line).filter(|line| line.score >= min_score).collect()
        } else {
            let line = |line: Found| Line { corners: line.corners, score: line.score, ..Line::default() };
            found.into_iter().map(line).collect()
        })
    }
}

/// The turner, if lines are to be turned.
fn turns<'a>(params: &Params, turner: Option<&'a turn::Turner>) -> Result<Option<&'a turn::Turner>> {
    match (params.direction, turner) {
        (Some(true), None) => {
            Err(Error::invalid("`direction` is asked for, and the model has no graph that tells it")
                .with_param("direction"))
        }
        (Some(false), _) => Ok(None),
        (_, turner) => Ok(turner),
    }
}

fn min_score(params: &Params, default: f32) -> Result<f32> {
    match params.min_score {
        Some(score) if !(0.0..=1.0).contains(&score) => {
            Err(Error::invalid(format!("`min_score` is {score}, and lies between 0 and 1"))
                .with_param("min_score"))
        }
        score => Ok(score.unwrap_or(default)),
    }
}

/// How certain an answer is: the mean over its characters. Nothing to say of an empty one.
fn confidence(lines: &[Line]) -> Option<f64> {
    let letters = |line: &Line| line.text.chars().count().max(1) as f64;
    let all: f64 = lines.iter().map(letters).sum();
    let sum: f64 = lines.iter().map(|line| f64::from(line.score) * letters(line)).sum();
    (!lines.is_empty()).then(|| sum / all)
}
