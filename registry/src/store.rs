//! The content-addressed store of model files, shared by all processes of one state directory.
//!
//! ```text
//! <state>/models/
//!   blobs/sha256/<hex>    a whole, verified file; never written again
//!   blobs/partial/<key>*  what has arrived of a file, and of the packages it comes in
//!   cards/<name>.toml     one installed model
//!   locks/                empty files that are locked, and never removed
//! ```

use std::fs::{self, File, Permissions, TryLockError};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::digest::Digest;
use crate::error::{RegistryError, Result};
use crate::progress::Progress;
use crate::source::Watch;

#[derive(Debug, Clone)]
pub(crate) struct Store {
    root: PathBuf,
}

/// Held while it lives; the kernel lets go of it when the process dies, however it dies.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "the lock is held by the open file")] File);

/// What a lock guards. A process that holds one of the first kind may take one of the second, never the reverse.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Guards {
    Blob,
    Archive,
}

impl Store {
    pub fn at(state: &Path) -> Self {
        Self { root: state.join("models") }
    }

    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.to_string())
    }

    pub fn has(&self, digest: &Digest, size: Option<u64>) -> bool {
        self.blob(digest)
            .metadata()
            .is_ok_and(|meta| meta.is_file() && size.is_none_or(|size| meta.len() == size))
    }

    pub fn partials(&self) -> PathBuf {
        self.root.join("blobs/partial")
    }

    pub fn partial(&self, key: &Digest, suffix: &str) -> PathBuf {
        self.partials().join(format!("{key}{suffix}"))
    }

    pub fn cards(&self) -> PathBuf {
        self.root.join("cards")
    }

    pub fn create(&self) -> Result<()> {
        for folder in ["blobs/sha256", "blobs/partial", "cards", "locks"] {
            let path = self.root.join(folder);
            private(&path).map_err(RegistryError::io("create", &path))?;
        }
        Ok(())
    }

    /// Makes a finished download a blob. It is on the disk before it has its name.
    pub fn commit(&self, partial: &Path, digest: &Digest) -> Result<PathBuf> {
        let blob = self.blob(digest);
        let file = File::open(partial).map_err(RegistryError::io("open", partial))?;
        file.set_permissions(Permissions::from_mode(0o444)).map_err(RegistryError::io("protect", partial))?;
        file.sync_all().map_err(RegistryError::io("write", partial))?;
        fs::rename(partial, &blob).map_err(RegistryError::io("move", partial))?;
        sync_folder(&blob);
        Ok(blob)
    }

    /// Waits for the lock of one file's transfer, telling the watcher once, and giving up when it does.
    pub fn lock_transfer(&self, guards: Guards, key: &Digest, watch: &mut Watch<'_>) -> Result<Lock> {
        let mut told = false;
        loop {
            if let Some(lock) = self.try_lock_transfer(guards, key)? {
                return Ok(lock);
            }
            if !told {
                told = true;
                watch.say(Progress::Waiting { file: watch.file.clone() });
            }
            watch.pause(Duration::from_millis(50))?;
        }
    }

    /// Locks are few and shared by many files, which costs a wait now and then and no litter.
    pub fn try_lock_transfer(&self, guards: Guards, key: &Digest) -> Result<Option<Lock>> {
        let kind = match guards {
            Guards::Blob => "blob",
            Guards::Archive => "archive",
        };
        let (path, file) = self.lock_file(&format!("{kind}-{}", &key.to_string()[..2]))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(RegistryError::io("lock", path)(error)),
        }
    }

    /// Cards change, and blobs vanish, only under this lock. It is held for moments.
    pub fn lock_cards(&self) -> Result<Lock> {
        let (path, file) = self.lock_file("cards")?;
        file.lock().map_err(RegistryError::io("lock", path))?;
        Ok(Lock(file))
    }

    fn lock_file(&self, name: &str) -> Result<(PathBuf, File)> {
        let path = self.root.join("locks").join(name);
        let file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(RegistryError::io("open", &path))?;
        Ok((path, file))
    }

    /// Writes a card whole or not at all. Call it under [`lock_cards`](Self::lock_cards).
    pub fn write_card(&self, stem: &str, text: &str) -> Result<PathBuf> {
        let folder = self.cards();
        let path = folder.join(format!("{stem}.toml"));
        let mut file =
            tempfile::NamedTempFile::new_in(&folder).map_err(RegistryError::io("write in", &folder))?;
        file.write_all(text.as_bytes()).map_err(RegistryError::io("write", &path))?;
        file.as_file()
            .set_permissions(Permissions::from_mode(0o644))
            .map_err(RegistryError::io("write", &path))?;
        file.as_file().sync_all().map_err(RegistryError::io("write", &path))?;
        file.persist(&path).map_err(|error| RegistryError::io("write", &path)(error.error))?;
        sync_folder(&path);
        Ok(path)
    }

    /// Texts of all cards, readable as cards or not: a blob that any of them mentions is in use.
    pub fn card_texts(&self) -> Result<Vec<String>> {
        let paths = self.card_paths()?;
        paths
            .into_iter()
            .map(|path| fs::read_to_string(&path).map_err(RegistryError::io("read", path)))
            .collect()
    }

    pub fn card_paths(&self) -> Result<Vec<PathBuf>> {
        let mut paths: Vec<PathBuf> = list(&self.cards())?
            .into_iter()
            .filter(|path| path.extension().is_some_and(|e| e == "toml"))
            .collect();
        paths.sort();
        Ok(paths)
    }

    /// Removes everything that begins with `key` among the partial downloads; returns the bytes.
    pub fn discard_partials(&self, key: &Digest) -> Result<u64> {
        let prefix = key.to_string();
        let mut freed = 0;
        for path in list(&self.partials())? {
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)) {
                freed += remove(&path)?;
            }
        }
        Ok(freed)
    }

    /// Removes blobs that no card mentions; returns the bytes. Call it under [`lock_cards`](Self::lock_cards).
    pub fn discard_unused_blobs(&self, candidates: impl IntoIterator<Item = Digest>) -> Result<u64> {
        let cards = self.card_texts()?;
        let mut freed = 0;
        for digest in candidates {
            let hex = digest.to_string();
            if self.has(&digest, None) && !cards.iter().any(|card| card.contains(&hex)) {
                freed += remove(&self.blob(&digest))?;
            }
        }
        Ok(freed)
    }

    pub fn blobs(&self) -> Result<Vec<Digest>> {
        let name = |path: PathBuf| path.file_name()?.to_str()?.parse().ok();
        Ok(list(&self.root.join("blobs/sha256"))?.into_iter().filter_map(name).collect())
    }

    /// Bytes that have arrived for `key`.
    pub fn arrived(&self, key: &Digest) -> u64 {
        let prefix = key.to_string();
        let bytes = |path: PathBuf| {
            let name = path.file_name()?.to_str()?;
            let counts = name.starts_with(&prefix) && !name.ends_with(".etag");
            counts.then(|| path.metadata().ok()).flatten().map(|meta| meta.len())
        };
        list(&self.partials()).unwrap_or_default().into_iter().filter_map(bytes).sum()
    }
}

/// What is in a folder; a folder that is not there is empty.
pub(crate) fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => {
            entries.map(|entry| entry.map(|e| e.path()).map_err(RegistryError::io("read", folder))).collect()
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(RegistryError::io("read", folder)(error)),
    }
}

/// Removes a file or folder; returns the bytes that its files had. Somebody else having removed it is fine.
pub(crate) fn remove(path: &Path) -> Result<u64> {
    let gone = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(0),
        _ => Err(RegistryError::io("remove", path)(error)),
    };
    let meta = match path.symlink_metadata() {
        Ok(meta) => meta,
        Err(error) => return gone(error),
    };
    if meta.is_dir() {
        let freed = list(path)?.iter().map(|path| remove(path)).sum::<Result<u64>>()?;
        return fs::remove_dir(path).map(|()| freed).or_else(gone);
    }
    fs::remove_file(path).map(|()| meta.len()).or_else(gone)
}

/// Makes a rename last through a power cut, where the file system can.
fn sync_folder(path: &Path) {
    if let Some(Ok(folder)) = path.parent().map(File::open) {
        let _ = folder.sync_all();
    }
}

/// Makes a folder and what is missing above it, readable by its owner only: a pull may be what makes the state directory.
fn private(path: &Path) -> std::io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}
