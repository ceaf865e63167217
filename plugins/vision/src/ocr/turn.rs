//! Which lines stand on their head: a graph gives the probabilities of 0 and of 180 degrees.

use super::crop::Crop;
use super::strip::{runs, strips};
use crate::graph::Graph;
use crate::picture::{Channels, Numbers};
use crate::range::within;
use crate::task::Job;
use backplane_plugin::prelude::*;
use serde::Deserialize;

/// `[parameters.ocr.cls]` of a card.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Name of the graph's input.
    pub input: String,
    pub height: u32,
    pub width: u32,
    /// How bytes become numbers.
    pub numbers: Numbers,
    /// A line is turned when this is more probable than that.
    pub threshold: f32,
    /// Lines of one run of the graph.
    pub batch: usize,
}

impl Default for Settings {
    fn default() -> Self {
        let numbers =
            Numbers { channels: Channels::Bgr, mean: [0.5; 3], std: [0.5; 3], ..Numbers::default() };
        Self { input: "x".to_owned(), height: 48, width: 192, numbers, threshold: 0.9, batch: 6 }
    }
}

impl Settings {
    /// # Errors
    /// What is out of range, by its name.
    pub fn check(&self) -> Result<(), String> {
        within("cls.height", self.height, 1..=4096)?;
        within("cls.width", self.width, 1..=4096)?;
        within("cls.threshold", self.threshold, 0.0..=1.0)?;
        within("cls.batch", self.batch, 1..=1024)?;
        self.numbers.check("cls.numbers")
    }
}

/// Turns lines.
pub struct Turner {
    graph: Graph,
    settings: Settings,
}

impl Turner {
    /// # Errors
    /// When the card lists no graph `cls`.
    pub fn of(model: &ModelSpec, settings: &Settings) -> Result<Self> {
        Ok(Self { graph: Graph::of(model, "cls")?, settings: settings.clone() })
    }

    /// Turns those that stand on their head.
    ///
    /// # Errors
    /// What the graph said.
    pub fn turn(&self, job: &Job<'_>, mut lines: Vec<&mut Crop>) -> Result<()> {
        let Settings { input, height, width, numbers, threshold, batch } = &self.settings;
        let runs = runs(&lines.iter().map(|line| &**line).collect::<Vec<_>>(), *batch);
        for run in runs {
            let strips = {
                let lines: Vec<&Crop> = run.iter().map(|place| &*lines[*place]).collect();
                job.work(|| strips(input, &lines, *height, *width, numbers))??
            };
            let turned: Vec<bool> = self.graph.run_to(job, strips, |shape, numbers| {
                if *shape != [run.len() as i64, 2] {
                    return Err(self.graph.odd(&format!("gave {shape:?} for {} lines", run.len())));
                }
                Ok(numbers
                    .as_chunks()
                    .0
                    .iter()
                    .map(|[head, feet]: &[f32; 2]| head < feet && threshold < feet)
                    .collect())
            })?;
            for (place, _) in run.into_iter().zip(turned).filter(|(_, turned)| *turned) {
                lines[place].turn();
            }
        }
        Ok(())
    }
}
