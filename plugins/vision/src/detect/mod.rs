//! `vision.detect`: what a picture shows and where, by a graph of the YOLO shape.
//!
//! - [`head`]: what the graph gives.
//! - [`boxes`]: boxes, and which of those that overlap is kept.

pub mod boxes;
mod head;

use crate::card::{Section, Sections};
use crate::draw::{Canvas, Mark};
use crate::fit::{self, Fit, Fitted, Input, Usual};
use crate::graph::Graph;
use crate::picture::Picture;
use crate::range::{count, fraction, within};
use crate::task::{Job, MAX_PICTURES, Place, Task, mean};
use backplane_plugin::payload::vision_detect::{Chunk as Answer, Object, Params};
use backplane_plugin::prelude::*;
use boxes::{Edges, Found, suppress};
use head::Head;
use serde::Deserialize;
use std::collections::BTreeSet;

/// `[parameters.detect]` of a card.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    input: fit::Settings,
    head: Head,
    min_score: f32,
    max_overlap: f32,
    limit: u32,
    /// Pictures of one run; 1 where the graph takes no more.
    batch: usize,
}

impl Default for Settings {
    fn default() -> Self {
        let input = fit::Settings::default();
        Self { input, head: Head::default(), min_score: 0.25, max_overlap: 0.45, limit: 300, batch: 1 }
    }
}

/// No answer has more boxes.
const MAX_BOXES: u32 = 1000;

impl Section for Settings {
    fn check(&self) -> Result<(), String> {
        within("min_score", self.min_score, 0.0..=1.0)?;
        within("max_overlap", self.max_overlap, 0.0..=1.0)?;
        within("batch", self.batch, 1..=MAX_PICTURES)?;
        within("limit", self.limit, 1..=MAX_BOXES)
    }
}

/// A model that detects.
pub struct Detect {
    graph: Graph,
    input: Input,
    labels: Vec<String>,
    settings: Settings,
}

impl Detect {
    /// As the card says.
    ///
    /// # Errors
    /// When the graph or the labels are missing, or a parameter does not fit.
    pub fn of(model: &ModelSpec, sections: &Sections<'_>) -> Result<Self> {
        let settings: Settings = sections.read("detect")?;
        let usual = Usual { name: "images", size: [640, 640], fit: Fit::Letterbox };
        Ok(Self {
            graph: Graph::of(model, "model")?,
            input: Input::of(&settings.input, usual)?,
            labels: model.labels()?,
            settings,
        })
    }

    /// Places of the labels that are wanted; none means all.
    fn wanted(&self, params: &Params) -> Result<BTreeSet<usize>> {
        let place = |label: &String| {
            self.labels.iter().position(|other| other == label).ok_or_else(|| {
                Error::invalid(format!("the model has no label `{label}`; it has {}", listed(&self.labels)))
                    .with_param("labels")
            })
        };
        params.labels.iter().map(place).collect()
    }

    /// What is asked for, where a request says nothing as the card has it.
    fn asked(&self, params: &Params) -> Result<Asked> {
        Ok(Asked {
            wanted: self.wanted(params)?,
            min_score: fraction("min_score", params.min_score, self.settings.min_score)?,
            max_overlap: fraction("max_overlap", params.max_overlap, self.settings.max_overlap)?,
            limit: count("limit", params.limit, self.settings.limit, MAX_BOXES)? as usize,
        })
    }

    /// What each of some pictures shows, by one run of the graph.
    fn found(&self, job: &Job<'_>, pictures: &[&Fitted], asked: &Asked) -> Result<Vec<Vec<Found>>> {
        let tensor = job.work(|| self.input.tensor(pictures))??;
        let all = self.graph.run_to(job, tensor, |shape, numbers| {
            let rows =
                self.settings.head.read(shape, numbers, pictures.len(), self.labels.len(), asked.min_score);
            rows.map_err(|odd| self.graph.odd(&odd))
        })?;
        let kept = |all: Vec<Found>| {
            let wanted = |one: &Found| asked.wanted.is_empty() || asked.wanted.contains(&one.class);
            suppress(all.into_iter().filter(wanted).collect(), asked.max_overlap, asked.limit)
        };
        let kept: Vec<Vec<Found>> = job.work(|| all.into_iter().map(kept).collect())?;
        let back = |(found, fitted): (Vec<Found>, &&Fitted)| {
            found.into_iter().map(|one| Found { edges: original(fitted, &one.edges), ..one }).collect()
        };
        Ok(kept.into_iter().zip(pictures).map(back).collect())
    }

    /// What was found in a picture of this size.
    fn answer(&self, place: Place, [width, height]: [u32; 2], found: &[Found]) -> Answer {
        let object = |one: &Found| {
            let edges = one.edges.within(width, height);
            Object {
                label: self.labels.get(one.class).cloned().unwrap_or_default(),
                class: one.class as u32,
                score: one.score,
                edges: [edges.left, edges.top, edges.right, edges.bottom],
            }
        };
        let Place { image, page } = place;
        let objects = found.iter().map(object).collect();
        Answer { image, page, width, height, objects, ..Answer::default() }
    }
}

/// What a request asks for.
struct Asked {
    /// Places of labels; none means all.
    wanted: BTreeSet<usize>,
    min_score: f32,
    max_overlap: f32,
    limit: usize,
}

/// Edges in the picture that was sent.
fn original(fitted: &Fitted, edges: &Edges) -> Edges {
    let [left, top] = fitted.original([edges.left, edges.top]);
    let [right, bottom] = fitted.original([edges.right, edges.bottom]);
    Edges { left, top, right, bottom }
}

/// The first few.
fn listed(labels: &[String]) -> String {
    let first: Vec<String> = labels.iter().take(20).map(|label| format!("`{label}`")).collect();
    let more = labels.len().saturating_sub(first.len());
    first.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}

impl Task for Detect {
    fn serve(&self, job: &Job<'_>) -> Result<Done> {
        let params: Params = job.request.params()?;
        refuse_unknown::<Params>(&params.extra)?;
        let asked = self.asked(&params)?;
        let draw = params.draw == Some(true);
        let pictures = job.pictures(params.image.as_deref(), &params.images, draw)?;
        if draw {
            return job.each(&pictures, |picture, place| {
                let fitted = job.work(|| self.input.fit(picture))??;
                let found = self.found(job, &[&fitted], &asked)?.concat();
                let answer = self.answer(place, [picture.width(), picture.height()], &found);
                let drawn = job.work(|| drawn(picture, &answer.objects))??;
                Ok((Chunk::json(&answer)?.tensor(drawn), confidence(&answer)))
            });
        }
        let mut confidences = Vec::new();
        for some in pictures.batches(self.settings.batch) {
            let fit = |picture: &Picture| Ok(([picture.width(), picture.height()], self.input.fit(picture)?));
            let fitted = job.fitted(&pictures, some.clone(), fit)?;
            let found =
                self.found(job, &fitted.iter().map(|(_, fitted)| fitted).collect::<Vec<_>>(), &asked)?;
            for ((at, (size, _)), found) in some.zip(&fitted).zip(&found) {
                let answer = self.answer(pictures.place(at), *size, found);
                job.request.push_json(&answer)?;
                confidences.extend(confidence(&answer));
            }
        }
        Ok(Done { confidence: mean(&confidences), ..Done::new() })
    }
}

/// The picture with its boxes.
fn drawn(picture: &Picture, objects: &[Object]) -> Result<Tensor> {
    let mut canvas = Canvas::of(picture);
    // The most certain last, so that nothing lies over it.
    for object in objects.iter().rev() {
        let label = format!("{} {:.0}%", object.label, object.score * 100.0);
        canvas.mark(&Mark { edges: object.edges, label: &label, colour: object.class });
    }
    canvas.tensor()
}

/// How certain an answer is. Nothing to say of an empty one.
fn confidence(answer: &Answer) -> Option<f64> {
    mean(&answer.objects.iter().map(|object| f64::from(object.score)).collect::<Vec<_>>())
}
