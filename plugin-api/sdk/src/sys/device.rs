//! `bp.device/1` and `bp.device_inputs/1`: memory of devices, as it is handed out and as it comes.
#![expect(unsafe_code, reason = "the plugin's end of the C ABI")]

use super::guard;
use super::host::{extension, host_call, set_error};
use crate::device::{Device, DeviceMemory, Ready};
use crate::host::Host;
use crate::{Error, Result};
use backplane_abi::code::Code;
use backplane_abi::read::OnDevice;
use backplane_abi::table::*;
use std::ffi::c_void;
use std::sync::Arc;

/// Whether tensors can leave this plugin on a device: not from a worker.
pub fn can_share(host: Host) -> bool {
    extension::<bp_device_1>(host, BP_EXT_DEVICE_1).is_some()
}

/// What goes with a wrapped buffer.
struct Wrapped {
    host: Host,
    memory: Arc<dyn DeviceMemory>,
}

unsafe extern "C" fn read(
    ctx: *mut c_void,
    offset: u64,
    nbytes: u64,
    to: *mut c_void,
    err: bp_err,
) -> bp_code {
    // SAFETY: `ctx` is the box of `wrap`, alive until release; room for nbytes, says the header.
    let (this, to) = unsafe {
        (&*ctx.cast::<Wrapped>(), std::slice::from_raw_parts_mut(to.cast::<u8>(), nbytes as usize))
    };
    match guard(|| this.memory.read(offset as usize, to)) {
        Ok(()) => BP_OK,
        Err(error) => {
            set_error(this.host, err, &error);
            error.code as bp_code
        }
    }
}

unsafe extern "C" fn release(ctx: *mut c_void) {
    // SAFETY: the box of `wrap`, and the host calls this exactly once.
    let this = unsafe { Box::from_raw(ctx.cast::<Wrapped>()) };
    super::end(this.host, "giving memory of a device back", this);
}

/// A buffer of the host's over memory of ours, with one reference; `None` where it cannot be had.
pub(super) fn wrap(host: Host, memory: &Arc<dyn DeviceMemory>) -> Option<bp_buf> {
    let wrap = extension::<bp_device_1>(host, BP_EXT_DEVICE_1)?.wrap?;
    let device = memory.device();
    let ctx = Box::into_raw(Box::new(Wrapped { host, memory: memory.clone() }));
    let raw = bp_device_memory {
        dev_type: device.kind,
        dev_id: device.id,
        data: memory.address() as *mut c_void,
        nbytes: memory.size() as u64,
        ctx: ctx.cast(),
        read: Some(read),
        release: Some(release),
        ..bp_device_memory::new()
    };
    let mut buffer = 0;
    // SAFETY: a function of the host's, with a struct that lives through the call and a place to write to.
    if unsafe { wrap(host.0, &raw, &raw mut buffer) } == BP_OK {
        return Some(buffer);
    }
    // SAFETY: on error release is not called, says the header.
    drop(unsafe { Box::from_raw(ctx) });
    None
}

/// One reference of ours to a buffer that came, and where in it a tensor is.
pub struct Held {
    host: Host,
    at: OnDevice,
}

impl Held {
    /// Holds what came with a request or a piece; `None` when it is gone already.
    pub(super) fn hold(host: Host, at: OnDevice) -> Option<Arc<Self>> {
        (host_call!(host, buf_retain(at.handle)) == BP_OK).then(|| Arc::new(Self { host, at }))
    }

    /// As it crosses again, with one more reference for whoever releases it after the call.
    pub(super) fn lend(&self) -> OnDevice {
        host_call!(self.host, buf_retain(self.at.handle));
        self.at
    }

    pub fn device(&self) -> Device {
        Device { kind: self.at.dev_type, id: self.at.dev_id }
    }

    pub fn address(&self) -> u64 {
        self.at.start as u64
    }

    pub fn size(&self) -> usize {
        self.at.len
    }

    pub fn ready(&self) -> Ready {
        match self.at.sync_kind {
            BP_SYNC_CUDA_EVENT => Ready::CudaEvent(self.at.sync),
            _ => Ready::Now,
        }
    }

    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        let table = extension::<bp_device_1>(self.host, BP_EXT_DEVICE_1);
        let read = table
            .and_then(|table| table.read)
            .ok_or_else(|| Error::new(Code::Unimplemented, "this host does not read memory of devices"))?;
        let mut bytes = vec![0; self.at.len];
        // SAFETY: a function of the host's, with room for as many bytes as are asked for.
        let code = unsafe {
            read(
                self.host.0,
                self.at.handle,
                self.at.start as *const c_void,
                bytes.len() as u64,
                bytes.as_mut_ptr().cast(),
            )
        };
        match code {
            BP_OK => Ok(bytes),
            BP_UNAVAILABLE => Err(lost(name)),
            code => {
                let message =
                    format!("tensor `{name}` could not be read from its device ({code}); the log has more");
                Err(Error::new(Code::from_raw(code), message).with_reason("device_error"))
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        host_call!(self.host, buf_release(self.at.handle));
    }
}

/// What was on a device is lost with it.
fn lost(name: &str) -> Error {
    Error::new(Code::Unavailable, format!("tensor `{name}` was on a device that is lost; ask again"))
        .with_reason("device_lost")
}
