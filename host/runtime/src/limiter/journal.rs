//! Reservations and settlements on disk, so that a host that is killed forgets no token.
//!
//! A line is written with one `write` before a reservation is used, which survives the death of the process; a thread
//! calls `fdatasync` every 50 ms, which bounds what a power cut can take. One file a generation:
//! `<state>/journal/<generation>.log`. A line is `R <key> <window> <tokens> <id>` or `S <key> <window> <tokens> <id>`, behind
//! the CRC-32 of the rest in hex.
//!
//! A reservation is settled once, by its id. One that is open when a journal is read again is spent as it was reserved:
//! the count may be too high by what was open, never too low.

use crate::store::Spent;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Whether it settles.
    pub settles: bool,
    /// Id of the key.
    pub key: String,
    /// Start of the window.
    pub window_start: i64,
    /// Set aside, or spent.
    pub tokens: u64,
    /// Id of the request.
    pub id: String,
}

impl Line {
    fn encode(&self) -> String {
        let kind = if self.settles { 'S' } else { 'R' };
        // The id comes last, since it may be anything without a line break.
        let id: String = self.id.chars().filter(|c| !c.is_control()).collect();
        let text = format!("{kind} {} {} {} {id}", self.key, self.window_start, self.tokens);
        format!("{:08x} {text}\n", crc32fast::hash(text.as_bytes()))
    }

    fn decode(line: &str) -> Option<Line> {
        let (crc, text) = line.split_once(' ')?;
        if u32::from_str_radix(crc, 16).ok()? != crc32fast::hash(text.as_bytes()) {
            return None;
        }
        let mut parts = text.splitn(5, ' ');
        let settles = match parts.next()? {
            "R" => false,
            "S" => true,
            _ => return None,
        };
        Some(Line {
            settles,
            key: parts.next()?.to_owned(),
            window_start: parts.next()?.parse().ok()?,
            tokens: parts.next()?.parse().ok()?,
            id: parts.next()?.to_owned(),
        })
    }
}

/// The journal of a state directory.
pub struct Journal {
    dir: PathBuf,
    state: Mutex<State>,
}

struct State {
    file: File,
    generation: u64,
    bytes: u64,
    dirty: bool,
    open: HashMap<String, Line>,
}

/// What a journal adds to what the store knows.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Spent, by key and window.
    pub spent: Vec<Spent>,
    /// Lines that could not be read: a torn end, or damage.
    pub unreadable: usize,
    /// Reservations that were open and are counted as spent.
    pub open: usize,
    /// The next free generation.
    pub next: u64,
}

impl Journal {
    /// Reads the journals from `generation` on, and begins a new one after them. The caller checkpoints what was replayed
    /// with the number of the new one.
    ///
    /// # Errors
    /// When the folder cannot be read or written.
    pub fn open(dir: &Path, generation: u64) -> io::Result<(Self, Replayed)> {
        std::fs::create_dir_all(dir)?;
        let replayed = replay(dir, generation)?;
        let file = create(dir, replayed.next)?;
        let state = State { file, generation: replayed.next, bytes: 0, dirty: false, open: HashMap::new() };
        Ok((Self { dir: dir.to_owned(), state: Mutex::new(state) }, replayed))
    }

    /// Writes a reservation. After this it counts, even if the process dies.
    ///
    /// # Errors
    /// When it cannot be written: then it must not be used.
    pub fn reserve(&self, line: Line) -> io::Result<()> {
        let mut state = self.state.lock();
        append(&mut state, &line)?;
        state.open.insert(line.id.clone(), line);
        Ok(())
    }

    /// Writes a settlement. What cannot be written stays reserved on disk, and is logged.
    pub fn settle(&self, line: Line) {
        let mut state = self.state.lock();
        state.open.remove(&line.id);
        if let Err(error) = append(&mut state, &line) {
            tracing::error!(%error, request = line.id, "a settlement could not be written to the journal");
        }
    }

    /// Bytes in the current file.
    pub fn len(&self) -> u64 {
        self.state.lock().bytes
    }

    /// Asks the disk to keep what was written.
    pub fn sync(&self) {
        let file = {
            let mut state = self.state.lock();
            if !std::mem::take(&mut state.dirty) {
                return;
            }
            state.file.try_clone()
        };
        // Outside the lock: a flush takes milliseconds, a request must not wait for it.
        if let Err(error) = file.and_then(|file| file.sync_data()) {
            tracing::error!(%error, "the journal could not be flushed");
        }
    }

    /// Begins a new file. `snapshot` is called while nothing can be written, so that what it returns stands exactly between
    /// the files. Open reservations are written again. Returns the new generation, and what `snapshot` returned.
    ///
    /// # Errors
    /// When the new file cannot be written; the old one goes on.
    pub fn rotate<T>(&self, snapshot: impl FnOnce() -> T) -> io::Result<(u64, T)> {
        let mut state = self.state.lock();
        let generation = state.generation + 1;
        let mut file = create(&self.dir, generation)?;
        let text: String = state.open.values().map(Line::encode).collect();
        file.write_all(text.as_bytes())?;
        let taken = snapshot();
        (state.file, state.generation, state.bytes, state.dirty) =
            (file, generation, text.len() as u64, true);
        Ok((generation, taken))
    }

    /// Removes the files before `generation`, after it was checkpointed.
    pub fn forget_before(&self, generation: u64) {
        for (number, path) in files(&self.dir).unwrap_or_default() {
            if number < generation
                && let Err(error) = std::fs::remove_file(&path)
            {
                tracing::warn!(%error, "an old journal could not be removed");
            }
        }
    }
}

fn append(state: &mut State, line: &Line) -> io::Result<()> {
    let text = line.encode();
    state.file.write_all(text.as_bytes())?;
    state.bytes += text.len() as u64;
    state.dirty = true;
    Ok(())
}

fn create(dir: &Path, generation: u64) -> io::Result<File> {
    let path = dir.join(format!("{generation:08}.log"));
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

fn files(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut files: Vec<(u64, PathBuf)> = std::fs::read_dir(dir)?
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let number = path.file_name()?.to_str()?.strip_suffix(".log")?.parse().ok()?;
            Some((number, path))
        })
        .collect();
    files.sort();
    Ok(files)
}

/// What the journals from `generation` on add to what the store knows.
fn replay(dir: &Path, generation: u64) -> io::Result<Replayed> {
    let mut replayed = Replayed { next: generation, ..Replayed::default() };
    let mut open: HashMap<String, Line> = HashMap::new();
    let mut spent: HashMap<(String, i64), u64> = HashMap::new();
    for (number, path) in files(dir)? {
        replayed.next = replayed.next.max(number + 1);
        if number < generation {
            continue;
        }
        for line in String::from_utf8_lossy(&std::fs::read(&path)?).lines() {
            let Some(line) = Line::decode(line) else {
                replayed.unreadable += 1;
                continue;
            };
            if line.settles {
                // A settlement without its reservation is one of a file before: it counts all the same.
                open.remove(&line.id);
                *spent.entry((line.key, line.window_start)).or_default() += line.tokens;
            } else {
                open.insert(line.id.clone(), line);
            }
        }
    }
    replayed.open = open.len();
    for line in open.into_values() {
        *spent.entry((line.key, line.window_start)).or_default() += line.tokens;
    }
    replayed.spent =
        spent.into_iter().map(|((key, window_start), tokens)| Spent { key, window_start, tokens }).collect();
    replayed.spent.sort_by(|a, b| (&a.key, a.window_start).cmp(&(&b.key, b.window_start)));
    Ok(replayed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line(settles: bool, id: &str, tokens: u64) -> Line {
        Line { settles, key: "k".into(), window_start: 0, tokens, id: id.into() }
    }

    fn total(replayed: &Replayed) -> u64 {
        replayed.spent.iter().map(|spent| spent.tokens).sum()
    }

    #[test]
    fn what_was_open_counts_as_reserved() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, first) = Journal::open(dir.path(), 0).unwrap();
        assert_eq!(first, Replayed::default());
        journal.reserve(line(false, "a", 50)).unwrap();
        journal.settle(line(true, "a", 7));
        journal.reserve(line(false, "b", 30)).unwrap();
        drop(journal);
        let (_, again) = Journal::open(dir.path(), 0).unwrap();
        assert_eq!((total(&again), again.open, again.unreadable, again.next), (37, 1, 0, 1));
    }

    #[test]
    fn a_torn_end_and_a_flipped_bit_cost_one_line_each() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(dir.path(), 0).unwrap();
        for (id, tokens) in [("a", 1), ("b", 10), ("c", 100)] {
            journal.reserve(line(false, id, tokens)).unwrap();
        }
        drop(journal);
        let path = dir.path().join("00000000.log");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.truncate(bytes.len() - 3);
        bytes[4] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let (_, again) = Journal::open(dir.path(), 0).unwrap();
        assert_eq!((total(&again), again.unreadable), (10, 2));
    }

    #[test]
    fn a_crash_at_any_point_of_a_rotation_counts_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(dir.path(), 0).unwrap();
        journal.reserve(line(false, "a", 5)).unwrap();
        journal.settle(line(true, "a", 5));
        journal.reserve(line(false, "b", 20)).unwrap();
        let (generation, before) = journal.rotate(|| 5).unwrap();
        journal.settle(line(true, "b", 9));
        drop(journal);
        // Not checkpointed: the store still says generation 0 and nothing spent.
        assert_eq!(total(&replay(dir.path(), 0).unwrap()), 14);
        // Checkpointed: the store says 5 and the new generation.
        assert_eq!(before + total(&replay(dir.path(), generation).unwrap()), 14);
    }

    proptest! {
        #[test]
        fn lines_go_round_and_rubbish_does_not(id in "[ -~]{0,40}", tokens in any::<u64>(), rubbish in ".*") {
            let line = line(true, &id, tokens);
            let text = line.encode();
            prop_assert_eq!(Line::decode(text.trim_end_matches('\n')), Some(line));
            prop_assert_eq!(Line::decode(&rubbish), None);
        }
    }
}
