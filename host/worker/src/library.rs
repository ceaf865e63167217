//! From a path to the entry of a plugin.
#![expect(unsafe_code, reason = "maps a library")]

use backplane_abi::ENTRY_SYMBOL;
use backplane_abi::table::EntryV1;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::error::Error;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Maps a library and finds its entry.
///
/// # Errors
/// The linker's words, which the host knows how to read.
pub fn map(path: &[u8]) -> Result<EntryV1, String> {
    // SAFETY: runs the library's constructors, which is what this process is for. RTLD_NOW, so that a missing symbol
    // is an error here and not a crash later.
    let library =
        unsafe { Library::open(Some(OsStr::from_bytes(path)), RTLD_NOW | RTLD_LOCAL) }.map_err(|error| {
            // Its own text is only "dlopen failed"; the linker's is the source.
            error.source().map_or_else(|| error.to_string(), ToString::to_string)
        })?;
    // SAFETY: the symbol has this type by the rules of backplane.h.
    let entry = unsafe { library.get::<EntryV1>(ENTRY_SYMBOL.as_bytes()) }.map(|symbol| *symbol);
    // Never unmapped: its threads, statics and functions may be in use until the process ends.
    std::mem::forget(library);
    entry.map_err(|_| format!("undefined symbol: {ENTRY_SYMBOL}"))
}
