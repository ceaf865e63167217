//! What a licensed plugin was used for: one line of JSON after another, each with the hash of the one before.
//!
//! A line that was changed, left out or put in between is found. One who may write the file can begin it anew: it is a
//! record between people who deal honestly, not a seal.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
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

/// `<state>/licenses/usage.jsonl`.
#[derive(Debug)]
pub struct UsageLog {
    path: PathBuf,
    /// Where the file ended when it was walked last, and the hash of its last line: what was walked is not walked again.
    end: Option<(u64, Digest)>,
}

impl UsageLog {
    pub fn at(state: &Path) -> Self {
        Self { path: state.join("licenses/usage.jsonl"), end: None }
    }

    /// Adds a line. Several processes may: each finds the end under a lock.
    pub fn append(&mut self, entry: &Entry) -> Result<()> {
        let path = &self.path;
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(TrustError::io("make", folder))?;
        }
        let file = OpenOptions::new().create(true).append(true).read(true).open(path);
        let mut file = file.map_err(TrustError::io("open", path))?;
        file.lock().map_err(TrustError::io("lock", path))?;
        let length = file.metadata().map_err(TrustError::io("read", path))?.len();
        let prev = match self.end {
            Some((end, prev)) if end == length => prev,
            _ => self.walk(&file)?.1,
        };
        let line = Line { prev, entry: entry.clone() };
        let mut text = serde_json::to_string(&line).unwrap_or_default();
        let end = (length + text.len() as u64 + 1, Digest::of(text.as_bytes()));
        text.push('\n');
        self.end = None;
        file.write_all(text.as_bytes()).map_err(TrustError::io("write", path))?;
        self.end = Some(end);
        Ok(())
    }

    /// Every entry; an error names the first line that does not follow the one before it.
    pub fn read(&self) -> Result<Vec<Entry>> {
        self.read_with_end().map(|(entries, _)| entries)
    }

    /// As [`read`](Self::read), with the hash of the last line: it names all of them.
    pub fn read_with_end(&self) -> Result<(Vec<Entry>, Digest)> {
        match File::open(&self.path) {
            Ok(file) => self.walk(&file),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok((Vec::new(), Digest::of(b""))),
            Err(error) => Err(TrustError::io("read", &self.path)(error)),
        }
    }

    fn walk(&self, file: &File) -> Result<(Vec<Entry>, Digest)> {
        let wrong = |number: usize, reason: String| TrustError::File {
            path: self.path.clone(),
            reason: format!("line {number}: {reason}; keep the file, and begin a new one"),
        };
        let mut prev = Digest::of(b"");
        let mut out = Vec::new();
        for (place, line) in BufReader::new(file).lines().enumerate() {
            let line = line.map_err(TrustError::io("read", &self.path))?;
            if line.len() > MAX_LINE {
                return Err(wrong(place + 1, format!("it is longer than {MAX_LINE} bytes")));
            }
            let read = parse_json(line.as_bytes())
                .and_then(|value| serde_json::from_value::<Line>(value).map_err(|error| error.to_string()))
                .map_err(|reason| wrong(place + 1, reason))?;
            if read.prev != prev {
                return Err(wrong(
                    place + 1,
                    "it does not follow the line before it: one was changed or removed".to_owned(),
                ));
            }
            prev = Digest::of(line.as_bytes());
            out.push(read.entry);
        }
        Ok((out, prev))
    }
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
}
