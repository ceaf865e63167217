//! `<state>/backplane.db`: opening, upgrading, and how it is. The queries are in `keys.rs` and `usage.rs`.

mod keys;
mod usage;

use super::StoreError;
use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use rusqlite::{Connection, ErrorCode};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Step n brings a database of version n to version n + 1. Steps that were shipped are never changed.
const MIGRATIONS: [&str; 1] = ["
    CREATE TABLE tenant (id TEXT PRIMARY KEY, created_at INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    INSERT INTO tenant VALUES ('default', unixepoch());
    CREATE TABLE api_key (
        id TEXT PRIMARY KEY, tenant TEXT NOT NULL REFERENCES tenant, name TEXT NOT NULL, role TEXT NOT NULL,
        hash BLOB NOT NULL CHECK (length(hash) = 32),
        requests_per_minute INTEGER, tokens INTEGER, period TEXT,
        created_at INTEGER NOT NULL, expires_at INTEGER, revoked_at INTEGER, last_used_at INTEGER
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE usage (
        tenant TEXT NOT NULL, key TEXT NOT NULL, period TEXT NOT NULL, window INTEGER NOT NULL, tokens INTEGER NOT NULL,
        PRIMARY KEY (tenant, key, period, window)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"];

/// How long a call may take before the store counts as down.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a call waits for a lock that another program has on the file.
const LOCKED: Duration = Duration::from_secs(2);

/// The database of a state directory: one connection, one call at a time, every commit flushed to the disk. Keys must not
/// be lost, and a journal is removed once what it says is in here.
pub struct SqliteStore {
    connection: Mutex<Connection>,
    /// How the last call ended.
    trouble: ArcSwapOption<StoreError>,
    busy_since: Mutex<Option<Instant>>,
}

impl SqliteStore {
    /// Opens or makes the database, checks it, and brings it up to date.
    ///
    /// # Errors
    /// When it cannot be opened, is locked or damaged, or was written by a newer host.
    pub fn open(state: &Path) -> Result<Self, StoreError> {
        let path = state.join("backplane.db");
        // SQLite makes files by the umask, and gives `-wal` and `-shm` the permissions of the database.
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| StoreError::Failed(error.to_string()))?;
        let mut db = Connection::open(&path)?;
        db.busy_timeout(LOCKED)?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "FULL")?;
        db.pragma_update(None, "foreign_keys", true)?;
        let sound: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if sound != "ok" {
            return Err(StoreError::Damaged(sound));
        }
        migrate(&mut db)?;
        Ok(Self { connection: Mutex::new(db), trouble: ArcSwapOption::empty(), busy_since: Mutex::new(None) })
    }

    /// How the store is, by its last call. Touches no disk and waits for nobody.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), StoreError> {
        let busy = self.busy_since.lock().map(|since| since.elapsed());
        if let Some(busy) = busy.filter(|busy| PATIENCE < *busy) {
            return Err(StoreError::Hung(busy.as_secs()));
        }
        self.trouble.load().as_deref().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Lets the file grow to so many pages: a full disk, for tests.
    #[cfg(test)]
    pub(super) fn limit_to_pages(&self, pages: u32) {
        self.connection.lock().pragma_update(None, "max_page_count", pages).unwrap();
    }

    fn with<T>(&self, work: impl FnOnce(&mut Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut db = self.connection.lock();
        *self.busy_since.lock() = Some(Instant::now());
        let result = work(&mut db);
        *self.busy_since.lock() = None;
        self.trouble.store(result.as_ref().err().cloned().map(Arc::new));
        result
    }
}

fn migrate(db: &mut Connection) -> Result<(), StoreError> {
    // Exclusive from the start: two hosts that open a new database together must not both fill it.
    let step = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let found: i64 = step.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let known = MIGRATIONS.len() as i64;
    let done = usize::try_from(found).ok().filter(|done| *done <= MIGRATIONS.len());
    let Some(done) = done else { return Err(StoreError::TooNew { found, known }) };
    for migration in &MIGRATIONS[done..] {
        step.execute_batch(migration)?;
    }
    step.pragma_update(None, "user_version", known)?;
    Ok(step.commit()?)
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        let text = error.to_string();
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Locked(text),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Damaged(text),
            Some(ErrorCode::DiskFull) => StoreError::Full,
            _ => StoreError::Failed(text),
        }
    }
}

/// SQLite's integers are signed. Nothing here comes near 2^63.
fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn unsigned(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}
