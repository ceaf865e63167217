//! Free disk space, asked before it is used up.

use std::path::Path;

use crate::error::{RegistryError, Result};

/// Left free, so that the machine and the host's own database keep working.
const RESERVE: u64 = 64 << 20;

/// Refuses when fewer than `needed` bytes are free where `path` is, or will be.
pub(crate) fn require(path: &Path, needed: u64) -> Result<()> {
    let Some(existing) = path.ancestors().find(|path| path.exists()) else { return Ok(()) };
    // A file system that does not say is no reason to refuse: a full disk is met while writing, and named then.
    let Ok(stat) = rustix::fs::statvfs(existing) else { return Ok(()) };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < needed.saturating_add(RESERVE) {
        return Err(RegistryError::NotEnoughSpace { path: existing.to_owned(), needed, free });
    }
    Ok(())
}
