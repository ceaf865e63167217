//! Which machine a licence is for.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Bind, BindKind, Match, own_key};
use crate::digest::Digest;
use crate::trust::{PublicKey, Result, TrustError, read_capped, write_new};

/// What this machine can be known by. Licences hold hashes of these, with the plugin's id in them, so that two vendors
/// cannot tell that they have the same customer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Machine {
    /// Of this state directory, made once.
    pub install: Option<String>,
    parts: Vec<(&'static str, String)>,
}

/// One of the things that a fingerprint is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct FingerprintPart {
    /// `machine`, `board` or `gpu`.
    pub name: &'static str,
    /// What a licence for this plugin has to say.
    pub id: String,
}

impl Machine {
    /// Reads what there is. Making the install id is [`install_id`](Self::install_id)'s.
    pub fn read(state: &Path) -> Self {
        let text = |path: &str| {
            let text = fs::read_to_string(path).ok()?.trim().to_owned();
            Some(text).filter(|text| !text.is_empty())
        };
        let found = [
            ("machine", text("/etc/machine-id")),
            ("board", text("/sys/class/dmi/id/product_uuid")),
            ("gpu", first_gpu()),
        ];
        let parts = found.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        Self { install: read_install_id(state).ok().flatten(), parts }
    }

    /// One with these facts: for tests and embedders.
    pub fn of(install: Option<String>, parts: Vec<(&'static str, String)>) -> Self {
        Self { install, parts }
    }

    /// The id of this state directory; it is made if there is none, from the [key](super::own_key) of this installation.
    pub fn install_id(state: &Path) -> Result<String> {
        if let Some(id) = read_install_id(state)? {
            return Ok(id);
        }
        let id = id_of(&own_key(state)?.public());
        match write_new(&path(state), format!("{id}\n").as_bytes(), 0o644) {
            // Another process was faster.
            Err(TrustError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
                read_install_id(state).map(Option::unwrap_or_default)
            }
            other => other.map(|()| id),
        }
    }

    /// What licences for this plugin can be bound to.
    pub fn fingerprint(&self, plugin: &str) -> Vec<FingerprintPart> {
        let part = |(name, value): &(&'static str, String)| {
            let digest = Digest::of(format!("{plugin}\0{name}\0{value}").as_bytes());
            FingerprintPart { name, id: format!("{name}:{digest}") }
        };
        self.parts.iter().map(part).collect()
    }

    /// Whether a licence with this binding is for this machine; otherwise why not.
    pub(super) fn fits(&self, bind: &Bind, plugin: &str) -> Result<String, String> {
        match bind.kind {
            BindKind::None => Ok("to no machine".to_owned()),
            BindKind::Install => match &self.install {
                Some(id) if bind.ids.contains(id) => Ok(format!("to this installation, {id}")),
                Some(id) => Err(format!("it is for another installation than {id}")),
                None => Err("it is for an installation, and this one has no id yet".to_owned()),
            },
            BindKind::Fingerprint => {
                let needed = if bind.matching == Match::TwoOfThree { 2 } else { 1 };
                let mine = self.fingerprint(plugin);
                let same = mine.iter().filter(|part| bind.ids.contains(&part.id)).count();
                if same >= needed {
                    Ok(format!("to this machine, {same} of 3 parts are the same"))
                } else {
                    Err(format!(
                        "it is for another machine: {same} of its parts are here, {needed} are needed"
                    ))
                }
            }
        }
    }
}

/// The id of the installation that has this key.
pub(super) fn id_of(key: &PublicKey) -> String {
    format!("ins_{}", key.id())
}

fn path(state: &Path) -> PathBuf {
    state.join("install-id")
}

fn read_install_id(state: &Path) -> Result<Option<String>> {
    let path = path(state);
    let bytes = match read_capped(&path, 64) {
        Err(TrustError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let id = String::from_utf8_lossy(&bytes).trim().to_owned();
    let fine = id
        .strip_prefix("ins_")
        .is_some_and(|hex| hex.len() == 32 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));
    if fine {
        return Ok(Some(id));
    }
    let reason = "it is no install id; licences are bound to it, so bring the file back, or remove it to have a new one";
    Err(TrustError::File { path, reason: reason.to_owned() })
}

/// How many GPUs of this machine a program may use: all, or those that `visible` lists (`CUDA_VISIBLE_DEVICES`).
pub fn visible_gpus(visible: Option<&str>) -> u64 {
    let all = fs::read_dir("/proc/driver/nvidia/gpus").map_or(0, Iterator::count);
    bounded(all, visible) as u64
}

/// CUDA reads the list up to the first entry that names no device.
fn bounded(all: usize, visible: Option<&str>) -> usize {
    let Some(list) = visible else { return all };
    let named = |device: &&str| match device.trim().parse::<i64>() {
        Ok(number) => usize::try_from(number).is_ok_and(|number| number < all),
        // A UUID, whole or how it begins.
        Err(_) => !device.trim().is_empty(),
    };
    list.split(',').take_while(named).count().min(all)
}

fn first_gpu() -> Option<String> {
    let mut folders: Vec<PathBuf> =
        fs::read_dir("/proc/driver/nvidia/gpus").ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    folders.sort();
    let text = fs::read_to_string(folders.first()?.join("information")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("GPU UUID:"))?;
    Some(line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(parts: &[(&'static str, &str)]) -> Machine {
        Machine::of(None, parts.iter().map(|&(name, value)| (name, value.to_owned())).collect())
    }

    #[test]
    fn two_of_three_parts_are_the_same_machine() {
        let all = machine(&[("machine", "m"), ("board", "b"), ("gpu", "g")]);
        let ids = |plugin: &str| all.fingerprint(plugin).into_iter().map(|part| part.id).collect::<Vec<_>>();
        let bind = Bind { kind: BindKind::Fingerprint, ids: ids("com.acme.x"), matching: Match::TwoOfThree };
        let fits = |machine: &Machine, plugin| machine.fits(&bind, plugin).is_ok();
        assert!(fits(&all, "com.acme.x"));
        assert!(fits(&machine(&[("machine", "m"), ("board", "other"), ("gpu", "g")]), "com.acme.x"));
        assert!(!fits(&machine(&[("machine", "m"), ("board", "other")]), "com.acme.x"));
        assert!(
            !fits(&machine(&[("board", "m"), ("machine", "b")]), "com.acme.x"),
            "a part is no other part"
        );
        assert!(!fits(&all, "com.other.x"), "the plugin's id is the salt");
        assert_ne!(ids("com.acme.x"), ids("com.other.x"));
    }

    #[test]
    fn gpus_that_are_hidden_are_not_used() {
        for (visible, count) in [
            (None, 4),
            (Some(""), 0),
            (Some("0"), 1),
            (Some("0, 2"), 2),
            (Some("GPU-1a,GPU-2b,3"), 3),
            (Some("0,-1,2"), 1),
            (Some("9"), 0),
        ] {
            assert_eq!(bounded(4, visible), count, "{visible:?}");
        }
    }

    #[test]
    fn an_install_id_is_made_once_and_a_damaged_one_is_not_replaced() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(Machine::read(state.path()).install, None);
        let id = Machine::install_id(state.path()).unwrap();
        assert_eq!(Machine::install_id(state.path()).unwrap(), id);
        assert_eq!(Machine::read(state.path()).install, Some(id.clone()));
        let bind = |ids: &[&str]| Bind {
            kind: BindKind::Install,
            ids: ids.iter().map(|&id| id.to_owned()).collect(),
            matching: Match::Any,
        };
        let here = Machine::read(state.path());
        assert!(here.fits(&bind(&["ins_0", &id]), "x").is_ok() && here.fits(&bind(&["ins_0"]), "x").is_err());
        std::fs::write(state.path().join("install-id"), "ins_nonsense").unwrap();
        assert!(Machine::install_id(state.path()).unwrap_err().to_string().contains("bring the file back"));
    }
}
