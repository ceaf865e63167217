//! Memory of tensors, shared with the host for as long as either wants it.
#![expect(unsafe_code, reason = "the plugin's end of the C ABI")]

use super::host::host_call;
use crate::host::Host;
use backplane_abi::table::*;
use std::borrow::Cow;
use std::ffi::c_void;
use std::sync::Arc;

/// Memory of a tensor: a `Vec` of any element type, seen as bytes. Sharing it keeps it alive until the host has
/// dropped its last reference.
#[derive(Clone)]
pub struct Memory(Arc<dyn AsBytes>);

trait AsBytes: Send + Sync {
    fn as_bytes(&self) -> &[u8];
}

impl<T: crate::tensor::sealed::Plain + Send + Sync> AsBytes for Vec<T> {
    fn as_bytes(&self) -> &[u8] {
        // SAFETY: plain numbers (sealed::Plain): no padding, and every byte is initialised.
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast(), std::mem::size_of_val(self.as_slice())) }
    }
}

/// Memory that belongs to something else: an engine's own tensor. Where it lies is asked once, so that an owner that
/// answers differently the next time harms nobody.
struct Lent {
    data: *const u8,
    len: usize,
    _owner: Arc<dyn Send + Sync>,
}

// SAFETY: the memory is only read, and the owner that keeps it may move and be shared between threads.
unsafe impl Send for Lent {}
// SAFETY: as above.
unsafe impl Sync for Lent {}

impl AsBytes for Lent {
    fn as_bytes(&self) -> &[u8] {
        // SAFETY: what `AsRef` of the owner gave; nobody can reach the owner any more to change or move it.
        unsafe { std::slice::from_raw_parts(self.data, self.len) }
    }
}

impl Memory {
    pub fn of<T: crate::tensor::Element>(data: Vec<T>) -> Self {
        Self(Arc::new(data))
    }

    pub fn lent<T: crate::tensor::Element>(owner: impl AsRef<[T]> + Send + Sync + 'static) -> Self {
        // The memory may lie within the owner itself, so the owner gets its place first. Not in a `Box`: moving one
        // claims that nobody else points into it, which would make `data` invalid.
        let owner = Arc::new(owner);
        let elements: &[T] = (*owner).as_ref();
        let (data, len) = (elements.as_ptr().cast(), std::mem::size_of_val(elements));
        Self(Arc::new(Lent { data, len, _owner: owner }))
    }

    pub fn len(&self) -> usize {
        self.0.as_bytes().len()
    }

    pub(super) fn as_ptr(&self) -> *const u8 {
        self.0.as_bytes().as_ptr()
    }

    /// A buffer of the host's over this memory, with one reference.
    pub(super) fn share(&self, host: Host) -> Option<bp_buf> {
        unsafe extern "C" fn release(ctx: *mut c_void) {
            // SAFETY: `ctx` is the box below, and the host calls this exactly once.
            drop(unsafe { Box::from_raw(ctx.cast::<Memory>()) });
        }
        let ctx = Box::into_raw(Box::new(self.clone()));
        let mut buffer = 0;
        let data = self.as_ptr().cast_mut().cast();
        let code =
            host_call!(host, buf_wrap(data, self.len() as u64, ctx.cast(), Some(release), &raw mut buffer));
        if code != BP_OK {
            // SAFETY: on error release is not called, says the header.
            drop(unsafe { Box::from_raw(ctx) });
            return None;
        }
        Some(buffer)
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

/// Bytes as elements; copied where they are not aligned. A tail that is no whole element is left out.
pub fn cast<T: crate::tensor::Element>(bytes: &[u8]) -> Cow<'_, [T]> {
    let len = bytes.len() / size_of::<T>();
    if (bytes.as_ptr() as usize).is_multiple_of(align_of::<T>()) {
        // SAFETY: aligned, long enough, and every bit pattern is a `T` (sealed::Plain).
        return Cow::Borrowed(unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), len) });
    }
    let mut copy = Vec::<T>::with_capacity(len);
    // SAFETY: room for `len` elements was reserved, and every bit pattern is a `T`.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), copy.as_mut_ptr().cast(), len * size_of::<T>());
        copy.set_len(len);
    }
    Cow::Owned(copy)
}
