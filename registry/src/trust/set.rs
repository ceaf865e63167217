//! The keys that this host believes, and for what.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{KeyId, PublicKey, Result, Timestamp, TrustError};

/// What a key may sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Plugin packages.
    Plugin,
    /// Licences.
    License,
    /// Indexes and snapshots of a plugin registry.
    Index,
    /// Revocation lists.
    Revocation,
}

impl Role {
    pub const ALL: [Self; 4] = [Self::Plugin, Self::License, Self::Index, Self::Revocation];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plugin => "plugin",
            Self::License => "license",
            Self::Index => "index",
            Self::Revocation => "revocation",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| {
            format!("`{text}` is no role: expected `plugin`, `license`, `index` or `revocation`")
        })
    }
}

/// How a key came to be trusted, from the highest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The project's own.
    Core,
    /// A vendor's, vouched for by the project.
    Verified,
    /// Added by the operator.
    #[default]
    Org,
}

/// Plugin ids: one, `com.acme.*` for all beneath, or `*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IdPattern(String);

impl IdPattern {
    pub fn any() -> Self {
        Self("*".to_owned())
    }

    pub fn covers(&self, plugin: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(prefix) => plugin.starts_with(prefix),
            None => self.0 == plugin,
        }
    }
}

impl TryFrom<String> for IdPattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let stem = if text == "*" { "a" } else { text.strip_suffix(".*").unwrap_or(&text) };
        let label = |label: &str| {
            !label.is_empty() && label.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
        };
        if stem.split('.').all(label) {
            Ok(Self(text))
        } else {
            Err(format!("`{text}` names no plugins: expected an id, `com.acme.*` or `*`"))
        }
    }
}

impl FromStr for IdPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.to_owned().try_into()
    }
}

impl From<IdPattern> for String {
    fn from(pattern: IdPattern) -> Self {
        pattern.0
    }
}

impl fmt::Display for IdPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A key, whose it is, and what it is believed about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustedKey {
    pub key: PublicKey,
    /// The vendor: what licences call `issuer`.
    pub owner: String,
    pub roles: BTreeSet<Role>,
    /// The plugins it speaks for.
    #[serde(default = "any_plugin")]
    pub plugins: Vec<IdPattern>,
    #[serde(default)]
    pub level: Level,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// From this moment on nothing it signed is believed, whenever it was signed: a document's own date is the
    /// signer's word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Timestamp>,
}

fn any_plugin() -> Vec<IdPattern> {
    vec![IdPattern::any()]
}

impl TrustedKey {
    /// Trusted for these roles, every plugin, and all time.
    pub fn new(key: PublicKey, owner: impl Into<String>, roles: &[Role]) -> Self {
        Self {
            key,
            owner: owner.into(),
            roles: roles.iter().copied().collect(),
            plugins: any_plugin(),
            level: Level::Org,
            not_before: None,
            not_after: None,
        }
    }

    pub fn level(mut self, level: Level) -> Self {
        self.level = level;
        self
    }

    pub fn plugins(mut self, plugins: Vec<IdPattern>) -> Self {
        self.plugins = plugins;
        self
    }

    pub fn id(&self) -> KeyId {
        self.key.id()
    }

    /// Whether it speaks for this plugin.
    pub fn covers(&self, plugin: &str) -> bool {
        self.plugins.iter().any(|pattern| pattern.covers(plugin))
    }
}

/// All keys that are trusted, and those that were taken back.
#[derive(Debug, Clone, Default)]
pub struct TrustSet {
    keys: BTreeMap<KeyId, TrustedKey>,
    revoked: BTreeSet<KeyId>,
}

impl TrustSet {
    /// Adds a key; one with the same id gives way.
    pub fn add(&mut self, key: TrustedKey) {
        self.keys.insert(key.id(), key);
    }

    pub fn key(&self, id: &KeyId) -> Option<&TrustedKey> {
        self.keys.get(id)
    }

    pub fn keys(&self) -> impl Iterator<Item = &TrustedKey> {
        self.keys.values()
    }

    /// From now on nothing that this key signed is believed.
    pub fn revoke(&mut self, id: KeyId) {
        self.revoked.insert(id);
    }

    pub fn is_revoked(&self, id: &KeyId) -> bool {
        self.revoked.contains(id)
    }

    /// Whether `key` may sign for `role` at `now`.
    pub fn permits(&self, key: &TrustedKey, role: Role, now: Timestamp) -> Result<()> {
        let signer = key.id();
        if self.is_revoked(&signer) {
            return Err(TrustError::KeyRevoked { signer });
        }
        if !key.roles.contains(&role) {
            return Err(TrustError::WrongRole { signer, role, has: key.roles.iter().copied().collect() });
        }
        match (key.not_before, key.not_after) {
            (Some(from), _) if now < from => Err(TrustError::KeyNotYetValid { signer, from, now }),
            (_, Some(until)) if now >= until => Err(TrustError::KeyExpired { signer, until, now }),
            _ => Ok(()),
        }
    }
}
