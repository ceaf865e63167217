//! The key of this installation: it signs what this installation says of itself.

use std::fs;
use std::io;
use std::path::Path;

use crate::trust::{Result, SecretKey, TrustError};

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
