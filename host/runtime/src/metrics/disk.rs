//! How much room there is on a disk.

use std::io;
use std::path::Path;

/// Bytes that may still be written by us where `path` lies.
///
/// # Errors
/// When the path is not there or cannot be asked.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_folder_has_room_and_nowhere_is_an_error() {
        assert!(super::free_bytes(std::path::Path::new("/")).is_ok());
        assert!(super::free_bytes(std::path::Path::new("/nonexistent")).is_err());
    }
}
