//! `bp.device/1`: memory of devices, which the host never follows.

use super::table::this;
use super::{Buffer, Host, Owner};
use crate::answer::{DeviceOutput, Failure};
use crate::fault::Fault;
use backplane_abi::read::{self, OnDevice, Reader, Tensor};
use backplane_abi::table::*;
use std::ffi::c_void;
use std::sync::Arc;

/// What makes a buffer one of a device.
#[derive(Clone, Copy)]
pub(super) struct Device {
    kind: i32,
    id: i32,
    read: unsafe extern "C" fn(*mut c_void, u64, u64, *mut c_void, bp_err) -> bp_code,
}

/// A reference of the host's to a buffer.
pub(crate) struct Held {
    host: &'static Host,
    pub at: OnDevice,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.host.unref(self.at.handle, 0, 1);
    }
}

impl Held {
    pub fn read(&self) -> Result<Vec<u8>, Failure> {
        let mut bytes = vec![0; self.at.len];
        self.host.read_device(self.at.handle, self.at.start, &mut bytes).map(|()| bytes)
    }
}

impl Host {
    /// A tensor on a device, held; or what to answer.
    pub(super) fn hold(
        &'static self,
        function: &'static str,
        tensor: &Tensor<'_>,
        at: OnDevice,
    ) -> Result<DeviceOutput, bp_code> {
        self.place(function, tensor.name, at.handle, at.start as *const u8, at.len)?;
        let mut buffers = self.buffers.lock();
        let buffer = buffers.get_mut(&at.handle).ok_or(BP_STALE_HANDLE)?;
        if !matches!(buffer.device, Some(Device { kind, id, .. }) if (kind, id) == (at.dev_type, at.dev_id)) {
            drop(buffers);
            let what = format!("tensor `{}` is on another device than its buffer", tensor.name);
            self.fault(Fault::BadTensor { function, what });
            return Err(BP_INVALID_ARGUMENT);
        }
        buffer.host += 1;
        let held = Arc::new(Held { host: self, at });
        let (name, dtype, shape) = (tensor.name.to_owned(), tensor.dtype, tensor.shape.to_vec());
        Ok(DeviceOutput { name, dtype, shape, held })
    }

    fn read_device(&self, buffer: bp_buf, start: usize, to: &mut [u8]) -> Result<(), Failure> {
        let (offset, ctx, device) = {
            let buffers = self.buffers.lock();
            let found = buffers.get(&buffer);
            let code = |code| Failure { code, ..Failure::default() };
            let found = found.ok_or_else(|| code(BP_STALE_HANDLE))?;
            let (Some(device), Owner::Plugin(ctx, _)) = (found.device, &found.owner) else {
                return Err(code(BP_INVALID_ARGUMENT));
            };
            let offset = start.wrapping_sub(found.data as usize);
            if offset.checked_add(to.len()).is_none_or(|end| end > found.len) {
                return Err(code(BP_OUT_OF_RANGE));
            }
            (offset, *ctx, device)
        };
        // SAFETY: the owner's function with what came with it; whoever asks holds a reference; room for as many bytes.
        self.with_error(|err| unsafe {
            (device.read)(ctx, offset as u64, to.len() as u64, to.as_mut_ptr().cast(), err)
        })
    }
}

pub(super) static TABLE: bp_device_1 = bp_device_1 {
    struct_size: size_of::<bp_device_1>() as u32,
    flags: 0,
    wrap: Some(wrap),
    read: Some(read),
};

unsafe extern "C" fn wrap(
    host: *const bp_host,
    memory: *const bp_device_memory,
    out: *mut bp_buf,
) -> bp_code {
    // SAFETY: plugins pass the table they were given, and a struct valid until we return.
    let (host, memory) = unsafe { (this(host), read::known(memory, Reader::Strict)) };
    let Some(host) = host else { return BP_NULL_ARGUMENT };
    let memory = match memory {
        Ok(memory) => memory,
        Err(refused) => return host.refuse("bp.device/1 wrap", &refused),
    };
    let (Some(read), Some(release), false) =
        (memory.read, memory.release, memory.data.is_null() || out.is_null())
    else {
        host.fault(Fault::Null { function: "bp.device/1 wrap", argument: "data, read, release or out" });
        return BP_NULL_ARGUMENT;
    };
    if memory.dev_type == BP_DEV_CPU {
        let what = "memory of a device is in CPU memory".to_owned();
        host.fault(Fault::BadTensor { function: "bp.device/1 wrap", what });
        return BP_INVALID_ARGUMENT;
    }
    let buffer = Buffer {
        data: memory.data.cast(),
        len: memory.nbytes as usize,
        plugin: 1,
        host: 0,
        owner: Owner::Plugin(memory.ctx, release),
        device: Some(Device { kind: memory.dev_type, id: memory.dev_id, read }),
    };
    // SAFETY: not null; a place to write to, says the header.
    unsafe { *out = host.keep(buffer) };
    BP_OK
}

unsafe extern "C" fn read(
    host: *const bp_host,
    buf: bp_buf,
    data: *const c_void,
    nbytes: u64,
    to: *mut c_void,
) -> bp_code {
    // SAFETY: plugins pass the table they were given.
    let Some(host) = (unsafe { this(host) }) else { return BP_NULL_ARGUMENT };
    if to.is_null() {
        host.fault(Fault::Null { function: "bp.device/1 read", argument: "to" });
        return BP_NULL_ARGUMENT;
    }
    // SAFETY: not null; room for nbytes, says the header.
    let to = unsafe { std::slice::from_raw_parts_mut(to.cast(), nbytes as usize) };
    host.read_device(buf, data as usize, to).map_or_else(|failure| failure.code, |()| BP_OK)
}
