//! Memory that the host lends to a worker for a large call, and again for the next.
//!
//! Pages that are new cost more than what is written to them. So the host keeps those of a call that is over, and writes the
//! next one there. It maps them before it seals them: from then on they neither shrink nor grow, and nobody else can write
//! to them. The worker maps them once, for reading. The host never reads them, and writes again only when the worker has said
//! that nobody there reads any more: one that says so too early sees other bytes, of what was sent to it anyway.
#![expect(unsafe_code, reason = "maps memory that two processes share")]

use super::channel::written;
use super::wire::Out;
use rustix::fs::{SealFlags, fcntl_add_seals, fstat, ftruncate};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
use std::collections::HashMap;
use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A multiple of every page size.
const GRAIN: usize = 64 << 10;
const SEALS: SealFlags =
    SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::FUTURE_WRITE).union(SealFlags::SEAL);

/// Mapped memory; unmapped when it is dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    at: *mut c_void,
    len: usize,
}
// SAFETY: an address range that its one owner unmaps; who reads or writes it is for the two ends below.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// So much of a file, which is as long and keeps its length.
    pub(super) fn of(file: &OwnedFd, len: usize, access: ProtFlags) -> io::Result<Mapping> {
        // SAFETY: a new mapping, of a file that is as long, which its seals keep.
        let at = unsafe { mmap(std::ptr::null_mut(), len, access, MapFlags::SHARED, file, 0) }?;
        Ok(Mapping { at, len })
    }

    /// Where it begins.
    pub(super) fn start(&self) -> *mut c_void {
        self.at
    }

    /// Its first bytes; fewer when it is shorter.
    pub(super) fn bytes(&self, len: usize) -> &[u8] {
        // SAFETY: mapped for reading, as long at least, and kept; the host does not write before it was told that nobody
        // reads, which this process says when nobody has this mapping's frame any more.
        unsafe { std::slice::from_raw_parts(self.at.cast::<u8>(), len.min(self.len)) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `of`, once, and nothing borrowed from it is left.
        let _gone = unsafe { munmap(self.at, self.len) };
    }
}

/// The host's end.
#[derive(Debug)]
pub struct Arena {
    pages: Mapping,
    file: OwnedFd,
    id: u64,
    sent: bool,
}

impl Arena {
    /// New memory, with this frame in it and some room to spare.
    ///
    /// # Errors
    /// The system's.
    pub fn new(out: &Out<'_>) -> io::Result<Arena> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let len = (out.len() + out.len() / 8).next_multiple_of(GRAIN);
        // Written and then mapped: what is written to a new mapping is cleared first.
        let file = written(out)?;
        ftruncate(&file, len as u64)?;
        let pages = Mapping::of(&file, len, ProtFlags::READ | ProtFlags::WRITE)?;
        fcntl_add_seals(&file, SEALS)?;
        // SAFETY: of our own mapping, whose bytes stay as they are. Without it the next call's writer meets each page alone.
        let _slower = unsafe { madvise(pages.at, out.len(), Advice::LinuxPopulateWrite) };
        Ok(Arena { pages, file, id: NEXT.fetch_add(1, Ordering::Relaxed), sent: false })
    }

    /// Bytes that fit.
    pub fn room(&self) -> usize {
        self.pages.len
    }

    /// What it is called on both sides.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Writes a frame in the place of the one before, if it fits.
    pub fn write(&mut self, out: &Out<'_>) -> bool {
        let fits = out.len() <= self.room();
        let mut at = self.pages.at.cast::<u8>();
        for piece in out.pieces().iter().take(if fits { usize::MAX } else { 0 }) {
            // SAFETY: all pieces fit, one after the other; the mapping is ours alone in this process, and no reference into
            // it exists.
            unsafe {
                std::ptr::copy_nonoverlapping(piece.as_ptr(), at, piece.len());
                at = at.add(piece.len());
            }
        }
        fits
    }

    /// The descriptor, unless the other end has it.
    pub(super) fn unsent(&self) -> Option<BorrowedFd<'_>> {
        (!self.sent).then(|| self.file.as_fd())
    }

    pub(super) fn was_sent(&mut self) {
        self.sent = true;
    }
}

/// The worker's end: what it was lent, and has mapped.
#[derive(Debug, Default)]
pub struct Borrowed(Mutex<HashMap<u64, Arc<Mapping>>>);

impl Borrowed {
    /// The memory with this number, which comes with its descriptor when it is new.
    pub(super) fn find(&self, id: u64, len: usize, file: Option<OwnedFd>) -> io::Result<Arc<Mapping>> {
        let bad = |what: &'static str| io::Error::new(io::ErrorKind::InvalidData, what);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = file {
            let size =
                usize::try_from(fstat(&file)?.st_size).map_err(|_| bad("lent memory has no length"))?;
            all.insert(id, Arc::new(Mapping::of(&file, size, ProtFlags::READ)?));
        }
        let found = all.get(&id).filter(|pages| len <= pages.len);
        found.cloned().ok_or_else(|| bad("memory that was not lent"))
    }

    /// The host does not write there any more: what is still read stays until it is not.
    pub fn forget(&self, id: u64) {
        let gone = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        drop(gone);
    }
}
