//! `vision.faces`: faces and where their parts are, by the three graphs of MTCNN, which the card lists as `pnet`, `rnet`
//! and `onet`: the first looks at all of the picture in many sizes, the others look closer at what the one before found.
//!
//! - [`area`]: means over areas, which is how these graphs want a picture made smaller.
//! - [`square`]: boxes as MTCNN counts them.
//!
//! The graphs were made from weights that take pictures column by column, so width comes before height in their tensors.

mod area;
mod square;

use crate::card::{Section, Sections};
use crate::draw::{Canvas, Mark};
use crate::graph::Graph;
use crate::picture::Picture;
use crate::range::{count, fraction, within};
use crate::task::{Job, Place, Task, mean};
use area::{MAX_PIXELS, Sums};
use backplane_plugin::Answer as Given;
use backplane_plugin::payload::vision_faces::{Chunk as Answer, Face, Landmarks, Params};
use backplane_plugin::prelude::*;
use serde::Deserialize;
use square::{Candidate, Share, pick};

/// `[parameters.faces]` of a card.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// Names of the graphs' inputs.
    inputs: [String; 3],
    /// Smaller faces need not be found: pixels of a side.
    min_size: u32,
    /// How much smaller each size is than the one before.
    factor: f64,
    /// How certain each graph has to be.
    thresholds: [f32; 3],
}

impl Default for Settings {
    fn default() -> Self {
        let inputs = ["input_1", "input_2", "input_3"].map(str::to_owned);
        Self { inputs, min_size: 20, factor: 0.709, thresholds: [0.6, 0.7, 0.7] }
    }
}

impl Section for Settings {
    fn check(&self) -> Result<(), String> {
        within("factor", self.factor, 0.1..=0.95)?;
        within("min_size", self.min_size, CELL..=u32::MAX)?;
        self.thresholds.into_iter().try_for_each(|threshold| within("thresholds", threshold, 0.0..=1.0))
    }
}

/// What the first graph looks at: a square of this side, every other pixel.
const CELL: u32 = 12;
const STEP: u32 = 2;
/// Places of one size, and of all, that are looked at further.
const MAX_PLACES: usize = 2000;
/// Places that a graph looks at in one run.
const BATCH: usize = 128;

/// A model that finds faces.
pub struct Faces {
    graphs: [Graph; 3],
    settings: Settings,
}

impl Faces {
    /// As the card says.
    ///
    /// # Errors
    /// When a graph is missing, or a parameter does not fit.
    pub fn of(model: &ModelSpec, sections: &Sections<'_>) -> Result<Self> {
        let settings: Settings = sections.read("faces")?;
        let graph = |role| Graph::of(model, role);
        Ok(Self { graphs: [graph("pnet")?, graph("rnet")?, graph("onet")?], settings })
    }

    /// Where faces may be, by the first graph.
    fn propose(
        &self,
        job: &Job<'_>,
        sums: &Sums,
        picture: &Picture,
        min_size: f64,
    ) -> Result<Vec<Candidate>> {
        let (width, height) = (f64::from(picture.width()), f64::from(picture.height()));
        let mut all = Vec::new();
        let mut scale = f64::from(CELL) / min_size;
        while width.min(height) * scale >= f64::from(CELL) {
            let (columns, rows) = ((width * scale).ceil() as usize, (height * scale).ceil() as usize);
            let tensor = job.work(|| {
                let means = sums.window([0.0, 0.0, width, height], columns, rows);
                // A picture of whole numbers is made of one.
                let rounded = means.into_iter().map(|pixel| pixel.map(f32::round)).collect::<Vec<_>>();
                tensor(&self.settings.inputs[0], &[rounded], columns, rows)
            })??;
            let given = self.graphs[0].run(job, [tensor])?;
            let (moves, scores) = (self.output(0, &given, 4)?, self.output(0, &given, 2)?);
            let places = (moves.shape[1], moves.shape[2]);
            if scores.shape[..3] != moves.shape[..3]
                || places.0 as usize > columns
                || places.1 as usize > rows
            {
                return Err(self.graphs[0].odd(&format!("gave {:?} and {:?}", moves.shape, scores.shape)));
            }
            let found = (0..places.0 * places.1).filter_map(|at| {
                let (x, y) = ((at / places.1) as f64, (at % places.1) as f64);
                let score = scores.numbers[at as usize * 2 + 1];
                let edge = |cell: f64, side: u32| {
                    ((f64::from(STEP) * cell + f64::from(side)) / scale).trunc() as f32
                };
                let candidate = Candidate {
                    left: edge(x, 1),
                    top: edge(y, 1),
                    right: edge(x, CELL),
                    bottom: edge(y, CELL),
                    score,
                };
                let by = *moves.numbers[at as usize * 4..].first_chunk::<4>()?;
                (score >= self.settings.thresholds[0]).then_some((candidate, by))
            });
            all.extend(pick(found.collect(), 0.5, Share::OfBoth, MAX_PLACES));
            scale *= self.settings.factor;
        }
        let kept = pick(all, 0.7, Share::OfBoth, MAX_PLACES).into_iter();
        let kept =
            kept.map(|(it, by)| it.moved(&by, it.right - it.left, it.bottom - it.top).squared().truncated());
        Ok(kept.filter(Candidate::is_sound).collect())
    }

    /// What the second graph leaves of them.
    fn refine(&self, job: &Job<'_>, sums: &Sums, places: &[Candidate]) -> Result<Vec<Candidate>> {
        let mut all = Vec::new();
        for places in places.chunks(BATCH) {
            let given = self.look(job, sums, places, 1, 24)?;
            let (moves, scores) = (self.rows(1, &given, 4, places)?, self.rows(1, &given, 2, places)?);
            for ((place, by), score) in
                places.iter().zip(moves.as_chunks::<4>().0).zip(scores.as_chunks::<2>().0)
            {
                if score[1] > self.settings.thresholds[1] {
                    all.push((Candidate { score: score[1], ..*place }, *by));
                }
            }
        }
        let kept = pick(all, 0.7, Share::OfBoth, MAX_PLACES).into_iter();
        let kept =
            kept.map(|(place, by)| place.moved(&by, place.width(), place.height()).squared().truncated());
        Ok(kept.filter(Candidate::is_sound).collect())
    }

    /// Faces and their parts, by the third graph.
    fn name(
        &self,
        job: &Job<'_>,
        sums: &Sums,
        places: &[Candidate],
    ) -> Result<Vec<(Candidate, [[f32; 2]; 5])>> {
        let mut all = Vec::new();
        for places in places.chunks(BATCH) {
            let given = self.look(job, sums, places, 2, 48)?;
            let (moves, scores) = (self.rows(2, &given, 4, places)?, self.rows(2, &given, 2, places)?);
            let parts = self.rows(2, &given, 10, places)?;
            for (at, place) in places.iter().enumerate() {
                let (Some(by), Some(score), Some(parts)) = (
                    moves[at * 4..].first_chunk::<4>(),
                    scores.get(at * 2 + 1),
                    parts[at * 10..].first_chunk::<10>(),
                ) else {
                    continue;
                };
                if *score > self.settings.thresholds[2] {
                    let part = |part: usize| {
                        let x = parts[part] * place.width() + place.left - 1.0;
                        [x, parts[part + 5] * place.height() + place.top - 1.0]
                    };
                    let place = Candidate { score: *score, ..*place };
                    all.push((place.moved(by, place.width(), place.height()), std::array::from_fn(part)));
                }
            }
        }
        all.retain(|(place, parts)| place.is_sound() && parts.as_flattened().iter().all(|at| at.is_finite()));
        Ok(pick(all, 0.7, Share::OfSmaller, MAX_PLACES))
    }

    /// Runs a graph on places, each made `side` pixels wide and high.
    fn look(
        &self,
        job: &Job<'_>,
        sums: &Sums,
        places: &[Candidate],
        graph: usize,
        side: usize,
    ) -> Result<Given> {
        let tensor = job.work(|| {
            let window = |place: &Candidate| {
                // The first pixel of a picture is 1 to MTCNN.
                let corner = [f64::from(place.left) - 1.0, f64::from(place.top) - 1.0];
                sums.window(
                    [corner[0], corner[1], f64::from(place.width()), f64::from(place.height())],
                    side,
                    side,
                )
            };
            let windows: Vec<_> = places.iter().map(window).collect();
            tensor(&self.settings.inputs[graph], &windows, side, side)
        })??;
        self.graphs[graph].run(job, [tensor])
    }

    /// The output whose last side is this long.
    fn output<'a>(&self, graph: usize, given: &'a Given, last: i64) -> Result<Output<'a>> {
        let odd = |what: &str| self.graphs[graph].odd(what);
        let found =
            given.tensors.iter().map(|tensor| tensor.view()).find(|view| view.shape().last() == Some(&last));
        let view = found.ok_or_else(|| odd(&format!("gave no tensor whose last side is {last}")))?;
        let numbers = view.elements::<f32>().map_err(|error| odd(&error.message))?;
        match (graph, view.shape()) {
            (0, [1, _, _, _]) | (1 | 2, [_, _]) => Ok(Output { shape: view.shape(), numbers }),
            (_, shape) => Err(odd(&format!("gave {shape:?}"))),
        }
    }

    /// The output whose last side is this long, with a row for each place.
    fn rows<'a>(
        &self,
        graph: usize,
        given: &'a Given,
        last: i64,
        places: &[Candidate],
    ) -> Result<std::borrow::Cow<'a, [f32]>> {
        let output = self.output(graph, given, last)?;
        if output.shape[0] != places.len() as i64 {
            return Err(self.graphs[graph].odd(&format!(
                "gave {:?} for {} places",
                output.shape,
                places.len()
            )));
        }
        Ok(output.numbers)
    }
}

/// A tensor of a graph's answer.
struct Output<'a> {
    shape: &'a [i64],
    numbers: std::borrow::Cow<'a, [f32]>,
}

/// Windows with their columns before their rows, black −1 and white 1.
fn tensor(name: &str, windows: &[Vec<[f32; 3]>], columns: usize, rows: usize) -> Result<Tensor> {
    let mut numbers = Vec::with_capacity(windows.len() * columns * rows * 3);
    for window in windows {
        for x in 0..columns {
            for y in 0..rows {
                numbers.extend(window[y * columns + x].map(|byte| (byte - 127.5) * 0.007_812_5));
            }
        }
    }
    Tensor::new(name, &[windows.len() as i64, columns as i64, rows as i64, 3], numbers)
}

impl Task for Faces {
    fn serve(&self, job: &Job<'_>) -> Result<Done> {
        let params: Params = job.request.params()?;
        refuse_unknown::<Params>(&params.extra)?;
        let min_score = fraction("min_score", params.min_score, self.settings.thresholds[2])?;
        let min_size = count("min_size", params.min_size, self.settings.min_size, u32::MAX)?.max(CELL);
        let draw = params.draw == Some(true);
        let pictures = job.pictures(params.image.as_deref(), &params.images, draw)?;
        job.each(&pictures, |picture, place| {
            let (faces, drawn) = self.look_for(job, picture, min_score, min_size, draw)?;
            let confidence = mean(&faces.iter().map(|face| f64::from(face.score)).collect::<Vec<_>>());
            let (Place { image, page }, width, height) = (place, picture.width(), picture.height());
            let answer = Answer { image, page, width, height, faces, ..Answer::default() };
            Ok((drawn.into_iter().fold(Chunk::json(&answer)?, Chunk::tensor), confidence))
        })
    }
}

impl Faces {
    fn look_for(
        &self,
        job: &Job<'_>,
        picture: &Picture,
        min_score: f32,
        min_size: u32,
        draw: bool,
    ) -> Result<(Vec<Face>, Option<Tensor>)> {
        // A larger picture has its smallest faces in pixels to spare.
        let pixels = u64::from(picture.width()) * u64::from(picture.height());
        let scale = (MAX_PIXELS as f64 / pixels as f64).sqrt().min(1.0);
        let side = |length: u32| ((f64::from(length) * scale) as u32).max(1);
        let (width, height) = (side(picture.width()), side(picture.height()));
        let (seen, sums) = job.work(|| {
            let seen = picture.scaled(width, height)?;
            let sums = Sums::of(&seen);
            Ok::<_, Error>((seen, sums))
        })??;

        let smallest = (f64::from(min_size) * scale).max(f64::from(CELL));
        let places = self.propose(job, &sums, &seen, smallest)?;
        let places = self.refine(job, &sums, &places)?;
        let named = self.name(job, &sums, &places)?;

        let (across, down) = (picture.width() as f32, picture.height() as f32);
        let back = [across / width as f32, down / height as f32];
        let face = |(place, parts): &(Candidate, [[f32; 2]; 5])| {
            let [left_eye, right_eye, nose, mouth_left, mouth_right] =
                parts.map(|[x, y]| [x * back[0], y * back[1]]);
            let (x, y) = (|x: f32| (x * back[0]).clamp(0.0, across), |y: f32| (y * back[1]).clamp(0.0, down));
            let edges = [x(place.left), y(place.top), x(place.right), y(place.bottom)];
            Face {
                score: place.score,
                edges,
                landmarks: Landmarks { left_eye, right_eye, nose, mouth_left, mouth_right },
            }
        };
        let faces: Vec<Face> = named.iter().map(face).filter(|face| face.score >= min_score).collect();
        let drawn = if draw { Some(job.work(|| drawn(picture, &faces))??) } else { None };
        Ok((faces, drawn))
    }
}

/// The picture with its faces.
fn drawn(picture: &Picture, faces: &[Face]) -> Result<Tensor> {
    let mut canvas = Canvas::of(picture);
    for face in faces.iter().rev() {
        let label = format!("{:.0}%", face.score * 100.0);
        canvas.mark(&Mark { edges: face.edges, label: &label, colour: 0 });
        let parts = &face.landmarks;
        for part in [parts.left_eye, parts.right_eye, parts.nose, parts.mouth_left, parts.mouth_right] {
            canvas.dot(part, 1);
        }
    }
    canvas.tensor()
}
