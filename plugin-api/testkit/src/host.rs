//! A host for tests: the whole `bp_host` table, and calls into a plugin's tables.
//!
//! Here is the host with its buffers; `exchange` is a request on its way, `table` the functions that a plugin calls, `raw` those
//! of the plugin that are called.
//!
//! Everything unsafe of this crate is in these files: they hand a plugin raw memory, follow the pointers it gives back,
//! and call functions that a library exports. What leaves them is safe to use as far as the plugin keeps to
//! `backplane.h`; a plugin is trusted code, and one that does not can do here whatever it could do in a host.
//!
//! Hosts, requests and the tables of plugins are never freed. A plugin that uses one too late then gets an answer that
//! the test can report, instead of a crash that nobody can explain.
#![expect(unsafe_code, reason = "the host's end of the C ABI, which the tests exist to exercise")]

mod device;
mod exchange;
mod raw;
mod table;

pub(crate) use device::Held as DeviceHeld;
pub(crate) use exchange::Exchange;
pub(crate) use raw::{BidOutput, RawInstance, RawModel, RawPlugin, enter, enter_with_nulls};

use self::exchange::Held;
use crate::answer::{Chunk, DeviceOutput, Failure, TensorOutput};
use crate::fault::Fault;
use backplane_abi::read::{self, Memory, Reader, Refused, Rows, Str};
use backplane_abi::{ABI_MAJOR, ABI_MINOR, ENTRY_SYMBOL, table::*};
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::HashMap;
use std::ffi::c_void;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

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
    /// Most threads of one grant.
    most_threads: AtomicU32,
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
    device: Option<device::Device>,
}

/// Tensors that a plugin handed over.
struct Taken {
    tensors: Vec<TensorOutput>,
    /// What was in their buffers.
    held: Vec<Held>,
    /// Those that stayed on a device.
    on_device: Vec<DeviceOutput>,
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
    /// From now on grants no more threads than this at once; with 0, who asks waits.
    pub fn grant_at_most(&self, threads: u32) {
        self.most_threads.store(threads, Ordering::Relaxed);
    }

    pub fn new(shape: Shape, answering: Option<Answering>, license: Option<License>) -> &'static Host {
        let host: &'static Host = Box::leak(Box::new(Host {
            table: AtomicU64::new(0),
            exchanges: Mutex::default(),
            buffers: Mutex::default(),
            errors: Mutex::default(),
            tickets: Mutex::default(),
            most_threads: AtomicU32::new(u32::MAX),
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
            get_extension: Some(table::get_extension),
            set_error: Some(table::set_error),
            log: Some(table::log),
            buf_alloc: Some(table::buf_alloc),
            buf_wrap: Some(table::buf_wrap),
            buf_retain: Some(table::buf_retain),
            buf_release: Some(table::buf_release),
            out_alloc: Some(table::out_alloc),
            push: Some(table::push),
            finish: Some(table::finish),
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
        unsafe { !table::get_extension(self.table(), raw_text(id)).is_null() }
    }

    fn text(&self, function: &'static str, what: &str, text: Str<'_>) -> Option<String> {
        if text.is_nowhere() {
            self.fault(Fault::Null { function, argument: "text" });
            return None;
        }
        let read = text.text().map(str::to_owned);
        if read.is_none() {
            self.fault(Fault::BadText { function, what: format!("{what} is not UTF-8") });
        }
        read
    }

    /// A JSON object, or null for no text.
    fn object(&self, function: &'static str, what: &str, text: Str<'_>) -> Option<Value> {
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

    /// Notes why something was refused, and says what to answer.
    fn refuse(&self, function: &'static str, refused: &Refused) -> bp_code {
        self.fault(match refused {
            Refused::Struct(what) => Fault::BadStruct { function, what },
            Refused::Rows { .. } => Fault::BadStruct { function, what: "array of bp_tensor" },
            Refused::Text(_) => Fault::BadText { function, what: refused.to_string() },
            Refused::Tensor { .. } => Fault::BadTensor { function, what: refused.to_string() },
        });
        refused.code()
    }

    fn failure(&self, function: &'static str, raw: &read::Failure<'_>) -> Option<Failure> {
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

    /// Copies the tensors that a plugin hands over, and what was in their buffers; or says what to answer. Those on a device
    /// stay there with `devices`.
    fn tensors(
        &'static self,
        function: &'static str,
        rows: Rows<'_>,
        devices: bool,
    ) -> Result<Taken, bp_code> {
        let (mut tensors, mut held, mut on_device) = (Vec::new(), Vec::new(), Vec::new());
        let read = rows.anywhere(Reader::Strict).map_err(|refused| self.refuse(function, &refused))?;
        for tensor in read {
            let place = match tensor.memory {
                Memory::Device(at) => {
                    let there = self.hold(function, &tensor, at)?;
                    if devices {
                        on_device.push(there);
                    } else {
                        let data = there.read().map_err(|failure| failure.code)?;
                        let DeviceOutput { name, dtype, shape, .. } = there;
                        tensors.push(TensorOutput { name, dtype, shape, data });
                    }
                    continue;
                }
                Memory::Buffer { handle, start, len } => {
                    Some((handle, self.place(function, tensor.name, handle, start, len)?))
                }
                Memory::Lent(_) => None,
            };
            // SAFETY: the plugin's own, or in a buffer, which was looked at.
            let data = unsafe { tensor.memory.bytes() };
            let dense = tensor.dense(data).map_err(|refused| self.refuse(function, &refused))?;
            tensors.push(TensorOutput {
                name: tensor.name.to_owned(),
                dtype: tensor.dtype,
                shape: tensor.shape.to_vec(),
                data: dense.into_owned(),
            });
            held.extend(place.map(|(buffer, offset)| Held { buffer, offset, content: data.to_vec() }));
        }
        Ok(Taken { tensors, held, on_device })
    }

    /// Where in its buffer a tensor begins; or says what to answer.
    fn place(
        &self,
        function: &'static str,
        name: &str,
        handle: bp_buf,
        start: *const u8,
        len: usize,
    ) -> Result<usize, bp_code> {
        let buffers = self.buffers.lock();
        let Some(buffer) = buffers.get(&handle).filter(|buffer| buffer.plugin > 0) else {
            self.fault(Fault::StaleBuffer { function });
            return Err(BP_STALE_HANDLE);
        };
        let offset = (start as usize).wrapping_sub(buffer.data as usize);
        if offset.checked_add(len).is_none_or(|end| end > buffer.len) {
            self.fault(Fault::BadTensor {
                function,
                what: format!("tensor `{name}` is not inside its buffer"),
            });
            return Err(BP_INVALID_ARGUMENT);
        }
        Ok(offset)
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
        let buffer = Buffer { data, len, plugin: 1, host: 0, owner: Owner::Host(memory), device: None };
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

fn raw_text(bytes: &[u8]) -> bp_str {
    bp_str { ptr: bytes.as_ptr().cast(), len: bytes.len() as u64 }
}
