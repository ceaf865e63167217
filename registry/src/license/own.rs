//! The key of this installation: it signs what this installation says of itself, and what it remembers.

use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::trust::{
    Envelope, Result, Role, SecretKey, Timestamp, TrustError, TrustSet, TrustedKey, read_capped, write_atomic,
};

/// The key of this state directory; it is made if there is none. It is trusted for nothing: whoever reads what it signed
/// learns that the same installation wrote it, unchanged.
pub fn own_key(state: &Path) -> Result<SecretKey> {
    let path = state.join("install.key");
    if path.exists() {
        return SecretKey::read(&path).map(|(key, _)| key);
    }
    fs::create_dir_all(state).map_err(TrustError::io("make", state))?;
    let key = SecretKey::generate()?;
    match key.write(&path, "this installation") {
        // Another process was faster.
        Err(TrustError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
            SecretKey::read(&path).map(|(key, _)| key)
        }
        written => written.map(|()| key),
    }
}

/// What a state directory remembers in a file; nothing if there is none. One that this installation did not sign as it
/// stands is refused.
pub(super) fn remembered<T: DeserializeOwned>(
    state: &Path,
    path: &Path,
    kind: &str,
    limit: usize,
) -> Result<Option<T>> {
    let bytes = match read_capped(path, limit) {
        Err(TrustError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read?,
    };
    let mut trust = TrustSet::default();
    trust.add(TrustedKey::new(own_key(state)?.public(), "this installation", &[Role::License]));
    let read = Envelope::parse(&bytes, limit)
        .and_then(|envelope| envelope.verify(&trust, Role::License, kind, Timestamp::now()))
        .and_then(|payload| payload.parse());
    read.map(Some).map_err(|error| TrustError::File { path: path.to_owned(), reason: error.to_string() })
}

/// Lets the state directory remember it.
pub(super) fn remember<T: Serialize>(state: &Path, path: &Path, kind: &str, what: &T) -> Result<()> {
    let payload = serde_json::to_vec(what).unwrap_or_default();
    let sealed = Envelope::sign(kind, payload, &[&own_key(state)?]).to_json();
    write_atomic(path, &sealed, 0o600)
}
