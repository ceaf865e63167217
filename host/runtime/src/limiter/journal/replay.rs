//! Reads journals back.

use super::record::{Kind, Record};
use crate::limiter::Window;
use crate::store::{Owner, Spent};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::{fs, io};

/// What journals add to what the store knows.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Spent, by key and window.
    pub spent: Vec<Spent>,
    /// Reservations that were open and are counted as spent.
    pub open: usize,
    /// The last line was not whole: the process died while it wrote, and what it wrote was not used yet.
    pub torn: bool,
    /// Files with lines that could not be read, and how many in each.
    pub damaged: Vec<(PathBuf, usize)>,
    /// The next free generation.
    pub next: u64,
}

/// The journals of a folder, oldest first.
pub fn files(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some(number) = name.and_then(|name| name.strip_suffix(".log")?.parse().ok()) {
            files.push((number, path));
        }
    }
    files.sort();
    Ok(files)
}

/// What the journals from `generation` on add to what the store knows.
///
/// # Errors
/// When a file cannot be read. Damage inside one is no error.
pub fn read(dir: &Path, generation: u64) -> io::Result<Replayed> {
    let mut replayed = Replayed { next: generation, ..Replayed::default() };
    let mut fold = Fold::default();
    let files = files(dir)?;
    let last = files.last().map(|(number, _)| *number);
    for (number, path) in files {
        replayed.next = replayed.next.max(number + 1);
        if number < generation {
            continue;
        }
        let bytes = fs::read(&path)?;
        let mut lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
        // After the last line's end comes nothing, or what a dying process began.
        let mut rest = lines.pop().unwrap_or_default();
        if let Some(record) = Record::decode(rest) {
            // Whole but for its end.
            fold.add(record);
            rest = b"";
        }
        let mut unread = 0;
        for line in lines.into_iter().filter(|line| !line.is_empty()) {
            match Record::decode(line) {
                Some(record) => fold.add(record),
                None => unread += 1,
            }
        }
        if !rest.is_empty() {
            if Some(number) == last { replayed.torn = true } else { unread += 1 }
        }
        if unread != 0 {
            replayed.damaged.push((path, unread));
        }
    }
    replayed.open = fold.open.len();
    replayed.spent = fold.close();
    Ok(replayed)
}

/// Sums records up. In any order and however often a record comes, the sum is the same: a rotation that was cut short
/// leaves an open reservation in two files.
#[derive(Default)]
struct Fold {
    open: HashMap<u64, (Owner, Window, u64)>,
    settled: HashSet<u64>,
    spent: BTreeMap<(Owner, Window), u64>,
}

impl Fold {
    fn add(&mut self, record: Record<'_>) {
        let account = record.account();
        match record.kind {
            Kind::Reserve if self.settled.contains(&record.serial) => {}
            Kind::Reserve => drop(self.open.insert(record.serial, (account.0, account.1, record.tokens))),
            Kind::Settle => {
                // Without its reservation it is one whose line is damaged: it counts all the same.
                self.open.remove(&record.serial);
                if self.settled.insert(record.serial) {
                    self.spend(account, record.tokens);
                }
            }
        }
    }

    fn spend(&mut self, account: (Owner, Window), tokens: u64) {
        let spent = self.spent.entry(account).or_default();
        *spent = spent.saturating_add(tokens);
    }

    fn close(mut self) -> Vec<Spent> {
        for (_, (owner, window, tokens)) in std::mem::take(&mut self.open) {
            self.spend((owner, window), tokens);
        }
        self.spent.into_iter().map(|((owner, window), tokens)| Spent { owner, window, tokens }).collect()
    }
}
