//! From a verified package to files below one folder, or to nothing at all.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat2};

use super::error::{Result, io};
use super::manifest::{FileEntry, PackageManifest};
use super::payload;

/// Writes the files of a payload below `folder`, which is new and empty. On an error the caller removes the folder.
pub(crate) fn unpack(
    payload: impl Read,
    manifest: &PackageManifest,
    origin: &Path,
    folder: &Path,
) -> Result<()> {
    let below = Below::open(folder).map_err(io("open", folder))?;
    payload::read(payload, manifest, origin, |file, reader| {
        below.write(file, reader).map_err(io("write", &folder.join(file.path.as_str())))
    })
}

/// A folder, held open. Names are resolved below it by the kernel and through no link, so that whoever swaps a folder
/// for a link meanwhile gains nothing.
pub(crate) struct Below(OwnedFd);

const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

impl Below {
    pub fn open(folder: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        Ok(Self(rustix::fs::open(folder, flags, Mode::empty())?))
    }

    fn write(&self, file: &FileEntry, reader: &mut dyn Read) -> io::Result<()> {
        for folder in file.path.folders() {
            self.folder(folder)?;
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat2(&self.0, file.path.as_str(), flags, Mode::from_raw_mode(0o444), BENEATH)?;
        let mut to = File::from(fd);
        io::copy(reader, &mut to)?;
        to.sync_all()
    }

    fn folder(&self, name: &str) -> io::Result<()> {
        let (parent, last) = name.rsplit_once('/').unwrap_or((".", name));
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        let parent = openat2(&self.0, parent, flags, Mode::empty(), BENEATH)?;
        match mkdirat(&parent, last, Mode::from_raw_mode(0o755)) {
            Err(rustix::io::Errno::EXIST) => {
                openat2(&parent, last, flags, Mode::empty(), BENEATH).map(drop)?
            }
            other => other?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use std::os::unix::fs::symlink;

    fn entry(path: &str) -> FileEntry {
        FileEntry { path: path.parse().unwrap(), size: 1, sha256: Digest::of(b"x") }
    }

    #[test]
    fn a_folder_that_became_a_link_is_not_followed() {
        let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let below = Below::open(inside.path()).unwrap();
        symlink(outside.path(), inside.path().join("a")).unwrap();
        assert!(below.write(&entry("a/x"), &mut &b"x"[..]).is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0, "nothing was written through it");
    }

    #[test]
    fn a_file_that_is_there_is_not_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("target");
        std::fs::write(&target, "before").unwrap();
        symlink(&target, folder.path().join("x")).unwrap();
        let below = Below::open(folder.path()).unwrap();
        assert!(below.write(&entry("x"), &mut &b"x"[..]).is_err());
        assert!(below.write(&entry("target"), &mut &b"x"[..]).is_err());
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "before");
    }

    #[test]
    fn folders_are_made_and_files_are_read_only() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let below = Below::open(folder.path()).unwrap();
        for path in ["a/b/x", "a/b/y", "a/z"] {
            below.write(&entry(path), &mut &b"x"[..]).unwrap();
        }
        let meta = folder.path().join("a/b/x").metadata().unwrap();
        assert_eq!(meta.permissions().mode() & 0o222, 0);
    }
}
