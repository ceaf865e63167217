//! Apertium: rules and dictionaries, as programs of the system.
//!
//! A pair is a *mode*: a file with a pipeline of programs. It is read here and its programs are started without a shell,
//! joined by pipes, and kept: a started pipeline answers in a millisecond, and starting one takes a tenth of a second.
//! Sentences go in one by one, each ended by a null character, on which every program of the pipeline lets go of what it has.

mod mode;
mod pipeline;
mod stream;

use super::{Engine, Pair, Work};
use crate::languages;
use crate::protect::document::Rendering;
use crate::protect::weave::Part;
use backplane_plugin::prelude::*;
use mode::Mode;
use pipeline::Pipeline;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Pipelines that wait for work; more are ended.
const IDLE: usize = 2;
/// A pipeline that fails for so many sentences in a row fails for all.
const FAILURES: usize = 3;

/// The modes of a machine.
pub struct Apertium {
    modes: Vec<Mode>,
    idle: Mutex<Vec<(String, Pipeline)>>,
}

impl Apertium {
    /// Looks for modes in `folder`, else beside the programs that are on `PATH`.
    pub fn find(folder: Option<&Path>) -> Self {
        let folders = match folder {
            Some(folder) => vec![folder.to_owned()],
            None => mode::search_path()
                .iter()
                .filter_map(|bin| Some(bin.parent()?.join("share/apertium/modes")))
                .collect(),
        };
        let mut modes: Vec<Mode> = Vec::new();
        let mut files: Vec<PathBuf> = folders
            .iter()
            .filter_map(|folder| std::fs::read_dir(folder).ok())
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        // A mode without a variant comes before one with.
        files.sort_by_key(|file| (file.to_string_lossy().contains('_'), file.clone()));
        for mode in files.iter().filter_map(|file| Mode::read(file)) {
            if !modes.iter().any(|other| other.pair() == mode.pair()) {
                modes.push(mode);
            }
        }
        Self { modes, idle: Mutex::default() }
    }

    /// The pairs that are installed.
    pub fn pairs(&self) -> impl Iterator<Item = Pair> + '_ {
        self.modes.iter().map(Mode::pair)
    }

    fn mode(&self, pair: Pair) -> Option<&Mode> {
        self.modes.iter().find(|mode| mode.pair() == pair)
    }

    fn take(&self, mode: &Mode) -> Result<Pipeline> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let found = idle.iter().rposition(|(name, _)| *name == mode.name).map(|at| idle.remove(at).1);
        drop(idle);
        found.map_or_else(|| Pipeline::start(mode), Ok)
    }

    fn give_back(&self, mode: &Mode, pipeline: Pipeline) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = (IDLE <= idle.len()).then(|| idle.remove(0));
        idle.push((mode.name.clone(), pipeline));
        drop(idle);
        drop(oldest);
    }
}

impl Engine for Apertium {
    fn name(&self) -> &'static str {
        "apertium"
    }

    fn longest(&self) -> usize {
        2000
    }

    fn serves(&self, pair: Pair) -> bool {
        self.mode(pair).is_some()
    }

    fn translate(&self, pair: Pair, sentences: &[Vec<Part>], work: &Work<'_>) -> Result<Vec<Rendering>> {
        let Some(mode) = self.mode(pair) else {
            return Err(Error::internal("Apertium was asked for a pair that it does not serve"));
        };
        let mut renderings = Vec::with_capacity(sentences.len());
        let mut pipeline = self.take(mode)?;
        let mut failures = 0;
        for sentence in sentences {
            work.check()?;
            match pipeline.ask(&stream::write(sentence), &|| work.check()) {
                Ok(answer) => {
                    failures = 0;
                    let read = stream::read(&answer);
                    renderings.push(Rendering { confidence: confidence(&read), parts: read.parts });
                }
                Err(error) => {
                    // The caller has left, or time is up: the pipeline is in the middle of something, and ends here.
                    work.check()?;
                    failures += 1;
                    if failures == FAILURES || error.code == Code::OutOfRange {
                        return Err(error);
                    }
                    renderings.push(Rendering { parts: Vec::new(), confidence: 0.0 });
                    pipeline = Pipeline::start(mode)?;
                }
            }
        }
        self.give_back(mode, pipeline);
        Ok(renderings)
    }
}

/// What rules make of words that they know is right more often than not; a word that no dictionary has is left as it was,
/// which is right for a name.
fn confidence(read: &stream::Read) -> f64 {
    const KNOWN: f64 = 0.8;
    let unknown = read.unknown as f64 + 0.3 * read.unknown_names as f64;
    KNOWN * (1.0 - unknown / (read.words.max(1)) as f64).max(0.0)
}

/// The languages of a mode's name: `eng-spa`, `spa-eng_US`.
fn pair_of(name: &str) -> Option<Pair> {
    let (from, to) = name.split_once('-')?;
    // Behind the language a mode may name a variety, which may look like a script: `oci_aran`.
    let language = |name: &str| languages::find(name).or_else(|| languages::find(name.split('_').next()?));
    let pair = Pair { from: language(from)?, to: language(to)? };
    (pair.from != pair.to && !to.contains('-')).then_some(pair)
}
