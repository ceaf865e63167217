//! Who asks: tenants, keys, roles.
//!
//! The [`actor`] owns the keys and writes them through the store; requests read a [`KeyRing`] that it publishes, which
//! costs one SHA-256 and one look-up. A revoked key is gone from the ring before `revoke` answers.

mod actor;
mod key;

use actor::AuthActor;

use crate::actor::Panicked;
use crate::config::AuthConfig;
use crate::error::{Error, ErrorCode, Result};
use crate::store::{KeyStore, StoreError};
use actix::{Addr, MailboxError, Supervisor};
use arc_swap::ArcSwap;
use serde::Serialize;
use std::collections::HashMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use subtle::ConstantTimeEq;

/// Name of the file in the state directory that keeps the first admin key for the command line.
pub const ADMIN_KEY_FILE: &str = "admin.key";
/// The tenant of every key, until there are more.
pub const DEFAULT_TENANT: &str = "default";

/// What a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Everything: models, plugins, keys, configuration, and asking models.
    Admin,
    /// Asking models.
    User,
}

impl Role {
    /// As it is stored and shown.
    pub fn name(self) -> &'static str {
        match self {
            Role::Admin => "admin",
            Role::User => "user",
        }
    }

    /// The role with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Role::Admin, Role::User].into_iter().find(|role| role.name() == name)
    }
}

/// Limits of a key. What is absent is as configured for all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeyLimits {
    /// Requests a minute, of which as many may come at once.
    pub requests_per_minute: Option<u32>,
    /// Tokens in a window.
    pub tokens: Option<TokenBudget>,
}

/// Tokens that may be spent in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBudget {
    /// How many: prompt and answer together.
    pub tokens: u64,
    /// Length of the window, which begins at a multiple of it since 1970 (UTC); zero: for ever.
    #[serde(with = "seconds")]
    pub window: Duration,
}

mod seconds {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::time::Duration;

    pub fn serialize<S: Serializer>(window: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(window.as_secs())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_secs)
    }
}

/// A key as it is stored. Times are seconds since 1970.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyRecord {
    /// Public; part of the key's text.
    pub id: String,
    /// Who pays.
    pub tenant: Arc<str>,
    /// For people.
    pub name: String,
    /// SHA-256 of the secret.
    pub hash: [u8; 32],
    /// What it may do.
    pub role: Role,
    /// What it may use.
    pub limits: KeyLimits,
    /// When it was made.
    pub created_at: i64,
    /// When it stops to work.
    pub expires_at: Option<i64>,
    /// When it was revoked.
    pub revoked_at: Option<i64>,
    /// When it was last used, to the minute.
    pub last_used_at: Option<i64>,
}

impl std::fmt::Debug for KeyRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyRecord").field("id", &self.id).field("role", &self.role).finish_non_exhaustive()
    }
}

/// A key as it is shown: everything but its hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyInfo {
    /// See [`KeyRecord`].
    pub id: String,
    /// See [`KeyRecord`].
    pub tenant: Arc<str>,
    /// See [`KeyRecord`].
    pub name: String,
    /// See [`KeyRecord`].
    pub role: Role,
    /// See [`KeyRecord`].
    pub limits: KeyLimits,
    /// See [`KeyRecord`].
    pub created_at: i64,
    /// See [`KeyRecord`].
    pub expires_at: Option<i64>,
    /// See [`KeyRecord`].
    pub revoked_at: Option<i64>,
    /// See [`KeyRecord`].
    pub last_used_at: Option<i64>,
}

impl From<&KeyRecord> for KeyInfo {
    fn from(key: &KeyRecord) -> Self {
        Self {
            id: key.id.clone(),
            tenant: key.tenant.clone(),
            name: key.name.clone(),
            role: key.role,
            limits: key.limits,
            created_at: key.created_at,
            expires_at: key.expires_at,
            revoked_at: key.revoked_at,
            last_used_at: key.last_used_at,
        }
    }
}

/// A key to be made.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// For people.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// What it may use.
    pub limits: KeyLimits,
    /// How long it works; `None`: until it is revoked.
    pub lifetime: Option<Duration>,
}

/// A key that was made. The only place its secret ever is, but for its owner.
#[derive(Clone, Serialize)]
pub struct CreatedKey {
    /// The whole key, to be shown once.
    pub secret: String,
    /// The rest of it.
    #[serde(flatten)]
    pub info: KeyInfo,
}

impl std::fmt::Debug for CreatedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreatedKey").field("info", &self.info).finish_non_exhaustive()
    }
}

/// The admin key of a first start, and where it was written.
pub struct First {
    /// The whole key.
    pub secret: String,
    /// The file.
    pub path: PathBuf,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq)]
pub struct Caller {
    /// Who pays.
    pub tenant: Arc<str>,
    /// What they may do.
    pub role: Role,
    /// Id of the key; `None` for callers without one, who have no limits.
    pub key: Option<Arc<str>>,
    /// Limits of the key.
    pub limits: KeyLimits,
}

impl Caller {
    /// Somebody inside this process: an administrator without a key and without limits.
    pub fn internal(tenant: impl Into<Arc<str>>) -> Self {
        Self { tenant: tenant.into(), role: Role::Admin, key: None, limits: KeyLimits::default() }
    }

    /// Whether they may do more than ask models.
    pub fn is_admin(&self) -> bool {
        self.role == Role::Admin
    }
}

/// Why somebody is not let in, or a key could not be managed.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// No key was given.
    #[error("no API key was given; send it as `authorization: Bearer <key>`")]
    Missing,
    /// It is not a key, or nobody's, or revoked, or expired: which of them is not said.
    #[error(
        "the API key is not valid; check it, or have an administrator make one with `backplane key create`"
    )]
    Invalid,
    /// There is no such key to manage.
    #[error("there is no key `{0}`; see `backplane key ls`")]
    NotFound(String),
    /// The store cannot be written.
    #[error("the key store is not available; retry, and see the log")]
    Store(#[from] StoreError),
    /// The actor is being restarted.
    #[error(transparent)]
    Restarting(#[from] Panicked),
    /// The actor is gone or its mailbox is full.
    #[error("key management is not available; retry")]
    Busy(#[from] MailboxError),
    /// The system gives no random bytes.
    #[error("no random bytes can be had from the system")]
    Random,
}

impl From<AuthError> for Error {
    fn from(error: AuthError) -> Self {
        let (code, reason) = match &error {
            AuthError::Missing => (ErrorCode::Unauthenticated, "missing_api_key"),
            AuthError::Invalid => (ErrorCode::Unauthenticated, "invalid_api_key"),
            AuthError::NotFound(_) => (ErrorCode::NotFound, "key_not_found"),
            AuthError::Store(_) => (ErrorCode::Unavailable, "key_store_unavailable"),
            AuthError::Restarting(_) | AuthError::Busy(_) => (ErrorCode::Unavailable, "auth_unavailable"),
            AuthError::Random => (ErrorCode::Internal, ""),
        };
        if let AuthError::Store(cause) = &error {
            tracing::error!(error = %cause, "the key store failed");
        }
        Error::new(code, error.to_string()).with_reason(reason)
    }
}

/// The keys that work, by id. Published whole; never changed but for the times of use.
#[derive(Default)]
pub struct KeyRing {
    keys: HashMap<String, Ringed>,
}

struct Ringed {
    record: KeyRecord,
    caller: Caller,
    used_at: AtomicI64,
}

impl KeyRing {
    fn new<'a>(keys: impl IntoIterator<Item = &'a KeyRecord>) -> Self {
        let ringed = |record: &KeyRecord| Ringed {
            caller: Caller {
                tenant: record.tenant.clone(),
                role: record.role,
                key: Some(record.id.as_str().into()),
                limits: record.limits,
            },
            used_at: AtomicI64::new(record.last_used_at.unwrap_or(0)),
            record: record.clone(),
        };
        let works = |record: &&KeyRecord| record.revoked_at.is_none();
        Self { keys: keys.into_iter().filter(works).map(|key| (key.id.clone(), ringed(key))).collect() }
    }

    fn identify(&self, text: &str, now: i64) -> Option<Caller> {
        let shown = key::parse(text)?;
        let hash = shown.hash();
        let found = self.keys.get(shown.id);
        // An id that is not there takes as long as one with another secret.
        let expected = found.map_or([0; 32], |key| key.record.hash);
        let same: bool = hash.ct_eq(&expected).into();
        let key = found.filter(|_| same)?;
        if key.record.expires_at.is_some_and(|expires| expires <= now) {
            return None;
        }
        if key.used_at.load(Ordering::Relaxed) / 60 != now / 60 {
            key.used_at.store(now, Ordering::Relaxed);
        }
        Some(key.caller.clone())
    }
}

/// What callers hold.
#[derive(Clone)]
pub struct AuthHandle {
    ring: Arc<ArcSwap<KeyRing>>,
    enabled: Arc<AtomicBool>,
    actor: Addr<AuthActor>,
}

impl AuthHandle {
    /// Who a key belongs to. Sends no message.
    ///
    /// # Errors
    /// [`AuthError::Missing`], [`AuthError::Invalid`].
    pub fn identify(&self, credential: Option<&str>, now: SystemTime) -> Result<Caller, AuthError> {
        match credential {
            _ if !self.enabled.load(Ordering::Relaxed) => Ok(Caller::internal(DEFAULT_TENANT)),
            None => Err(AuthError::Missing),
            Some(text) => self.ring.load().identify(text, unix(now)).ok_or(AuthError::Invalid),
        }
    }

    /// Makes a key.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn create(&self, new: NewKey) -> Result<CreatedKey, AuthError> {
        self.actor.send(actor::Create(new)).await?
    }

    /// Every key.
    ///
    /// # Errors
    /// When the actor is gone.
    pub async fn list(&self) -> Result<Vec<KeyInfo>, AuthError> {
        self.actor.send(actor::List).await?
    }

    /// Revokes a key. The next request with it is refused.
    ///
    /// # Errors
    /// When there is no such key, or the store cannot be written.
    pub async fn revoke(&self, id: &str) -> Result<KeyInfo, AuthError> {
        self.actor.send(actor::Revoke(id.to_owned())).await?
    }

    /// Puts the configuration into force.
    ///
    /// # Errors
    /// None today; later parts of it may fail.
    pub async fn configure(&self, config: &AuthConfig) -> Result<()> {
        self.enabled.store(config.enabled, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the actor takes messages.
    pub fn is_alive(&self) -> bool {
        self.actor.connected()
    }
}

fn unix(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

/// Starts the actor. On a state directory without keys it makes an admin key and writes it to [`ADMIN_KEY_FILE`].
///
/// # Errors
/// When the store or the file cannot be used.
pub fn start(
    store: Arc<dyn KeyStore>,
    state: &Path,
    config: &AuthConfig,
    restarts: Arc<AtomicU64>,
) -> Result<(AuthHandle, Option<First>), AuthError> {
    let mut keys = store.keys()?;
    let first = if keys.is_empty() {
        let new = NewKey {
            name: "first admin".to_owned(),
            role: Role::Admin,
            limits: KeyLimits::default(),
            lifetime: None,
        };
        let (record, secret) = make(new, unix(SystemTime::now()))?;
        let path = state.join(ADMIN_KEY_FILE);
        write_secret(&path, &secret)
            .map_err(|error| StoreError::Damaged(format!("{} cannot be written: {error}", path.display())))?;
        store.add_key(&record)?;
        keys.push(record);
        Some(First { secret, path })
    } else {
        None
    };
    let ring = Arc::new(ArcSwap::from_pointee(KeyRing::new(&keys)));
    let published = ring.clone();
    let actor = Supervisor::start(move |_| AuthActor::new(store, keys, published, restarts));
    Ok((AuthHandle { ring, enabled: Arc::new(AtomicBool::new(config.enabled)), actor }, first))
}

fn write_secret(path: &Path, secret: &str) -> std::io::Result<()> {
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    writeln!(file, "{secret}")?;
    file.sync_all()
}

fn make(new: NewKey, now: i64) -> Result<(KeyRecord, String), AuthError> {
    let mut random = [0; 64];
    getrandom::fill(&mut random).map_err(|_| AuthError::Random)?;
    let (id, text, hash) = key::make(&random);
    let record = KeyRecord {
        id,
        tenant: DEFAULT_TENANT.into(),
        name: new.name,
        hash,
        role: new.role,
        limits: new.limits,
        created_at: now,
        expires_at: new.lifetime.map(|lifetime| now.saturating_add(lifetime.as_secs() as i64)),
        revoked_at: None,
        last_used_at: None,
    };
    Ok((record, text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::SqliteStore;

    fn started() -> (tempfile::TempDir, AuthHandle, First, Arc<AtomicU64>) {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteStore::open(dir.path()).unwrap());
        let restarts = Arc::new(AtomicU64::new(0));
        let (auth, first) =
            start(store, dir.path(), &AuthConfig { enabled: true }, restarts.clone()).unwrap();
        (dir, auth, first.unwrap(), restarts)
    }

    fn user() -> NewKey {
        NewKey { name: "app".into(), role: Role::User, limits: KeyLimits::default(), lifetime: None }
    }

    #[actix::test]
    async fn the_first_start_makes_an_admin_key_that_only_its_owner_can_read() {
        use std::os::unix::fs::PermissionsExt;
        let (dir, auth, first, _) = started();
        let now = SystemTime::now();
        assert!(auth.identify(Some(&first.secret), now).unwrap().is_admin());
        assert_eq!(std::fs::read_to_string(&first.path).unwrap().trim(), first.secret);
        assert_eq!(first.path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let store = Arc::new(SqliteStore::open(dir.path()).unwrap());
        let (_, again) = start(store, dir.path(), &AuthConfig { enabled: true }, Arc::default()).unwrap();
        assert!(again.is_none(), "only the first start makes one");
    }

    #[actix::test]
    async fn a_revoked_key_is_refused_at_once_and_all_refusals_read_alike() {
        let (_dir, auth, _, _) = started();
        let now = SystemTime::now();
        let key = auth.create(user()).await.unwrap();
        assert_eq!(auth.identify(Some(&key.secret), now).unwrap().role, Role::User);
        assert!(auth.revoke(&key.info.id).await.unwrap().revoked_at.is_some());
        let mut texts: Vec<String> = Vec::new();
        let (_, unknown, _) = key::make(&[3; 64]);
        for bad in [key.secret.as_str(), unknown.as_str(), "rubbish", ""] {
            texts.push(auth.identify(Some(bad), now).unwrap_err().to_string());
        }
        assert!(texts.windows(2).all(|pair| pair[0] == pair[1]), "{texts:?}");
        assert!(matches!(auth.identify(None, now), Err(AuthError::Missing)));
        assert!(matches!(auth.revoke("nobody").await, Err(AuthError::NotFound(_))));
    }

    #[actix::test]
    async fn an_expired_key_is_refused() {
        let (_dir, auth, _, _) = started();
        let key = auth.create(NewKey { lifetime: Some(Duration::from_secs(60)), ..user() }).await.unwrap();
        let now = SystemTime::now();
        assert!(auth.identify(Some(&key.secret), now).is_ok());
        assert!(auth.identify(Some(&key.secret), now + Duration::from_secs(61)).is_err());
    }

    #[actix::test]
    async fn after_a_panic_the_actor_is_back_with_its_keys_and_readers_did_not_notice() {
        let (_dir, auth, first, restarts) = started();
        let key = auth.create(user()).await.unwrap();
        auth.actor.send(actor::Panic).await.unwrap();
        assert!(
            auth.identify(Some(&key.secret), SystemTime::now()).is_ok(),
            "served from the published ring"
        );
        let keys = auth.list().await.unwrap();
        assert_eq!(keys.len(), 2, "its state was rebuilt from the store");
        assert_eq!(restarts.load(Ordering::Relaxed), 1);
        assert!(auth.is_alive());
        auth.revoke(&key.info.id).await.unwrap();
        assert!(auth.identify(Some(&key.secret), SystemTime::now()).is_err());
        assert!(auth.identify(Some(&first.secret), SystemTime::now()).is_ok());
    }

    #[actix::test]
    async fn no_debug_output_holds_a_secret() {
        let (_dir, auth, first, _) = started();
        let key = auth.create(user()).await.unwrap();
        let text =
            format!("{key:?} {:?} {:?}", key.info, auth.identify(Some(&first.secret), SystemTime::now()));
        assert!(!text.contains(&key.secret[21..64]) && !text.contains(&first.secret[21..64]));
    }
}
