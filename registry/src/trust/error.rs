//! What can be wrong with a signed document or a key.

use std::io;
use std::path::PathBuf;

use super::{KeyId, Role, Timestamp};

pub type Result<T, E = TrustError> = std::result::Result<T, E>;

/// Why a document is not believed. Each says what was met and what would mend it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    #[error("it is larger than {limit} bytes, which none is")]
    TooLarge { limit: usize },

    #[error("it is no armoured `{label}`: {reason}")]
    Armour { label: String, reason: String },

    #[error("it is no signed document: {reason}")]
    Envelope { reason: String },

    #[error("it is a document of the type `{found}`, expected `{expected}`")]
    WrongType { expected: String, found: String },

    #[error("none of the keys that signed it is trusted: {}; if it is the right one, add it to the trusted keys", list(.signers))]
    UnknownSigner { signers: Vec<KeyId> },

    #[error("the signature by {signer} is wrong: the document was changed or damaged; get it anew")]
    BadSignature { signer: KeyId },

    #[error("the key {signer} is trusted for {has}, not for `{role}`", has = roles(.has))]
    WrongRole { signer: KeyId, role: Role, has: Vec<Role> },

    #[error("the key {signer} is trusted from {from} on, and it is {now}")]
    KeyNotYetValid { signer: KeyId, from: Timestamp, now: Timestamp },

    #[error(
        "the key {signer} was trusted until {until}, and it is {now}; ask for one signed with a newer key"
    )]
    KeyExpired { signer: KeyId, until: Timestamp, now: Timestamp },

    #[error("the key {signer} was revoked; ask for one signed with a newer key")]
    KeyRevoked { signer: KeyId },

    #[error("its payload is not as agreed: {reason}")]
    Payload { reason: String },

    #[error("`{text}` is no key: {reason}")]
    Key { text: String, reason: String },

    #[error("its serial is {found}, and one with {known} by the same key was seen; get the newest")]
    OldSerial { known: u64, found: u64 },

    #[error("the root is not believed: {reason}")]
    Root { reason: String },

    #[error("the revocation list says what its key may not say: {reason}")]
    Overreach { reason: String },

    #[error("{path}: {reason}", path = .path.display())]
    File { path: PathBuf, reason: String },

    #[error("cannot {action} {path}: {source}", path = .path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },

    #[error("the system gives no random numbers: {0}")]
    NoRandomness(String),
}

impl TrustError {
    /// A stable name for scripts and logs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "too_large",
            Self::Armour { .. } => "armour_invalid",
            Self::Envelope { .. } => "envelope_invalid",
            Self::WrongType { .. } => "wrong_type",
            Self::UnknownSigner { .. } => "signer_unknown",
            Self::BadSignature { .. } => "signature_invalid",
            Self::WrongRole { .. } => "key_role",
            Self::KeyNotYetValid { .. } => "key_not_yet_valid",
            Self::KeyExpired { .. } => "key_expired",
            Self::KeyRevoked { .. } => "key_revoked",
            Self::Payload { .. } => "payload_invalid",
            Self::Key { .. } => "key_invalid",
            Self::OldSerial { .. } => "serial_old",
            Self::Root { .. } => "root_refused",
            Self::Overreach { .. } => "revocation_scope",
            Self::File { .. } => "file_invalid",
            Self::Io { .. } => "io",
            Self::NoRandomness(_) => "no_randomness",
        }
    }

    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}

fn list(signers: &[KeyId]) -> String {
    signers.iter().map(KeyId::to_string).collect::<Vec<_>>().join(", ")
}

fn roles(roles: &[Role]) -> String {
    let names: Vec<_> = roles.iter().map(|role| format!("`{role}`")).collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}
