//! What survives a restart: keys, and what was spent. Traits, so that other databases can stand in; SQLite is the default.
//!
//! Every call blocks, for a disk flush where it writes. Actors make them on a thread of their own
//! ([`crate::actor::blocking`]); nothing on the request path makes one.

mod lock;
mod sqlite;
#[cfg(test)]
mod tests;

pub use lock::{LockError, StateLock};
pub use sqlite::SqliteStore;

use crate::auth::{KeyLimits, KeyRecord};
use crate::limiter::Window;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

/// Why the store failed. For the log and the operator: callers are told that the store is not available.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Somebody else has a lock on the file.
    #[error("`backplane.db` is locked by another program ({0}); close what has it open, then retry")]
    Locked(String),
    /// The file is no sound database.
    #[error(
        "`backplane.db` is damaged ({0}); stop the host, keep a copy, and repair it with `sqlite3 backplane.db .recover`, or move it away to begin without keys"
    )]
    Damaged(String),
    /// It was written by a newer host.
    #[error(
        "`backplane.db` has version {found}, and this host knows {known}; use the newer host, or another directory with `--state`"
    )]
    TooNew {
        /// Version of the file.
        found: i64,
        /// Newest version that is known here.
        known: i64,
    },
    /// There is no room.
    #[error("the disk of `backplane.db` is full; make room, then retry")]
    Full,
    /// A call has not come back.
    #[error("`backplane.db` has not answered for {0} s; look at the disk of the state directory")]
    Hung(u64),
    /// Anything else.
    #[error(
        "`backplane.db` cannot be used ({0}); look at the disk and the permissions of the state directory"
    )]
    Failed(String),
}

/// Keeps API keys.
pub trait KeyStore: Send + Sync + 'static {
    /// Every key, revoked ones included, oldest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn keys(&self) -> Result<Vec<KeyRecord>, StoreError>;

    /// Adds a key, durably.
    ///
    /// # Errors
    /// When the store cannot be written, or has the id already.
    fn add_key(&self, key: &KeyRecord) -> Result<(), StoreError>;

    /// Marks a key as revoked, durably. Says whether there was one that was not.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn revoke_key(&self, tenant: &str, id: &str, at: i64) -> Result<bool, StoreError>;

    /// Replaces the limits of a key, durably. Says whether there was one.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn set_key_limits(&self, tenant: &str, id: &str, limits: &KeyLimits) -> Result<bool, StoreError>;

    /// Notes when keys were last used, in seconds since 1970.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn touch_keys(&self, used: &[(String, i64)]) -> Result<(), StoreError>;
}

/// Whose ledger it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    /// Who pays.
    pub tenant: Arc<str>,
    /// Id of the key.
    pub key: Arc<str>,
}

/// Tokens spent by a key in a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spent {
    /// Who spent them.
    pub owner: Owner,
    /// When.
    pub window: Window,
    /// How many.
    pub tokens: u64,
}

/// Keeps what was spent, as of a journal.
pub trait UsageStore: Send + Sync + 'static {
    /// Number of the first journal that is not counted yet, and what was spent before it.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn usage(&self) -> Result<(u64, Vec<Spent>), StoreError>;

    /// Replaces both at once, durably.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn checkpoint(&self, journal: u64, spent: &[Spent]) -> Result<(), StoreError>;
}

/// Makes the state directory, readable by its owner only, and shows that it can be written.
///
/// A directory that was there keeps its permissions, for it may be the operator's own; what is secret in it is 0600 by
/// itself.
///
/// # Errors
/// When it cannot.
pub fn prepare_dir(dir: &Path) -> std::io::Result<()> {
    let private = |dir: &Path| std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    private(dir)?;
    let others = std::fs::metadata(dir)?.permissions().mode() & 0o022;
    if others != 0 {
        tracing::warn!(dir = %dir.display(), "others may write to the state directory; `chmod 700` it");
    }
    for part in ["run", "journal", "plugins"] {
        private(&dir.join(part))?;
    }
    let probe = dir.join("run").join(format!(".writable-{}", std::process::id()));
    std::fs::write(&probe, b"")?;
    std::fs::remove_file(probe)
}
