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
use crate::task::{Job, Task};
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
}

impl Default for Settings {
    fn default() -> Self {
        let input = fit::Settings::default();
        Self { input, head: Head::default(), min_score: 0.25, max_overlap: 0.45, limit: 300 }
    }
}

/// No answer has more boxes.
const MAX_BOXES: u32 = 1000;

impl Section for Settings {
    fn check(&self) -> Result<(), String> {
        within("min_score", self.min_score, 0.0..=1.0)?;
        within("max_overlap", self.max_overlap, 0.0..=1.0)?;
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

    fn found(&self, job: &Job<'_>, fitted: Fitted, params: &Params) -> Result<Vec<Found>> {
        let wanted = self.wanted(params)?;
        let min_score = fraction("min_score", params.min_score, self.settings.min_score)?;
        let max_overlap = fraction("max_overlap", params.max_overlap, self.settings.max_overlap)?;
        let limit = count("limit", params.limit, self.settings.limit, MAX_BOXES)? as usize;
        let pictures = [fitted];
        let tensor = job.work(|| self.input.tensor(&pictures))??;
        let all = self.graph.run_to(job, tensor, |shape, numbers| {
            let read = self.settings.head.read(shape, numbers, self.labels.len(), min_score);
            read.map_err(|odd| self.graph.odd(&odd))
        })?;
        let all = all.into_iter().filter(|one| wanted.is_empty() || wanted.contains(&one.class)).collect();
        let kept = job.work(|| suppress(all, max_overlap, limit))?;
        let [fitted] = &pictures;
        Ok(kept.into_iter().map(|one| Found { edges: original(fitted, &one.edges), ..one }).collect())
    }
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
        let picture = job.picture(params.image.as_deref())?;
        let fitted = job.work(|| self.input.fit(&picture))??;
        let found = self.found(job, fitted, &params)?;
        let object = |one: &Found| {
            let edges = one.edges.within(picture.width(), picture.height());
            Object {
                label: self.labels.get(one.class).cloned().unwrap_or_default(),
                class: one.class as u32,
                score: one.score,
                edges: [edges.left, edges.top, edges.right, edges.bottom],
            }
        };
        let objects: Vec<Object> = found.iter().map(object).collect();
        let confidence = mean(objects.iter().map(|object| object.score));
        let drawn = match params.draw {
            Some(true) => Some(job.work(|| drawn(&picture, &objects))??),
            _ => None,
        };
        let answer =
            Answer { width: picture.width(), height: picture.height(), objects, ..Answer::default() };
        let chunk = drawn.into_iter().fold(Chunk::json(&answer)?, Chunk::tensor);
        job.request.push(&chunk)?;
        Ok(Done { confidence, ..Done::new() })
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

/// How certain an answer is on the whole. Nothing to say of an empty one.
pub fn mean(scores: impl ExactSizeIterator<Item = f32>) -> Option<f64> {
    let count = scores.len();
    (count > 0).then(|| scores.map(f64::from).sum::<f64>() / count as f64)
}
