//! When this installation first had a licence that ends so many days after: whatever becomes of its file, that stays.
//!
//! It is signed as the record of the clock is, and no safer than that: who removes it begins anew.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::Licence;
use super::own::{remember, remembered};
use crate::trust::{Result, Timestamp, TrustError, payload_type};

/// More than ten thousand licences take.
const MAX: usize = 2 << 20;

/// `<state>/licenses/first-had.dsse`.
#[derive(Debug, Clone)]
pub(super) struct FirstHad {
    state: PathBuf,
}

/// By licence: another of the same id is another.
#[derive(Debug, Default)]
pub(super) struct Times(BTreeMap<String, Timestamp>);

impl Times {
    pub fn of(&self, licence: &Licence) -> Option<Timestamp> {
        self.0.get(&name(licence)).copied()
    }
}

impl FirstHad {
    pub fn at(state: &Path) -> Self {
        Self { state: state.to_owned() }
    }

    /// What is remembered; an error if somebody wrote into it.
    pub fn read(&self) -> Result<Times> {
        let times = remembered(&self.state, &self.path(), payload_type::FIRST_HAD, MAX);
        times.map(Option::unwrap_or_default).map(Times).map_err(|error| {
            let reason =
                "licences with `ttl_days` count from their day of issue until it is brought back or removed";
            TrustError::File { path: self.path(), reason: format!("{error}; {reason}") }
        })
    }

    /// Remembers each that ends by this, with the time that it was had by; never a later one than before.
    pub fn note<'a>(&self, had: impl Iterator<Item = (&'a Licence, Timestamp)>) -> Result<()> {
        let mut had = had.filter(|(licence, _)| licence.ttl_days.is_some()).peekable();
        if had.peek().is_none() {
            return Ok(());
        }
        let folder = self.state.join("licenses");
        fs::create_dir_all(&folder).map_err(TrustError::io("make", &folder))?;
        // The file gives way to another, so its lock is its folder's.
        let lock = File::open(&folder).map_err(TrustError::io("open", &folder))?;
        lock.lock().map_err(TrustError::io("lock", &folder))?;
        let Times(mut times) = self.read()?;
        let mut new = false;
        for (licence, at) in had {
            let name = name(licence);
            if times.get(&name).is_none_or(|known| at < *known) {
                times.insert(name, at);
                new = true;
            }
        }
        if new { remember(&self.state, &self.path(), payload_type::FIRST_HAD, &times) } else { Ok(()) }
    }

    fn path(&self) -> PathBuf {
        self.state.join("licenses/first-had.dsse")
    }
}

fn name(licence: &Licence) -> String {
    format!("{} {} {}", licence.issuer, licence.id, licence.serial)
}
