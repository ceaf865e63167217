//! Making a registry's tree.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::fetch::{Tree, replace};
use super::{
    MAX_LIST, MAX_SNAPSHOT, MAX_TIMESTAMP, Offer, SnapshotDoc, TIMESTAMP, TIMESTAMP_TYPE, TimestampDoc, blob,
};
use crate::digest::Digest;
use crate::package::error::{Problem, Result, io};
use crate::package::store::order;
use crate::package::{PackageManifest, pack};
use crate::trust::{
    Envelope, Role, SecretKey, Timestamp, TrustSet, TrustedKey, parse_typed, payload_type, read_capped,
};

/// What becomes different in a registry.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// Signed packages to add.
    pub add: Vec<PathBuf>,
    /// Versions to withdraw: id and version.
    pub yank: Vec<(String, String)>,
    /// A signed revocation list that goes with the index from now on.
    pub revocations: Option<PathBuf>,
}

/// Makes a registry, or changes one and signs it anew. Returns its serial. Whose packages they are is checked by who
/// installs them; that they are whole is checked here.
pub fn make(
    dir: &Path,
    changes: &Changes,
    keys: &[&SecretKey],
    now: Timestamp,
    expires: Timestamp,
) -> Result<u64> {
    let wrong = |why: String| Problem::Index(why).at(dir);
    let tree = Tree::Folder(dir.to_owned());
    let (mut snapshot, before) = read(&tree, dir)?;
    for path in &changes.add {
        let (manifest, digest) = pack::check_signed(path)?;
        let id = manifest.plugin.id.clone();
        let mut offers = list(&tree, &snapshot, &id)?;
        let offer = offer(path, &manifest, digest)?;
        if let Some(same) =
            offers.iter().find(|one| one.version == offer.version && one.platform == offer.platform)
        {
            // Who has it would not get the other, and nobody could tell which is meant.
            if same.digest != offer.digest {
                let what = format!(
                    "{id} {} for {} is there already, with other contents; give it a new version",
                    offer.version, offer.platform
                );
                return Err(wrong(what));
            }
            offers.retain(|one| one.digest != offer.digest);
        }
        let to = dir.join(blob(&offer.sha256));
        if !to.exists() {
            let bytes = std::fs::read(path).map_err(io("read", path))?;
            if Digest::of(&bytes) != offer.sha256 {
                return Err(Problem::Modified("it changed while it was read".to_owned()).at(path));
            }
            replace(&to, &bytes)?;
        }
        offers.push(offer);
        write_list(dir, &mut snapshot, &id, offers)?;
    }
    for (id, version) in &changes.yank {
        let mut offers = list(&tree, &snapshot, id)?;
        let mut found = false;
        for offer in offers.iter_mut().filter(|offer| offer.version == *version) {
            offer.yanked = true;
            found = true;
        }
        if !found {
            return Err(
                Problem::NotFound(format!("there is no version {version} in {}", dir.display())).of(id)
            );
        }
        write_list(dir, &mut snapshot, id, offers)?;
    }
    if let Some(path) = &changes.revocations {
        let bytes = read_capped(path, MAX_LIST as usize)
            .map_err(|error| Problem::Index(error.to_string()).at(path))?;
        let digest = Digest::of(&bytes);
        replace(&dir.join(blob(&digest)), &bytes)?;
        snapshot.revocations = Some(digest);
    }
    snapshot.serial = next(dir, before, keys, now).map_err(wrong)?;
    let signed = sign(payload_type::SNAPSHOT, &snapshot, keys, dir)?;
    let digest = Digest::of(&signed);
    replace(&dir.join(blob(&digest)), &signed)?;
    // Last: from here on clients see the new state, all of it.
    let stamp = TimestampDoc { serial: snapshot.serial, snapshot: digest, expires };
    if expires <= now {
        return Err(wrong("it would end before anybody reads it".to_owned()));
    }
    replace(&dir.join(TIMESTAMP), &sign(TIMESTAMP_TYPE, &stamp, keys, dir)?)?;
    Ok(snapshot.serial)
}

/// The serial after this one. The highest that there is can be signed by mistake, or by who stole a key: nothing follows it
/// that a client believes of that key, and of another one everything does.
fn next(dir: &Path, before: u64, keys: &[&SecretKey], now: Timestamp) -> Result<u64, String> {
    if let Some(next) = before.checked_add(1) {
        return Ok(next);
    }
    let mut same = TrustSet::default();
    keys.iter().for_each(|key| same.add(TrustedKey::new(key.public(), "who signs now", &[Role::Index])));
    let stamp = std::fs::read(dir.join(TIMESTAMP)).map_err(|error| error.to_string())?;
    let signed = Envelope::parse(&stamp, MAX_TIMESTAMP as usize)
        .and_then(|envelope| envelope.verify(&same, Role::Index, TIMESTAMP_TYPE, now));
    match signed {
        Err(_) => Ok(1),
        Ok(_) => Err("its serial is the highest that there is, so nothing that this key signs follows it: sign it with \
                      another (`backplane plugin keygen`), and have those who use it name that one with `backplane \
                      plugin trust registry`"
            .to_owned()),
    }
}

fn sign(kind: &str, document: &impl serde::Serialize, keys: &[&SecretKey], dir: &Path) -> Result<Vec<u8>> {
    let bytes = serde_json::to_vec(document).map_err(|error| Problem::Index(error.to_string()).at(dir))?;
    Ok(Envelope::sign(kind, bytes, keys).to_json())
}

/// The snapshot that is there, and its serial. The one who signs it now is answerable for it: no key is asked here.
fn read(tree: &Tree, dir: &Path) -> Result<(SnapshotDoc, u64)> {
    if !dir.join(TIMESTAMP).exists() {
        return Ok((SnapshotDoc::default(), 0));
    }
    let wrong = |error: crate::trust::TrustError| Problem::Index(error.to_string()).at(dir);
    let stamp = tree.read(TIMESTAMP, MAX_TIMESTAMP)?;
    let stamp = Envelope::parse(&stamp, MAX_TIMESTAMP as usize).map_err(wrong)?;
    let stamp: TimestampDoc = parse_typed(stamp.unverified_payload()).map_err(wrong)?;
    let signed = tree.blob(&stamp.snapshot, MAX_SNAPSHOT)?;
    let signed = Envelope::parse(&signed, MAX_SNAPSHOT as usize).map_err(wrong)?;
    Ok((parse_typed(signed.unverified_payload()).map_err(wrong)?, stamp.serial))
}

fn list(tree: &Tree, snapshot: &SnapshotDoc, id: &str) -> Result<Vec<Offer>> {
    let Some(digest) = snapshot.plugins.get(id) else { return Ok(Vec::new()) };
    let text = tree.blob(digest, MAX_LIST)?;
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| parse_typed(line).map_err(|error| Problem::Index(error.to_string()).of(id))).collect()
}

fn write_list(dir: &Path, snapshot: &mut SnapshotDoc, id: &str, mut offers: Vec<Offer>) -> Result<()> {
    offers.sort_by(|a, b| order(&a.version, &b.version).then_with(|| a.platform.cmp(&b.platform)));
    let mut text = String::new();
    let mut seen = BTreeSet::new();
    for offer in offers.iter().filter(|offer| seen.insert((offer.digest, offer.yanked))) {
        let line = serde_json::to_string(offer).map_err(|error| Problem::Index(error.to_string()).of(id))?;
        text.push_str(&line);
        text.push('\n');
    }
    let digest = Digest::of(text.as_bytes());
    replace(&dir.join(blob(&digest)), text.as_bytes())?;
    snapshot.plugins.insert(id.to_owned(), digest);
    Ok(())
}

fn offer(path: &Path, manifest: &PackageManifest, digest: Digest) -> Result<Offer> {
    Ok(Offer {
        version: manifest.plugin.version.clone(),
        digest,
        sha256: Digest::of_file(path).map_err(io("read", path))?,
        size: path.metadata().map_err(io("read", path))?.len(),
        abi: manifest.plugin.abi.to_string(),
        platform: manifest.platform.to_string(),
        yanked: false,
    })
}
