//! Keys and usage in `<state>/backplane.db`.

use super::{KeyStore, Spent, StoreError, UsageStore};
use crate::auth::{KeyLimits, KeyRecord, Role, TokenBudget};
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, params};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

/// What this host knows. Each step brings a database of the version before to its own.
const MIGRATIONS: [&str; 1] = ["
    CREATE TABLE api_key (
        id TEXT PRIMARY KEY, tenant TEXT NOT NULL, name TEXT NOT NULL, hash BLOB NOT NULL, role TEXT NOT NULL,
        requests_per_minute INTEGER, tokens INTEGER, window_seconds INTEGER,
        created_at INTEGER NOT NULL, expires_at INTEGER, revoked_at INTEGER, last_used_at INTEGER
    ) STRICT;
    CREATE TABLE usage (
        key TEXT NOT NULL, window_start INTEGER NOT NULL, tokens INTEGER NOT NULL, PRIMARY KEY (key, window_start)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"];

/// The database of a state directory. One connection, one writer at a time; nothing on the request path waits for it.
pub struct SqliteStore(Mutex<Connection>);

impl SqliteStore {
    /// Opens or makes the database.
    ///
    /// # Errors
    /// When it cannot be opened, is damaged, or was written by a newer host.
    pub fn open(state: &Path) -> Result<Self, StoreError> {
        let path = state.join("backplane.db");
        let mut db = Connection::open(&path)?;
        // It holds no secret but hashes; still, it is nobody else's business.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).ok();
        db.busy_timeout(Duration::from_secs(5))?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "FULL")?;
        let sound: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if sound != "ok" {
            return Err(StoreError::Damaged(sound));
        }
        let found: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        let known = MIGRATIONS.len() as i64;
        if known < found {
            return Err(StoreError::TooNew { found, known });
        }
        let step = db.transaction()?;
        for migration in MIGRATIONS.iter().skip(found as usize) {
            step.execute_batch(migration)?;
        }
        step.pragma_update(None, "user_version", known)?;
        step.commit()?;
        Ok(Self(Mutex::new(db)))
    }

    /// Whether it answers.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), StoreError> {
        // A writer that has it right now is a sign of health, and the supervisor must not wait.
        let Some(db) = self.0.try_lock() else { return Ok(()) };
        Ok(db.query_row("SELECT count(*) FROM meta", [], |row| row.get::<_, i64>(0)).map(drop)?)
    }
}

impl KeyStore for SqliteStore {
    fn keys(&self) -> Result<Vec<KeyRecord>, StoreError> {
        let db = self.0.lock();
        let mut query = db.prepare(
            "SELECT id, tenant, name, hash, role, requests_per_minute, tokens, window_seconds, created_at, expires_at, \
             revoked_at, last_used_at FROM api_key ORDER BY created_at, id",
        )?;
        let rows = query.query_map([], |row| {
            let tokens: Option<u64> = row.get(6)?;
            let window: Option<u64> = row.get(7)?;
            Ok((
                row.get::<_, Vec<u8>>(3)?,
                row.get::<_, String>(4)?,
                KeyRecord {
                    id: row.get(0)?,
                    tenant: row.get::<_, String>(1)?.into(),
                    name: row.get(2)?,
                    hash: [0; 32],
                    role: Role::User,
                    limits: KeyLimits {
                        requests_per_minute: row.get(5)?,
                        tokens: tokens.zip(window).map(|(tokens, window)| TokenBudget {
                            tokens,
                            window: Duration::from_secs(window),
                        }),
                    },
                    created_at: row.get(8)?,
                    expires_at: row.get(9)?,
                    revoked_at: row.get(10)?,
                    last_used_at: row.get(11)?,
                },
            ))
        })?;
        rows.map(|row| {
            let (hash, role, mut key) = row?;
            let damaged = |what: &str| StoreError::Damaged(format!("key `{}` has a bad {what}", key.id));
            let hash = hash.try_into().map_err(|_| damaged("hash"))?;
            let role = Role::from_name(&role).ok_or_else(|| damaged("role"))?;
            (key.hash, key.role) = (hash, role);
            Ok(key)
        })
        .collect()
    }

    fn add_key(&self, key: &KeyRecord) -> Result<(), StoreError> {
        self.0.lock().execute(
            "INSERT INTO api_key (id, tenant, name, hash, role, requests_per_minute, tokens, window_seconds, \
             created_at, expires_at, revoked_at, last_used_at) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
            params![
                key.id,
                &*key.tenant,
                key.name,
                key.hash.as_slice(),
                key.role.name(),
                key.limits.requests_per_minute,
                key.limits.tokens.map(|budget| budget.tokens),
                key.limits.tokens.map(|budget| budget.window.as_secs()),
                key.created_at,
                key.expires_at,
                key.revoked_at,
                key.last_used_at,
            ],
        )?;
        Ok(())
    }

    fn revoke_key(&self, id: &str, at: i64) -> Result<bool, StoreError> {
        let changed = self.0.lock().execute(
            "UPDATE api_key SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL",
            params![at, id],
        )?;
        Ok(changed == 1)
    }

    fn touch_keys(&self, used: &[(String, i64)]) -> Result<(), StoreError> {
        let mut db = self.0.lock();
        let step = db.transaction()?;
        for (id, at) in used {
            step.execute("UPDATE api_key SET last_used_at = ? WHERE id = ?", params![at, id])?;
        }
        Ok(step.commit()?)
    }
}

impl UsageStore for SqliteStore {
    fn usage(&self) -> Result<(u64, Vec<Spent>), StoreError> {
        let db = self.0.lock();
        let journal: Option<u64> =
            db.query_row("SELECT value FROM meta WHERE name = 'journal'", [], |row| row.get(0)).optional()?;
        let mut query = db.prepare("SELECT key, window_start, tokens FROM usage")?;
        let spent = query
            .query_map([], |row| {
                Ok(Spent { key: row.get(0)?, window_start: row.get(1)?, tokens: row.get(2)? })
            })?
            .collect::<Result<_, _>>()?;
        Ok((journal.unwrap_or(0), spent))
    }

    fn checkpoint(&self, journal: u64, spent: &[Spent]) -> Result<(), StoreError> {
        let mut db = self.0.lock();
        let step = db.transaction()?;
        step.execute("DELETE FROM usage", [])?;
        for row in spent {
            // SQLite's integers are signed; nobody spends 2^63 tokens.
            let tokens = i64::try_from(row.tokens).unwrap_or(i64::MAX);
            step.execute("INSERT INTO usage VALUES (?,?,?)", params![row.key, row.window_start, tokens])?;
        }
        step.execute("INSERT OR REPLACE INTO meta VALUES ('journal', ?)", params![journal])?;
        Ok(step.commit()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str) -> KeyRecord {
        KeyRecord {
            id: id.to_owned(),
            tenant: "default".into(),
            name: "laptop".to_owned(),
            hash: [7; 32],
            role: Role::Admin,
            limits: KeyLimits {
                requests_per_minute: Some(60),
                tokens: Some(TokenBudget { tokens: 1000, window: Duration::from_secs(86_400) }),
            },
            created_at: 5,
            expires_at: Some(9),
            revoked_at: None,
            last_used_at: None,
        }
    }

    #[test]
    fn keys_and_usage_come_back_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let spent = [Spent { key: "a".into(), window_start: 3600, tokens: 42 }];
        {
            let store = SqliteStore::open(dir.path()).unwrap();
            store.add_key(&key("a")).unwrap();
            assert!(store.add_key(&key("a")).is_err(), "an id is taken once");
            assert!(store.revoke_key("a", 8).unwrap());
            assert!(!store.revoke_key("a", 9).unwrap());
            store.checkpoint(3, &spent).unwrap();
        }
        let store = SqliteStore::open(dir.path()).unwrap();
        assert_eq!(store.keys().unwrap(), [KeyRecord { revoked_at: Some(8), ..key("a") }]);
        assert_eq!(store.usage().unwrap(), (3, spent.to_vec()));
    }

    #[test]
    fn damage_and_newer_databases_are_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("backplane.db"), [b'x'; 5000]).unwrap();
        assert!(SqliteStore::open(dir.path()).err().unwrap().to_string().contains("backplane.db"));
        let dir = tempfile::tempdir().unwrap();
        drop(SqliteStore::open(dir.path()).unwrap());
        Connection::open(dir.path().join("backplane.db"))
            .unwrap()
            .pragma_update(None, "user_version", 99)
            .unwrap();
        assert!(matches!(SqliteStore::open(dir.path()), Err(StoreError::TooNew { found: 99, .. })));
    }
}
