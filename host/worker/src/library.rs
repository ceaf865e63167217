//! From a library to the entry of a plugin.
#![expect(unsafe_code, reason = "maps a library")]

use backplane_abi::table::EntryV1;
use backplane_abi::worker::Text;
use backplane_abi::{ENTRY_SYMBOL, root};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::error::Error;
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// What is mapped: a file, or the sealed copy of one that was verified.
pub enum Source<'a> {
    File(Text<'a>),
    Sealed(OwnedFd),
}

impl<'a> Source<'a> {
    pub fn new(path: Text<'a>, sealed: Option<OwnedFd>) -> Self {
        sealed.map_or(Self::File(path), Self::Sealed)
    }

    /// The file that must be readable for it.
    pub fn file(&self) -> Option<Text<'a>> {
        match self {
            Self::File(path) => Some(*path),
            Self::Sealed(_) => None,
        }
    }

    pub fn sealed(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::File(_) => None,
            Self::Sealed(fd) => Some(fd.as_fd()),
        }
    }

    /// What the linker is given. No rule is needed for a sealed copy: Landlock knows files of file systems that somebody
    /// can mount, and a memfd is on none.
    fn path(&self) -> PathBuf {
        match self {
            Self::File(path) => OsStr::from_bytes(path).into(),
            Self::Sealed(fd) => format!("/proc/self/fd/{}", fd.as_raw_fd()).into(),
        }
    }

    /// Maps the library and finds its entry.
    ///
    /// # Errors
    /// The linker's words, or those of `abi_stable` for a library of Rust that was built with another layout.
    pub fn map(self) -> Result<EntryV1, String> {
        let path = self.path();
        // SAFETY: runs the library's constructors, which is what this process is for. RTLD_NOW, so that a missing symbol
        // is an error here and not a crash later.
        let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) }.map_err(|error| {
            // Its own text is only "dlopen failed"; the linker's is the source.
            error.source().map_or_else(|| error.to_string(), ToString::to_string)
        })?;
        // SAFETY: the symbol has this type by the rules of backplane.h.
        let entry = unsafe { library.get::<EntryV1>(ENTRY_SYMBOL.as_bytes()) }.map(|symbol| *symbol);
        // SAFETY: only whether it is there is asked.
        let is_rust = unsafe { library.get::<*const ()>(root::SYMBOL.as_bytes()) }.is_ok();
        // Never unmapped: its threads, statics and functions may be in use until the process ends.
        std::mem::forget(library);
        if is_rust {
            root::check(&path).map_err(|report| {
                let why = root::brief(&report);
                format!("it was built with an SDK that this host does not fit: {why}; rebuild it with backplane-plugin 1.x")
            })?;
        }
        entry.map_err(|_| format!("undefined symbol: {ENTRY_SYMBOL}"))
    }
}
