//! A host for tests: the whole `bp_host` table, and calls into a plugin's tables.
//!
//! Everything unsafe of this crate is in this file: it hands a plugin raw memory, follows the pointers it gives back,
//! and calls functions that a library exports. What leaves the file is safe to use as far as the plugin keeps to
//! `backplane.h`; a plugin is trusted code, and one that does not can do here whatever it could do in a host.
//!
//! Hosts, requests and the tables of plugins are never freed. A plugin that uses one too late then gets an answer that
//! the test can report, instead of a crash that nobody can explain.
#![expect(unsafe_code, reason = "the host's end of the C ABI, which the tests exist to exercise")]

use crate::answer::{Answer, Chunk, End, Failure, TensorOutput};
use crate::fault::Fault;
use crate::input::{Deadline, Reader, RequestInput, TensorInput};
use backplane_abi::dtype::{DType, dense_bytes};
use backplane_abi::{ABI_MAJOR, ABI_MINOR, ENTRY_SYMBOL, clock, table::*};
use parking_lot::{Condvar, Mutex};
use serde_json::Value;
use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::offset_of;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How a plugin is entered: the function behind its one symbol.
pub(crate) fn entry_of(path: &Path) -> Result<EntryV1, String> {
    use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
    // SAFETY: loading a library runs its initialisers; that this is trusted code is the premise of a test of it.
    let library =
        unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map_err(|error| whole_story(&error))?;
    // A library is never unmapped (header, Failure).
    let library = std::mem::ManuallyDrop::new(library);
    // SAFETY: the symbol's type is part of its name: v1.
    let entry =
        unsafe { library.get::<EntryV1>(ENTRY_SYMBOL.as_bytes()) }.map_err(|error| whole_story(&error))?;
    Ok(*entry)
}

/// Its own text is only "dlopen failed"; the linker's is the source.
fn whole_story(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// The shape of the table that a host shows, to see that a plugin reads what is there and nothing else.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Shape {
    /// The `struct_size` it claims, if not its own.
    pub struct_size: Option<u32>,
    /// Unknown bytes after it.
    pub tail: usize,
    /// Unknown flags.
    pub flags: u32,
}

/// Host functions that can be told to fail, by their bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scarce {
    Alloc = 1,
    Wrap = 2,
    Output = 4,
}

/// What a host answers to a plugin that asks another capability: pieces, or an error.
pub(crate) type Answering = Arc<dyn Fn(&CallInput) -> Result<Vec<Chunk>, Failure> + Send + Sync>;

/// What a plugin asked another capability.
#[derive(Clone, Debug, PartialEq)]
pub struct CallInput {
    /// The capability.
    pub capability: String,
    /// Empty when the host is to choose.
    pub model: String,
    /// The parameters.
    pub params: Value,
    /// The tensors beside them.
    pub tensors: Vec<TensorOutput>,
}

/// A host with its handles. Lives for ever.
pub(crate) struct Host {
    table: AtomicU64,
    exchanges: Mutex<HashMap<u64, Arc<Exchange>>>,
    buffers: Mutex<HashMap<u64, Buffer>>,
    /// The reason that a call left, while it runs.
    errors: Mutex<HashMap<u64, Option<Failure>>>,
    /// Threads granted to each ticket.
    tickets: Mutex<HashMap<u64, u32>>,
    faults: Mutex<Vec<Fault>>,
    log: Mutex<Vec<(i32, String)>>,
    /// Which of [`Scarce`] fail, and how often one did.
    scarce: AtomicU32,
    denied: AtomicU32,
    answering: Option<Answering>,
    license: Option<License>,
}

/// What a host says of the licence of the plugin under test (`bp.license/1`).
#[derive(Clone, Debug, Default)]
pub struct License {
    /// Whether it serves.
    pub serves: bool,
    /// What every tenant has.
    pub features: Vec<(String, i64)>,
    /// The signed bytes; empty for none.
    pub envelope: Vec<u8>,
    /// The id of the installation.
    pub install_id: String,
}

struct Buffer {
    data: *mut u8,
    len: usize,
    /// References of the plugin's, and of the host's (a pushed tensor that was not read yet).
    plugin: u32,
    host: u32,
    owner: Owner,
}

enum Owner {
    Host(#[expect(dead_code, reason = "keeps the memory")] Vec<u64>),
    Plugin(*mut c_void, unsafe extern "C" fn(*mut c_void)),
}

// SAFETY: the pointers are only followed under the rules of the header, which allow any thread.
unsafe impl Send for Buffer {}

/// A number that no other handle of this process has had, and that no plugin guesses.
fn new_handle() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    // Multiplying by an odd number keeps different numbers different.
    NEXT.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// Memory of `len` bytes that begins at a multiple of 8.
fn words(len: usize) -> Vec<u64> {
    vec![0; len.div_ceil(8).max(1)]
}

impl Host {
    pub fn new(shape: Shape, answering: Option<Answering>, license: Option<License>) -> &'static Host {
        let host: &'static Host = Box::leak(Box::new(Host {
            table: AtomicU64::new(0),
            exchanges: Mutex::default(),
            buffers: Mutex::default(),
            errors: Mutex::default(),
            tickets: Mutex::default(),
            faults: Mutex::default(),
            log: Mutex::default(),
            scarce: AtomicU32::new(0),
            denied: AtomicU32::new(0),
            answering,
            license,
        }));
        let table = bp_host {
            struct_size: shape.struct_size.unwrap_or((size_of::<bp_host>() + shape.tail) as u32),
            flags: shape.flags,
            abi_major: ABI_MAJOR,
            abi_minor: ABI_MINOR,
            reserved: 0,
            ctx: (&raw const *host).cast_mut().cast(),
            name: bp_str::new("backplane-testkit"),
            version: bp_str::new(env!("CARGO_PKG_VERSION")),
            get_extension: Some(get_extension),
            set_error: Some(set_error),
            log: Some(log),
            buf_alloc: Some(buf_alloc),
            buf_wrap: Some(buf_wrap),
            buf_retain: Some(buf_retain),
            buf_release: Some(buf_release),
            out_alloc: Some(out_alloc),
            push: Some(push),
            finish: Some(finish),
        };
        let memory = words(size_of::<bp_host>() + shape.tail).leak();
        memory.fill(0x5A5A_5A5A_5A5A_5A5A);
        let at = memory.as_mut_ptr().cast::<bp_host>();
        // SAFETY: aligned, and at least as long as the table.
        unsafe { at.write(table) };
        host.table.store(at as u64, Ordering::Release);
        host
    }

    fn table(&self) -> *const bp_host {
        self.table.load(Ordering::Acquire) as *const bp_host
    }

    pub fn fault(&self, fault: Fault) {
        let mut faults = self.faults.lock();
        // One of each kind is enough to act on, and a loop must not fill the memory.
        if !faults.contains(&fault) {
            faults.push(fault);
        }
    }

    /// What was done wrong so far.
    pub fn faults(&self) -> Vec<Fault> {
        self.faults.lock().clone()
    }

    /// What was not given back. Meaningful when all is closed.
    pub fn leftovers(&self) -> Vec<Fault> {
        let open = self.exchanges.lock().values().filter(|exchange| exchange.is_open()).count();
        let kept = self.buffers.lock().values().filter(|buffer| buffer.plugin > 0).count();
        let threads = self.tickets.lock().values().sum();
        let mut left = Vec::new();
        if open > 0 {
            left.push(Fault::Unfinished(open));
        }
        if kept > 0 {
            left.push(Fault::BuffersKept(kept));
        }
        if threads > 0 {
            left.push(Fault::ThreadsKept(threads));
        }
        left
    }

    pub fn log_lines(&self) -> Vec<(i32, String)> {
        self.log.lock().clone()
    }

    /// From now on this function fails.
    pub fn deny(&self, what: Scarce) {
        self.scarce.store(what as u32, Ordering::Relaxed);
    }

    /// How often a function failed because of [`Host::deny`].
    pub fn denied(&self) -> u32 {
        self.denied.load(Ordering::Relaxed)
    }

    fn is_denied(&self, what: Scarce) -> bool {
        let denied = self.scarce.load(Ordering::Relaxed) & what as u32 != 0;
        if denied {
            self.denied.fetch_add(1, Ordering::Relaxed);
        }
        denied
    }

    /// Asks this host's own table for an extension, as a plugin would.
    pub fn has_extension(&self, id: &[u8]) -> bool {
        // SAFETY: our own table, and text that lives through the call.
        unsafe { !get_extension(self.table(), raw_text(id)).is_null() }
    }

    fn text(&self, function: &'static str, what: &str, text: bp_str) -> Option<String> {
        if text.ptr.is_null() && text.len > 0 {
            self.fault(Fault::Null { function, argument: "text" });
            return None;
        }
        // SAFETY: the header: valid until the host function returns, which copies it here.
        let bytes = unsafe { text.bytes() };
        match std::str::from_utf8(bytes) {
            Ok(text) => Some(text.to_owned()),
            Err(_) => {
                self.fault(Fault::BadText { function, what: format!("{what} is not UTF-8") });
                None
            }
        }
    }

    /// A JSON object, or null for no text.
    fn object(&self, function: &'static str, what: &str, text: bp_str) -> Option<Value> {
        let text = self.text(function, what, text)?;
        if text.is_empty() {
            return Some(Value::Null);
        }
        match serde_json::from_str::<Value>(&text) {
            Ok(value @ Value::Object(_)) => Some(value),
            Ok(_) => {
                self.fault(Fault::BadText { function, what: format!("{what} is JSON, but not an object") });
                None
            }
            Err(error) => {
                self.fault(Fault::BadText { function, what: format!("{what} is not JSON: {error}") });
                None
            }
        }
    }

    /// # Safety
    /// `error` is null or points to a struct as the header describes it.
    unsafe fn failure(&self, function: &'static str, error: *const bp_error) -> Option<Failure> {
        // SAFETY: the caller's promise.
        let Some(raw) = (unsafe { bp_error::read(error, offset_of!(bp_error, details_json) + 16) }) else {
            self.fault(Fault::BadStruct { function, what: "bp_error" });
            return None;
        };
        if !(1..=16).contains(&raw.code) {
            self.fault(Fault::BadCode(raw.code));
        }
        Some(Failure {
            code: raw.code,
            sub: raw.sub,
            message: self.text(function, "error.message", raw.message)?,
            reason: self.text(function, "error.reason", raw.reason)?,
            details: Box::new(self.object(function, "error.details_json", raw.details_json)?),
            retry_after_ms: raw.retry_after_ms,
        })
    }

    /// Finds a request that is not finished; the fault is noted when there is none.
    fn open_exchange(&self, function: &'static str, sink: bp_sink) -> Option<Arc<Exchange>> {
        let found = self.exchanges.lock().get(&sink).cloned();
        match found {
            None => self.fault(Fault::UnknownHandle { function }),
            Some(exchange) if exchange.is_open() => return Some(exchange),
            Some(_) => self.fault(Fault::AfterFinish { function }),
        }
        None
    }

    /// Copies the tensors that a plugin hands over, and what was in their buffers; or says what to answer.
    ///
    /// # Safety
    /// `rows` points to `count` structs at `stride`, as the header describes them.
    unsafe fn tensors(
        &self,
        function: &'static str,
        rows: *const bp_tensor,
        count: u32,
        stride: u32,
    ) -> Result<(Vec<TensorOutput>, Vec<Held>), bp_code> {
        let (mut tensors, mut held) = (Vec::new(), Vec::new());
        if count > 0 && (rows.is_null() || (stride as usize) < offset_of!(bp_tensor, sync) + 8) {
            self.fault(Fault::BadStruct { function, what: "array of bp_tensor" });
            return Err(BP_BAD_STRUCT);
        }
        for row in 0..count as usize {
            // SAFETY: the caller's promise.
            let tensor = unsafe { self.tensor(function, rows.byte_add(row * stride as usize)) };
            let (tensor, buffer) = tensor.ok_or(BP_INVALID_ARGUMENT)?;
            held.extend(buffer);
            tensors.push(tensor);
        }
        Ok((tensors, held))
    }

    /// Copies a tensor that a plugin hands over.
    ///
    /// # Safety
    /// `tensor` points to a struct as the header describes it.
    unsafe fn tensor(
        &self,
        function: &'static str,
        tensor: *const bp_tensor,
    ) -> Option<(TensorOutput, Option<Held>)> {
        // SAFETY: the caller's promise.
        let Some(raw) = (unsafe { bp_tensor::read(tensor, offset_of!(bp_tensor, sync) + 8) }) else {
            self.fault(Fault::BadStruct { function, what: "bp_tensor" });
            return None;
        };
        let name = self.text(function, "the name of a tensor", raw.name)?;
        let bad = |what: String| {
            self.fault(Fault::BadTensor { function, what: format!("tensor `{name}` {what}") });
            None
        };
        let Some(dtype) = DType::from_raw(raw.code, raw.bits).filter(|_| raw.lanes == 1) else {
            return bad(format!("has the unknown type {}/{}/{}", raw.code, raw.bits, raw.lanes));
        };
        if raw.dev_type != BP_DEV_CPU {
            return bad(format!("is on device {}, which this host cannot read", raw.dev_type));
        }
        let shape: &[i64] = match usize::try_from(raw.ndim) {
            Ok(0) => &[],
            // SAFETY: ndim values, says the header.
            Ok(ndim) if !raw.shape.is_null() && raw.shape.is_aligned() && ndim <= 64 => unsafe {
                std::slice::from_raw_parts(raw.shape, ndim)
            },
            _ => return bad(format!("has {} dimensions and no such shape", raw.ndim)),
        };
        let Some(elements) = dense_bytes(DType::Uint8, shape) else {
            return bad(format!("has the shape {shape:?}"));
        };
        if !raw.strides.is_aligned() {
            return bad("has strides at an address that no 64-bit number has".to_owned());
        }
        // SAFETY: ndim values, or null for dense.
        let strides = (!raw.strides.is_null() && !shape.is_empty())
            .then(|| unsafe { std::slice::from_raw_parts(raw.strides, shape.len()) });
        let nbytes = raw.nbytes as usize;
        if raw.data.is_null() && nbytes > 0 {
            return bad(format!("has {nbytes} bytes at no address"));
        }
        let mut offset = 0;
        if raw.buffer != 0 {
            let buffers = self.buffers.lock();
            let Some(buffer) = buffers.get(&raw.buffer).filter(|buffer| buffer.plugin > 0) else {
                self.fault(Fault::StaleBuffer { function });
                return None;
            };
            let start = (raw.data as usize).wrapping_add(raw.byte_offset as usize);
            offset = start.wrapping_sub(buffer.data as usize);
            if nbytes > 0 && offset.checked_add(nbytes).is_none_or(|end| end > buffer.len) {
                return bad("is not inside its buffer".to_owned());
            }
        }
        let data: &[u8] = if nbytes == 0 {
            &[]
        } else {
            // SAFETY: nbytes behind data + byte_offset, says the header.
            unsafe { std::slice::from_raw_parts(raw.data.cast::<u8>().add(raw.byte_offset as usize), nbytes) }
        };
        let held = (raw.buffer != 0).then(|| Held { buffer: raw.buffer, offset, content: data.to_vec() });
        let data = match (dtype.size(), strides) {
            (None, _) if !are_strings(data, elements) => {
                return bad(format!("has {nbytes} bytes, which are not {elements} byte strings"));
            }
            (Some(size), Some(strides)) => match gather(data, size, shape, strides) {
                Some(data) => data,
                None => return bad(format!("has the strides {strides:?}, which leave its {nbytes} bytes")),
            },
            (Some(size), None) if elements.checked_mul(size) != Some(nbytes) => {
                return bad(format!("has {nbytes} bytes, which is not {shape:?} of {}", dtype.name()));
            }
            _ => data.to_vec(),
        };
        Some((TensorOutput { name, dtype, shape: shape.to_vec(), data }, held))
    }

    /// Adds or takes host references of a buffer; frees it with the last reference of all.
    fn unref(&self, handle: bp_buf, plugin: u32, host: u32) -> bool {
        let freed = {
            let mut buffers = self.buffers.lock();
            let Some(buffer) = buffers.get_mut(&handle) else { return false };
            if buffer.plugin < plugin || buffer.host < host {
                return false;
            }
            buffer.plugin -= plugin;
            buffer.host -= host;
            if buffer.plugin + buffer.host == 0 { buffers.remove(&handle) } else { None }
        };
        // Outside the lock: release is the plugin's code.
        if let Some(Buffer { owner: Owner::Plugin(ctx, release), .. }) = freed {
            // SAFETY: once, with the ctx that came with it; any thread, says the header.
            unsafe { release(ctx) };
        }
        true
    }

    fn keep(&self, buffer: Buffer) -> bp_buf {
        let handle = new_handle();
        self.buffers.lock().insert(handle, buffer);
        handle
    }

    fn alloc(&self, nbytes: u64, align: u64) -> Option<(bp_buf, *mut u8)> {
        let align = if align == 0 { 64 } else { usize::try_from(align).ok()? };
        let len = usize::try_from(nbytes).ok().filter(|&len| len < 1 << 40)?;
        let mut memory = words(len + align);
        let start = memory.as_mut_ptr().cast::<u8>();
        // SAFETY: `align` more bytes than needed were reserved.
        let data = unsafe { start.add(start.align_offset(align)) };
        let buffer = Buffer { data, len, plugin: 1, host: 0, owner: Owner::Host(memory) };
        Some((self.keep(buffer), data))
    }

    /// Runs a call that may leave a reason. The handle is dead afterwards.
    fn with_error(&self, call: impl FnOnce(bp_err) -> bp_code) -> Result<(), Failure> {
        let err = new_handle();
        self.errors.lock().insert(err, None);
        let code = call(err);
        let left = self.errors.lock().remove(&err).flatten();
        match code {
            BP_OK => Ok(()),
            code => Err(Failure { code, ..left.unwrap_or_default() }),
        }
    }
}

/// Whether `data` is exactly `count` byte strings.
fn are_strings(mut data: &[u8], count: usize) -> bool {
    for _ in 0..count {
        let Some((len, rest)) = data.split_first_chunk::<4>() else { return false };
        let Some((_, rest)) = rest.split_at_checked(u32::from_le_bytes(*len) as usize) else { return false };
        data = rest;
    }
    data.is_empty()
}

/// The elements of a strided tensor, dense. `None` when one lies outside.
fn gather(data: &[u8], size: usize, shape: &[i64], strides: &[i64]) -> Option<Vec<u8>> {
    let mut dense = Vec::new();
    let mut index = vec![0; shape.len()];
    if shape.contains(&0) {
        return Some(dense);
    }
    loop {
        let element: i64 = index
            .iter()
            .zip(strides)
            .try_fold(0i64, |sum, (at, stride)| sum.checked_add(i64::checked_mul(*at, *stride)?))?;
        let at = usize::try_from(element).ok()?.checked_mul(size)?;
        dense.extend_from_slice(data.get(at..at.checked_add(size)?)?);
        // The next index, the last side first.
        let side = (0..shape.len()).rev().find(|&side| index[side] + 1 < shape[side]);
        let Some(side) = side else { return Some(dense) };
        index[side] += 1;
        index[side + 1..].fill(0);
    }
}

fn raw_text(bytes: &[u8]) -> bp_str {
    bp_str { ptr: bytes.as_ptr().cast(), len: bytes.len() as u64 }
}

// ---- a request ------------------------------------------------------------------------------------------------

/// A request on its way: its memory, its cancel word, and what came back.
pub(crate) struct Exchange {
    host: &'static Host,
    handle: u64,
    input: RequestInput,
    tensors: Mutex<RawTensors>,
    cancel: AtomicU32,
    state: Mutex<State>,
    changed: Condvar,
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
struct State {
    chunks: Vec<Chunk>,
    /// How often the chunk that is offered now was refused.
    refused: u32,
    end: Option<End>,
    held: Vec<Held>,
}

/// A pushed buffer, until the answer is read: the host's reference, and what was in it.
struct Held {
    buffer: bp_buf,
    offset: usize,
    content: Vec<u8>,
}

impl Exchange {
    fn new(host: &'static Host, input: RequestInput) -> Arc<Self> {
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
            self.host.keep(Buffer { data, len: lead + tensor.data.len(), plugin: 0, host: 1, owner })
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
    fn raw(&self) -> bp_request {
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
            request_id: bp_str::new("test-1"),
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
        let answer =
            Answer { chunks: state.chunks.clone(), end: state.end.clone().unwrap_or(End::Unfinished) };
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

    fn end(&self, end: End) -> bool {
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

// ---- the host's functions -------------------------------------------------------------------------------------

/// The host behind a table.
///
/// # Safety
/// `host` is null or the table of a [`Host`].
unsafe fn this(host: *const bp_host) -> Option<&'static Host> {
    // SAFETY: the caller's promise; hosts are never freed.
    unsafe { host.as_ref() }.map(|table| unsafe { &*table.ctx.cast::<Host>() })
}

/// The host, or the answer to a null one.
macro_rules! host {
    ($host:expr) => {
        // SAFETY: plugins pass the table they were given.
        match unsafe { this($host) } {
            Some(host) => host,
            None => return BP_NULL_ARGUMENT,
        }
    };
}

unsafe extern "C" fn get_extension(host: *const bp_host, id: bp_str) -> *const c_void {
    static COMPUTE: bp_compute_1 = bp_compute_1 {
        struct_size: size_of::<bp_compute_1>() as u32,
        flags: 0,
        acquire: Some(acquire),
        release: Some(release),
    };
    static CALL: bp_call_1 = bp_call_1 {
        struct_size: size_of::<bp_call_1>() as u32,
        flags: 0,
        start: Some(start),
        cancel: Some(call_cancel),
    };
    static LICENSE: bp_license_1 = bp_license_1 {
        struct_size: size_of::<bp_license_1>() as u32,
        flags: 0,
        state: Some(license_state),
        feature: Some(license_feature),
        envelope: Some(license_envelope),
        install_id: Some(license_install_id),
    };
    // SAFETY: plugins pass the table they were given, and text that lives through the call.
    let (Some(host), Some(id)) = (unsafe { this(host) }, unsafe { id.text() }) else {
        return std::ptr::null();
    };
    match id {
        BP_EXT_COMPUTE_1 => (&raw const COMPUTE).cast(),
        BP_EXT_CALL_1 if host.answering.is_some() => (&raw const CALL).cast(),
        BP_EXT_LICENSE_1 if host.license.is_some() => (&raw const LICENSE).cast(),
        _ => std::ptr::null(),
    }
}

/// The licence behind a table that said it has one.
///
/// # Safety
/// As [`this`].
unsafe fn license_of<'a>(host: *const bp_host) -> Option<&'a License> {
    // SAFETY: the caller's promise.
    unsafe { this(host) }?.license.as_ref()
}

unsafe extern "C" fn license_state(host: *const bp_host, state: *mut i32, revision: *mut u64) -> bp_code {
    // SAFETY: plugins pass the table they were given, and null or places to write to.
    let (license, state, revision) = unsafe { (license_of(host), state.as_mut(), revision.as_mut()) };
    let Some(license) = license else { return BP_NULL_ARGUMENT };
    if let Some(state) = state {
        *state = if license.serves { BP_LICENSE_OK } else { BP_LICENSE_DENIED };
    }
    if let Some(revision) = revision {
        *revision = 1;
    }
    BP_OK
}

unsafe extern "C" fn license_feature(
    host: *const bp_host,
    tenant: bp_str,
    name: bp_str,
    value: *mut i64,
) -> bp_code {
    // SAFETY: plugins pass the table they were given, text that lives through the call, and null or a place to write to.
    let (license, tenant, name, value) =
        unsafe { (license_of(host), tenant.text(), name.text(), value.as_mut()) };
    let (Some(license), Some(value)) = (license, value) else { return BP_NULL_ARGUMENT };
    let (Some(_), Some(name)) = (tenant, name) else { return BP_INVALID_ARGUMENT };
    match license.features.iter().find(|(known, _)| license.serves && known == name) {
        Some((_, has)) => {
            *value = *has;
            BP_OK
        }
        None => BP_NOT_FOUND,
    }
}

unsafe extern "C" fn license_envelope(
    host: *const bp_host,
    buf: *mut c_void,
    capacity: u64,
    len: *mut u64,
) -> bp_code {
    // SAFETY: plugins pass the table they were given.
    let Some(license) = (unsafe { license_of(host) }) else { return BP_NULL_ARGUMENT };
    // SAFETY: plugins pass memory for as many bytes as they say, and a place to write to.
    unsafe { copy_out(&license.envelope, buf, capacity, len) }
}

unsafe extern "C" fn license_install_id(
    host: *const bp_host,
    buf: *mut c_void,
    capacity: u64,
    len: *mut u64,
) -> bp_code {
    // SAFETY: plugins pass the table they were given.
    let Some(license) = (unsafe { license_of(host) }) else { return BP_NULL_ARGUMENT };
    // SAFETY: plugins pass memory for as many bytes as they say, and a place to write to.
    unsafe { copy_out(license.install_id.as_bytes(), buf, capacity, len) }
}

unsafe extern "C" fn set_error(host: *const bp_host, err: bp_err, error: *const bp_error) -> bp_code {
    let host = host!(host);
    if error.is_null() {
        host.fault(Fault::Null { function: "set_error", argument: "error" });
        return BP_NULL_ARGUMENT;
    }
    if !host.errors.lock().contains_key(&err) {
        host.fault(Fault::StaleError);
        return BP_STALE_HANDLE;
    }
    // SAFETY: not null, and a bp_error by the header.
    let Some(failure) = (unsafe { host.failure("set_error", error) }) else { return BP_BAD_STRUCT };
    host.errors.lock().insert(err, Some(failure));
    BP_OK
}

unsafe extern "C" fn log(host: *const bp_host, level: i32, message: bp_str, fields_json: bp_str) {
    // SAFETY: plugins pass the table they were given.
    let Some(host) = (unsafe { this(host) }) else { return };
    let message = host.text("log", "message", message);
    host.object("log", "fields_json", fields_json);
    let mut lines = host.log.lock();
    if lines.len() < 1000 {
        lines.push((level, message.unwrap_or_default()));
    }
}

unsafe extern "C" fn buf_alloc(
    host: *const bp_host,
    dev_type: i32,
    _dev_id: i32,
    nbytes: u64,
    align: u64,
    out: *mut bp_buf,
    data: *mut *mut c_void,
) -> bp_code {
    let host = host!(host);
    if out.is_null() || data.is_null() {
        host.fault(Fault::Null { function: "buf_alloc", argument: "out" });
        return BP_NULL_ARGUMENT;
    }
    if dev_type != BP_DEV_CPU || (align != 0 && !align.is_power_of_two()) {
        return BP_UNIMPLEMENTED;
    }
    if host.is_denied(Scarce::Alloc) {
        return BP_RESOURCE_EXHAUSTED;
    }
    let Some((buffer, memory)) = host.alloc(nbytes, align) else { return BP_RESOURCE_EXHAUSTED };
    // SAFETY: not null; places to write to, says the header.
    unsafe {
        *out = buffer;
        *data = memory.cast();
    }
    BP_OK
}

unsafe extern "C" fn buf_wrap(
    host: *const bp_host,
    data: *mut c_void,
    nbytes: u64,
    ctx: *mut c_void,
    release: Option<unsafe extern "C" fn(*mut c_void)>,
    out: *mut bp_buf,
) -> bp_code {
    let host = host!(host);
    let (Some(release), false) = (release, out.is_null() || data.is_null()) else {
        host.fault(Fault::Null { function: "buf_wrap", argument: "data, release or out" });
        return BP_NULL_ARGUMENT;
    };
    if host.is_denied(Scarce::Wrap) {
        return BP_RESOURCE_EXHAUSTED;
    }
    let owner = Owner::Plugin(ctx, release);
    let buffer = Buffer { data: data.cast(), len: nbytes as usize, plugin: 1, host: 0, owner };
    // SAFETY: not null; a place to write to, says the header.
    unsafe { *out = host.keep(buffer) };
    BP_OK
}

unsafe extern "C" fn buf_retain(host: *const bp_host, buf: bp_buf) -> bp_code {
    let host = host!(host);
    match host.buffers.lock().get_mut(&buf) {
        // A buffer that came with a request may be retained while the request lives.
        Some(buffer) => {
            buffer.plugin += 1;
            BP_OK
        }
        None => {
            host.fault(Fault::StaleBuffer { function: "buf_retain" });
            BP_STALE_HANDLE
        }
    }
}

unsafe extern "C" fn buf_release(host: *const bp_host, buf: bp_buf) -> bp_code {
    let host = host!(host);
    if host.unref(buf, 1, 0) {
        return BP_OK;
    }
    host.fault(Fault::StaleBuffer { function: "buf_release" });
    BP_STALE_HANDLE
}

unsafe extern "C" fn out_alloc(host: *const bp_host, sink: bp_sink, spec: *mut bp_tensor) -> bp_code {
    let host = host!(host);
    // SAFETY: a bp_tensor by the header.
    let Some(raw) = (unsafe { bp_tensor::read(spec, offset_of!(bp_tensor, buffer) + 8) }) else {
        host.fault(Fault::BadStruct { function: "out_alloc", what: "bp_tensor" });
        return BP_BAD_STRUCT;
    };
    if host.open_exchange("out_alloc", sink).is_none() {
        return BP_STALE_HANDLE;
    }
    if host.is_denied(Scarce::Output) {
        return BP_RESOURCE_EXHAUSTED;
    }
    let Some((buffer, memory)) = host.alloc(raw.nbytes, 0) else { return BP_RESOURCE_EXHAUSTED };
    // SAFETY: read above, so it is there and long enough; the plugin's to be written.
    unsafe {
        (*spec).data = memory.cast();
        (*spec).buffer = buffer;
    }
    BP_OK
}

unsafe extern "C" fn push(host: *const bp_host, sink: bp_sink, chunk: *const bp_chunk) -> bp_code {
    let host = host!(host);
    // SAFETY: a bp_chunk by the header.
    let Some(raw) = (unsafe { bp_chunk::read(chunk, offset_of!(bp_chunk, stride) + 4) }) else {
        host.fault(Fault::BadStruct { function: "push", what: "bp_chunk" });
        return BP_BAD_STRUCT;
    };
    let Some(exchange) = host.open_exchange("push", sink) else { return BP_STALE_HANDLE };
    let Some(json) = host.object("push", "the JSON of a chunk", raw.json) else { return BP_INVALID_ARGUMENT };
    // SAFETY: n_tensors rows at stride, says the header.
    let (tensors, held) = match unsafe { host.tensors("push", raw.tensors, raw.n_tensors, raw.stride) } {
        Ok(tensors) => tensors,
        Err(code) => return code,
    };

    let mut state = exchange.state.lock();
    if state.end.is_some() {
        host.fault(Fault::AfterFinish { function: "push" });
        return BP_STALE_HANDLE;
    }
    match exchange.input.reader {
        Reader::Leaves { after } if after <= state.chunks.len() => exchange.set_cancelled(),
        Reader::Behind { refusals } if state.refused < refusals => {
            state.refused += 1;
            return BP_WOULD_BLOCK;
        }
        _ => {}
    }
    if exchange.cancel.load(Ordering::Relaxed) != 0 {
        return BP_CANCELLED;
    }
    state.refused = 0;
    for held in held {
        if let Some(buffer) = host.buffers.lock().get_mut(&held.buffer) {
            buffer.host += 1;
        }
        state.held.push(held);
    }
    state.chunks.push(Chunk { json, tensors });
    drop(state);
    exchange.changed.notify_all();
    BP_OK
}

unsafe extern "C" fn finish(host: *const bp_host, sink: bp_sink, done: *const bp_done) -> bp_code {
    let host = host!(host);
    // SAFETY: a bp_done by the header.
    let Some(raw) = (unsafe { bp_done::read(done, offset_of!(bp_done, confidence) + 8) }) else {
        host.fault(Fault::BadStruct { function: "finish", what: "bp_done" });
        return BP_BAD_STRUCT;
    };
    let Some(exchange) = host.open_exchange("finish", sink) else { return BP_STALE_HANDLE };
    let usage = host.object("finish", "usage_json", raw.usage_json).unwrap_or(Value::Null);
    if raw.confidence.is_nan() || raw.confidence > 1.0 {
        host.fault(Fault::BadConfidence);
    }
    let end = if raw.error.is_null() {
        End::Done { usage, confidence: (raw.confidence >= 0.0).then_some(raw.confidence) }
    } else {
        // SAFETY: not null, and a bp_error by the header.
        End::Failed(unsafe { host.failure("finish", raw.error) }.unwrap_or_default())
    };
    if exchange.end(end) {
        return BP_OK;
    }
    host.fault(Fault::AfterFinish { function: "finish" });
    BP_STALE_HANDLE
}

// ---- bp.compute/1: as many threads as asked for, counted -------------------------------------------------------

unsafe extern "C" fn acquire(
    host: *const bp_host,
    ticket: bp_ticket,
    want: u32,
    _deadline_ns: i64,
    granted: *mut u32,
) -> bp_code {
    let host = host!(host);
    let mut tickets = host.tickets.lock();
    let Some(count) = tickets.get_mut(&ticket) else {
        host.fault(Fault::UnknownHandle { function: "bp.compute/1 acquire" });
        return BP_STALE_HANDLE;
    };
    if granted.is_null() {
        return BP_NULL_ARGUMENT;
    }
    let want = want.max(1);
    *count += want;
    // SAFETY: not null; a place to write to, says the header.
    unsafe { *granted = want };
    BP_OK
}

unsafe extern "C" fn release(host: *const bp_host, ticket: bp_ticket, granted: u32) -> bp_code {
    let host = host!(host);
    let mut tickets = host.tickets.lock();
    let Some(left) = tickets.get_mut(&ticket).filter(|count| granted <= **count) else {
        host.fault(Fault::BadRelease);
        return BP_BAD_STATE;
    };
    *left -= granted;
    BP_OK
}

// ---- bp.call/1: answered by a function of the test --------------------------------------------------------------

/// The callbacks of a call, on their way to the thread that answers.
struct Callbacks(bp_call);
// SAFETY: the header: the callbacks come on a host thread, and `ctx` is for them alone.
unsafe impl Send for Callbacks {}

/// The struct that crosses, valid as long as `tensor` is.
fn raw_output(tensor: &TensorOutput) -> bp_tensor {
    let (code, bits) = tensor.dtype.raw();
    bp_tensor {
        flags: BP_TENSOR_READ_ONLY,
        name: bp_str::new(&tensor.name),
        dev_type: BP_DEV_CPU,
        code,
        bits,
        lanes: 1,
        ndim: tensor.shape.len() as i32,
        shape: tensor.shape.as_ptr(),
        nbytes: tensor.data.len() as u64,
        data: tensor.data.as_ptr().cast_mut().cast(),
        ..bp_tensor::new()
    }
}

unsafe extern "C" fn start(host: *const bp_host, call: *const bp_call, out: *mut bp_req) -> bp_code {
    let host = host!(host);
    // SAFETY: a bp_call by the header.
    let Some(raw) = (unsafe { bp_call::read(call, offset_of!(bp_call, on_done) + 8) }) else {
        host.fault(Fault::BadStruct { function: "bp.call/1 start", what: "bp_call" });
        return BP_BAD_STRUCT;
    };
    let (Some(answering), false) = (host.answering.clone(), out.is_null()) else { return BP_NULL_ARGUMENT };
    if host.open_exchange("bp.call/1 start", raw.parent).is_none() {
        return BP_STALE_HANDLE;
    }
    let function = "bp.call/1 start";
    let (Some(capability), Some(model), Some(params)) = (
        host.text(function, "capability", raw.capability),
        host.text(function, "model", raw.model),
        host.object(function, "params_json", raw.params_json),
    ) else {
        return BP_INVALID_ARGUMENT;
    };
    // SAFETY: n_in rows at in_stride, says the header.
    let tensors = match unsafe { host.tensors(function, raw.r#in, raw.n_in, raw.in_stride) } {
        Ok((tensors, _)) => tensors,
        Err(code) => return code,
    };
    // SAFETY: not null; a place to write to.
    unsafe { *out = new_handle() };
    let (input, back) = (CallInput { capability, model, params, tensors }, Callbacks(raw));
    std::thread::spawn(move || {
        let back = back;
        let Callbacks(raw) = &back;
        let result = answering(&input);
        if let (Ok(chunks), Some(on_chunk)) = (&result, raw.on_chunk) {
            for chunk in chunks {
                let json = if chunk.json.is_null() { String::new() } else { chunk.json.to_string() };
                let tensors: Vec<_> = chunk.tensors.iter().map(raw_output).collect();
                let chunk = bp_chunk {
                    json: bp_str::new(&json),
                    tensors: tensors.as_ptr(),
                    n_tensors: tensors.len() as u32,
                    stride: size_of::<bp_tensor>() as u32,
                    ..bp_chunk::new()
                };
                // SAFETY: the callback and its ctx belong together, and are valid until on_done.
                if unsafe { on_chunk(raw.ctx, &chunk) } != BP_OK {
                    break;
                }
            }
        }
        let message = result.as_ref().err().map(|failure| failure.message.clone()).unwrap_or_default();
        let error = result.as_ref().err().map(|failure| bp_error {
            code: failure.code,
            message: bp_str::new(&message),
            ..bp_error::new()
        });
        let error = error.as_ref().map_or(std::ptr::null(), |error| &raw const *error);
        if let Some(on_done) = raw.on_done {
            // SAFETY: once, as the last use of ctx.
            unsafe { on_done(raw.ctx, &bp_done { error, confidence: -1.0, ..bp_done::new() }) };
        }
    });
    BP_OK
}

/// Answers come at once here, so there is nothing to cancel.
unsafe extern "C" fn call_cancel(_host: *const bp_host, _call: bp_req) -> bp_code {
    BP_OK
}

// ---- the plugin's functions -----------------------------------------------------------------------------------

/// What a table says of itself, read once after it was made.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PluginFacts {
    pub id: String,
    pub version: String,
    pub minor_min: u16,
    /// Functions that must be there and are not.
    pub missing: Vec<&'static str>,
}

/// A plugin that was entered. Not yet initialised.
#[derive(Clone, Copy)]
pub(crate) struct RawPlugin {
    table: *mut bp_plugin,
    known: bp_plugin,
    pub host: &'static Host,
}
// SAFETY: the header says for each function on which threads it may be called; the callers in this crate keep to it.
unsafe impl Send for RawPlugin {}
// SAFETY: as above.
unsafe impl Sync for RawPlugin {}

/// An opened model.
#[derive(Clone, Copy)]
pub(crate) struct RawModel {
    table: *mut bp_model,
    pub known: bp_model,
    pub host: &'static Host,
}
// SAFETY: as RawPlugin.
unsafe impl Send for RawModel {}
// SAFETY: as RawPlugin.
unsafe impl Sync for RawModel {}

/// A running copy.
#[derive(Clone, Copy)]
pub(crate) struct RawInstance {
    table: *mut bp_instance,
    known: bp_instance,
    ticket: bp_ticket,
    pub host: &'static Host,
}
// SAFETY: as RawPlugin.
unsafe impl Send for RawInstance {}
// SAFETY: as RawPlugin.
unsafe impl Sync for RawInstance {}

fn missing(functions: &[(&'static str, bool)]) -> Vec<&'static str> {
    functions.iter().filter(|(_, there)| !there).map(|(name, _)| *name).collect()
}

fn absent(function: &str) -> Failure {
    Failure { code: BP_UNIMPLEMENTED, message: format!("`{function}` is null"), ..Failure::default() }
}

/// Enters with null arguments, which must be refused.
pub(crate) fn enter_with_nulls(entry: &dyn Enter, host: &'static Host) -> [bp_code; 2] {
    let mut out = std::ptr::null_mut();
    // SAFETY: the header lets every function be given null, which is an error.
    unsafe { [entry.enter(std::ptr::null(), &raw mut out), entry.enter(host.table(), std::ptr::null_mut())] }
}

/// Enters a plugin.
pub(crate) fn enter(entry: &dyn Enter, host: &'static Host) -> Result<RawPlugin, Failure> {
    let mut out = std::ptr::null_mut();
    // SAFETY: a host's table that is never freed, and a place to write to.
    let code = unsafe { entry.enter(host.table(), &raw mut out) };
    if code != BP_OK {
        return Err(Failure {
            code,
            message: "bp_entry_v1 refused this host".to_owned(),
            ..Failure::default()
        });
    }
    // SAFETY: the plugin's table, says the header.
    let known = unsafe { bp_plugin::read(out, offset_of!(bp_plugin, shutdown) + 8) };
    let broken = || Failure {
        code: BP_BAD_STRUCT,
        message: "bp_plugin is too small".to_owned(),
        ..Failure::default()
    };
    Ok(RawPlugin { table: out, known: known.ok_or_else(broken)?, host })
}

impl RawPlugin {
    pub fn facts(&self) -> PluginFacts {
        let text = |what, text| self.host.text("bp_entry_v1", what, text).unwrap_or_default();
        PluginFacts {
            id: text("bp_plugin.id", self.known.id),
            version: text("bp_plugin.version", self.known.version),
            minor_min: self.known.abi_minor_min,
            missing: missing(&[
                ("init", self.known.init.is_some()),
                ("bid", self.known.bid.is_some()),
                ("model_open", self.known.model_open.is_some()),
                ("shutdown", self.known.shutdown.is_some()),
            ]),
        }
    }

    pub fn init(&self, config: &[u8]) -> Result<(), Failure> {
        let init = self.known.init.ok_or_else(|| absent("init"))?;
        // SAFETY: the plugin's own table, and text that lives through the call.
        self.host.with_error(|err| unsafe { init(self.table, raw_text(config), err) })
    }

    pub fn open(&self, model: &[u8]) -> Result<RawModel, Failure> {
        let open = self.known.model_open.ok_or_else(|| absent("model_open"))?;
        let mut out = std::ptr::null_mut();
        // SAFETY: as above, and a place to write to.
        self.host.with_error(|err| unsafe { open(self.table, raw_text(model), &raw mut out, err) })?;
        // SAFETY: the plugin's table, says the header.
        let known = unsafe { bp_model::read(out, offset_of!(bp_model, close) + 8) };
        let broken = || Failure {
            code: BP_BAD_STRUCT,
            message: "bp_model is too small".to_owned(),
            ..Failure::default()
        };
        Ok(RawModel { table: out, known: known.ok_or_else(broken)?, host: self.host })
    }

    pub fn bid(&self, capability: &str, model: &[u8], claim: u32) -> BidOutput {
        let Some(bid) = self.known.bid else {
            return BidOutput { code: BP_UNIMPLEMENTED, ..BidOutput::default() };
        };
        const FENCE: u8 = 0x5A;
        let query = bp_query {
            capability: bp_str::new(capability),
            model_json: raw_text(model),
            input_bytes: 2,
            dev_type: BP_DEV_CPU,
            capability_version: 1,
            ..bp_query::new()
        };
        // A struct of `claim` bytes, and a fence behind it that nobody may touch.
        let mut memory = words((claim as usize).max(size_of::<bp_bid>()) + 64);
        let out = memory.as_mut_ptr().cast::<u8>();
        let room = memory.len() * 8;
        // SAFETY: all within `memory`; `claim` is at least 8 for every caller, which is where the fence begins at the
        // earliest. The call gets structs that live through it, and the text it leaves lives until the next bid on
        // this thread.
        let (code, raw, fence) = unsafe {
            out.cast::<u32>().write(claim);
            out.add(claim as usize).write_bytes(FENCE, room - claim as usize);
            let code = bid(self.table, &query, out.cast());
            let fence = std::slice::from_raw_parts(out.add(claim as usize), room - claim as usize);
            (code, bp_bid::read(out.cast(), 0), fence)
        };
        let Some(raw) = raw else { return BidOutput { code: BP_BAD_STRUCT, ..BidOutput::default() } };
        let known = |end: usize| claim as usize >= end;
        BidOutput {
            code,
            score: raw.score,
            quality: raw.quality,
            p50_us: raw.est_p50_us,
            p99_us: raw.est_p99_us,
            reason: raw.reason,
            text: if known(size_of::<bp_bid>()) {
                self.host.text("bid", "bp_bid.text", raw.text).unwrap_or_default()
            } else {
                String::new()
            },
            overran: fence.iter().any(|byte| *byte != FENCE),
        }
    }

    pub fn extension(&self, id: &[u8]) -> bool {
        // SAFETY: the plugin's own table, and text that lives through the call.
        self.known.get_extension.is_some_and(|get| unsafe { !get(self.table, raw_text(id)).is_null() })
    }

    pub fn shutdown(&self) {
        if let Some(shutdown) = self.known.shutdown {
            // SAFETY: once, after every model was closed; the session keeps to that.
            unsafe { shutdown(self.table) };
        }
    }
}

/// What a bid said.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct BidOutput {
    pub code: bp_code,
    pub score: u16,
    pub quality: u16,
    pub p50_us: u32,
    pub p99_us: u32,
    pub reason: i32,
    pub text: String,
    /// Whether it wrote beyond the struct.
    pub overran: bool,
}

impl RawModel {
    pub fn missing(&self) -> Vec<&'static str> {
        missing(&[("instance_new", self.known.instance_new.is_some()), ("close", self.known.close.is_some())])
    }

    /// What it says of itself; `None` when it is not a JSON object.
    pub fn describe(&self) -> Option<Value> {
        self.host.object("model_open", "bp_model.describe_json", self.known.describe_json)
    }

    /// A running copy. `tail`: unknown bytes after the placement.
    pub fn instance(&self, index: u32, tail: usize) -> Result<RawInstance, Failure> {
        let make = self.known.instance_new.ok_or_else(|| absent("instance_new"))?;
        let ticket = new_handle();
        self.host.tickets.lock().insert(ticket, 0);
        let placement = bp_placement {
            struct_size: (size_of::<bp_placement>() + tail) as u32,
            ticket,
            dev_type: BP_DEV_CPU,
            threads: 2,
            index,
            ..bp_placement::new()
        };
        let mut memory = words(size_of::<bp_placement>() + tail);
        memory.fill(0x5A5A_5A5A_5A5A_5A5A);
        let at = memory.as_mut_ptr().cast::<bp_placement>();
        let mut out = std::ptr::null_mut();
        // SAFETY: `memory` is aligned and long enough; the model's own table; a place to write to.
        let made = self.host.with_error(|err| unsafe {
            at.write(placement);
            make(self.table, at, &raw mut out, err)
        });
        if let Err(failure) = made {
            self.host.tickets.lock().remove(&ticket);
            return Err(failure);
        }
        // SAFETY: the plugin's table, says the header.
        let known = unsafe { bp_instance::read(out, offset_of!(bp_instance, destroy) + 8) };
        let broken = || Failure {
            code: BP_BAD_STRUCT,
            message: "bp_instance is too small".to_owned(),
            ..Failure::default()
        };
        Ok(RawInstance { table: out, known: known.ok_or_else(broken)?, ticket, host: self.host })
    }

    fn find(&self, id: &[u8]) -> *const c_void {
        // SAFETY: the plugin's own table, and text that lives through the call.
        self.known.get_extension.map_or(std::ptr::null(), |get| unsafe { get(self.table, raw_text(id)) })
    }

    pub fn extension(&self, id: &[u8]) -> bool {
        !self.find(id).is_null()
    }

    /// Tokens of these parameters. `None` without the extension.
    pub fn count_tokens(&self, capability: &str, params: &[u8]) -> Option<Result<u64, Failure>> {
        // SAFETY: the table of the extension with this id.
        let table = unsafe {
            bp_tokens_1::read(self.find(BP_EXT_TOKENS_1.as_bytes()).cast(), size_of::<bp_tokens_1>())
        }?;
        let mut tokens = 0;
        let counted = self.host.with_error(|err| match table.count {
            // SAFETY: the plugin's own table; texts and a place to write to that live through the call.
            Some(count) => unsafe {
                count(self.table, bp_str::new(capability), raw_text(params), &raw mut tokens, err)
            },
            None => BP_UNIMPLEMENTED,
        });
        Some(counted.map(|()| tokens))
    }

    /// Figures by name. `None` without the extension.
    pub fn stats(&self) -> Option<Vec<(String, f64)>> {
        unsafe extern "C" fn each(ctx: *mut c_void, name: bp_str, value: f64) {
            // SAFETY: `ctx` is the list below, for the length of `read`; the name lives through this call.
            unsafe { (*ctx.cast::<Vec<(String, f64)>>()).push((name.lossy().into_owned(), value)) };
        }
        // SAFETY: the table of the extension with this id.
        let table = unsafe {
            bp_stats_1::read(self.find(BP_EXT_STATS_1.as_bytes()).cast(), size_of::<bp_stats_1>())
        }?;
        let mut figures: Vec<(String, f64)> = Vec::new();
        // SAFETY: the plugin's own table; the list outlives the call.
        unsafe { table.read?(self.table, (&raw mut figures).cast(), Some(each)) };
        Some(figures)
    }

    pub fn close(&self) {
        if let Some(close) = self.known.close {
            // SAFETY: once, with no instance left; the session keeps to that.
            unsafe { close(self.table) };
        }
    }
}

impl RawInstance {
    pub fn missing(&self) -> Vec<&'static str> {
        missing(&[("submit", self.known.submit.is_some()), ("destroy", self.known.destroy.is_some())])
    }

    /// Makes a request known to the host, without handing it over.
    pub fn prepare(&self, input: RequestInput) -> Arc<Exchange> {
        Exchange::new(self.host, input)
    }

    /// Hands requests over in one call. What the plugin refuses is ended with its reason.
    pub fn submit(&self, exchanges: &[Arc<Exchange>]) -> bp_code {
        let tail = exchanges.iter().map(|exchange| exchange.input.tail).max().unwrap_or_default();
        let stride = (size_of::<bp_request>() + tail).next_multiple_of(8);
        let mut rows = words(stride * exchanges.len().max(1));
        rows.fill(0x5A5A_5A5A_5A5A_5A5A);
        for (row, exchange) in exchanges.iter().enumerate() {
            // SAFETY: `rows` has a stride for each, which is at least a request long and a multiple of 8.
            unsafe { rows.as_mut_ptr().byte_add(row * stride).cast::<bp_request>().write(exchange.raw()) };
        }
        let mut code = BP_UNIMPLEMENTED;
        let taken = self.host.with_error(|err| {
            if let Some(submit) = self.known.submit {
                // SAFETY: the plugin's own table; rows that live through the call, on a thread that the session chose
                // by the class of the model.
                code = unsafe {
                    submit(self.table, rows.as_ptr().cast(), exchanges.len() as u32, stride as u32, err)
                };
            }
            code
        });
        // The struct itself is the plugin's only until submit returns: what it reads later is nonsense.
        rows.fill(0xEEEE_EEEE_EEEE_EEEE);
        if let Err(failure) = taken {
            for exchange in exchanges {
                if !exchange.end(End::Refused(failure.clone())) {
                    self.host.fault(Fault::FinishedARefusedRequest);
                }
            }
        }
        code
    }

    /// Tells the plugin that the caller of a request left, as a host does.
    pub fn cancel(&self, exchange: &Exchange) {
        exchange.set_cancelled();
        if let Some(cancel) = self.known.cancel {
            // SAFETY: the plugin's own table; [any] by the header.
            unsafe { cancel(self.table, exchange.handle) };
        }
    }

    /// `None` when the function is absent, which means ready.
    pub fn health(&self) -> Option<Result<i32, Failure>> {
        let health = self.known.health?;
        let mut state = -1;
        // SAFETY: the plugin's own table, and a place to write to.
        let answered = self.host.with_error(|err| unsafe { health(self.table, &raw mut state, err) });
        Some(answered.map(|()| state))
    }

    /// `None` when the function is absent.
    pub fn quiesce(&self, deadline: Option<Instant>) -> Option<bp_code> {
        let quiesce = self.known.quiesce?;
        // SAFETY: the plugin's own table.
        Some(unsafe { quiesce(self.table, clock::deadline_ns(deadline)) })
    }

    pub fn extension(&self, id: &[u8]) -> bool {
        // SAFETY: the plugin's own table, and text that lives through the call.
        self.known.get_extension.is_some_and(|get| unsafe { !get(self.table, raw_text(id)).is_null() })
    }

    pub fn destroy(&self) {
        if let Some(destroy) = self.known.destroy {
            // SAFETY: once, with no request open, on the thread its class asks for; the session keeps to that.
            unsafe { destroy(self.table) };
        }
        if let Some(kept @ 1..) = self.host.tickets.lock().remove(&self.ticket) {
            self.host.fault(Fault::ThreadsKept(kept));
        }
    }
}
