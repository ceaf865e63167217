//! What serves one capability of a model, and what it is given to serve a request with.

use crate::picture::{self, Limits, Memory, Picture, Share};
use backplane_plugin::prelude::*;
use std::ops::Deref;
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

impl<'a> Job<'a> {
    pub fn new(request: &'a Request, seat: Seat, limits: Limits, memory: &'a Arc<Memory>) -> Self {
        Self { request, seat, limits, memory }
    }

    /// The picture of the request: the member `image` of its parameters, or the tensor `image` beside them.
    ///
    /// # Errors
    /// When there is none, or it is not a picture that can be read within the limits.
    pub fn picture(&self, image: Option<&str>) -> Result<Held> {
        self.read(&picture::Source::of(self.request, image)?)
    }

    /// What `each` makes of the pictures of a request that may have several. One is read at a time.
    ///
    /// # Errors
    /// As [`Job::picture`], by the place of the picture where there are several; and when there are more than `most`.
    pub fn pictures<T>(
        &self,
        image: Option<&str>,
        images: &[String],
        most: usize,
        each: impl Fn(&Picture) -> Result<T>,
    ) -> Result<Vec<T>> {
        let sources = picture::Source::all(self.request, image, images)?;
        if most < sources.len() {
            let message = format!("there are {} pictures, and a request may have {most}", sources.len());
            return Err(Error::invalid(message).with_param("images"));
        }
        let several = 1 < sources.len();
        let read = |(place, source): (usize, &picture::Source<'_>)| {
            let picture = self.read(source).map_err(|error| match error.code {
                Code::InvalidArgument if several => error.with_param(format!("images[{place}]")),
                _ => error,
            })?;
            self.work(|| each(&picture))?
        };
        sources.iter().enumerate().map(read).collect()
    }

    fn read(&self, source: &picture::Source<'_>) -> Result<Held> {
        let most = self.work(|| source.memory(&self.limits))??;
        // Without a thread of the pool: those who have the memory may be waiting for one.
        let mut share = self.memory.take(most, || self.wanted())?;
        let picture = self.work(|| source.read(&self.limits))??;
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
