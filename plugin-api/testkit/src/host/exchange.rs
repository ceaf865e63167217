//! A request on its way: its memory, its cancel word, and what came back.

use super::{Buffer, Host, Owner, new_handle, raw_text, words};
use crate::answer::{Answer, Chunk, DeviceOutput, End};
use crate::fault::Fault;
use crate::input::{Deadline, RequestInput, TensorInput};
use backplane_abi::{clock, table::*};
use parking_lot::{Condvar, Mutex};
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A request on its way: its memory, its cancel word, and what came back.
pub(crate) struct Exchange {
    host: &'static Host,
    pub(super) handle: u64,
    pub(super) input: RequestInput,
    tensors: Mutex<RawTensors>,
    pub(super) cancel: AtomicU32,
    pub(super) state: Mutex<State>,
    pub(super) changed: Condvar,
}

/// The tensors of a request as they cross, with the memory they point to.
#[derive(Default)]
struct RawTensors {
    raw: Vec<bp_tensor>,
    memory: Vec<Vec<u64>>,
}
// SAFETY: the pointers go to `memory` and to the input beside it, which are never changed.
unsafe impl Send for RawTensors {}

#[derive(Default)]
pub(super) struct State {
    pub(super) chunks: Vec<Chunk>,
    /// How often the chunk that is offered now was refused.
    pub(super) refused: u32,
    pub(super) end: Option<End>,
    pub(super) held: Vec<Held>,
    pub(super) on_device: Vec<DeviceOutput>,
}

/// A pushed buffer, until the answer is read: the host's reference, and what was in it.
pub(super) struct Held {
    pub(super) buffer: bp_buf,
    pub(super) offset: usize,
    pub(super) content: Vec<u8>,
}

impl Exchange {
    pub(super) fn new(host: &'static Host, input: RequestInput) -> Arc<Self> {
        let exchange = Arc::new(Self {
            host,
            handle: new_handle(),
            input,
            tensors: Mutex::default(),
            cancel: AtomicU32::new(0),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        exchange.cancel.store(u32::from(exchange.input.cancelled), Ordering::Relaxed);
        let mut tensors = exchange.tensors.lock();
        for tensor in &exchange.input.tensors {
            let (raw, memory) = exchange.lay_out(tensor);
            tensors.raw.push(raw);
            tensors.memory.push(memory);
        }
        drop(tensors);
        host.exchanges.lock().insert(exchange.handle, exchange.clone());
        exchange
    }

    fn lay_out(&self, tensor: &TensorInput) -> (bp_tensor, Vec<u64>) {
        if let Some(there) = &tensor.there {
            let at = there.held.at;
            let raw = bp_tensor {
                flags: tensor.flags,
                name: raw_text(&tensor.name),
                dev_type: at.dev_type,
                dev_id: at.dev_id,
                code: tensor.dtype.0,
                bits: tensor.dtype.1,
                lanes: tensor.dtype.2,
                ndim: tensor.shape.len() as i32,
                shape: tensor.shape.as_ptr(),
                nbytes: at.len as u64,
                data: at.start as *mut c_void,
                buffer: at.handle,
                sync_kind: at.sync_kind,
                sync: at.sync,
                ..bp_tensor::new()
            };
            return (raw, Vec::new());
        }
        let lead = tensor.byte_offset + usize::from(tensor.misaligned);
        let mut memory = words(lead + tensor.data.len());
        let start = memory.as_mut_ptr().cast::<u8>();
        // SAFETY: `lead` and the data fit, by the line above.
        let data = unsafe {
            std::ptr::copy_nonoverlapping(tensor.data.as_ptr(), start.add(lead), tensor.data.len());
            start.add(usize::from(tensor.misaligned))
        };
        let buffer = if tensor.buffer {
            // Owned by the request: one host reference, which is dropped with its memory, that is never.
            let owner = Owner::Host(Vec::new());
            self.host.keep(Buffer {
                data,
                len: lead + tensor.data.len(),
                plugin: 0,
                host: 1,
                owner,
                device: None,
            })
        } else {
            0
        };
        let raw = bp_tensor {
            flags: tensor.flags,
            name: raw_text(&tensor.name),
            dev_type: tensor.device,
            code: tensor.dtype.0,
            bits: tensor.dtype.1,
            lanes: tensor.dtype.2,
            ndim: tensor.ndim.unwrap_or(tensor.shape.len() as i32),
            shape: tensor.shape.as_ptr(),
            strides: tensor.strides.as_ref().map_or(std::ptr::null(), |strides| strides.as_ptr()),
            byte_offset: tensor.byte_offset as u64,
            nbytes: tensor.data.len() as u64,
            data: data.cast(),
            buffer,
            ..bp_tensor::new()
        };
        (raw, memory)
    }

    /// The struct that crosses. What it points to lives as long as the exchange, which the host never frees.
    pub(super) fn raw(&self) -> bp_request {
        let tensors = self.tensors.lock();
        bp_request {
            struct_size: self.input.struct_size.unwrap_or((size_of::<bp_request>() + self.input.tail) as u32),
            flags: self.input.flags,
            id: self.handle,
            sink: self.handle,
            capability: bp_str::new(&self.input.capability),
            params_json: raw_text(&self.input.params),
            r#in: tensors.raw.as_ptr(),
            n_in: tensors.raw.len() as u32,
            in_stride: size_of::<bp_tensor>() as u32,
            request_id: bp_str::new(self.input.request_id.as_deref().unwrap_or("test-1")),
            traceparent: bp_str::EMPTY,
            tenant: bp_str::new("test"),
            deadline_ns: match self.input.deadline {
                Deadline::None => 0,
                Deadline::Past => 1,
                Deadline::In(left) => clock::deadline_ns(Some(Instant::now() + left)),
            },
            cancel: self.cancel.as_ptr(),
            priority: 0,
            capability_version: 1,
        }
    }

    /// Whether neither the plugin nor a refusal has ended it.
    pub fn is_open(&self) -> bool {
        self.state.lock().end.is_none()
    }

    /// How many chunks have come.
    pub fn chunks(&self) -> usize {
        self.state.lock().chunks.len()
    }

    /// Waits until `ready` or the end; false when neither came in time.
    pub fn wait_until(&self, patience: Duration, ready: impl Fn(usize) -> bool) -> bool {
        let deadline = Instant::now() + patience;
        let mut state = self.state.lock();
        while state.end.is_none() && !ready(state.chunks.len()) {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                return state.end.is_some() || ready(state.chunks.len());
            }
        }
        true
    }

    /// Waits for the end, and reads the answer: only now are the pushed buffers released.
    pub fn wait(&self, patience: Duration) -> Answer {
        self.wait_until(patience, |_| false);
        let mut state = self.state.lock();
        let held = std::mem::take(&mut state.held);
        let answer = Answer {
            chunks: state.chunks.clone(),
            on_device: std::mem::take(&mut state.on_device),
            end: state.end.clone().unwrap_or(End::Unfinished),
        };
        drop(state);
        for Held { buffer, offset, content } in held {
            let changed = self.host.buffers.lock().get(&buffer).is_some_and(|buffer| {
                // SAFETY: the range was checked at the push, and the memory is alive while the host holds its reference.
                let now = unsafe { std::slice::from_raw_parts(buffer.data.add(offset), content.len()) };
                now != content
            });
            if changed {
                self.host.fault(Fault::ChangedAfterPush);
            }
            self.host.unref(buffer, 0, 1);
        }
        answer
    }

    /// Sets the cancel word.
    pub fn set_cancelled(&self) {
        self.cancel.store(1, Ordering::Relaxed);
    }

    pub(super) fn end(&self, end: End) -> bool {
        let mut state = self.state.lock();
        let first = state.end.is_none();
        if first {
            state.end = Some(end);
        }
        drop(state);
        self.changed.notify_all();
        first
    }
}
