//! Requests with texts, several at once: tokens in, a row of numbers for each, an answer out.
//!
//! The rows of all requests of a call are put in order of their length and cut into runs ([`batch::cut`]), whoever they
//! belong to. Each request is answered as soon as its last row is there. Between runs those whose callers have left are
//! dropped; a run that fails is repeated for each request alone, so that one bad input harms nobody else.

use crate::batch;
use crate::encoder::{Encoder, Rows};
use crate::session::{Engine, gone};
use crate::tokenize::Tokens;
use backplane_plugin::payload::Usage;
use backplane_plugin::prelude::*;
use std::sync::atomic::Ordering::Relaxed;

/// What a capability makes of texts.
pub trait Task: Send + Sync {
    /// What of a request its answer needs.
    type Asked;

    /// Reads a request.
    fn read(&self, request: &Request) -> Result<(Vec<Tokens>, Self::Asked)>;

    /// The result of a row of `tokens` tokens.
    fn result(&self, rows: &Rows<'_>, row: usize, tokens: usize) -> Result<Vec<f32>>;

    /// The answer, of the results of all rows.
    fn answer(&self, asked: Self::Asked, results: Vec<Vec<f32>>) -> Result<Chunk>;
}

/// A request on its way.
struct Job<A> {
    request: Request,
    rows: Vec<Tokens>,
    results: Vec<Vec<f32>>,
    left: usize,
    asked: A,
}

/// A row of a job.
#[derive(Clone, Copy)]
struct Row {
    job: usize,
    row: usize,
}

/// The parts that serve one capability of a model.
pub struct Texts<T> {
    pub task: T,
    pub encoder: Encoder,
    /// Padded tokens of one run.
    pub budget: usize,
}

impl<T: Task> Texts<T> {
    /// Answers all requests.
    pub fn serve(&self, engine: &Engine, requests: Vec<Request>) {
        let mut jobs: Vec<Option<Job<T::Asked>>> =
            requests.into_iter().filter_map(|request| self.start(request)).map(Some).collect();
        let mut rows: Vec<(usize, Row)> = Vec::new();
        for (job, of) in jobs.iter().enumerate() {
            let lengths = of.iter().flat_map(|job| &job.rows).map(Tokens::len);
            rows.extend(lengths.enumerate().map(|(row, length)| (length, Row { job, row })));
        }
        // Stable: rows of a request stay in its order where they are equally long.
        rows.sort_by_key(|(length, _)| *length);
        let lengths: Vec<usize> = rows.iter().map(|(length, _)| *length).collect();
        let budget = if self.encoder.takes_many() { self.budget } else { 0 };
        for run in batch::cut(&lengths, budget) {
            for job in &mut jobs {
                if let Some(error) = job.as_ref().and_then(|job| gone(&job.request)) {
                    fail(job, error);
                }
            }
            let run: Vec<Row> =
                rows[run].iter().map(|(_, row)| *row).filter(|row| jobs[row.job].is_some()).collect();
            self.run(engine, &mut jobs, &run);
        }
    }

    fn start(&self, request: Request) -> Option<Job<T::Asked>> {
        let read = match gone(&request) {
            Some(error) => Err(error),
            None => self.task.read(&request),
        };
        match read {
            Ok((rows, asked)) => {
                let (left, results) = (rows.len(), vec![Vec::new(); rows.len()]);
                Some(Job { request, rows, results, left, asked })
            }
            Err(error) => {
                request.finish(Err(error));
                None
            }
        }
    }

    fn run(&self, engine: &Engine, jobs: &mut [Option<Job<T::Asked>>], run: &[Row]) {
        let mut owners: Vec<usize> = run.iter().map(|row| row.job).collect();
        owners.sort_unstable();
        owners.dedup();
        if owners.is_empty() {
            return;
        }
        match self.compute(engine, jobs, &owners, run) {
            Ok(results) => {
                for (row, result) in run.iter().zip(results) {
                    if let Some(job) = &mut jobs[row.job] {
                        job.results[row.row] = result;
                        job.left -= 1;
                    }
                }
                for owner in owners {
                    if jobs[owner].as_ref().is_some_and(|job| job.left == 0) {
                        self.finish(&mut jobs[owner]);
                    }
                }
            }
            Err(error) => match owners[..] {
                [owner] => fail(&mut jobs[owner], error),
                _ => {
                    for owner in owners {
                        let own: Vec<Row> = run.iter().copied().filter(|row| row.job == owner).collect();
                        self.run(engine, jobs, &own);
                    }
                }
            },
        }
    }

    fn compute(
        &self,
        engine: &Engine,
        jobs: &[Option<Job<T::Asked>>],
        owners: &[usize],
        run: &[Row],
    ) -> Result<Vec<Vec<f32>>> {
        let requests: Vec<&Request> =
            owners.iter().filter_map(|&job| Some(&jobs[job].as_ref()?.request)).collect();
        let rows: Vec<&Tokens> =
            run.iter().filter_map(|row| Some(&jobs[row.job].as_ref()?.rows[row.row])).collect();
        let output = self.encoder.run(engine, &requests, &rows)?;
        let tokens: usize = rows.iter().map(|row| row.len()).sum();
        let counters = engine.counters();
        counters.tokens.fetch_add(tokens as u64, Relaxed);
        let padding = rows.len() * self.encoder.padded(&rows) - tokens;
        counters.padding.fetch_add(padding as u64, Relaxed);
        let read = self.encoder.read(&output, rows.len())?;
        rows.iter().enumerate().map(|(row, tokens)| self.task.result(&read, row, tokens.len())).collect()
    }

    fn finish(&self, job: &mut Option<Job<T::Asked>>) {
        let Some(Job { request, rows, results, asked, .. }) = job.take() else { return };
        let tokens = rows.iter().map(Tokens::len).sum::<usize>() as u64;
        let answered = self.task.answer(asked, results).and_then(|chunk| request.push(&chunk));
        let usage = Usage { prompt_tokens: tokens, ..Usage::default() };
        request.finish(answered.map(|()| Done::new().usage(usage)));
    }
}

fn fail<A>(job: &mut Option<Job<A>>, error: Error) {
    if let Some(job) = job.take() {
        job.request.finish(Err(error));
    }
}
