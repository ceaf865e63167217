//! What a licensed plugin was used for: one line of JSON after another, each with the hash of the one before.
//!
//! A line that was changed, left out or put in between is found. One who may write the file can begin it anew: it is a
//! record between people who deal honestly, not a seal.
//!
//! Each month has a file of its own: what is read at a start is this month's, however long an installation runs. The
//! chain goes on from one file to the next.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::trust::{Result, Timestamp, TrustError, parse_json};

/// More than a line takes.
const MAX_LINE: usize = 4 << 10;

/// What one tenant used of one plugin under one licence since the line before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub at: Timestamp,
    pub plugin: String,
    pub licence: String,
    #[serde(default)]
    pub tenant: String,
    /// `2026-11`
    pub month: String,
    pub tokens: u64,
    pub requests: u64,
    pub peak_nodes: u64,
    pub peak_gpus: u64,
}

#[derive(Serialize, Deserialize)]
struct Line {
    /// Of the line before, without its end; of nothing for the first.
    prev: Digest,
    #[serde(flatten)]
    entry: Entry,
}

/// `<state>/licenses/usage.jsonl`, and `usage-2026-11.jsonl` of each month that is over.
#[derive(Debug)]
pub struct UsageLog {
    folder: PathBuf,
    path: PathBuf,
    /// Where the file ended when it was walked last: what was walked is not walked again.
    end: Option<(u64, End)>,
}

/// By plugin, licence and tenant.
type Sums = BTreeMap<(String, String, String), Entry>;

/// How far a walk came.
#[derive(Debug, Clone)]
struct End {
    /// Of the last line.
    hash: Digest,
    /// Of the last entry, if there is one.
    month: Option<String>,
}

impl Default for End {
    fn default() -> Self {
        Self { hash: Digest::of(b""), month: None }
    }
}

impl UsageLog {
    pub fn at(state: &Path) -> Self {
        let folder = state.join("licenses");
        Self { path: folder.join("usage.jsonl"), folder, end: None }
    }

    /// Adds a line. Several processes may: each finds the end under a lock.
    pub fn append(&mut self, entry: &Entry) -> Result<()> {
        fs::create_dir_all(&self.folder).map_err(TrustError::io("make", &self.folder))?;
        let lock = self.lock()?;
        lock.lock().map_err(TrustError::io("lock", &self.folder))?;
        let (mut file, mut length) = self.open()?;
        let mut end = match self.end.take() {
            Some((at, end)) if at == length => end,
            _ => walk(&self.path, &file, Some(self.archived_end()?), &mut |_| {})?,
        };
        if let Some(month) = end.month.as_ref().filter(|month| **month < entry.month && length != 0) {
            let archive = self.of_month(month);
            // Of a clock that was set back comes a month that is over: it stays with what is written now.
            if self.archives()?.last().is_none_or(|last| *last < archive) {
                fs::rename(&self.path, archive).map_err(TrustError::io("rename", &self.path))?;
                (file, length) = self.open()?;
            }
        }
        let line = Line { prev: end.hash, entry: entry.clone() };
        let mut text = serde_json::to_string(&line).unwrap_or_default();
        end = End { hash: Digest::of(text.as_bytes()), month: Some(entry.month.clone()) };
        text.push('\n');
        file.write_all(text.as_bytes()).map_err(TrustError::io("write", &self.path))?;
        self.end = Some((length + text.len() as u64, end));
        Ok(())
    }

    /// Every entry; an error names the first line that does not follow the one before it.
    pub fn read(&self) -> Result<Vec<Entry>> {
        self.read_with_end().map(|(entries, _)| entries)
    }

    /// As [`read`](Self::read), with the hash of the last line: it names all of them.
    pub fn read_with_end(&self) -> Result<(Vec<Entry>, Digest)> {
        let (mut out, mut end) = (Vec::new(), End::default());
        let Some(_lock) = self.lock_shared()? else { return Ok((out, end.hash)) };
        for path in self.archives()?.into_iter().chain([self.path.clone()]) {
            if let Some(file) = there(&path)? {
                end = walk(&path, &file, Some(end), &mut |entry| out.push(entry))?;
            }
        }
        Ok((out, end.hash))
    }

    /// What was used in a month: one entry for each plugin, licence and tenant. Where a line is wrong all that can be read
    /// counts, after it too, for who breaks a line must not have used less; and what is wrong comes along.
    pub fn used_in(&self, month: &str) -> (Vec<Entry>, Option<TrustError>) {
        let mut sums = BTreeMap::new();
        let problem = self.tally(month, &mut sums).err();
        (sums.into_values().collect(), problem)
    }

    fn tally(&self, month: &str, sums: &mut Sums) -> Result<()> {
        let Some(_lock) = self.lock_shared()? else { return Ok(()) };
        let mut problem = None;
        for path in [self.of_month(month), self.path.clone()] {
            let Some(file) = there(&path)? else { continue };
            let add = &mut |entry: Entry| {
                if entry.month == month {
                    let key = (entry.plugin.clone(), entry.licence.clone(), entry.tenant.clone());
                    let sum = sums.entry(key).or_insert(Entry { tokens: 0, requests: 0, ..entry.clone() });
                    sum.tokens = sum.tokens.saturating_add(entry.tokens);
                    sum.requests = sum.requests.saturating_add(entry.requests);
                    sum.peak_nodes = sum.peak_nodes.max(entry.peak_nodes);
                    sum.peak_gpus = sum.peak_gpus.max(entry.peak_gpus);
                    sum.at = sum.at.max(entry.at);
                }
            };
            problem = problem.or(survey(&path, &file, None, add).1);
        }
        problem.map_or(Ok(()), Err)
    }

    fn of_month(&self, month: &str) -> PathBuf {
        self.folder.join(format!("usage-{month}.jsonl"))
    }

    /// The files of the months that are over, in their order.
    fn archives(&self) -> Result<Vec<PathBuf>> {
        let mut all = crate::store::list(&self.folder)
            .map_err(|error| TrustError::File { path: self.folder.clone(), reason: error.to_string() })?;
        let name = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        all.retain(|path| {
            name(path).is_some_and(|name| name.starts_with("usage-") && name.ends_with(".jsonl"))
        });
        all.sort();
        Ok(all)
    }

    /// Where the chain goes on that a new file begins with.
    fn archived_end(&self) -> Result<End> {
        let Some(path) = self.archives()?.pop() else { return Ok(End::default()) };
        let Some(file) = there(&path)? else { return Ok(End::default()) };
        walk(&path, &file, None, &mut |_| {})
    }

    /// The file with its length.
    fn open(&self) -> Result<(File, u64)> {
        let file = OpenOptions::new().create(true).append(true).read(true).open(&self.path);
        let file = file.map_err(TrustError::io("open", &self.path))?;
        let length = file.metadata().map_err(TrustError::io("read", &self.path))?.len();
        Ok((file, length))
    }

    /// The file gives way to the next month's, so its lock is its folder's.
    fn lock(&self) -> Result<File> {
        File::open(&self.folder).map_err(TrustError::io("open", &self.folder))
    }

    /// For who reads; nothing where nothing was written yet.
    fn lock_shared(&self) -> Result<Option<File>> {
        let Some(lock) = there(&self.folder)? else { return Ok(None) };
        lock.lock_shared().map_err(TrustError::io("lock", &self.folder))?;
        Ok(Some(lock))
    }
}

/// A file that may not be there.
fn there(path: &Path) -> Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(TrustError::io("read", path)(error)),
    }
}

fn wrong(path: &Path, number: usize, reason: &str) -> TrustError {
    let reason = format!("line {number}: {reason}; keep the file, and begin a new one");
    TrustError::File { path: path.to_owned(), reason }
}

/// Gives `each` every line without its end; nothing of one that is too long.
fn lines(path: &Path, file: &File, mut each: impl FnMut(usize, Option<&[u8]>)) -> Result<()> {
    let (mut file, mut line) = (BufReader::new(file), Vec::new());
    for number in 1.. {
        line.clear();
        let read = file.by_ref().take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line);
        if read.map_err(TrustError::io("read", path))? == 0 {
            break;
        }
        let whole = line.last() == Some(&b'\n') || line.len() <= MAX_LINE;
        each(number, whole.then(|| line.strip_suffix(b"\n").unwrap_or(&line)));
        if !whole {
            file.skip_until(b'\n').map_err(TrustError::io("read", path))?;
        }
    }
    Ok(())
}

fn parse(line: &[u8]) -> Result<Line, String> {
    parse_json(line).and_then(|value| serde_json::from_value(value).map_err(|error| error.to_string()))
}

/// Goes through a file from the end of the one before; where that is not known, its first line is believed. What is wrong
/// first comes along, and `each` is given all entries, those after it too.
fn survey(
    path: &Path,
    file: &File,
    before: Option<End>,
    each: &mut dyn FnMut(Entry),
) -> (End, Option<TrustError>) {
    let (mut is_known, mut problem) = (before.is_some(), None);
    let mut end = before.unwrap_or_default();
    let read = lines(path, file, |number, line| {
        let mut refuse = |reason: &str| _ = problem.get_or_insert_with(|| wrong(path, number, reason));
        let Some(line) = line else { return refuse(&format!("it is longer than {MAX_LINE} bytes")) };
        let Line { prev, entry } = match parse(line) {
            Ok(line) => line,
            Err(reason) => return refuse(&reason),
        };
        if is_known && prev != end.hash {
            refuse("it does not follow the line before it: one was changed or removed");
        }
        is_known = true;
        end = End { hash: Digest::of(line), month: Some(entry.month.clone()) };
        each(entry);
    });
    (end, read.err().or(problem))
}

/// As [`survey`], of a file that has to be whole.
fn walk(path: &Path, file: &File, before: Option<End>, each: &mut dyn FnMut(Entry)) -> Result<End> {
    let (end, problem) = survey(path, file, before, each);
    problem.map_or(Ok(end), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_removed_or_foreign_line_is_found() {
        let state = tempfile::tempdir().unwrap();
        let mut log = UsageLog::at(state.path());
        assert_eq!(log.read().unwrap(), []);
        let entry = |tokens| Entry {
            at: Timestamp::of_unix(1_800_000_000),
            plugin: "com.acme.x".to_owned(),
            licence: "lic_1".to_owned(),
            tenant: "default".to_owned(),
            month: "2027-01".to_owned(),
            tokens,
            requests: 1,
            peak_nodes: 1,
            peak_gpus: 0,
        };
        for tokens in [100, 200, 300] {
            log.append(&entry(tokens)).unwrap();
        }
        assert_eq!(log.read().unwrap(), [entry(100), entry(200), entry(300)]);
        let text = fs::read_to_string(&log.path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for (changed, says) in [
            (text.replacen("100", "101", 1), "line 2"),
            (lines[1..].join("\n"), "line 1"),
            ([lines[0], lines[2]].join("\n"), "line 2"),
            ([lines[0], lines[0], lines[1]].join("\n"), "line 2"),
            (text.replacen("{", "{\"tokens\":1,", 1), "line 1: the name `tokens` stands twice"),
            (format!("{text}\nx"), "line 4"),
        ] {
            fs::write(&log.path, &changed).unwrap();
            let refused = log.read().unwrap_err().to_string();
            assert!(refused.contains(says), "{changed}\n=> {refused}");
            assert!(
                UsageLog::at(state.path()).append(&entry(1)).is_err(),
                "nothing is added to a broken chain"
            );
        }
    }

    fn entry(month: &str, tokens: u64) -> Entry {
        Entry {
            at: Timestamp::of_unix(1_800_000_000),
            plugin: "com.acme.x".to_owned(),
            licence: "lic_1".to_owned(),
            tenant: "default".to_owned(),
            month: month.to_owned(),
            tokens,
            requests: 1,
            peak_nodes: 1,
            peak_gpus: 0,
        }
    }

    #[test]
    fn each_month_has_a_file_of_one_chain() {
        let state = tempfile::tempdir().unwrap();
        let all = [("2027-01", 1), ("2027-01", 2), ("2027-02", 4), ("2027-01", 8), ("2027-03", 16)];
        let mut log = UsageLog::at(state.path());
        for (month, tokens) in all {
            log.append(&entry(month, tokens)).unwrap();
        }
        // Another process finds the end.
        UsageLog::at(state.path()).append(&entry("2027-03", 32)).unwrap();
        log.append(&entry("2027-04", 64)).unwrap();
        let names: Vec<_> = log.archives().unwrap();
        let names: Vec<_> = names.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["usage-2027-01.jsonl", "usage-2027-03.jsonl"], "a month that comes again stays");
        let read: Vec<_> = log.read().unwrap().iter().map(|entry| entry.tokens).collect();
        assert_eq!(read, [1, 2, 4, 8, 16, 32, 64]);
        let used = |month| log.used_in(month).0.iter().map(|entry| entry.tokens).sum::<u64>();
        assert_eq!((used("2027-03"), used("2027-04"), used("2026-12")), (48, 64, 0));
        // A file that is missing is missed.
        fs::remove_file(log.of_month("2027-03")).unwrap();
        assert!(log.read().unwrap_err().to_string().contains("line 1"));
        assert_eq!(used("2027-04"), 64);
        // One that began anew goes on from the last.
        fs::remove_file(&log.path).unwrap();
        UsageLog::at(state.path()).append(&entry("2027-05", 128)).unwrap();
        assert_eq!(log.read().unwrap().len(), 3);
    }

    #[test]
    fn a_broken_line_makes_nothing_that_was_used_go_away() {
        let state = tempfile::tempdir().unwrap();
        let mut log = UsageLog::at(state.path());
        (0..4).for_each(|n| log.append(&entry("2027-01", 1 << n)).unwrap());
        let text = fs::read_to_string(&log.path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let long = "x".repeat(3 * MAX_LINE);
        for (broken, left) in [
            (["nonsense", lines[1], lines[2], lines[3]], 14),
            ([lines[0], &long, lines[2], lines[3]], 13),
            ([lines[0], lines[1], lines[3], "\u{fffd}"], 11),
        ] {
            fs::write(&log.path, broken.join("\n")).unwrap();
            let (used, problem) = log.used_in("2027-01");
            assert_eq!(used.iter().map(|entry| entry.tokens).sum::<u64>(), left);
            assert!(problem.unwrap().to_string().contains("usage.jsonl: line"));
        }
    }
}
