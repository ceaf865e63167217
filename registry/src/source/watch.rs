//! The one who waits for a pull: told of progress, asked whether to go on.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::error::{RegistryError, Result};
use crate::progress::Progress;

pub(crate) struct Watch<'a> {
    report: &'a mut dyn FnMut(Progress),
    cancel: Option<&'a AtomicBool>,
    last: Option<Instant>,
    /// Role of the file being fetched, and which part of it.
    pub file: String,
    pub part: usize,
    pub parts: usize,
    /// Bytes that the transfer will take, where the source itself does not say.
    pub expected: Option<u64>,
}

/// Often enough for a smooth bar, seldom enough to cost nothing.
const INTERVAL: Duration = Duration::from_millis(50);

impl<'a> Watch<'a> {
    pub fn new(report: &'a mut dyn FnMut(Progress), cancel: Option<&'a AtomicBool>) -> Self {
        Self { report, cancel, last: None, file: String::new(), part: 1, parts: 1, expected: None }
    }

    pub fn say(&mut self, progress: Progress) {
        self.last = None;
        (self.report)(progress);
    }

    pub fn check(&self) -> Result<()> {
        match self.cancel {
            Some(cancel) if cancel.load(Ordering::Relaxed) => Err(RegistryError::Cancelled),
            _ => Ok(()),
        }
    }

    /// Waits a while, unless it is called off.
    pub fn pause(&self, duration: Duration) -> Result<()> {
        let end = Instant::now() + duration;
        loop {
            self.check()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(INTERVAL));
        }
    }

    pub fn downloaded(&mut self, done: u64, total: Option<u64>, resumed_from: u64) {
        if self.due() || total == Some(done) {
            let (file, part, parts) = (self.file.clone(), self.part, self.parts);
            (self.report)(Progress::Downloading { file, part, parts, done, total, resumed_from });
        }
    }

    pub fn verified(&mut self, done: u64, total: u64) {
        if self.due() || total == done {
            (self.report)(Progress::Verifying { file: self.file.clone(), done, total });
        }
    }

    pub fn assembling(&mut self) {
        let (file, part, parts) = (self.file.clone(), self.part, self.parts);
        self.say(Progress::Assembling { file, part, parts });
    }

    pub fn retrying(&mut self, attempt: u32, reason: &str) {
        let file = self.file.clone();
        self.say(Progress::Retrying { file, attempt, reason: reason.to_owned() });
    }

    fn due(&mut self) -> bool {
        let now = Instant::now();
        let due = self.last.is_none_or(|last| now - last >= INTERVAL);
        if due {
            self.last = Some(now);
        }
        due
    }
}

/// Why a copy stopped: the two sides fail for different reasons, and only one of them is worth a retry.
pub(crate) enum CopyError {
    Read(io::Error),
    Other(RegistryError),
}

impl From<RegistryError> for CopyError {
    fn from(error: RegistryError) -> Self {
        Self::Other(error)
    }
}

/// How much is written between two looks at the disk.
const LOOK: u64 = 64 << 20;

/// Copies until the end, or until the disk is as full as it may get: not every source says beforehand how much comes,
/// and some lie. `seen` is told the bytes so far and may stop the copy.
pub(crate) fn copy(
    reader: &mut dyn Read,
    to: &mut File,
    path: &Path,
    watch: &mut Watch<'_>,
    mut seen: impl FnMut(&mut Watch<'_>, u64) -> Result<()>,
) -> Result<u64, CopyError> {
    let mut buffer = vec![0; 256 * 1024];
    let mut done = 0;
    loop {
        watch.check()?;
        let n = match reader.read(&mut buffer) {
            Ok(0) => return Ok(done),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(CopyError::Read(error)),
        };
        to.write_all(&buffer[..n]).map_err(RegistryError::io("write", path))?;
        if done / LOOK != (done + n as u64) / LOOK {
            super::space::require(path, LOOK)?;
        }
        done += n as u64;
        seen(watch, done)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_named() {
        let path = Path::new("/dev/full");
        let mut full = File::options().write(true).open(path).unwrap();
        let mut ignore = |_| {};
        let mut watch = Watch::new(&mut ignore, None);
        match copy(&mut &b"bytes"[..], &mut full, path, &mut watch, |_, _| Ok(())) {
            Err(CopyError::Other(error @ RegistryError::DiskFull { .. })) => {
                assert_eq!(error.code(), "disk_full");
                assert!(error.to_string().contains("what arrived is kept"), "{error}");
            }
            _ => panic!("expected DiskFull"),
        }
    }

    #[test]
    fn what_does_not_say_how_long_it_is_cannot_fill_the_disk() {
        let mut bin = File::options().write(true).open("/dev/null").unwrap();
        let mut ignore = |_| {};
        let mut watch = Watch::new(&mut ignore, None);
        let mut endless = io::repeat(0).take(4 * LOOK);
        // The kernel's own file system says that none of it is free.
        match copy(&mut endless, &mut bin, Path::new("/proc/x"), &mut watch, |_, _| Ok(())) {
            Err(CopyError::Other(RegistryError::NotEnoughSpace { free: 0, .. })) => {}
            _ => panic!("expected NotEnoughSpace"),
        }
        assert_eq!(endless.limit(), 3 * LOOK, "it stopped at the first look");
    }

    #[test]
    fn a_pause_ends_when_it_is_called_off() {
        let cancel = AtomicBool::new(true);
        let mut ignore = |_| {};
        let watch = Watch::new(&mut ignore, Some(&cancel));
        assert!(matches!(watch.pause(Duration::from_secs(60)), Err(RegistryError::Cancelled)));
    }
}
