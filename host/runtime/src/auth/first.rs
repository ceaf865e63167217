//! The admin key of a first start.

use super::{AuthError, DEFAULT_TENANT, KeyLimits, KeyRecord, KeyRing, NewKey, Role, make};
use crate::store::KeyStore;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Name of the file in the state directory that keeps the first admin key for the command line.
pub const ADMIN_KEY_FILE: &str = "admin.key";

/// The admin key of a first start, and where it was written.
pub struct First {
    /// The whole key.
    pub secret: String,
    /// The file.
    pub path: PathBuf,
}

impl fmt::Debug for First {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("First").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Makes an admin key when there is none that works: on the first start, and after the last one was revoked, which would
/// lock everybody out; and where another is asked for, since the file was lost, unless it is there and its key works: a host
/// that is always started so does not make one each time. Whoever can restart the host and read its state directory has its
/// keys in hand anyway.
pub fn ensure_admin(
    store: &dyn KeyStore,
    keys: &mut Vec<KeyRecord>,
    state: &Path,
    now: i64,
    another: bool,
) -> Result<Option<First>, AuthError> {
    let works = keys.iter().any(|key| key.info.role == Role::Admin && key.info.works(now));
    let path = state.join(ADMIN_KEY_FILE);
    if works && (!another || is_admins(&path, keys, now)) {
        return Ok(None);
    }
    let new = NewKey {
        name: if another { "another admin" } else { "first admin" }.to_owned(),
        role: Role::Admin,
        limits: KeyLimits::default(),
        lifetime: None,
    };
    let (record, secret) = make(DEFAULT_TENANT, new, now)?;
    // The file first: a crash between the two leaves a key that nobody has, and the next start makes another.
    write_secret(&path, &secret).map_err(|source| AuthError::KeyFile { path: path.clone(), source })?;
    store.add_key(&record)?;
    keys.push(record);
    Ok(Some(First { secret, path }))
}

/// Whether the key in this file is an administrator's that works.
fn is_admins(path: &Path, keys: &[KeyRecord], now: i64) -> bool {
    let text = fs::read_to_string(path).unwrap_or_default();
    KeyRing::new(keys).identify(text.trim(), now).is_some_and(|caller| caller.is_admin())
}

/// Whole or not at all, and never readable by others, whatever was there before.
fn write_secret(path: &Path, secret: &str) -> io::Result<()> {
    let draft = path.with_extension("key.new");
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    writeln!(file, "{secret}")?;
    file.sync_all()?;
    fs::rename(draft, path)
}
