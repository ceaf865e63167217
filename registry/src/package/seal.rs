//! A file's bytes, copied where nobody can change them any more, and the hash of that copy.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};

use super::error::{Problem, Result, io};
use crate::digest::Digest;

/// A copy in memory that is sealed against every change. What was hashed is what is mapped, whoever writes to the
/// file it came from.
#[derive(Debug)]
pub struct SealedFile {
    fd: OwnedFd,
    /// Of the sealed bytes.
    pub sha256: Digest,
    pub size: u64,
}

impl SealedFile {
    /// A path that names the copy, within this process and as long as this value lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }

    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

/// What is sealed is what it was: equal hashes are equal files.
impl PartialEq for SealedFile {
    fn eq(&self, other: &Self) -> bool {
        self.sha256 == other.sha256
    }
}

impl AsFd for SealedFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

const SEALS: SealFlags =
    SealFlags::WRITE.union(SealFlags::GROW).union(SealFlags::SHRINK).union(SealFlags::SEAL);

/// Copies a file into memory, seals the copy, and hashes what was sealed.
///
/// # Errors
/// The file cannot be read, or is longer than `limit`; the kernel cannot seal.
pub fn seal(path: &Path, limit: u64) -> Result<SealedFile> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let file = File::open(path).map_err(io("open", path))?;
    if !file.metadata().map_err(io("read", path))?.is_file() {
        return Err(Problem::Refused("not a file".to_owned()).of(path.display()));
    }
    seal_reader(file, &name, limit).map_err(io("seal a copy of", path))
}

fn seal_reader(from: impl Read, name: &str, limit: u64) -> io::Result<SealedFile> {
    let mut copy = File::from(create(name)?);
    let size = io::copy(&mut from.take(limit.saturating_add(1)), &mut copy)?;
    if size > limit {
        return Err(io::Error::other(format!("it has more than {limit} bytes")));
    }
    copy.flush()?;
    fcntl_add_seals(&copy, SEALS)?;
    // Hashed after it was sealed: a descriptor that somebody took from us meanwhile is of no use to them.
    if !fcntl_get_seals(&copy)?.contains(SEALS) {
        return Err(io::Error::other("the kernel did not apply the seals"));
    }
    copy.rewind()?;
    let sha256 = Digest::of_reader(&mut copy, |_| Ok(()))?;
    copy.rewind()?;
    Ok(SealedFile { fd: copy.into(), sha256, size })
}

fn create(name: &str) -> io::Result<OwnedFd> {
    // A name only for /proc; the kernel takes at most 249 bytes.
    let name: String = name.chars().filter(|c| c.is_ascii_graphic()).take(100).collect();
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match memfd_create(name.as_str(), flags | MemfdFlags::EXEC) {
        // Kernels before 6.3 do not know the flag; theirs are executable always.
        Err(rustix::io::Errno::INVAL) => Ok(memfd_create(name.as_str(), flags)?),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt as _;

    fn bytes(sealed: &SealedFile) -> Vec<u8> {
        std::fs::read(sealed.path()).unwrap()
    }

    #[test]
    fn the_copy_is_the_file_and_cannot_be_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.so");
        std::fs::write(&path, b"good").unwrap();
        let sealed = seal(&path, 100).unwrap();
        assert_eq!((sealed.sha256, sealed.size), (Digest::of(b"good"), 4));
        assert!(
            File::options()
                .write(true)
                .open(sealed.path())
                .and_then(|file| file.write_at(b"evil", 0))
                .is_err()
        );
        let file = File::from(sealed.into_fd());
        assert!(file.write_at(b"evil", 0).is_err(), "writing");
        assert!(file.set_len(0).is_err() && file.set_len(100).is_err(), "shrinking and growing");
        assert!(fcntl_add_seals(&file, SealFlags::empty()).is_err(), "sealing anew");
        assert_eq!(std::fs::read(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap(), b"good");
    }

    #[test]
    fn a_file_that_is_swapped_after_the_check_is_never_what_is_returned() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.so");
        std::fs::write(&path, b"good").unwrap();
        let sealed = seal(&path, 100).unwrap();
        // In place, and by another file under the name.
        std::fs::write(&path, b"evil").unwrap();
        assert_eq!(bytes(&sealed), b"good");
        std::fs::write(folder.path().join("other"), b"evil too").unwrap();
        std::fs::rename(folder.path().join("other"), &path).unwrap();
        assert_eq!(Digest::of(&bytes(&sealed)), sealed.sha256);
    }

    /// Somebody writes while the copy is made: the copy may hold anything, but its hash is that of what it holds.
    #[test]
    fn the_hash_is_of_the_bytes_that_are_returned_whoever_writes_meanwhile() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.so");
        std::fs::write(&path, vec![b'a'; 1 << 20]).unwrap();
        let writer = File::options().write(true).open(&path).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for turn in 0_u64.. {
                    if stop.load(std::sync::atomic::Ordering::Relaxed) {
                        break;
                    }
                    writer.write_at(&turn.to_ne_bytes(), (turn * 4099) % (1 << 20)).unwrap();
                }
            });
            for _ in 0..20 {
                let sealed = seal(&path, 8 << 20).unwrap();
                assert_eq!(Digest::of(&bytes(&sealed)), sealed.sha256);
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }

    #[test]
    fn what_is_too_long_or_no_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.so");
        std::fs::write(&path, b"12345").unwrap();
        assert!(seal(&path, 4).unwrap_err().to_string().contains("more than 4 bytes"));
        assert!(seal(folder.path(), 4).is_err());
        assert!(seal(&folder.path().join("none"), 4).unwrap_err().to_string().contains("none"));
    }
}
