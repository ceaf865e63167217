//! `vision.embed`: the features of pictures, each of length 1, and how alike they are.

use crate::card::{Section, Sections};
use crate::fit::{self, Fit, Input, Usual};
use crate::graph::Graph;
use crate::range::within;
use crate::task::{Job, MAX_PICTURES, Task};
use backplane_plugin::payload::vision_embed::{Chunk as Answer, Params};
use backplane_plugin::prelude::*;
use serde::Deserialize;

/// `[parameters.embed]` of a card.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    input: fit::Settings,
    /// Name of the graph's output; without one, its first.
    output: Option<String>,
    /// Pictures of one run; 1 where the graph takes no more.
    batch: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { input: fit::Settings::default(), output: None, batch: 16 }
    }
}

impl Section for Settings {
    fn check(&self) -> Result<(), String> {
        within("batch", self.batch, 1..=MAX_PICTURES)
    }
}

/// A model that embeds pictures.
pub struct Embed {
    graph: Graph,
    input: Input,
    output: Option<String>,
    batch: usize,
}

impl Embed {
    /// As the card says.
    ///
    /// # Errors
    /// When the graph is missing, or a parameter does not fit.
    pub fn of(model: &ModelSpec, sections: &Sections<'_>) -> Result<Self> {
        let Settings { input, output, batch } = sections.read("embed")?;
        let usual = Usual { name: "input", size: [224, 224], fit: Fit::Crop };
        Ok(Self { graph: Graph::of(model, "model")?, input: Input::of(&input, usual)?, output, batch })
    }
}

impl Task for Embed {
    fn serve(&self, job: &Job<'_>) -> Result<Done> {
        let params: Params = job.request.params()?;
        refuse_unknown::<Params>(&params.extra)?;
        let pictures = job.pictures(params.image.as_deref(), &params.images, false)?;
        let mut rows = Vec::with_capacity(pictures.len());
        for some in pictures.batches(self.batch) {
            let fitted = job.fitted(&pictures, some, |picture| self.input.fit(picture))?;
            let tensor = job.work(|| self.input.tensor(&fitted))??;
            rows.extend(self.graph.rows(job, tensor, self.output.as_deref(), fitted.len())?);
        }
        let unit =
            rows.iter().map(|row| unit(row).ok_or_else(|| self.graph.odd("gave features that are all 0")));
        let unit = unit.collect::<Result<Vec<_>>>()?;
        let dimensions = unit.first().map_or(0, Vec::len);
        let similarity = if unit.len() > 1 { similarity(&unit) } else { Vec::new() };
        let answer = Answer { dimensions: dimensions as u32, similarity, ..Answer::default() };
        let embeddings = Tensor::new("embeddings", &[unit.len() as i64, dimensions as i64], unit.concat())?;
        job.request.push(&Chunk::json(&answer)?.tensor(embeddings))?;
        Ok(Done::new())
    }
}

/// In the same direction, of length 1.
fn unit(features: &[f32]) -> Option<Vec<f32>> {
    let length = features.iter().map(|number| f64::from(*number).powi(2)).sum::<f64>().sqrt();
    (length.is_normal()).then(|| features.iter().map(|number| (f64::from(*number) / length) as f32).collect())
}

/// Each with each: of vectors of length 1 the cosine is their product.
fn similarity(unit: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let product = |a: &[f32], b: &[f32]| {
        let sum: f64 = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        (sum as f32).clamp(-1.0, 1.0)
    };
    unit.iter().map(|a| unit.iter().map(|b| product(a, b)).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_have_length_1_and_products_are_cosines() {
        let all = [unit(&[3.0, 4.0]).unwrap(), unit(&[-4.0, 3.0]).unwrap(), unit(&[6.0, 8.0]).unwrap()];
        assert_eq!(all[0], [0.6, 0.8]);
        let alike = similarity(&all);
        assert!(
            (alike[0][0] - 1.0).abs() < 1e-6 && alike[0][1].abs() < 1e-6 && (alike[0][2] - 1.0).abs() < 1e-6
        );
        assert_eq!(alike[1][0], alike[0][1]);
    }

    #[test]
    fn what_has_no_direction_has_no_features() {
        assert!(unit(&[0.0, 0.0]).is_none());
        assert!(unit(&[f32::NAN, 1.0]).is_none());
        assert!(unit(&[f32::INFINITY, 1.0]).is_none());
    }
}
