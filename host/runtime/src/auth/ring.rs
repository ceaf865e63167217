//! The keys that work, as requests read them.

use super::key;
use super::record::{KeyInfo, KeyLimits, KeyRecord, Role};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use subtle::ConstantTimeEq;

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

/// The keys that are not revoked, by id. Published whole; never changed but for the times of use.
#[derive(Default)]
pub struct KeyRing {
    keys: HashMap<String, Entry>,
}

struct Entry {
    hash: [u8; 32],
    caller: Caller,
    info: KeyInfo,
    /// 0: never.
    used_at: AtomicI64,
}

impl KeyRing {
    /// The ring of these keys.
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a KeyRecord>) -> Self {
        let entry = |KeyRecord { info, hash }: &KeyRecord| Entry {
            hash: *hash,
            caller: Caller {
                tenant: info.tenant.clone(),
                role: info.role,
                key: Some(info.id.as_str().into()),
                limits: info.limits,
            },
            info: info.clone(),
            used_at: AtomicI64::new(info.last_used_at.unwrap_or(0)),
        };
        let kept = keys.into_iter().filter(|key| key.info.revoked_at.is_none());
        Self { keys: kept.map(|key| (key.info.id.clone(), entry(key))).collect() }
    }

    /// Who this key belongs to; `now` is seconds since 1970. An id that is not there is hashed and compared as one that is.
    pub fn identify(&self, text: &str, now: i64) -> Option<Caller> {
        let shown = key::parse(text)?;
        let hash = shown.hash();
        let found = self.keys.get(shown.id);
        let same: bool = hash.ct_eq(&found.map_or([0; 32], |entry| entry.hash)).into();
        let entry = found.filter(|entry| same && entry.info.works(now))?;
        // To the minute, so that a busy key does not have every core write to one cache line.
        if entry.used_at.load(Ordering::Relaxed) / 60 != now / 60 {
            entry.used_at.store(now, Ordering::Relaxed);
        }
        Some(entry.caller.clone())
    }

    /// What is known of a key.
    pub fn info(&self, id: &str) -> Option<KeyInfo> {
        let info = &self.keys.get(id)?.info;
        Some(KeyInfo { last_used_at: self.used_at(id), ..info.clone() })
    }

    /// When a key was last used, in seconds since 1970.
    pub fn used_at(&self, id: &str) -> Option<i64> {
        let at = self.keys.get(id)?.used_at.load(Ordering::Relaxed);
        (at != 0).then_some(at)
    }
}
