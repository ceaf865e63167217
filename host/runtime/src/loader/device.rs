//! Memory of devices: `bp.device/1`. The host passes it from plugin to plugin and never follows its addresses; what is in it
//! is read by its owner.
#![expect(unsafe_code, reason = "asks a plugin to copy out of memory that only it can read")]

use super::buffers::{Buffer, Held};
use super::exchange::raw_tensor;
use super::table::PluginContext;
use crate::error::{Error, ErrorCode, Result};
use crate::metrics::Renderer;
use crate::tensor::Tensor;
use backplane_abi::read::OnDevice;
use backplane_abi::table::*;
use bytes::Bytes;
use std::borrow::Cow;
use std::ffi::c_void;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// How often memory of devices was copied to the processor's, and how much of it.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    pub count: AtomicU64,
    pub bytes: AtomicU64,
}

impl Copies {
    pub fn render(&self, out: &mut Renderer) {
        let [count, bytes] = [&self.count, &self.bytes].map(|figure| figure.load(Ordering::Relaxed) as f64);
        out.counter(
            "backplane_device_copies_total",
            "Tensors on a device that were copied to CPU memory, since who was next does not take them there",
            &[],
            count,
        );
        out.counter("backplane_device_copied_bytes_total", "Bytes of those tensors", &[], bytes);
    }
}

type Read = unsafe extern "C" fn(*mut c_void, u64, u64, *mut c_void, bp_err) -> bp_code;

/// What makes a buffer one of a device.
pub struct Owner {
    pub dev_type: i32,
    pub dev_id: i32,
    pub context: &'static PluginContext,
    pub ctx: *mut c_void,
    pub read: Read,
}

impl Owner {
    /// Fills `to` with what is in the memory from `offset` on, which was checked to be within it.
    fn read(&self, offset: usize, to: &mut [u8]) -> Result<()> {
        let began = Instant::now();
        let (code, failure) = self.context.with_error(|err| {
            // SAFETY: the owner's function with its ctx, which lives as long as the buffer whose part this is; room for as
            // many bytes as are asked for.
            unsafe { (self.read)(self.ctx, offset as u64, to.len() as u64, to.as_mut_ptr().cast(), err) }
        });
        let (plugin, bytes) = (self.context.plugin(), to.len());
        if code != BP_OK {
            let mut error = failure.map_or_else(
                || {
                    let message = format!("plugin `{plugin}` cannot read its memory of a device ({code})");
                    Error::new(ErrorCode::from_raw(code), message)
                },
                |failure| failure.error,
            );
            if error.code == ErrorCode::Unavailable && error.reason.is_empty() {
                error.reason = Cow::Borrowed("device_lost");
            }
            tracing::warn!(plugin, bytes, error = error.message, "memory of a device was not copied");
            return Err(error);
        }
        let copies = &self.context.shared().copies;
        copies.count.fetch_add(1, Ordering::Relaxed);
        copies.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        tracing::debug!(plugin, bytes, took = ?began.elapsed(), "memory of a device was copied");
        Ok(())
    }
}

/// A tensor's part of the memory of a device. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Place {
    buffer: Arc<Buffer>,
    at: OnDevice,
}

impl Place {
    /// What a plugin says is in this buffer of its. `None` when it is not inside it, or that is of another device.
    pub fn of(held: &Held, at: OnDevice) -> Option<Self> {
        let owner = held.buffer.device()?;
        let offset = at.start.checked_sub(held.buffer.as_mut_ptr() as usize)?;
        let within = offset.checked_add(at.len)? <= held.buffer.len();
        let same = (owner.dev_type, owner.dev_id) == (at.dev_type, at.dev_id);
        (within && same).then(|| Self { buffer: held.buffer.clone(), at })
    }

    /// Which device: its kind, and which of them.
    pub fn device(&self) -> (i32, i32) {
        (self.at.dev_type, self.at.dev_id)
    }

    pub fn len(&self) -> usize {
        self.at.len
    }

    /// Its bytes, copied by its owner.
    ///
    /// # Errors
    /// The owner's; `device_lost` when they are gone.
    pub fn read(&self) -> Result<Bytes> {
        let owner =
            self.buffer.device().ok_or_else(|| Error::internal("a buffer is of no device any more"))?;
        let offset = self.at.start.saturating_sub(self.buffer.as_mut_ptr() as usize);
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(self.at.len).map_err(|_| {
            Error::new(ErrorCode::ResourceExhausted, "there is no memory for a tensor that is on a device")
        })?;
        bytes.resize(self.at.len, 0);
        owner.read(offset, &mut bytes)?;
        Ok(bytes.into())
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.buffer, &other.buffer) && self.at == other.at
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes on device {}:{}", self.at.len, self.at.dev_type, self.at.dev_id)
    }
}

/// The bytes of a buffer from an address within it on, for a plugin that holds it.
pub fn read(held: &Held, start: usize, to: &mut [u8]) -> bp_code {
    let Some(owner) = held.buffer.device() else { return BP_INVALID_ARGUMENT };
    let offset = start.checked_sub(held.buffer.as_mut_ptr() as usize);
    let end = offset.and_then(|offset| offset.checked_add(to.len()));
    let (Some(offset), Some(_)) = (offset, end.filter(|end| *end <= held.buffer.len())) else {
        return BP_OUT_OF_RANGE;
    };
    match owner.read(offset, to) {
        Ok(()) => BP_OK,
        Err(error) => error.code as bp_code,
    }
}

/// Tensors of ours as they cross to a plugin, those on a device with a handle that is the plugin's until this is dropped.
pub struct Lent {
    context: &'static PluginContext,
    pub rows: Vec<bp_tensor>,
}

// SAFETY: the rows point to tensors of whoever keeps this beside them, which are not changed.
unsafe impl Send for Lent {}
// SAFETY: as above; nothing in it changes.
unsafe impl Sync for Lent {}

impl Lent {
    /// Valid as long as `tensors` are where they are.
    pub fn new(context: &'static PluginContext, tensors: &[Tensor]) -> Self {
        let row = |tensor: &Tensor| {
            let row = raw_tensor(tensor);
            let Some(Place { buffer, at }) = &tensor.place else { return row };
            bp_tensor {
                dev_type: at.dev_type,
                dev_id: at.dev_id,
                nbytes: at.len as u64,
                data: at.start as *mut c_void,
                buffer: context.buffers.insert(Held::of(buffer.clone())),
                sync_kind: at.sync_kind,
                sync: at.sync,
                ..row
            }
        };
        Self { context, rows: tensors.iter().map(row).collect() }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        for row in self.rows.iter().filter(|row| row.buffer != 0) {
            self.context.release(row.buffer);
        }
    }
}
