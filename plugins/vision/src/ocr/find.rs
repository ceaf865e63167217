//! Where the lines are: a graph marks each pixel with the probability that it belongs to text (DB, "differentiable
//! binarization"); what it marks becomes rectangles.

use super::blobs::{Map, blobs};
use super::boxes::{Quad, grown, mean_within, ordered, smallest_rectangle};
use super::page::fitted;
use crate::graph::Graph;
use crate::picture::{Channels, Numbers, Picture};
use crate::range::within;
use crate::task::Job;
use backplane_plugin::prelude::*;
use serde::Deserialize;

/// `[parameters.ocr.det]` of a card.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Name of the graph's input.
    pub input: String,
    /// A shorter side is scaled up to this before lines are looked for …
    pub min_side: u32,
    /// … and a longer side down to this.
    pub max_side: u32,
    /// How bytes become numbers.
    pub numbers: Numbers,
    /// A pixel this probable belongs to text.
    pub threshold: f32,
    /// Whether what belongs to text is made a pixel thicker.
    pub dilate: bool,
    /// A place has to be this probable on the whole.
    pub box_threshold: f32,
    /// How far a place reaches beyond what was marked.
    pub unclip: f64,
    /// A picture with more places than this is refused.
    pub max_lines: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            input: "x".to_owned(),
            min_side: 736,
            max_side: 4096,
            numbers: Numbers { channels: Channels::Bgr, mean: [0.5; 3], std: [0.5; 3], ..Numbers::default() },
            threshold: 0.3,
            dilate: true,
            box_threshold: 0.5,
            unclip: 1.6,
            max_lines: 5000,
        }
    }
}

impl Settings {
    /// # Errors
    /// What is out of range, by its name.
    pub fn check(&self) -> Result<(), String> {
        within("det.max_side", self.max_side, 32..=16_384)?;
        within("det.min_side", self.min_side, 1..=self.max_side)?;
        within("det.threshold", self.threshold, 0.0..=1.0)?;
        within("det.box_threshold", self.box_threshold, 0.0..=1.0)?;
        within("det.unclip", self.unclip, 0.0..=100.0)?;
        within("det.max_lines", self.max_lines, 1..=100_000)?;
        self.numbers.check("det.numbers")
    }
}

/// Finds lines.
pub struct Finder {
    graph: Graph,
    settings: Settings,
}

impl Finder {
    /// # Errors
    /// When the card lists no graph `det`.
    pub fn of(model: &ModelSpec, settings: &Settings) -> Result<Self> {
        Ok(Self { graph: Graph::of(model, "det")?, settings: settings.clone() })
    }

    /// The places of lines in a picture, in no order, each with how probable it is.
    ///
    /// # Errors
    /// What the graph said, or that there are too many.
    pub fn find(&self, job: &Job<'_>, picture: &Picture) -> Result<Vec<(Quad, f32)>> {
        let (width, height) = self.size(picture);
        let sides = [1, 3, i64::from(height), i64::from(width)];
        let input = job.work(|| {
            let mut numbers = vec![0.0; 3 * width as usize * height as usize];
            let scaled = picture.scaled(width, height)?;
            self.settings.numbers.planes(&scaled, width as usize, height as usize, &mut numbers);
            Tensor::new(&*self.settings.input, &sides, numbers)
        })??;
        self.graph.run_to(job, input, |shape, numbers| {
            let (&[1, 1, rows, columns], true) = (shape, shape[2..] == sides[2..]) else {
                return Err(self.graph.odd(&format!("gave {shape:?} for a picture of {sides:?}")));
            };
            let map = Map { width: columns as usize, height: rows as usize, numbers };
            job.work(|| self.places(&map, picture))?
        })
    }

    /// The size that the graph is fed with.
    fn size(&self, picture: &Picture) -> (u32, u32) {
        let (width, height) = (picture.width(), picture.height());
        let short = f64::from(self.settings.min_side) / f64::from(width.min(height));
        let long = f64::from(self.settings.max_side) / f64::from(width.max(height));
        fitted(width, height, short.max(1.0).min(long))
    }

    fn places(&self, map: &Map<'_>, picture: &Picture) -> Result<Vec<(Quad, f32)>> {
        /// The least height of a line, in pixels of the map; and once it has grown.
        const LEAST: f32 = 3.0;
        let Settings { threshold, dilate, box_threshold, unclip, max_lines, .. } = self.settings;
        let blobs = blobs(map, threshold, dilate);
        let mut places = Vec::new();
        for blob in blobs {
            let (core, side) = smallest_rectangle(blob);
            if side < LEAST {
                continue;
            }
            let score = mean_within(map, &core);
            if score < box_threshold {
                continue;
            }
            let (whole, side) = smallest_rectangle(grown(&core, unclip));
            if side < LEAST + 2.0 {
                continue;
            }
            places.extend(on_page(&whole, map, picture).map(|place| (place, score)));
        }
        if max_lines < places.len() {
            let message = format!(
                "the picture has {} lines, and {max_lines} are read at most: send it in parts",
                places.len()
            );
            return Err(Error::invalid(message).with_param("image"));
        }
        Ok(places)
    }
}

/// A place of the map in the picture, on whole pixels. None where too little is left of it.
fn on_page(quad: &Quad, map: &Map<'_>, picture: &Picture) -> Option<Quad> {
    let axis = |place: f32, of: usize, to: u32| {
        let place = (place / of as f32 * to as f32).round_ties_even();
        place.clamp(0.0, to as f32 - 1.0)
    };
    let quad = ordered(
        quad.map(|[x, y]| [axis(x, map.width, picture.width()), axis(y, map.height, picture.height())]),
    );
    let length = |a: [f32; 2], b: [f32; 2]| (a[0] - b[0]).hypot(a[1] - b[1]).trunc();
    (3.0 < length(quad[0], quad[1]) && 3.0 < length(quad[0], quad[3])).then_some(quad)
}
