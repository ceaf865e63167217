//! One host per state directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The state directory is this host's as long as this lives. The kernel lets go when the process ends, however it ends.
#[derive(Debug)]
pub struct StateLock(#[expect(dead_code, reason = "the lock is held by the open file")] File);

/// Why the state directory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another host has it.
    #[error(
        "another backplane{} uses this state directory, {}; stop it, or choose another directory with `--state`",
        .pid.map_or_else(String::new, |pid| format!(" (pid {pid})")),
        .dir.display()
    )]
    Taken {
        /// The directory.
        dir: PathBuf,
        /// The process that has it, if it said so.
        pid: Option<u32>,
    },
    /// The lock file cannot be used.
    #[error("the lock file `run/lock` of the state directory {} cannot be used: {source}", .dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl StateLock {
    /// Takes the directory for this host.
    ///
    /// # Errors
    /// When another host has it, in this process or another.
    pub fn acquire(dir: &Path) -> Result<Self, LockError> {
        let io = |source| LockError::Io { dir: dir.to_owned(), source };
        // Not truncated here: until the lock is ours, what it says is the other's.
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(dir.join("run/lock"))
            .map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // A host that has only just begun has not said its number yet.
                let pid = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
                return Err(LockError::Taken { dir: dir.to_owned(), pid });
            }
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        file.set_len(0).map_err(io)?;
        writeln!(file, "{}", std::process::id()).map_err(io)?;
        Ok(Self(file))
    }
}
