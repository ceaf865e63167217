//! `vision.classify`: what a picture shows as a whole, by a graph that gives one number for each label.

use crate::card::{Section, Sections};
use crate::fit::{self, Fit, Input, Usual};
use crate::graph::Graph;
use crate::range::{count, within};
use crate::task::{Job, MAX_PICTURES, Place, Task, mean};
use backplane_plugin::payload::classify::Label;
use backplane_plugin::payload::vision_classify::{Chunk as Answer, Params};
use backplane_plugin::prelude::*;
use serde::Deserialize;

/// `[parameters.classify]` of a card.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    input: fit::Settings,
    /// Name of the graph's output; without one, its first.
    output: Option<String>,
    activation: Activation,
    top_k: u32,
    /// Pictures of one run; 1 where the graph takes no more.
    batch: usize,
}

impl Default for Settings {
    fn default() -> Self {
        let (input, activation) = (fit::Settings::default(), Activation::default());
        Self { input, output: None, activation, top_k: 5, batch: 1 }
    }
}

impl Section for Settings {
    fn check(&self) -> Result<(), String> {
        within("batch", self.batch, 1..=MAX_PICTURES)?;
        within("top_k", self.top_k, 1..=u32::MAX)
    }
}

/// What makes probabilities of the graph's numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Activation {
    /// They are one in sum.
    #[default]
    Softmax,
    /// Each by itself.
    Sigmoid,
    /// They are probabilities.
    None,
}

/// A model that classifies.
pub struct Classify {
    graph: Graph,
    input: Input,
    labels: Vec<String>,
    settings: Settings,
}

impl Classify {
    /// As the card says.
    ///
    /// # Errors
    /// When the graph or the labels are missing, or a parameter does not fit.
    pub fn of(model: &ModelSpec, sections: &Sections<'_>) -> Result<Self> {
        let settings: Settings = sections.read("classify")?;
        let usual = Usual { name: "input", size: [224, 224], fit: Fit::Crop };
        let (graph, input) = (Graph::of(model, "model")?, Input::of(&settings.input, usual)?);
        Ok(Self { graph, input, labels: model.labels()?, settings })
    }
}

impl Task for Classify {
    fn serve(&self, job: &Job<'_>) -> Result<Done> {
        let params: Params = job.request.params()?;
        refuse_unknown::<Params>(&params.extra)?;
        let top_k = count("top_k", params.top_k, self.settings.top_k, self.labels.len() as u32)?;
        let pictures = job.pictures(params.image.as_deref(), &params.images, false)?;
        let mut confidences = Vec::new();
        for some in pictures.batches(self.settings.batch) {
            let fitted = job.fitted(&pictures, some.clone(), |picture| self.input.fit(picture))?;
            let tensor = job.work(|| self.input.tensor(&fitted))??;
            let output = self.settings.output.as_deref();
            for (at, numbers) in some.zip(self.graph.rows(job, tensor, output, fitted.len())?) {
                let (answer, confidence) = self.answer(pictures.place(at), &numbers, top_k as usize)?;
                job.request.push_json(&answer)?;
                confidences.extend(confidence);
            }
        }
        Ok(Done { confidence: mean(&confidences), ..Done::new() })
    }
}

impl Classify {
    /// What the numbers for one picture say.
    fn answer(&self, place: Place, numbers: &[f32], top_k: usize) -> Result<(Answer, Option<f64>)> {
        if numbers.len() != self.labels.len() {
            let odd = format!("gave {} numbers for {} labels", numbers.len(), self.labels.len());
            return Err(self.graph.odd(&odd));
        }
        let labels = best(&self.settings.activation.of(numbers), top_k);
        let confidence = labels.first().map(|(_, score)| f64::from(*score));
        let label = |(place, score): (usize, f32)| Label { label: self.labels[place].clone(), score };
        let (Place { image, page }, labels) = (place, labels.into_iter().map(label).collect());
        Ok((Answer { image, page, labels, ..Answer::default() }, confidence))
    }
}

impl Activation {
    fn of(self, numbers: &[f32]) -> Vec<f32> {
        match self {
            Self::None => numbers.to_vec(),
            Self::Sigmoid => numbers.iter().map(|number| 1.0 / (1.0 + (-number).exp())).collect(),
            Self::Softmax => {
                // The largest is taken off first, so that nothing overflows.
                let largest = numbers.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let powers: Vec<f32> = numbers.iter().map(|number| (number - largest).exp()).collect();
                let sum: f32 = powers.iter().sum();
                powers.into_iter().map(|power| power / sum).collect()
            }
        }
    }
}

/// Places of the largest numbers, the largest first; what is no number is none of them.
fn best(numbers: &[f32], most: usize) -> Vec<(usize, f32)> {
    let mut places: Vec<(usize, f32)> =
        numbers.iter().copied().enumerate().filter(|(_, number)| number.is_finite()).collect();
    places.sort_by(|a, b| b.1.total_cmp(&a.1));
    places.truncate(most);
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_made_as_the_card_says() {
        let softmax = Activation::Softmax.of(&[1000.0, 1000.0, 0.0]);
        assert_eq!(softmax, [0.5, 0.5, 0.0], "without overflow");
        assert_eq!(Activation::Sigmoid.of(&[0.0, 100.0, -100.0])[..2], [0.5, 1.0]);
        assert_eq!(Activation::None.of(&[0.3]), [0.3]);
    }

    #[test]
    fn the_largest_come_first() {
        assert_eq!(best(&[0.1, 0.7, f32::NAN, 0.2], 2), [(1, 0.7), (3, 0.2)]);
        assert_eq!(best(&[0.1, f32::NAN], 5), [(0, 0.1)]);
    }
}
