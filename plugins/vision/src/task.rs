//! What serves one capability of a model, and what it is given to serve a request with.

use crate::picture::{Limits, Memory, Picture, Share, Source};
use backplane_plugin::prelude::*;
use std::ops::{Deref, Range};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Serves one capability of a model.
pub trait Task: Send + Sync {
    /// Answers a request: pushes pieces, and says how it ended.
    ///
    /// # Errors
    /// What is wrong with the request, or what a graph said.
    fn serve(&self, job: &Job<'_>) -> Result<Done>;
}

/// A request on an instance's seat.
pub struct Job<'a> {
    /// What is asked.
    pub request: &'a Request,
    seat: Seat,
    limits: Limits,
    memory: &'a Arc<Memory>,
}

/// A picture that was read, and its share of the memory.
pub struct Held {
    picture: Picture,
    _share: Share,
}

impl Deref for Held {
    type Target = Picture;

    fn deref(&self) -> &Picture {
        &self.picture
    }
}

/// A request has no more pictures.
pub const MAX_PICTURES: usize = 64;

/// The pictures of a request, not read yet.
pub struct Pictures<'a> {
    files: Vec<Source<'a>>,
    all: Vec<One>,
    /// Whether an answer says which it is about.
    listed: bool,
}

/// Which picture of a request an answer is about, where that is to be said.
#[derive(Clone, Copy)]
pub struct Place {
    /// The file, from 0.
    pub image: Option<u32>,
    /// Of a file with several pages, from 1.
    pub page: Option<u32>,
}

/// Where a picture is.
#[derive(Clone, Copy)]
struct One {
    file: usize,
    /// Of a file with several pages, from 1.
    page: Option<usize>,
    /// Of a TIFF, where it is not the first.
    directory: Option<u64>,
}

impl Pictures<'_> {
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Which of them this one is.
    pub fn place(&self, at: usize) -> Place {
        let One { file, page, .. } = self.all[at];
        let listed = self.listed || 1 < self.len();
        Place { image: listed.then_some(file as u32), page: page.map(|page| page as u32) }
    }

    /// Their places, so many at a time.
    pub fn batches(&self, batch: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let all = self.len();
        (0..all).step_by(batch.max(1)).map(move |from| from..all.min(from.saturating_add(batch)))
    }

    fn too_many(&self) -> Error {
        let message = match self.files.len() {
            1 => format!("the file has more pages than the {MAX_PICTURES} pictures that a request may have"),
            files if files <= MAX_PICTURES => {
                format!(
                    "the {files} files have more pages than the {MAX_PICTURES} pictures that a request may have"
                )
            }
            files => format!("there are {files} pictures, and a request may have {MAX_PICTURES}"),
        };
        Error::invalid(message).with_param(self.param())
    }

    /// The parameter that holds them.
    fn param(&self) -> &'static str {
        if 1 < self.files.len() { "images" } else { "image" }
    }

    /// Which of them is at fault, where there are several.
    fn named(&self, at: usize, mut error: Error) -> Error {
        if error.details.get("param").is_none_or(|param| param != "image") {
            return error;
        }
        let One { file, page, .. } = self.all[at];
        let file = (1 < self.files.len()).then(|| format!("images[{file}]"));
        let name = match (&file, page) {
            (None, None) => return error,
            (Some(file), None) => format!("`{file}`"),
            (None, Some(page)) => format!("page {page}"),
            (Some(file), Some(page)) => format!("page {page} of `{file}`"),
        };
        error.message = format!("{name}: {}", error.message);
        match file {
            Some(file) => error.with_param(file),
            None => error,
        }
    }
}

/// How certain an answer is on the whole. Nothing to say of an empty one.
pub fn mean(confidences: &[f64]) -> Option<f64> {
    (!confidences.is_empty()).then(|| rounded(confidences.iter().sum::<f64>() / confidences.len() as f64))
}

/// With the digits that a number of 32 bits has.
fn rounded(confidence: f64) -> f64 {
    (confidence * 1e6).round() / 1e6
}

impl<'a> Job<'a> {
    pub fn new(request: &'a Request, seat: Seat, limits: Limits, memory: &'a Arc<Memory>) -> Self {
        Self { request, seat, limits, memory }
    }

    /// The pictures of the request: its files, and each page of one that has several. What cannot be read by its head is told
    /// before anything is done with the others.
    ///
    /// # Errors
    /// When there is none or too many, or one is no picture that can be read within the limits, or all are too large together:
    /// those that are `drawn` sooner, since they are sent back.
    pub fn pictures(&self, image: Option<&str>, images: &[String], drawn: bool) -> Result<Pictures<'_>> {
        let files = Source::all(self.request, image, images)?;
        let mut pictures = Pictures { files, all: Vec::new(), listed: !images.is_empty() };
        if MAX_PICTURES < pictures.files.len() {
            return Err(pictures.too_many());
        }
        for (file, source) in pictures.files.iter().enumerate() {
            // Each of the files behind it has one at least.
            let most = MAX_PICTURES - pictures.len() - (pictures.files.len() - file - 1);
            pictures.all.push(One { file, page: None, directory: None });
            let pages = self.work(|| source.pages(most))?;
            let pages = pages.map_err(|error| pictures.named(pictures.len() - 1, error))?;
            if most < pages.len() {
                return Err(pictures.too_many());
            }
            if !pages.is_empty() {
                pictures.all.pop();
                let several = 1 < pages.len();
                let page = |(number, directory)| One {
                    file,
                    page: several.then_some(number),
                    directory: Some(directory),
                };
                pictures.all.extend((1..).zip(pages).map(page));
            }
        }
        if 1 < pictures.len() {
            let mut pixels = 0;
            for (at, One { file, directory, .. }) in pictures.all.iter().enumerate() {
                let source = &pictures.files[*file];
                let needs = self.work(|| source.needs(*directory, &self.limits))?;
                let needs = needs.map_err(|error| pictures.named(at, error))?;
                pixels = needs.pixels.saturating_add(pixels);
            }
            self.limits
                .check_all(pictures.len(), pixels, drawn)
                .map_err(|error| error.with_param(pictures.param()))?;
        }
        Ok(pictures)
    }

    /// Answers for each picture by itself: a piece, and how certain it is. One is read at a time.
    ///
    /// # Errors
    /// What is wrong with a picture, by its place where there are several.
    pub fn each(
        &self,
        pictures: &Pictures<'_>,
        answer: impl Fn(&Picture, Place) -> Result<(Chunk, Option<f64>)>,
    ) -> Result<Done> {
        let mut confidences = Vec::new();
        for at in 0..pictures.len() {
            let picture = self.read(pictures, at)?;
            let (chunk, confidence) =
                answer(&picture, pictures.place(at)).map_err(|error| pictures.named(at, error))?;
            // Who reads the answer may take a while.
            drop(picture);
            self.request.push(&chunk)?;
            confidences.extend(confidence);
        }
        Ok(Done { confidence: mean(&confidences), ..Done::new() })
    }

    /// What `fit` makes of some pictures. One is read at a time, and let go before the next.
    ///
    /// # Errors
    /// As [`Job::each`].
    pub fn fitted<T>(
        &self,
        pictures: &Pictures<'_>,
        some: Range<usize>,
        fit: impl Fn(&Picture) -> Result<T>,
    ) -> Result<Vec<T>> {
        let one = |at| {
            let picture = self.read(pictures, at)?;
            self.work(|| fit(&picture))?.map_err(|error| pictures.named(at, error))
        };
        some.map(one).collect()
    }

    fn read(&self, pictures: &Pictures<'_>, at: usize) -> Result<Held> {
        let One { file, directory, .. } = pictures.all[at];
        let source = &pictures.files[file];
        let named = |error| pictures.named(at, error);
        let needs = self.work(|| source.needs(directory, &self.limits))?.map_err(named)?;
        // Without a thread of the pool: those who have the memory may be waiting for one.
        let mut share = self.memory.take(needs.memory, || self.wanted())?;
        let picture = self.work(|| source.read(directory, &self.limits))?.map_err(named)?;
        share.keep(picture.pixels().len() as u64);
        Ok(Held { picture, _share: share })
    }

    /// Does a burst of work of its own with a CPU thread of the host's pool. Not to be held while a graph runs: the
    /// plugin that runs it asks for threads itself.
    ///
    /// # Errors
    /// When nobody waits for the answer any more.
    pub fn work<T>(&self, burst: impl FnOnce() -> T) -> Result<T> {
        /// How long a request that was cancelled may go unnoticed here.
        const LOOK: Duration = Duration::from_millis(100);
        let _permit = loop {
            self.wanted()?;
            match self.seat.threads(1, Some(Instant::now() + LOOK)) {
                Err(error) if error.code == Code::DeadlineExceeded => continue,
                granted => break granted?,
            }
        };
        Ok(burst())
    }

    /// Whether anybody still waits for the answer.
    ///
    /// # Errors
    /// When nobody does.
    pub fn wanted(&self) -> Result<()> {
        if self.request.is_cancelled() {
            return Err(Error::cancelled());
        }
        match self.request.deadline() {
            Some(deadline) if deadline <= Instant::now() => {
                Err(Error::new(Code::DeadlineExceeded, "the deadline passed before the answer was complete"))
            }
            _ => Ok(()),
        }
    }
}
