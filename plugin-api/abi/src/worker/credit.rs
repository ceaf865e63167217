//! How much of its answers a worker may still send.
//!
//! For each request the host counts the pieces that it took, and their bytes, in memory that the worker can read and not
//! write. To say it in a frame would wake a thread of the worker's at every few tokens, for a number that its plugin needs
//! only when it sends the next.
#![expect(unsafe_code, reason = "numbers in memory that two processes share")]

use super::lent::Mapping;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fstat, ftruncate, memfd_create};
use rustix::mm::ProtFlags;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Requests that one worker can have at a time.
pub const MOST_REQUESTS: u32 = 4096;
/// Pieces of one answer that may be on their way to the host, or wait there for their reader: as many as a host keeps for
/// its reader where the plugin is its own.
pub const WINDOW_CHUNKS: u32 = 256;
/// Bytes of them; one larger piece may go when nothing else is on its way.
pub const WINDOW_BYTES: u64 = 8 << 20;

/// What was taken of one answer. Both only grow; they wrap.
#[repr(C)]
struct Taken {
    chunks: AtomicU64,
    bytes: AtomicU64,
}

const LEN: usize = MOST_REQUESTS as usize * size_of::<Taken>();
const SEALS: SealFlags =
    SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::FUTURE_WRITE).union(SealFlags::SEAL);

/// All places of one worker, as the host has them.
#[derive(Debug)]
pub struct Credits {
    pages: Mapping,
    file: OwnedFd,
    free: Mutex<Free>,
}

/// Places that nobody has: those that were given back, and those that nobody had yet.
#[derive(Debug, Default)]
struct Free {
    back: Vec<u32>,
    unused: u32,
}

impl Credits {
    /// New memory, of which nothing is used yet.
    ///
    /// # Errors
    /// The system's.
    pub fn new() -> io::Result<Arc<Credits>> {
        let file = memfd_create(c"backplane", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, LEN as u64)?;
        let pages = Mapping::of(&file, LEN, ProtFlags::READ | ProtFlags::WRITE)?;
        fcntl_add_seals(&file, SEALS)?;
        Ok(Arc::new(Credits { pages, file, free: Mutex::default() }))
    }

    /// The descriptor for the worker, which cannot write by it.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// A place for one request; `None` when all are taken.
    pub fn lend(self: &Arc<Self>) -> Option<Credit> {
        let place = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            let new = (free.unused < MOST_REQUESTS).then_some(free.unused);
            free.back.pop().or_else(|| {
                free.unused += u32::from(new.is_some());
                new
            })?
        };
        let taken = at(&self.pages, place)?;
        taken.chunks.store(0, Ordering::Relaxed);
        taken.bytes.store(0, Ordering::Relaxed);
        Some(Credit { all: self.clone(), place })
    }
}

/// The place of one request, as the host has it; given back when it is dropped.
#[derive(Debug)]
pub struct Credit {
    all: Arc<Credits>,
    place: u32,
}

impl Credit {
    /// Its number.
    pub fn place(&self) -> u32 {
        self.place
    }

    /// A piece of so many bytes was taken.
    pub fn took(&self, bytes: u64) {
        if let Some(taken) = at(&self.all.pages, self.place) {
            taken.bytes.fetch_add(bytes, Ordering::Relaxed);
            taken.chunks.fetch_add(1, Ordering::Release);
        }
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        self.all.free.lock().unwrap_or_else(PoisonError::into_inner).back.push(self.place);
    }
}

/// All places, as the worker has them.
#[derive(Debug)]
pub struct Granted(Mapping);

impl Granted {
    /// Maps what the host sent.
    ///
    /// # Errors
    /// When it is not that.
    pub fn map(file: &OwnedFd) -> io::Result<Granted> {
        if usize::try_from(fstat(file)?.st_size) != Ok(LEN) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "no room for credits"));
        }
        Ok(Granted(Mapping::of(file, LEN, ProtFlags::READ)?))
    }
}

/// What a worker has sent of one answer.
#[derive(Debug, Default)]
pub struct Flow {
    place: u32,
    chunks: u64,
    bytes: u64,
}

impl Flow {
    /// Nothing yet, of the request that has this place.
    pub fn new(place: u32) -> Flow {
        Flow { place, ..Flow::default() }
    }

    /// Whether a piece of so many bytes may go; it is counted then.
    pub fn admit(&mut self, granted: &Granted, bytes: u64) -> bool {
        let Some(taken) = at(&granted.0, self.place) else { return false };
        // Chunks first: those that are seen have their bytes seen too.
        let chunks = self.chunks.wrapping_sub(taken.chunks.load(Ordering::Acquire));
        let waiting = self.bytes.wrapping_sub(taken.bytes.load(Ordering::Relaxed));
        let full =
            u64::from(WINDOW_CHUNKS) <= chunks || 0 < chunks && WINDOW_BYTES < waiting.saturating_add(bytes);
        if !full {
            self.chunks = self.chunks.wrapping_add(1);
            self.bytes = self.bytes.wrapping_add(bytes);
        }
        !full
    }
}

fn at(pages: &Mapping, place: u32) -> Option<&Taken> {
    let place = (place < MOST_REQUESTS).then_some(place as usize)?;
    // SAFETY: within the mapping, which has this length and begins at a page, so that it is aligned; in either process
    // there are atomics only.
    Some(unsafe { &*pages.start().cast::<Taken>().add(place) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_goes_when_there_is_room_and_not_before() {
        let credits = Credits::new().unwrap();
        let granted = Granted::map(&credits.file().try_clone_to_owned().unwrap()).unwrap();
        let credit = credits.lend().unwrap();
        let mut flow = Flow::new(credit.place());
        for _ in 0..WINDOW_CHUNKS {
            assert!(flow.admit(&granted, 10));
        }
        assert!(!flow.admit(&granted, 10));
        credit.took(10);
        assert!(flow.admit(&granted, 10));
        assert!(!flow.admit(&granted, 10), "one was taken, and one has gone");
    }

    #[test]
    fn a_piece_larger_than_the_window_goes_alone() {
        let credits = Credits::new().unwrap();
        let granted = Granted::map(&credits.file().try_clone_to_owned().unwrap()).unwrap();
        let credit = credits.lend().unwrap();
        let mut flow = Flow::new(credit.place());
        assert!(flow.admit(&granted, WINDOW_BYTES - 1) && flow.admit(&granted, 1));
        assert!(!flow.admit(&granted, 1), "that is as much as may be on its way");
        credit.took(WINDOW_BYTES - 1);
        assert!(!flow.admit(&granted, WINDOW_BYTES));
        credit.took(1);
        assert!(flow.admit(&granted, 3 * WINDOW_BYTES));
        assert!(!flow.admit(&granted, 1));
    }

    #[test]
    fn places_are_of_one_request_at_a_time_and_begin_anew() {
        let credits = Credits::new().unwrap();
        let granted = Granted::map(&credits.file().try_clone_to_owned().unwrap()).unwrap();
        let all: Vec<_> = std::iter::from_fn(|| credits.lend()).collect();
        assert_eq!(all.len(), MOST_REQUESTS as usize);
        let places: std::collections::HashSet<_> = all.iter().map(Credit::place).collect();
        assert_eq!(places.len(), all.len());
        all[7].took(5);
        let place = all[7].place();
        drop(all.into_iter().nth(7));
        let again: Vec<_> = std::iter::from_fn(|| credits.lend()).collect();
        assert_eq!(again.len(), MOST_REQUESTS as usize, "all were given back");
        assert!(again.iter().any(|credit| credit.place() == place));
        let mut flow = Flow::new(place);
        assert!((0..WINDOW_CHUNKS).all(|_| flow.admit(&granted, 1)) && !flow.admit(&granted, 1));
    }

    #[test]
    fn a_worker_cannot_give_itself_credit() {
        let credits = Credits::new().unwrap();
        let file = credits.file().try_clone_to_owned().unwrap();
        assert!(Mapping::of(&file, LEN, ProtFlags::READ | ProtFlags::WRITE).is_err());
        assert!(rustix::io::write(&file, &[1; 8]).is_err());
        assert!(ftruncate(&file, 0).is_err());
    }

    #[test]
    fn a_place_that_there_is_not_has_no_room() {
        let credits = Credits::new().unwrap();
        let granted = Granted::map(&credits.file().try_clone_to_owned().unwrap()).unwrap();
        assert!(!Flow::new(MOST_REQUESTS).admit(&granted, 1));
        let other = memfd_create(c"other", MemfdFlags::CLOEXEC).unwrap();
        assert!(Granted::map(&other).is_err());
    }
}
