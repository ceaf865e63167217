//! Who may say what: signed documents, the keys that sign them, and what was taken back.
//!
//! One format serves licences, plugin manifests, indexes and revocation lists: a JSON payload in a DSSE [`Envelope`],
//! signed with Ed25519. What kind of document it is stands inside the signature; which algorithm signs it is a property
//! of the trusted key, never of the document.
//!
//! ```
//! use backplane_registry::trust::{Envelope, Level, Role, SecretKey, Timestamp, TrustSet, TrustedKey, payload_type};
//!
//! let key = SecretKey::generate()?;
//! let sealed = Envelope::sign(payload_type::LICENSE, br#"{"v":1}"#.to_vec(), &[&key]).to_json();
//!
//! let mut trust = TrustSet::default();
//! trust.add(TrustedKey::new(key.public(), "acme-ai", &[Role::License]).level(Level::Org));
//! let envelope = Envelope::parse(&sealed, 64 << 10)?;
//! let payload = envelope.verify(&trust, Role::License, payload_type::LICENSE, Timestamp::now())?;
//! assert_eq!(payload.json()?["v"], 1);
//! # Ok::<(), backplane_registry::trust::TrustError>(())
//! ```

pub mod armour;
mod envelope;
mod error;
mod json;
mod key;
mod moment;
mod revocation;
mod root;
mod set;
mod store;

pub use envelope::{Envelope, Signature, VerifiedPayload, pae};
pub use error::{Result, TrustError};
pub use json::{parse as parse_json, typed as parse_typed};
pub use key::{KeyId, PublicKey, SecretKey};
pub use moment::{Day, Timestamp};
pub use revocation::{Ratchet, RevocationList, Revocations};
pub use root::{MAX_ROOT, Root};
pub use set::{IdPattern, Level, Role, TrustSet, TrustedKey};
pub(crate) use store::write_atomic;
pub use store::{TrustStore, Trusted, read_capped, write_new};

/// What a signed document is. Part of what is signed, so that no document passes for one of another kind.
pub mod payload_type {
    pub const LICENSE: &str = "application/vnd.backplane.license.v1+json";
    pub const PLUGIN: &str = "application/vnd.backplane.plugin.v1+json";
    pub const INDEX: &str = "application/vnd.backplane.index.v1+json";
    pub const SNAPSHOT: &str = "application/vnd.backplane.snapshot.v1+json";
    pub const REVOCATIONS: &str = "application/vnd.backplane.revocations.v1+json";
    pub const ROOT: &str = "application/vnd.backplane.root.v1+json";
    pub const CLOCK: &str = "application/vnd.backplane.clock.v1+json";
    pub const FIRST_HAD: &str = "application/vnd.backplane.first-had.v1+json";
    pub const TIME: &str = "application/vnd.backplane.time.v1+json";
    pub const USAGE: &str = "application/vnd.backplane.usage.v1+json";
}
