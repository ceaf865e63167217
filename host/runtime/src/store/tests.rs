//! The store on disk: what comes back, and how it fails.

use super::*;
use crate::auth::{KeyInfo, KeyLimits, Role, TokenBudget};
use crate::limiter::Period;
use rusqlite::Connection;
use std::fs;

fn key(id: &str) -> KeyRecord {
    let tokens = Some(TokenBudget { tokens: 1000, window: Period::Month });
    let info = KeyInfo {
        id: id.to_owned(),
        tenant: "default".into(),
        name: "laptop".to_owned(),
        role: Role::Admin,
        limits: KeyLimits { requests_per_minute: Some(60), tokens },
        created_at: 5,
        expires_at: Some(9),
        revoked_at: None,
        last_used_at: None,
    };
    KeyRecord { info, hash: [7; 32] }
}

fn spent(tokens: u64) -> Spent {
    let owner = Owner { tenant: "default".into(), key: "a".into() };
    Spent { owner, window: Window { period: Period::Seconds(900), number: 4 }, tokens }
}

#[test]
fn keys_and_usage_come_back_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = SqliteStore::open(dir.path()).unwrap();
        assert_eq!(store.usage().unwrap(), (0, vec![]));
        store.add_key(&key("a")).unwrap();
        store.add_key(&key("b")).unwrap();
        assert!(store.add_key(&key("a")).is_err(), "an id is taken once");
        assert!(store.revoke_key("default", "a", 8).unwrap());
        assert!(!store.revoke_key("default", "a", 9).unwrap(), "once");
        assert!(!store.revoke_key("other", "b", 9).unwrap(), "and only by its tenant");
        let other = KeyLimits { requests_per_minute: None, ..key("b").info.limits };
        assert!(store.set_key_limits("default", "b", &other).unwrap());
        assert!(!store.set_key_limits("other", "b", &KeyLimits::default()).unwrap(), "only by its tenant");
        store.touch_keys(&[("b".to_owned(), 7)]).unwrap();
        store.checkpoint(2, &[spent(1)]).unwrap();
        store.checkpoint(3, &[spent(42)]).unwrap();
    }
    let store = SqliteStore::open(dir.path()).unwrap();
    let [mut a, mut b] = [key("a"), key("b")];
    (a.info.revoked_at, b.info.last_used_at) = (Some(8), Some(7));
    b.info.limits.requests_per_minute = None;
    assert_eq!(store.keys().unwrap(), [a, b]);
    assert_eq!(store.usage().unwrap(), (3, vec![spent(42)]));
}

#[test]
fn only_the_owner_can_read_the_database() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path()).unwrap();
    store.add_key(&key("a")).unwrap();
    let modes: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name(), entry.metadata().unwrap().permissions().mode() & 0o777))
        .collect();
    assert_eq!(modes.len(), 3, "database, log and index");
    assert!(modes.iter().all(|(_, mode)| *mode == 0o600), "{modes:?}");
}

#[test]
fn a_file_that_is_no_database_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("backplane.db"), [b'x'; 5000]).unwrap();
    let error = SqliteStore::open(dir.path()).err().unwrap();
    assert!(
        matches!(error, StoreError::Damaged(_)) && error.to_string().contains("`backplane.db` is damaged")
    );
}

#[test]
fn a_page_that_was_overwritten_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path()).unwrap();
    for id in 0..500 {
        store.add_key(&key(&format!("key{id}"))).unwrap();
    }
    drop(store);
    let path = dir.path().join("backplane.db");
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.len();
    assert!(40_000 < end, "the log was folded into the database");
    bytes[end - 8192..].fill(0xa5);
    fs::write(&path, bytes).unwrap();
    let error = SqliteStore::open(dir.path()).err().unwrap();
    assert!(matches!(error, StoreError::Damaged(_)), "{error}");
}

#[test]
fn a_newer_database_is_named_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    drop(SqliteStore::open(dir.path()).unwrap());
    let db = Connection::open(dir.path().join("backplane.db")).unwrap();
    db.pragma_update(None, "user_version", 99).unwrap();
    assert_eq!(SqliteStore::open(dir.path()).err(), Some(StoreError::TooNew { found: 99, known: 1 }));
    let version: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    assert_eq!(version, 99);
}

#[test]
fn a_database_that_another_program_has_locked_is_named_and_then_well_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path()).unwrap();
    let other = Connection::open(dir.path().join("backplane.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = store.add_key(&key("a")).unwrap_err();
    assert!(matches!(error, StoreError::Locked(_)), "{error}");
    assert_eq!(store.check(), Err(error));
    other.execute_batch("ROLLBACK").unwrap();
    store.add_key(&key("a")).unwrap();
    assert_eq!(store.check(), Ok(()));
}

#[test]
fn a_full_disk_is_named_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path()).unwrap();
    store.checkpoint(1, &[spent(5)]).unwrap();
    // No more pages than there are: what a full disk looks like to SQLite.
    store.limit_to_pages(1);
    let many: Vec<Spent> = (0..5000)
        .map(|key| Spent {
            owner: Owner { tenant: "default".into(), key: format!("{key}").into() },
            ..spent(1)
        })
        .collect();
    assert_eq!(store.checkpoint(2, &many), Err(StoreError::Full));
    assert_eq!(store.check(), Err(StoreError::Full));
    assert_eq!(store.usage().unwrap(), (1, vec![spent(5)]));
}

#[test]
fn the_state_directory_is_private_and_a_shared_one_is_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let new = dir.path().join("a/b");
    prepare_dir(&new).unwrap();
    assert_eq!([mode(&new), mode(&new.join("run")), mode(&new.join("journal"))], [0o700; 3]);
    let theirs = dir.path().join("theirs");
    fs::create_dir(&theirs).unwrap();
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o777)).unwrap();
    prepare_dir(&theirs).unwrap();
    assert_eq!([mode(&theirs), mode(&theirs.join("run"))], [0o777, 0o700]);
    assert!(fs::read_dir(new.join("run")).unwrap().next().is_none(), "the probe is gone");
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(prepare_dir(&file.join("state")).is_err());
}

#[test]
fn a_second_host_is_told_who_has_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    prepare_dir(dir.path()).unwrap();
    // A longer number than ours was there before.
    fs::write(dir.path().join("run/lock"), "99999999999\n").unwrap();
    let held = StateLock::acquire(dir.path()).unwrap();
    let error = StateLock::acquire(dir.path()).unwrap_err().to_string();
    assert!(
        error.contains(&format!("another backplane (pid {}) uses this state directory", std::process::id())),
        "{error}"
    );
    drop(held);
    StateLock::acquire(dir.path()).unwrap();
}
