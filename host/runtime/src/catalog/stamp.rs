//! Which file lies at a path.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Tells a file from another that has its path later, as far as that can be seen without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    inode: (u64, u64),
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    /// The file there now; `None` when there is none.
    pub fn of(path: &Path) -> Option<Self> {
        let file = path.metadata().ok()?;
        Some(Self {
            inode: (file.dev(), file.ino()),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
        })
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { inode, size, modified } = self;
        write!(f, "{}:{} {size} {}.{:09}", inode.0, inode.1, modified.0, modified.1)
    }
}
