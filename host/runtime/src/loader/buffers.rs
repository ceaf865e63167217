//! Reference-counted memory that crosses the boundary without a copy.
#![expect(unsafe_code, reason = "memory that a plugin allocated or writes to")]

use super::device;
use bytes::Bytes;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Memory of the host's or of a plugin's.
pub struct Buffer {
    data: *mut u8,
    len: usize,
    owner: Owner,
    /// Whose it is, when it is of a device and `data` leads nowhere that a processor reads.
    device: Option<Box<device::Owner>>,
}

enum Owner {
    Host(Layout),
    Plugin { ctx: *mut c_void, release: unsafe extern "C" fn(*mut c_void) },
}

// SAFETY: the memory is owned by this value; a plugin may touch it only while it holds a handle, and promises in the
// header that release may be called on any thread.
unsafe impl Send for Buffer {}
// SAFETY: as above; the host only reads it, and only after the plugin pushed it.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Zeroed memory of the host's. `None` when there is none.
    pub fn alloc(len: usize, align: usize) -> Option<Buffer> {
        let layout = Layout::from_size_align(len.max(1), align.max(64)).ok()?;
        // SAFETY: the layout is not of size zero.
        let data = unsafe { alloc_zeroed(layout) };
        (!data.is_null()).then_some(Buffer { data, len, owner: Owner::Host(layout), device: None })
    }

    /// Memory of a plugin's.
    ///
    /// # Safety
    /// `data` is valid for `len` bytes until `release(ctx)` is called.
    pub unsafe fn wrap(
        data: *mut u8,
        len: usize,
        ctx: *mut c_void,
        release: unsafe extern "C" fn(*mut c_void),
    ) -> Buffer {
        Buffer { data, len, owner: Owner::Plugin { ctx, release }, device: None }
    }

    /// The same, of a device.
    pub fn on(mut self, device: device::Owner) -> Buffer {
        self.device = Some(Box::new(device));
        self
    }

    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.data
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// Whose it is, when it is of a device.
    pub fn device(&self) -> Option<&device::Owner> {
        self.device.as_deref()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        match self.owner {
            // SAFETY: allocated with this layout in `alloc`, and freed once.
            Owner::Host(layout) => unsafe { dealloc(self.data, layout) },
            // SAFETY: exactly once, says the header, and this is the last reference.
            Owner::Plugin { ctx, release } => unsafe { release(ctx) },
        }
    }
}

/// A buffer as a plugin holds it: the memory, and how many references the plugin has.
#[derive(Clone)]
pub struct Held {
    pub buffer: Arc<Buffer>,
    pub references: Arc<AtomicU32>,
}

/// Which reference was released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// One of several.
    One,
    /// The last: the handle is to go.
    Last,
    /// There was none, as when two threads release the last one.
    None,
}

impl Held {
    pub fn new(buffer: Buffer) -> Self {
        Self::of(Arc::new(buffer))
    }

    /// Another plugin's hold of it.
    pub fn of(buffer: Arc<Buffer>) -> Self {
        Self { buffer, references: Arc::new(AtomicU32::new(1)) }
    }

    /// One reference more; `false` when there is none left to be joined.
    pub fn retain(&self) -> bool {
        let more = |count: u32| (count > 0).then(|| count.checked_add(1)).flatten();
        self.references.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// One reference less.
    pub fn release(&self) -> Released {
        match self.references.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |count| count.checked_sub(1))
        {
            Ok(1) => Released::Last,
            Ok(_) => Released::One,
            Err(_) => Released::None,
        }
    }

    /// `len` bytes from `data` on, shared. `None` when they are not inside this buffer, or nowhere to be read.
    pub fn slice(&self, data: *const u8, len: usize) -> Option<Bytes> {
        struct Slice(Arc<Buffer>, usize, usize);
        impl AsRef<[u8]> for Slice {
            fn as_ref(&self) -> &[u8] {
                // SAFETY: the range was checked, and the memory lives as long as the Arc.
                unsafe { std::slice::from_raw_parts(self.0.data.add(self.1), self.2) }
            }
        }
        let offset = (data as usize).checked_sub(self.buffer.data as usize)?;
        (self.buffer.device.is_none() && offset.checked_add(len)? <= self.buffer.len)
            .then(|| Bytes::from_owner(Slice(self.buffer.clone(), offset, len)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn as_many_releases_as_references_and_one_of_them_is_the_last() {
        let held = Held::new(Buffer::alloc(8, 0).unwrap());
        for _ in 0..999 {
            assert!(held.retain());
        }
        let (last, none) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..300 {
                        match held.release() {
                            Released::One => {}
                            Released::Last => drop(last.fetch_add(1, Ordering::Relaxed)),
                            Released::None => drop(none.fetch_add(1, Ordering::Relaxed)),
                        }
                    }
                });
            }
        });
        assert_eq!((last.into_inner(), none.into_inner()), (1, 200));
        assert!(!held.retain(), "what is gone is not brought back");
    }

    #[test]
    fn a_slice_lies_inside_its_buffer() {
        let held = Held::new(Buffer::alloc(16, 64).unwrap());
        let data = held.buffer.as_mut_ptr().cast_const();
        assert_eq!(held.slice(data.wrapping_add(4), 12).unwrap().len(), 12);
        for (start, len) in [(0, 17), (16, 1), (usize::MAX, 1), (1, usize::MAX), (17, 0)] {
            assert!(held.slice(data.wrapping_add(start), len).is_none(), "{start} {len}");
        }
        assert!(Buffer::alloc(isize::MAX as usize, 64).is_none() && Buffer::alloc(8, 1 << 63).is_none());
    }
}
