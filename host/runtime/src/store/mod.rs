//! What survives a restart: keys and usage. Traits, so that other databases can stand in; SQLite is the default.

mod lock;
mod sqlite;

pub use lock::{LockError, StateLock};
pub use sqlite::SqliteStore;

use crate::auth::KeyRecord;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

/// Why the store failed. For the log: callers are told that the store is not available.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be opened or used.
    #[error(
        "the database in the state directory cannot be used: {0}; if it is damaged, move `backplane.db` away and restart"
    )]
    Sqlite(#[from] rusqlite::Error),
    /// It was written by a newer host.
    #[error(
        "the database has version {found}, this host knows {known}: use the newer host, or another state directory"
    )]
    TooNew { found: i64, known: i64 },
    /// Its content makes no sense.
    #[error("the database is damaged: {0}")]
    Damaged(String),
}

/// Keeps API keys.
pub trait KeyStore: Send + Sync {
    /// Every key, revoked ones included.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn keys(&self) -> Result<Vec<KeyRecord>, StoreError>;

    /// Adds a key, durably.
    ///
    /// # Errors
    /// When the store cannot be written, or has the id already.
    fn add_key(&self, key: &KeyRecord) -> Result<(), StoreError>;

    /// Marks a key as revoked, durably. Whether there was one that was not.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn revoke_key(&self, id: &str, at: i64) -> Result<bool, StoreError>;

    /// Notes when keys were last used, in seconds since 1970.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn touch_keys(&self, used: &[(String, i64)]) -> Result<(), StoreError>;
}

/// Tokens spent by a key in a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spent {
    /// Id of the key.
    pub key: String,
    /// Start of the window, seconds since 1970; 0 for a budget without one.
    pub window_start: i64,
    /// Tokens.
    pub tokens: u64,
}

/// Keeps what was spent, as of a journal.
pub trait UsageStore: Send + Sync {
    /// Number of the journal that goes on from here, and what was spent before it.
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
/// # Errors
/// When it cannot.
pub fn prepare_dir(dir: &Path) -> std::io::Result<()> {
    let made = !dir.exists();
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    if made {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
    }
    for part in ["run", "journal", "plugins"] {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir.join(part))?;
    }
    let probe = dir.join("run/.writable");
    std::fs::write(&probe, b"")?;
    std::fs::remove_file(probe)
}
