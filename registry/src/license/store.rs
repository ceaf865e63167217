//! Licence files of a state directory: `<state>/licenses/<licence id>.lic`.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::first::FirstHad;
use super::{
    Clock, LABEL, Licence, MAX_FILE, Machine, Report, Situation, Snapshot, State, TimeToken, check, token,
};
use crate::trust::{Envelope, Result, Timestamp, TrustError, TrustSet, armour, read_capped, write_atomic};

/// The licence files of one state directory.
#[derive(Debug, Clone)]
pub struct Licences {
    root: PathBuf,
    first: FirstHad,
}

/// One file, and what came of its check.
#[derive(Debug)]
pub struct Held {
    pub path: PathBuf,
    pub report: Report,
    /// Another file of the same issuer for the same plugin counts instead.
    pub superseded: bool,
}

impl Licences {
    pub fn at(state: &Path) -> Self {
        Self { root: state.join("licenses"), first: FirstHad::at(state) }
    }

    pub fn folder(&self) -> &Path {
        &self.root
    }

    /// Checks every file. Of one issuer's licences for one plugin that with the highest serial counts, among those that
    /// serve if any does; the others are marked. `since` is asked for the plugin and use of each.
    pub fn load(&self, situation: &Situation<'_>) -> Result<Vec<Held>> {
        let (mut out, times) = (Vec::new(), self.first.read());
        for path in self.files()? {
            // A file that is too large is reported like any other.
            let bytes = match read_capped(&path, MAX_FILE) {
                Ok(bytes) => bytes,
                Err(TrustError::TooLarge { limit }) => vec![b' '; limit + 1],
                // It was removed since the folder was listed.
                Err(TrustError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => continue,
                // Nobody else's licence is the worse for it.
                Err(error) => {
                    out.push(Held { report: Report::unreadable(&error), path, superseded: false });
                    continue;
                }
            };
            let came = written(&path).map(|written| written.min(situation.now.at));
            let of = |first_seen| check(&bytes, &Situation { first_seen, ..*situation });
            let mut report = of(situation.first_seen.or(came));
            if situation.first_seen.is_none()
                && let Some(licence) = report.licence.as_ref().filter(|licence| licence.ttl_days.is_some())
            {
                report = match &times {
                    Ok(times) => of(times.of(licence).or(came)),
                    Err(_) => of(None),
                };
            }
            out.push(Held { report, path, superseded: false });
        }
        mark(&mut out);
        Ok(out)
    }

    /// Remembers since when each is here, for those that end by that.
    pub fn note_first(&self, situation: &Situation<'_>) -> Result<()> {
        let held = self.load(situation)?;
        self.first.note(held.iter().filter_map(|held| {
            let came = written(&held.path).unwrap_or(situation.now.at);
            Some((held.report.licence.as_ref()?, came.min(situation.now.at)))
        }))
    }

    /// As [`note_first`](Self::note_first), of one that was installed just now.
    pub fn note_installed(&self, licence: &Licence, now: Timestamp) -> Result<()> {
        self.first.note(std::iter::once((licence, now)))
    }

    /// What is here and cannot be read, and why.
    pub fn unreadable(&self) -> Result<Vec<TrustError>> {
        let read = |path: PathBuf| {
            File::open(path.as_path())
                .and_then(|file| file.take(1).read_to_end(&mut Vec::new()))
                .map_err(TrustError::io("read", path))
                .err()
        };
        let gone = |error: &TrustError| matches!(error, TrustError::Io { source, .. } if source.kind() == ErrorKind::NotFound);
        Ok(self.files()?.into_iter().filter_map(read).filter(|error| !gone(error)).collect())
    }

    /// The one that counts for this plugin: `situation` has to name it. Where no licence is for it, a file that cannot be
    /// believed and may have been one: who has a damaged file is not to look for a missing one. None if there is no such.
    pub fn of_plugin(&self, plugin: &str, situation: &Situation<'_>) -> Result<Option<Held>> {
        let for_it = |held: &Held| match &held.report.licence {
            Some(licence) => licence.product.plugin == plugin,
            None => says_to_be_for(&held.path).is_none_or(|said| said == plugin),
        };
        let held = self.load(situation)?.into_iter().filter(for_it);
        Ok(held.max_by_key(|held| {
            (held.report.licence.is_some(), held.report.standing.serves, !held.superseded)
        }))
    }

    /// How a plugin stands, by what is here: `situation` has to name it. What the vendor signed last is a time that has
    /// come, whatever `clock` says; `situation.now` is the system's.
    pub fn standing_of(&self, plugin: &str, situation: &Situation<'_>, clock: &Clock) -> Result<Snapshot> {
        let system = situation.now.at;
        let now = clock.times(system, built(), None);
        let held = self.load(&Situation { now, ..*situation })?;
        let speaks = held.iter().filter_map(|held| {
            let licence = held.report.licence.as_ref()?;
            let sound = licence.product.plugin == plugin && held.report.standing.state != State::Invalid;
            sound.then_some((licence.issuer.as_str(), licence.iat))
        });
        let signed = speaks
            .flat_map(|(issuer, iat)| {
                let lists = situation.revocations.lists().filter(move |(key, _)| key.owner == issuer);
                lists.map(|(_, list)| list.iat).chain([iat])
            })
            .max();
        let now = clock.times(system, built(), signed);
        let held = self.of_plugin(plugin, &Situation { now, ..*situation })?;
        Ok(held.as_ref().map_or_else(Snapshot::missing, Snapshot::from))
    }

    /// Keeps a file that was checked; returns where. The same licence again takes the file's place.
    pub fn install(&self, id: &str, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.path(id)?;
        write_atomic(&path, bytes, 0o644)?;
        Ok(path)
    }

    /// Removes a licence; false if there is none of this id.
    pub fn remove(&self, id: &str) -> Result<bool> {
        let path = self.path(id)?;
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(TrustError::io("remove", path)(error)),
        }
    }

    /// Keeps a token that was checked; the one of this issuer before gives way.
    pub fn install_token(&self, token: &TimeToken, bytes: &[u8]) -> Result<PathBuf> {
        let path = token::file_of(&self.root, &token.issuer);
        write_atomic(&path, bytes, 0o644)?;
        Ok(path)
    }

    /// Lets `clock` go by the tokens that are here, each once. What was taken, and what was not believed and why.
    pub fn mend(
        &self,
        clock: &mut Clock,
        trust: &TrustSet,
        machine: &Machine,
        system: Timestamp,
    ) -> Result<(Vec<TimeToken>, Vec<TrustError>)> {
        let (mut taken, mut refused) = (Vec::new(), Vec::new());
        for path in self.files_of("time")? {
            let install = machine.install.as_deref().unwrap_or_default();
            let read = read_capped(&path, MAX_FILE)
                .and_then(|bytes| TimeToken::read(&bytes, trust, install, system));
            match read {
                // Once it was taken, what the clock says then is the clock's.
                Ok((token, key)) => {
                    if token.fits(system).is_ok() && clock.reset(&token.issuer, key, token.time, system) {
                        taken.push(token);
                    }
                }
                Err(error) => refused.push(TrustError::File { path, reason: error.to_string() }),
            }
        }
        Ok((taken, refused))
    }

    fn path(&self, id: &str) -> Result<PathBuf> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
        if id.is_empty() || id.len() > 64 || !id.bytes().all(plain) {
            let reason = format!("`{id}` is no licence id: expected letters, digits, `_` and `-`");
            return Err(TrustError::File { path: self.root.clone(), reason });
        }
        Ok(self.root.join(format!("{id}.lic")))
    }

    fn files(&self) -> Result<Vec<PathBuf>> {
        self.files_of("lic")
    }

    fn files_of(&self, kind: &str) -> Result<Vec<PathBuf>> {
        let mut out = crate::store::list(&self.root)
            .map_err(|error| TrustError::File { path: self.root.clone(), reason: error.to_string() })?;
        // A folder holds no licence, and reading a pipe would wait for its writer.
        let is_file = |path: &Path| fs::metadata(path).is_ok_and(|metadata| metadata.is_file());
        out.retain(|path| path.extension().is_some_and(|extension| extension == kind) && is_file(path));
        out.sort();
        Ok(out)
    }
}

/// When this program was built, where its builder says so.
fn built() -> Timestamp {
    let said = option_env!("SOURCE_DATE_EPOCH").and_then(|seconds| seconds.parse().ok());
    said.map_or_else(Timestamp::default, Timestamp::of_unix)
}

/// Which plugin a file names that is not believed: what is told of it is told there. None if nothing can be read of it.
fn says_to_be_for(path: &Path) -> Option<String> {
    let bytes = read_capped(path, MAX_FILE).ok()?;
    let file = armour::read(LABEL, &String::from_utf8_lossy(&bytes)).ok()?;
    let envelope = Envelope::parse(&file.body, MAX_FILE).ok()?;
    let said: serde_json::Value = serde_json::from_slice(envelope.unverified_payload()).ok()?;
    Some(said["product"]["plugin"].as_str()?.to_owned())
}

/// When a file came here.
fn written(path: &Path) -> Option<Timestamp> {
    let since = path.metadata().ok()?.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(Timestamp::of_unix(i64::try_from(since.as_secs()).ok()?))
}

fn mark(held: &mut [Held]) {
    let mut groups: BTreeMap<(String, String), Vec<&mut Held>> = BTreeMap::new();
    for one in held {
        if let Some(licence) = &one.report.licence {
            let group = (licence.issuer.clone(), licence.product.plugin.clone());
            groups.entry(group).or_default().push(one);
        }
    }
    for group in groups.values_mut() {
        group.sort_by_key(|one| {
            let serial = one.report.licence.as_ref().map_or(0, |licence| licence.serial);
            Reverse((one.report.standing.serves, serial))
        });
        group.iter_mut().skip(1).for_each(|one| one.superseded = true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_is_passed_over() {
        let state = tempfile::tempdir().unwrap();
        let licences = Licences::at(state.path());
        fs::create_dir_all(licences.folder().join("folder.lic")).unwrap();
        let pipe = licences.folder().join("pipe.lic");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        fs::write(licences.folder().join("licence.lic"), "x").unwrap();
        assert_eq!(licences.files().unwrap(), [licences.folder().join("licence.lic")]);
    }
}
