//! Reservations and settlements on disk, so that a host that is killed forgets no token.
//!
//! One file a generation, `<state>/journal/<generation>.log`, one record a line: the CRC-32 of what follows in hex, and a
//! JSON object. A record is handed to the kernel with one `write` before its reservation is used, so it outlives the
//! process; a thread flushes every 50 ms what was written, which bounds what a power cut can take.
//!
//! Reservations are told apart by a serial number of ours. The request's id stands in the record for people only: callers
//! choose it, and one that sends the same twice must be charged twice.
//!
//! A reservation that is still open when a journal is read again is spent as it was reserved: the count may be too high by
//! what was open, never too low. A line that cannot be read is left out, and costs nothing but itself.

mod record;
mod replay;
#[cfg(test)]
mod tests;

pub use record::Record;
pub use replay::Replayed;

use crate::limiter::Window;
use crate::store::Owner;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// What a power cut can take.
const FLUSH: Duration = Duration::from_millis(50);
/// How long a reservation waits for a disk that does not answer. Longer than a container is held up that has used its share
/// of the processor.
const PATIENCE: Duration = Duration::from_millis(250);
/// How long a look at it waits, which may be on the actors' thread.
const GLANCE: Duration = Duration::from_millis(10);
/// The largest journal. It gets there only while the store cannot take a checkpoint.
const MAX_BYTES: u64 = 256 << 20;

/// Why nothing can be written down.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// The file cannot be written.
    #[error("it cannot be written: {0}")]
    Write(String),
    /// The disk refused to keep what was written; what it holds now is not known.
    #[error("the disk refused to keep it: {0}")]
    Flush(String),
    /// The disk does not answer.
    #[error("the disk does not answer")]
    Hung,
    /// It is as large as it may be.
    #[error("it has {} MiB, and the store takes no checkpoint", MAX_BYTES >> 20)]
    Full,
}

/// A reservation that is written down and not settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// Who pays.
    pub owner: Arc<Owner>,
    /// In which window.
    pub window: Window,
    /// Set aside.
    pub tokens: u64,
    /// The request's id.
    pub request: String,
}

/// The journal of a state directory. Dropping it flushes.
pub struct Journal {
    shared: Arc<Shared>,
    flusher: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    dir: PathBuf,
    state: Mutex<State>,
    /// Something was written, or the end has come.
    news: Condvar,
    /// Written since the last checkpoint, to however many files. Changed under the lock of `state`, read without.
    bytes: AtomicU64,
    max_bytes: u64,
    checkpoints: Mutex<()>,
}

struct State {
    file: Arc<File>,
    generation: u64,
    /// Written and not flushed.
    dirty: bool,
    /// The last line may not be whole.
    torn: bool,
    /// How the last attempt went wrong. After a flush that failed only a new file helps: Linux forgets the error, and the
    /// pages with it, once it was told.
    trouble: Option<JournalError>,
    closed: bool,
    serial: u64,
    open: HashMap<u64, Open>,
    line: Vec<u8>,
}

impl Journal {
    /// Reads the journals from `generation` on, and begins a new one after them. The caller checkpoints what was replayed
    /// with the number of the new one, and then calls [`Journal::forget_before`] with it.
    ///
    /// # Errors
    /// When the folder cannot be read or written.
    pub fn open(dir: &Path, generation: u64) -> io::Result<(Self, Replayed)> {
        Self::open_with(dir, generation, MAX_BYTES)
    }

    fn open_with(dir: &Path, generation: u64, max_bytes: u64) -> io::Result<(Self, Replayed)> {
        let replayed = replay::read(dir, generation)?;
        let state = State {
            file: Arc::new(create(dir, replayed.next)?),
            generation: replayed.next,
            dirty: false,
            torn: false,
            trouble: None,
            closed: false,
            serial: 0,
            open: HashMap::new(),
            line: Vec::new(),
        };
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            state: Mutex::new(state),
            news: Condvar::new(),
            bytes: AtomicU64::new(0),
            max_bytes,
            checkpoints: Mutex::new(()),
        });
        let flushes = shared.clone();
        let flusher =
            std::thread::Builder::new().name("journal".to_owned()).spawn(move || flushes.flush_for_ever())?;
        Ok((Self { shared, flusher: Mutex::new(Some(flusher)) }, replayed))
    }

    /// Flushes, and ends the thread that does it. What is written after it is with the kernel, as always, and is flushed
    /// by nobody.
    pub fn close(&self) {
        self.shared.state.lock().closed = true;
        self.shared.news.notify_one();
        if let Some(flusher) = self.flusher.lock().take() {
            flusher.join().ok();
        }
    }

    /// The number that the file of now has.
    pub fn generation(&self) -> u64 {
        self.shared.state.lock().generation
    }

    /// Bytes written since the last checkpoint that the store took.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// Whether reservations can be written down, by the last attempt. A new file may help.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), JournalError> {
        let state = self.shared.state.try_lock_for(GLANCE).ok_or(JournalError::Hung)?;
        state.trouble.clone().map_or_else(|| self.shared.takes(&state), Err)
    }

    /// Writes a reservation down and returns its serial number. After this it counts, even if the process dies.
    ///
    /// # Errors
    /// When it cannot be written: then it must not be used.
    pub fn reserve(&self, open: Open) -> Result<u64, JournalError> {
        let mut state = self.shared.state.try_lock_for(PATIENCE).ok_or(JournalError::Hung)?;
        self.shared.takes(&state)?;
        let serial = state.serial + 1;
        self.shared.append(&mut state, &Record::reserve(serial, &open))?;
        state.serial = serial;
        state.open.insert(serial, open);
        self.written(state);
        Ok(serial)
    }

    /// Writes a settlement down, and calls `book` while no checkpoint can come between. What cannot be written stays
    /// reserved on disk until the next checkpoint.
    pub fn settle(&self, serial: u64, tokens: u64, book: impl FnOnce()) {
        let mut state = self.shared.state.lock();
        book();
        let Some(open) = state.open.remove(&serial) else { return };
        match self.shared.append(&mut state, &Record::settle(serial, &open, tokens)) {
            Ok(()) => self.written(state),
            Err(error) => {
                drop(state);
                tracing::error!(%error, request = open.request, "a settlement could not be written to the journal");
            }
        }
    }

    fn written(&self, mut state: MutexGuard<'_, State>) {
        let first = !std::mem::replace(&mut state.dirty, true);
        drop(state);
        if first {
            self.shared.news.notify_one();
        }
    }

    /// Begins a new file, hands its number and a snapshot to `store`, and removes the files before it once the store has
    /// them. `snapshot` is called while nothing can be written or settled, so that it stands exactly between the files.
    /// One checkpoint at a time: a store that took an older one last would point at files that are gone.
    ///
    /// # Errors
    /// When a new file cannot be written, or the store refuses: then no file is removed, and the journal goes on.
    pub fn checkpoint<T, E: From<io::Error>>(
        &self,
        snapshot: impl FnOnce() -> T,
        store: impl FnOnce(u64, T) -> Result<(), E>,
    ) -> Result<(), E> {
        let _alone = self.shared.checkpoints.lock();
        let (generation, bytes, taken) = self.rotate(snapshot)?;
        store(generation, taken)?;
        self.shared.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.forget_before(generation);
        Ok(())
    }

    /// Begins a new file, with the open reservations in it. Returns its number, what was written before it, and what
    /// `snapshot` returned.
    fn rotate<T>(&self, snapshot: impl FnOnce() -> T) -> io::Result<(u64, u64, T)> {
        let next = self.generation() + 1;
        // Outside the lock: making a file may take a while.
        let file = Arc::new(create(&self.shared.dir, next)?);
        let mut state = self.shared.state.lock();
        let mut lines = Vec::new();
        for (serial, open) in &state.open {
            Record::reserve(*serial, open).encode(&mut lines);
        }
        (&*file).write_all(&lines)?;
        let taken = snapshot();
        state.file = file.clone();
        (state.generation, state.dirty, state.torn, state.trouble) = (next, false, false, None);
        let bytes = self.bytes();
        drop(state);
        // The open reservations must be in the new file before the old one goes.
        file.sync_data().inspect_err(|error| self.shared.distrust(next, error))?;
        Ok((next, bytes, taken))
    }

    /// Removes the files before `generation`, after it was checkpointed.
    pub fn forget_before(&self, generation: u64) {
        for (number, path) in replay::files(&self.shared.dir).unwrap_or_default() {
            if number < generation
                && let Err(error) = std::fs::remove_file(&path)
            {
                tracing::warn!(%error, "an old journal could not be removed");
            }
        }
    }
}

#[cfg(test)]
impl Journal {
    /// Has every write fail as on a full disk, until a new file is begun. Returns the file it had.
    pub fn break_for_test(&self) -> Arc<File> {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        std::mem::replace(&mut self.shared.state.lock().file, Arc::new(full))
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    /// Whether one more reservation may be written.
    fn takes(&self, state: &State) -> Result<(), JournalError> {
        match &state.trouble {
            Some(JournalError::Flush(error)) => Err(JournalError::Flush(error.clone())),
            _ if self.max_bytes < self.bytes.load(Ordering::Relaxed) => Err(JournalError::Full),
            _ => Ok(()),
        }
    }

    fn append(&self, state: &mut State, record: &Record<'_>) -> Result<(), JournalError> {
        state.line.clear();
        if state.torn {
            // Ends what is left of a line, or this one would be lost with it.
            state.line.push(b'\n');
        }
        record.encode(&mut state.line);
        self.bytes.fetch_add(state.line.len() as u64, Ordering::Relaxed);
        let result =
            (&*state.file).write_all(&state.line).map_err(|error| JournalError::Write(error.to_string()));
        state.torn = result.is_err();
        if !matches!(state.trouble, Some(JournalError::Flush(_))) {
            state.trouble = result.as_ref().err().cloned();
        }
        result
    }

    fn flush_for_ever(&self) {
        loop {
            let mut state = self.state.lock();
            while !state.dirty && !state.closed {
                self.news.wait(&mut state);
            }
            if !state.closed {
                // Gathers what others write meanwhile.
                self.news.wait_for(&mut state, FLUSH);
            }
            let (closed, dirty) = (state.closed, std::mem::take(&mut state.dirty));
            let (file, generation) = (state.file.clone(), state.generation);
            drop(state);
            // Outside the lock: a flush takes milliseconds, and no request must wait for it.
            if dirty && let Err(error) = file.sync_data() {
                self.distrust(generation, &error);
            }
            if closed {
                return;
            }
        }
    }

    /// Takes no more reservations into a file that the disk did not keep.
    fn distrust(&self, generation: u64, error: &io::Error) {
        tracing::error!(%error, "the journal could not be flushed");
        let mut state = self.state.lock();
        if state.generation == generation {
            state.trouble = Some(JournalError::Flush(error.to_string()));
        }
    }
}

fn create(dir: &Path, generation: u64) -> io::Result<File> {
    // Truncated: after a rotation that failed, its leavings are still there.
    let path = dir.join(format!("{generation:08}.log"));
    let file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path)?;
    // The name must outlive a power cut as the content does.
    File::open(dir)?.sync_all()?;
    Ok(file)
}
