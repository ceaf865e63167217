//! Memory behind a handle, within this process: what a plugin allocates is nobody else's until it is pushed.
#![expect(unsafe_code, reason = "memory that a plugin allocated or writes to")]

use backplane_abi::table::{BP_OK, BP_STALE_HANDLE, bp_buf, bp_code};
use backplane_abi::worker::Body;
use parking_lot::Mutex;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The buffers of this process.
#[derive(Default)]
pub struct Buffers {
    next: AtomicU64,
    all: Mutex<HashMap<bp_buf, Held>>,
}

struct Held {
    at: *mut u8,
    len: usize,
    references: u32,
    owner: Owner,
}
// SAFETY: the memory is followed under the rules of the header only, which allow any thread.
unsafe impl Send for Held {}

enum Owner {
    Ours(Layout),
    Plugin(*mut c_void, unsafe extern "C" fn(*mut c_void)),
    /// A tensor of a request, which may be kept longer than the request.
    Request(#[expect(dead_code, reason = "keeps the memory")] Arc<Body>),
}

impl Drop for Held {
    fn drop(&mut self) {
        match self.owner {
            // SAFETY: allocated with this layout in `alloc`, freed once.
            Owner::Ours(layout) => unsafe { dealloc(self.at, layout) },
            // SAFETY: exactly once, with the ctx that came with it; any thread, says the header.
            Owner::Plugin(ctx, release) => unsafe { release(ctx) },
            Owner::Request(_) => {}
        }
    }
}

impl Buffers {
    fn keep(&self, at: *mut u8, len: usize, owner: Owner) -> bp_buf {
        // Odd multiples keep handles apart from everything else a plugin counts.
        let handle =
            self.next.fetch_add(1, Ordering::Relaxed).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.all.lock().insert(handle, Held { at, len, references: 1, owner });
        handle
    }

    /// Zeroed memory; `None` when there is none.
    pub fn alloc(&self, len: u64, align: u64) -> Option<(bp_buf, *mut c_void)> {
        let align = usize::try_from(align).ok()?.max(64);
        let layout = Layout::from_size_align(usize::try_from(len).ok()?.max(1), align).ok()?;
        // SAFETY: the layout is not of size zero.
        let at = unsafe { alloc_zeroed(layout) };
        (!at.is_null()).then(|| (self.keep(at, len as usize, Owner::Ours(layout)), at.cast()))
    }

    /// Memory of the plugin's, which lasts until `release`.
    pub fn wrap(
        &self,
        at: *mut c_void,
        len: usize,
        ctx: *mut c_void,
        release: unsafe extern "C" fn(*mut c_void),
    ) -> bp_buf {
        self.keep(at.cast(), len, Owner::Plugin(ctx, release))
    }

    /// Memory of a request.
    pub fn of_request(&self, bytes: &[u8], body: &Arc<Body>) -> bp_buf {
        self.keep(bytes.as_ptr().cast_mut(), bytes.len(), Owner::Request(body.clone()))
    }

    /// One reference more.
    pub fn retain(&self, handle: bp_buf) -> bp_code {
        match self
            .all
            .lock()
            .get_mut(&handle)
            .map(|held| held.references.checked_add(1).map(|more| held.references = more))
        {
            Some(Some(())) => BP_OK,
            _ => BP_STALE_HANDLE,
        }
    }

    /// One reference less.
    pub fn release(&self, handle: bp_buf) -> bp_code {
        let mut all = self.all.lock();
        let Some(held) = all.get_mut(&handle) else { return BP_STALE_HANDLE };
        held.references -= 1;
        let last = if held.references == 0 { all.remove(&handle) } else { None };
        // Outside the lock: what is dropped runs the plugin's code.
        drop(all);
        drop(last);
        BP_OK
    }

    /// Whether `len` bytes from `start` on lie inside this buffer; `None` when it is not alive.
    pub fn holds(&self, handle: bp_buf, start: *const u8, len: usize) -> Option<bool> {
        let all = self.all.lock();
        let held = all.get(&handle)?;
        let offset = (start as usize).checked_sub(held.at as usize);
        Some(offset.and_then(|offset| offset.checked_add(len)).is_some_and(|end| end <= held.len))
    }
}
