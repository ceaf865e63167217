//! What is known of a key.

use crate::limiter::Period;
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// What a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Everything: models, plugins, keys, configuration, and asking models. (That administrators may ask models too is so
    /// because the first key is one, and it is the one that people try the host with.)
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeyLimits {
    /// Requests a minute, of which as many may come at once.
    pub requests_per_minute: Option<u32>,
    /// Tokens in a window.
    pub tokens: Option<TokenBudget>,
}

/// Limits to be changed. What is absent stays as it is; `null` is as configured for all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsChange {
    /// Requests a minute.
    #[serde(deserialize_with = "given")]
    pub requests_per_minute: Option<Option<u32>>,
    /// Tokens in a window.
    #[serde(deserialize_with = "given")]
    pub tokens: Option<Option<TokenBudget>>,
}

/// Tells `null` from what is absent.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(from).map(Some)
}

impl LimitsChange {
    /// These limits with the change.
    pub fn of(self, limits: KeyLimits) -> KeyLimits {
        KeyLimits {
            requests_per_minute: self.requests_per_minute.unwrap_or(limits.requests_per_minute),
            tokens: self.tokens.unwrap_or(limits.tokens),
        }
    }
}

/// Tokens that may be spent in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBudget {
    /// How many: prompt and answer together.
    pub tokens: u64,
    /// `"minute"`, `"hour"`, `"day"`, `"month"` (all in UTC), `"total"`, or another length such as `"15m"`.
    pub window: Period,
}

/// A key as it is shown. Times are seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyInfo {
    /// Public; part of the key's text.
    pub id: String,
    /// Who pays.
    pub tenant: Arc<str>,
    /// For people.
    pub name: String,
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

impl KeyInfo {
    /// Whether it lets anybody in.
    pub fn works(&self, now: i64) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|expires| now < expires)
    }
}

/// A key as it is stored.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyRecord {
    /// What is shown of it.
    pub info: KeyInfo,
    /// SHA-256 of the secret.
    pub hash: [u8; 32],
}

impl fmt::Debug for KeyRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRecord").field("info", &self.info).finish_non_exhaustive()
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

impl fmt::Debug for CreatedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreatedKey").field("info", &self.info).finish_non_exhaustive()
    }
}
