//! Keys and revocation lists on disk.
//!
//! ```text
//! <state>/trust/
//!   keys.toml                      trusted keys, readable and writable by hand
//!   root.dsse                      whom somebody else vouches for
//!   revocations/<key id>.dsse      the newest list of each key
//!   serials.json                   the highest serial seen, per kind of document and key
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::revocation::MAX_LIST;
use super::{
    Envelope, KeyId, Level, MAX_ROOT, Ratchet, Result, RevocationList, Revocations, Root, Timestamp,
    TrustError, TrustSet, TrustedKey,
};
use crate::strict;

/// More than a thousand keys take.
const MAX_KEYS: usize = 1 << 20;

/// The trusted keys of one state directory.
#[derive(Debug, Clone)]
pub struct TrustStore {
    root: PathBuf,
}

/// What is in force, and what of the files could not be believed.
#[derive(Debug, Default)]
pub struct Trusted {
    pub keys: TrustSet,
    pub revocations: Revocations,
    pub problems: Vec<TrustError>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeysFile {
    #[serde(default, rename = "key")]
    keys: Vec<TrustedKey>,
}

impl TrustStore {
    pub fn at(state: &Path) -> Self {
        Self { root: state.join("trust") }
    }

    /// The keys and revocations in force at `now`. A key file that cannot be read is an error, for nothing could be
    /// checked; a revocation list that is not believed is a problem to be shown.
    pub fn load(&self, now: Timestamp) -> Result<Trusted> {
        let mut trusted = Trusted::default();
        // What the operator says of a key counts before what somebody else does.
        match self.root().map(|root| root.map(|root| root.in_force(now).map(|()| root))) {
            Ok(Some(Ok(root))) => root.keys.into_iter().for_each(|key| trusted.keys.add(key)),
            Ok(None) => {}
            Ok(Some(Err(error))) | Err(error) => trusted.problems.push(in_file(&self.root_file(), &error)),
        }
        self.read_keys()?.keys.into_iter().for_each(|key| trusted.keys.add(key));
        let ratchet = self.read_ratchet()?;
        let mut lists = self.lists()?;
        // The project's lists come first, so that a key they revoke can say nothing more. Within a level every list
        // is checked before any is in force: their order must not matter.
        for level in [Level::Core, Level::Org] {
            let mut said = Vec::new();
            lists.retain(|path| match check_list(path, &trusted.keys, &mut ratchet.clone(), now) {
                Ok((signers, _)) if level == Level::Core && signers.iter().all(|key| key.level != level) => {
                    true
                }
                Ok(believed) => {
                    said.push(believed);
                    false
                }
                Err(_) if level == Level::Core => true,
                Err(error) => {
                    trusted.problems.push(in_file(path, &error));
                    true
                }
            });
            said.iter().for_each(|(signers, list)| trusted.revocations.add(signers, list));
            trusted.revocations.apply(&mut trusted.keys);
        }
        Ok(trusted)
    }

    /// The root that was accepted, in force or not.
    pub fn root(&self) -> Result<Option<Root>> {
        let Some(bytes) = if_there(read_capped(&self.root_file(), MAX_ROOT))? else { return Ok(None) };
        Root::read(&bytes, None).map(Some)
    }

    /// Accepts a root: the first there is, or the one that follows.
    pub fn set_root(&self, bytes: &[u8], now: Timestamp) -> Result<Root> {
        let _lock = self.lock()?;
        let root = Root::read(bytes, self.root()?.as_ref())?;
        root.in_force(now)?;
        write_atomic(&self.root_file(), bytes, 0o644)?;
        Ok(root)
    }

    /// Believes nobody's word for others any more. False if there was no root.
    pub fn remove_root(&self) -> Result<bool> {
        let _lock = self.lock()?;
        Ok(if_there(fs::remove_file(self.root_file()).map_err(TrustError::io("remove", self.root_file())))?
            .is_some())
    }

    fn root_file(&self) -> PathBuf {
        self.root.join("root.dsse")
    }

    /// Trusts a key from now on; one with the same id gives way.
    pub fn add(&self, key: TrustedKey) -> Result<()> {
        let _lock = self.lock()?;
        let mut file = self.read_keys()?;
        file.keys.retain(|known| known.key != key.key);
        file.keys.push(key);
        self.write_keys(&file)
    }

    /// Trusts a key no more; returns it, if it was trusted.
    pub fn remove(&self, id: &KeyId) -> Result<Option<TrustedKey>> {
        let _lock = self.lock()?;
        let mut file = self.read_keys()?;
        let Some(place) = file.keys.iter().position(|key| key.id() == *id) else { return Ok(None) };
        let gone = file.keys.remove(place);
        self.write_keys(&file)?;
        Ok(Some(gone))
    }

    /// Checks a revocation list, refuses an older one than was seen, and keeps it.
    pub fn add_revocations(&self, bytes: &[u8], now: Timestamp) -> Result<RevocationList> {
        let _lock = self.lock()?;
        let trusted = self.load(now)?;
        let envelope = Envelope::parse(bytes, MAX_LIST)?;
        let (payload, list) = Revocations::verify(&envelope, &trusted.keys, now)?;
        let mut ratchet = self.read_ratchet()?;
        ratchet.advance(KIND, payload.signers(), list.serial)?;
        // The list first: with the serial alone the list that is there would be too old.
        for signer in payload.signers() {
            write_atomic(&self.list_of(&signer.id()), &envelope.to_json(), 0o644)?;
        }
        self.write_ratchet(&ratchet)?;
        Ok(list)
    }

    fn list_of(&self, key: &KeyId) -> PathBuf {
        self.root.join("revocations").join(format!("{key}.dsse"))
    }

    fn lists(&self) -> Result<Vec<PathBuf>> {
        let folder = self.root.join("revocations");
        let mut out = crate::store::list(&folder)
            .map_err(|error| TrustError::File { path: folder, reason: error.to_string() })?;
        out.retain(|path| path.extension().is_some_and(|extension| extension == "dsse"));
        out.sort();
        Ok(out)
    }

    fn read_keys(&self) -> Result<KeysFile> {
        let path = self.root.join("keys.toml");
        let Some(bytes) = if_there(read_capped(&path, MAX_KEYS))? else { return Ok(KeysFile::default()) };
        let text = String::from_utf8_lossy(&bytes);
        strict::from_toml(&text).map_err(|reason| TrustError::File { path, reason })
    }

    fn write_keys(&self, file: &KeysFile) -> Result<()> {
        let path = self.root.join("keys.toml");
        let text = toml::to_string(file)
            .map_err(|error| TrustError::File { path: path.clone(), reason: error.to_string() })?;
        write_atomic(&path, text.as_bytes(), 0o644)
    }

    fn read_ratchet(&self) -> Result<Ratchet> {
        let path = self.root.join("serials.json");
        let Some(bytes) = if_there(read_capped(&path, MAX_KEYS))? else { return Ok(Ratchet::default()) };
        super::parse_typed(&bytes).map_err(|error| in_file(&path, &error))
    }

    fn write_ratchet(&self, ratchet: &Ratchet) -> Result<()> {
        let text = serde_json::to_string_pretty(ratchet).unwrap_or_default();
        write_atomic(&self.root.join("serials.json"), text.as_bytes(), 0o644)
    }

    /// Who changes files here does so alone.
    fn lock(&self) -> Result<File> {
        fs::create_dir_all(&self.root).map_err(TrustError::io("make", &self.root))?;
        let path = self.root.join("lock");
        let file = OpenOptions::new().create(true).write(true).truncate(false).open(&path);
        let file = file.map_err(TrustError::io("open", &path))?;
        file.lock().map_err(TrustError::io("lock", &path))?;
        Ok(file)
    }
}

/// What revocation lists are called in the ratchet.
const KIND: &str = "revocations";

fn check_list(
    path: &Path,
    keys: &TrustSet,
    ratchet: &mut Ratchet,
    now: Timestamp,
) -> Result<(Vec<TrustedKey>, RevocationList)> {
    let envelope = Envelope::parse(&read_capped(path, MAX_LIST)?, MAX_LIST)?;
    let (payload, list) = Revocations::verify(&envelope, keys, now)?;
    ratchet.advance(KIND, payload.signers(), list.serial)?;
    Ok((payload.signers().to_vec(), list))
}

fn in_file(path: &Path, error: &TrustError) -> TrustError {
    TrustError::File { path: path.to_owned(), reason: error.to_string() }
}

fn if_there<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Err(TrustError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Reads a file of at most `limit` bytes; of a larger one no more than that is read.
pub fn read_capped(path: &Path, limit: usize) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(TrustError::io("read", path))?;
    let mut out = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut out).map_err(TrustError::io("read", path))?;
    if out.len() > limit { Err(TrustError::TooLarge { limit }) } else { Ok(out) }
}

/// Writes a file that is not there yet, with these permissions from its first moment on.
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file = file.map_err(TrustError::io("make", path))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(TrustError::io("write", path))
}

/// Writes a file whole or not at all; its folder is made.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(TrustError::io("make", folder))?;
    let write = || {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(TrustError::io("write", path))
}
