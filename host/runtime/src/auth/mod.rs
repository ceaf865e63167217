//! Who asks: tenants, keys, roles.
//!
//! The [`actor`] owns the keys and writes them through the store; requests read a [`KeyRing`] that it publishes, which
//! costs one SHA-256 and one look-up. A revoked key is gone from the ring before `revoke` answers.

mod actor;
mod error;
mod first;
mod key;
mod record;
mod ring;
#[cfg(test)]
mod tests;
mod throttle;

pub use actor::AuthActor;
pub use error::AuthError;
pub use first::{ADMIN_KEY_FILE, First};
pub use record::{CreatedKey, KeyInfo, KeyLimits, KeyRecord, LimitsChange, NewKey, Role, TokenBudget};
pub use ring::{Caller, KeyRing};

use crate::config::AuthConfig;
use crate::error::Result;
use crate::store::KeyStore;
use actix::{Addr, Supervisor};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Instant, SystemTime};
use throttle::Failures;

/// The tenant of every key, until there are more.
pub const DEFAULT_TENANT: &str = "default";

/// The longest name of a key, in bytes.
const MAX_NAME: usize = 128;

/// What callers hold.
#[derive(Clone)]
pub struct AuthHandle {
    ring: Arc<ArcSwap<KeyRing>>,
    enabled: Arc<AtomicBool>,
    /// Held while a wrong key is counted; a right one does not come near.
    failures: Arc<Mutex<Failures>>,
    started: Instant,
    actor: Addr<AuthActor>,
}

impl AuthHandle {
    /// Who a key belongs to. Where keys are turned off, anybody is an administrator of the default tenant, whatever they
    /// show. Sends no message.
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

    /// As [`identify`](Self::identify), for somebody at this address: too many wrong keys from there are told so. A right
    /// key is let in whatever else comes from its address.
    ///
    /// # Errors
    /// [`AuthError::Missing`], [`AuthError::Invalid`], [`AuthError::TooMany`].
    pub fn identify_from(
        &self,
        credential: Option<&str>,
        from: IpAddr,
        now: SystemTime,
    ) -> Result<Caller, AuthError> {
        self.identify(credential, now).map_err(|error| match error {
            AuthError::Invalid => self.count_failure(from),
            other => other,
        })
    }

    fn count_failure(&self, from: IpAddr) -> AuthError {
        let now = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        match self.failures.lock().count(from, now) {
            Ok(()) => AuthError::Invalid,
            Err(too_many) => {
                if too_many.first {
                    tracing::warn!(%from, "too many wrong API keys come from one address");
                }
                AuthError::TooMany { retry_after: too_many.retry_after }
            }
        }
    }

    /// Makes the actor panic.
    #[cfg(test)]
    pub async fn panic(&self) {
        self.actor.send(actor::Panic).await.ok();
    }

    /// Makes a key.
    ///
    /// # Errors
    /// When what is asked for cannot be, or the store cannot be written.
    pub async fn create(&self, new: NewKey) -> Result<CreatedKey, AuthError> {
        self.actor.send(actor::Create { tenant: DEFAULT_TENANT.into(), new }).await?
    }

    /// Every key, revoked ones included, oldest first.
    ///
    /// # Errors
    /// When the keys cannot be had.
    pub async fn list(&self) -> Result<Vec<KeyInfo>, AuthError> {
        self.actor.send(actor::List { tenant: DEFAULT_TENANT.into() }).await?
    }

    /// Revokes a key. The next request with it is refused. To revoke it again changes nothing.
    ///
    /// # Errors
    /// When there is no such key, or the store cannot be written: then it still works.
    pub async fn revoke(&self, id: &str) -> Result<KeyInfo, AuthError> {
        self.actor.send(actor::Revoke { tenant: DEFAULT_TENANT.into(), id: id.to_owned() }).await?
    }

    /// Changes the limits of a key. The next request with it has the new ones; what it has spent stays spent.
    ///
    /// # Errors
    /// When there is no such key or it is revoked, what is asked for cannot be, or the store cannot be written: then the
    /// old ones are in force.
    pub async fn change(&self, id: &str, change: LimitsChange) -> Result<KeyInfo, AuthError> {
        self.actor.send(actor::Change { tenant: DEFAULT_TENANT.into(), id: id.to_owned(), change }).await?
    }

    /// What is known of a key that works. Sends no message.
    pub fn info(&self, id: &str) -> Option<KeyInfo> {
        self.ring.load().info(id)
    }

    /// Writes down when keys were last used, which happens once a minute otherwise.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn write_use(&self) -> Result<(), AuthError> {
        self.actor.send(actor::WriteUse).await?
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

/// Starts the actor on this thread's system. Where no admin key works, or `another` is asked for and the one in
/// [`ADMIN_KEY_FILE`] does not work, it makes one and writes it there.
///
/// # Errors
/// When the store or the file cannot be used.
pub fn start(
    store: Arc<dyn KeyStore>,
    state: &Path,
    config: &AuthConfig,
    another: bool,
    restarts: Arc<AtomicU64>,
) -> Result<(AuthHandle, Option<First>), AuthError> {
    let mut keys = store.keys()?;
    let first = first::ensure_admin(&*store, &mut keys, state, unix(SystemTime::now()), another)?;
    let ring = Arc::new(ArcSwap::from_pointee(KeyRing::new(&keys)));
    let published = ring.clone();
    let actor = Supervisor::start(move |_| AuthActor::new(store, keys, published, restarts));
    let handle = AuthHandle {
        ring,
        enabled: Arc::new(AtomicBool::new(config.enabled)),
        failures: Arc::default(),
        started: Instant::now(),
        actor,
    };
    Ok((handle, first))
}

/// A new key: what is stored of it, and its text.
fn make(tenant: &str, new: NewKey, now: i64) -> Result<(KeyRecord, String), AuthError> {
    check(&new)?;
    let text = key::generate()?;
    let shown = key::parse(&text).ok_or(AuthError::Invalid)?;
    let info = KeyInfo {
        id: shown.id.to_owned(),
        tenant: tenant.into(),
        name: new.name,
        role: new.role,
        limits: new.limits,
        created_at: now,
        expires_at: new.lifetime.map(|lifetime| now.saturating_add_unsigned(lifetime.as_secs())),
        revoked_at: None,
        last_used_at: None,
    };
    let record = KeyRecord { info, hash: shown.hash() };
    Ok((record, text))
}

fn check(new: &NewKey) -> Result<(), AuthError> {
    let unfit = |param, problem| Err(AuthError::Unfit { param, problem });
    if new.name.is_empty() || MAX_NAME < new.name.len() || new.name.chars().any(char::is_control) {
        return unfit("name", "must be 1 to 128 bytes of printable text");
    }
    check_limits(&new.limits)?;
    if new.lifetime.is_some_and(|lifetime| lifetime.as_secs() == 0) {
        return unfit("expires_in", "must be at least a second");
    }
    Ok(())
}

fn check_limits(limits: &KeyLimits) -> Result<(), AuthError> {
    let unfit = |param, problem| Err(AuthError::Unfit { param, problem });
    if limits.requests_per_minute == Some(0) {
        return unfit("limits.requests_per_minute", "must be at least 1; to shut a key out, revoke it");
    }
    if limits.tokens.is_some_and(|budget| !(1..=i64::MAX as u64).contains(&budget.tokens)) {
        return unfit(
            "limits.tokens.tokens",
            "must be at least 1 and less than 2^63; to shut a key out, revoke it",
        );
    }
    Ok(())
}

fn unix(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}
