//! Progress of a pull: bars on a terminal, else nothing but what must be known.

use crate::output::{Output, printable};
use backplane_registry::Progress;
use indicatif::{ProgressBar, ProgressStyle};

/// Shows one pull.
#[derive(Debug)]
pub struct Pulling<'a> {
    out: &'a Output,
    bar: Option<ProgressBar>,
    of: String,
}

impl<'a> Pulling<'a> {
    pub fn new(out: &'a Output) -> Self {
        Self { out, bar: None, of: String::new() }
    }

    /// The next step.
    pub fn step(&mut self, step: Progress) {
        match step {
            Progress::Downloading { file, part, parts, done, total, .. } => {
                let of = if parts > 1 { format!("{file} {}/{parts}", part.min(parts - 1) + 1) } else { file };
                self.show(&of, done, total);
            }
            Progress::Verifying { file, done, total } => {
                self.show(&format!("{file} sha256"), done, Some(total))
            }
            Progress::Retrying { file, attempt, reason } => {
                self.say(&format!("{file}: {}; attempt {attempt}", printable(&reason)));
            }
            Progress::Waiting { file } => self.say(&format!("{file}: another process fetches it; waiting")),
            Progress::Done { .. } => self.end(),
            _ => {}
        }
    }

    fn show(&mut self, of: &str, done: u64, total: Option<u64>) {
        if !self.out.shows_progress() {
            return;
        }
        if self.of != of {
            self.end();
            of.clone_into(&mut self.of);
            self.bar = Some(bar(of, total));
        }
        if let Some(bar) = &self.bar {
            if let Some(total) = total {
                bar.set_length(total);
            }
            bar.set_position(done);
        }
    }

    fn say(&mut self, line: &str) {
        self.end();
        self.out.note(line);
    }

    /// Leaves the terminal clean, however it ended.
    pub fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.of.clear();
    }
}

impl Drop for Pulling<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

fn bar(of: &str, total: Option<u64>) -> ProgressBar {
    let (bar, look) = match total {
        Some(total) => {
            (ProgressBar::new(total), "{prefix} ▕{bar:24}▏ {bytes} / {total_bytes}  {bytes_per_sec}  {eta}")
        }
        None => (ProgressBar::new_spinner(), "{prefix} {spinner} {bytes}  {bytes_per_sec}"),
    };
    let style = ProgressStyle::with_template(look).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.with_prefix(of.to_owned()).with_style(style.progress_chars("█▉▊▋▌▍▎▏ "))
}
