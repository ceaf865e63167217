//! The `bp_host` functions: what a plugin may ask of the host, from any thread.
//!
//! Each plugin has a table and handles of its own, so that the handle of one means nothing to another. A context is
//! never freed: a plugin's threads may call it as long as the process lives.
#![expect(unsafe_code, reason = "the host's end of the C ABI")]

use super::breakdowns::Breakdowns;
use super::buffers::{Buffer, Held, Released};
use super::device::{self, Copies, Lent, Place};
use super::exchange::{Exchange, Offered, size};
use super::handles::Handles;
use super::worker::OpenLimit;
use crate::compute::Client;
use crate::error::{Error, ErrorCode, Result};
use crate::job::{CacheUse, Chunk, Done, Next, Parent, Reply, Request};
use crate::license::LicenceBook;
use crate::tensor::Tensor;
use backplane_abi::payload::Usage;
use backplane_abi::read::{self, Memory, OnChunk, OnDone, Reader, Refused, Rows, Str};
use backplane_abi::table::*;
use backplane_abi::worker::is_object;
use backplane_abi::{ABI_MAJOR, ABI_MINOR, clock};
use backplane_registry::license::{Gate, State};
use backplane_registry::plugin::{LicenceClass, PluginFile};
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Notify;

/// Calls between plugins go no deeper than this.
const MAX_DEPTH: usize = 8;
/// Lines a plugin may log in a second.
const LOG_LINES_PER_SECOND: u64 = 200;
/// Longest message of a plugin that is kept.
const MAX_MESSAGE: usize = 4096;

/// What the tables of all plugins of one host share.
#[derive(Default)]
pub(crate) struct Shared {
    /// Serves a call from a plugin; set once the request path stands.
    pub calls: OnceLock<CallHook>,
    /// Whose plugin may serve whom; set before the first plugin is loaded.
    pub licences: OnceLock<LicenceBook>,
    /// Workers that broke down.
    pub breakdowns: Breakdowns,
    /// How long workers may take to open a model.
    pub open_limit: OpenLimit,
    /// Counts what of the memory of devices had to be copied.
    pub copies: Copies,
}

impl Shared {
    /// What a plugin's requests look at, if it has to do with licences.
    pub fn gate(&self, file: &PluginFile) -> Option<Arc<Gate>> {
        match self.licences.get() {
            Some(book) => book.gate(file),
            // Nobody keeps licences here: one that needs one has none.
            None => (file.manifest.licence_class == LicenceClass::Commercial).then(Arc::default),
        }
    }
}

/// Takes a call off the plugin's thread and serves it.
pub(crate) type CallHook = Box<dyn Fn(PluginCall) + Send + Sync>;

/// A plugin that asks another capability.
pub(crate) struct PluginCall {
    /// What it asks, until somebody took it.
    request: Option<Request>,
    back: Back,
    /// Told when the plugin does not want the answer any more.
    cancelled: Arc<Notify>,
    plugin: &'static PluginContext,
    handle: u64,
    ended: bool,
}

/// Where the answer of a call goes.
struct Back {
    ctx: *mut c_void,
    on_chunk: OnChunk,
    on_done: OnDone,
}
// SAFETY: the header says the callbacks are [any] and ctx goes with them.
unsafe impl Send for Back {}

impl PluginCall {
    /// What it asks; once.
    pub fn take_request(&mut self) -> Option<Request> {
        self.request.take()
    }

    /// Hands the answer to the plugin, piece by piece, to its end. A cancelled call ends wherever it is: waiting for a
    /// model to open, for a place in a queue, or for the next piece.
    pub async fn answer(mut self, reply: impl Future<Output = Result<Reply>>) {
        let cancelled = self.cancelled.clone();
        let whole = async {
            let reply = reply.await?;
            let model = reply.route.model.clone();
            let mut done = self.pass_on(reply).await?;
            // Who asked for none in particular hears which one it was.
            done.usage.extra.insert("model".to_owned(), (&*model).into());
            Ok(done)
        };
        let result = tokio::select! {
            biased;
            () = cancelled.notified() => Err(Error::cancelled()),
            result = whole => result,
        };
        self.end(&result);
    }

    async fn pass_on(&mut self, mut reply: Reply) -> Result<Done> {
        loop {
            match reply.next().await? {
                Next::Done(done) => return Ok(done),
                Next::Chunk(chunk) => {
                    let tensors = Lent::new(self.plugin, &chunk.tensors);
                    let json = String::from_utf8_lossy(&chunk.json);
                    let raw = bp_chunk {
                        json: bp_str::new(&json),
                        tensors: tensors.rows.as_ptr(),
                        n_tensors: tensors.rows.len() as u32,
                        stride: size_of::<bp_tensor>() as u32,
                        ..bp_chunk::new()
                    };
                    // SAFETY: the plugin's callback with its ctx; the chunk is valid until it returns.
                    if unsafe { (self.back.on_chunk)(self.back.ctx, &raw) } != BP_OK {
                        return Err(Error::cancelled());
                    }
                }
            }
        }
    }

    fn end(&mut self, result: &Result<Done>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.plugin.calls.remove(self.handle);
        let done = |raw: &bp_done| {
            // SAFETY: exactly once (`ended`), with the plugin's own ctx.
            unsafe { (self.back.on_done)(self.back.ctx, raw) }
        };
        match result {
            Ok(end) => {
                let usage = serde_json::to_string(&end.usage).unwrap_or_default();
                done(&bp_done {
                    usage_json: bp_str::new(&usage),
                    confidence: end.confidence.unwrap_or(-1.0),
                    ..bp_done::new()
                });
            }
            Err(error) => {
                let details = serde_json::to_string(&error.details).unwrap_or_default();
                let raw = bp_error {
                    code: error.code as bp_code,
                    message: bp_str::new(&error.message),
                    reason: bp_str::new(&error.reason),
                    details_json: bp_str::new(&details),
                    ..bp_error::new()
                };
                done(&bp_done { error: &raw, confidence: -1.0, ..bp_done::new() });
            }
        }
    }
}

impl Drop for PluginCall {
    fn drop(&mut self) {
        // A host that goes down in the middle of a call still ends it: the plugin waits for on_done.
        self.end(&Err(Error::shutting_down()));
    }
}

/// The host as one plugin sees it.
pub struct PluginContext {
    table: bp_host,
    plugin: String,
    shared: Arc<Shared>,
    pub licence: Option<Arc<Gate>>,
    pub exchanges: Handles<Arc<Exchange>>,
    /// Requests that were taken away from the plugin. It may read them until it finishes them, if it ever does.
    taken_away: Mutex<HashMap<u64, Arc<Exchange>>>,
    /// Boxed: of every call there is one, and hardly any has something to say.
    pub errors: Handles<Option<Box<Failure>>>,
    pub tickets: Handles<Arc<Client>>,
    pub buffers: Handles<Held>,
    calls: Handles<Arc<Notify>>,
    log_second: AtomicU64,
    log_lines: AtomicU64,
}

// SAFETY: `table` holds a pointer to this very value, which is never freed or moved; everything else is Sync.
unsafe impl Sync for PluginContext {}
// SAFETY: as above.
unsafe impl Send for PluginContext {}

/// What a plugin said went wrong.
#[derive(Clone, Debug)]
pub struct Failure {
    pub error: Error,
    /// [`BP_SUB_PANIC`] and the like.
    pub sub: i32,
}

impl Failure {
    /// Whether the instance that said so can serve no more.
    pub fn poisons(&self) -> bool {
        matches!(self.sub, BP_SUB_PANIC | BP_SUB_POISONED | BP_SUB_FATAL)
    }
}

impl PluginContext {
    /// A context that lives as long as the process.
    pub fn leak(plugin: &str, licence: Option<Arc<Gate>>, shared: Arc<Shared>) -> &'static PluginContext {
        let context = Box::leak(Box::new(PluginContext {
            table: bp_host {
                abi_major: ABI_MAJOR,
                abi_minor: ABI_MINOR,
                name: bp_str::new("backplane"),
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
                ..bp_host::new()
            },
            plugin: plugin.to_owned(),
            shared,
            licence,
            exchanges: Handles::new(),
            taken_away: Mutex::default(),
            errors: Handles::new(),
            tickets: Handles::new(),
            buffers: Handles::new(),
            calls: Handles::new(),
            log_second: AtomicU64::new(0),
            log_lines: AtomicU64::new(0),
        }));
        context.table.ctx = (&raw mut *context).cast();
        context
    }

    pub fn table(&'static self) -> *const bp_host {
        &self.table
    }

    /// Whose it is.
    pub fn plugin(&self) -> &str {
        &self.plugin
    }

    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// One reference of a buffer less; whether there was one.
    pub fn release(&self, buffer: bp_buf) -> bool {
        match self.buffers.get(buffer).map(|held| held.release()) {
            Some(Released::Last) => {
                self.buffers.remove(buffer);
                true
            }
            Some(Released::One) => true,
            Some(Released::None) | None => false,
        }
    }

    /// Takes a request away from the plugin. Whether it had it. What it says of it from here on is stale; its memory stays
    /// until the plugin finishes it.
    pub fn take_away(&self, handle: u64) -> bool {
        // Held from before the handle is stale until the request is here: a finish looks there first.
        let mut taken_away = self.taken_away.lock();
        let exchange = self.exchanges.remove(handle);
        let had = exchange.is_some();
        taken_away.extend(exchange.map(|exchange| (handle, exchange)));
        had
    }

    /// Calls `call` with a handle for its error, and reads what was left there.
    pub fn with_error<R>(&self, call: impl FnOnce(bp_err) -> R) -> (R, Option<Failure>) {
        let handle = self.errors.insert(None);
        let result = call(handle);
        (result, self.errors.remove(handle).flatten().map(|failure| *failure))
    }
}

/// The context behind a table, for the length of a call.
///
/// # Safety
/// `host` is null or a table of [`PluginContext::leak`].
unsafe fn context(host: *const bp_host) -> Option<&'static PluginContext> {
    // SAFETY: the caller's promise; contexts are never freed.
    unsafe { host.as_ref()?.ctx.cast::<PluginContext>().as_ref() }
}

/// Runs a function of the table: no panic of ours goes through a plugin's frames.
fn answer(work: impl FnOnce() -> bp_code) -> bp_code {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(BP_INTERNAL)
}

/// Text from a plugin, cut to what we keep.
fn kept(text: Str<'_>) -> Cow<'_, str> {
    let bytes = text.bytes();
    String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_MESSAGE)])
}

impl From<read::Failure<'_>> for Failure {
    fn from(raw: read::Failure<'_>) -> Self {
        let mut error = Error::new(ErrorCode::from_raw(raw.code), kept(raw.message));
        error.reason = Cow::Owned(kept(raw.reason).into_owned());
        error.details =
            serde_json::from_slice::<Map<String, Value>>(raw.details_json.bytes()).unwrap_or_default();
        if let Some(Value::String(param)) = error.details.remove("param") {
            error.param = Some(param);
        }
        if raw.retry_after_ms != 0 {
            error.retry_after = Some(Duration::from_millis(u64::from(raw.retry_after_ms)));
        }
        Failure { error, sub: raw.sub }
    }
}

unsafe extern "C" fn set_error(host: *const bp_host, err: bp_err, error: *const bp_error) -> bp_code {
    answer(|| {
        // SAFETY: the plugin passes the table it was given, and an error valid until we return.
        let (context, failure) = unsafe { (context(host), read::failure(error, Reader::Lenient)) };
        let (Some(context), false) = (context, error.is_null()) else { return BP_NULL_ARGUMENT };
        let Ok(failure) = failure else { return BP_BAD_STRUCT };
        if context.errors.set(err, Some(Box::new(failure.into()))) { BP_OK } else { BP_STALE_HANDLE }
    })
}

unsafe extern "C" fn log(host: *const bp_host, level: i32, message: bp_str, fields_json: bp_str) {
    answer(|| {
        // SAFETY: the plugin passes the table it was given, and strings valid until we return.
        let (context, message, fields) = unsafe { (context(host), Str::new(message), Str::new(fields_json)) };
        let Some(context) = context else { return BP_NULL_ARGUMENT };
        let (message, fields) = (kept(message), kept(fields));
        let second = clock::now_ns() as u64 / 1_000_000_000;
        if context.log_second.swap(second, Ordering::Relaxed) != second {
            let lines = context.log_lines.swap(0, Ordering::Relaxed);
            if LOG_LINES_PER_SECOND < lines {
                let dropped = lines - LOG_LINES_PER_SECOND;
                tracing::warn!(
                    plugin = context.plugin,
                    dropped,
                    "the plugin logged too much; lines were dropped"
                );
            }
        }
        if LOG_LINES_PER_SECOND <= context.log_lines.fetch_add(1, Ordering::Relaxed) {
            return BP_OK;
        }
        let (plugin, message) = (context.plugin.as_str(), &*message);
        let fields = (!fields.is_empty()).then_some(&*fields);
        match level {
            ..=1 => tracing::error!(target: "plugin", plugin, fields, "{message}"),
            2 => tracing::warn!(target: "plugin", plugin, fields, "{message}"),
            3 => tracing::info!(target: "plugin", plugin, fields, "{message}"),
            4 => tracing::debug!(target: "plugin", plugin, fields, "{message}"),
            _ => tracing::trace!(target: "plugin", plugin, fields, "{message}"),
        }
        BP_OK
    });
}

// ---- buffers ----------------------------------------------------------------------------------------------------

unsafe extern "C" fn buf_alloc(
    host: *const bp_host,
    dev_type: i32,
    _dev_id: i32,
    nbytes: u64,
    align: u64,
    out: *mut bp_buf,
    data: *mut *mut c_void,
) -> bp_code {
    answer(|| {
        // SAFETY: the plugin passes the table it was given.
        let Some(context) = (unsafe { context(host) }) else { return BP_NULL_ARGUMENT };
        if out.is_null() || data.is_null() {
            return BP_NULL_ARGUMENT;
        }
        if dev_type != BP_DEV_CPU {
            return BP_UNIMPLEMENTED;
        }
        if align != 0 && !align.is_power_of_two() {
            return BP_INVALID_ARGUMENT;
        }
        let buffer = usize::try_from(nbytes)
            .ok()
            .zip(usize::try_from(align).ok())
            .and_then(|(len, align)| Buffer::alloc(len, align));
        let Some(buffer) = buffer else { return BP_RESOURCE_EXHAUSTED };
        // SAFETY: not null, and the plugin passes places to write to.
        unsafe {
            *data = buffer.as_mut_ptr().cast();
            *out = context.buffers.insert(Held::new(buffer));
        }
        BP_OK
    })
}

unsafe extern "C" fn buf_wrap(
    host: *const bp_host,
    data: *mut c_void,
    nbytes: u64,
    ctx: *mut c_void,
    release: Option<unsafe extern "C" fn(ctx: *mut c_void)>,
    out: *mut bp_buf,
) -> bp_code {
    answer(|| {
        // SAFETY: the plugin passes the table it was given.
        let Some(context) = (unsafe { context(host) }) else { return BP_NULL_ARGUMENT };
        let (Some(release), false, false) = (release, data.is_null(), out.is_null()) else {
            return BP_NULL_ARGUMENT;
        };
        let end = usize::try_from(nbytes).ok().and_then(|len| (data as usize).checked_add(len));
        let (Ok(len), Some(_)) = (isize::try_from(nbytes).map(isize::unsigned_abs), end) else {
            return BP_INVALID_ARGUMENT;
        };
        // SAFETY: the plugin promises memory that lasts until release; `out` is a place to write to.
        unsafe { *out = context.buffers.insert(Held::new(Buffer::wrap(data.cast(), len, ctx, release))) };
        BP_OK
    })
}

unsafe extern "C" fn buf_retain(host: *const bp_host, buf: bp_buf) -> bp_code {
    answer(|| {
        // SAFETY: the plugin passes the table it was given.
        let Some(context) = (unsafe { context(host) }) else { return BP_NULL_ARGUMENT };
        match context.buffers.get(buf) {
            Some(held) if held.retain() => BP_OK,
            Some(_) | None => BP_STALE_HANDLE,
        }
    })
}

unsafe extern "C" fn buf_release(host: *const bp_host, buf: bp_buf) -> bp_code {
    answer(|| {
        // SAFETY: the plugin passes the table it was given.
        let Some(context) = (unsafe { context(host) }) else { return BP_NULL_ARGUMENT };
        if context.release(buf) { BP_OK } else { BP_STALE_HANDLE }
    })
}

unsafe extern "C" fn out_alloc(host: *const bp_host, sink: bp_sink, spec: *mut bp_tensor) -> bp_code {
    answer(|| {
        // SAFETY: the plugin passes the table it was given, and a tensor valid until we return.
        let (context, tensor) = unsafe { (context(host), read::known(spec, Reader::Lenient)) };
        let Some(context) = context else { return BP_NULL_ARGUMENT };
        let Ok(tensor) = tensor else { return BP_BAD_STRUCT };
        if context.exchanges.get(sink).is_none() {
            return BP_STALE_HANDLE;
        }
        let (mut buffer, mut data) = (0, std::ptr::null_mut());
        // SAFETY: our own function, with places of ours to write to.
        let code = unsafe {
            buf_alloc(host, tensor.dev_type, tensor.dev_id, tensor.nbytes, 0, &raw mut buffer, &raw mut data)
        };
        if code == BP_OK {
            // SAFETY: the struct was long enough to be read, so these members are there.
            unsafe {
                (*spec).data = data;
                (*spec).buffer = buffer;
                (*spec).byte_offset = 0;
            }
        }
        code
    })
}

// ---- results ----------------------------------------------------------------------------------------------------

unsafe extern "C" fn push(host: *const bp_host, sink: bp_sink, chunk: *const bp_chunk) -> bp_code {
    answer(|| {
        // SAFETY: the plugin passes the table it was given, and a chunk valid until we return.
        let (context, chunk) = unsafe { (context(host), read::chunk(chunk, Reader::Lenient)) };
        let Some(context) = context else { return BP_NULL_ARGUMENT };
        let Ok(chunk) = chunk else { return BP_BAD_STRUCT };
        let Some(exchange) = context.exchanges.get(sink) else { return BP_STALE_HANDLE };
        let json = chunk.json.bytes();
        if !is_object(json) {
            return BP_INVALID_ARGUMENT;
        }
        let tensors = own_tensors(context, chunk.tensors);
        // Who did not ask for memory of a device can do nothing with it.
        let takes = exchange.takes_devices();
        let tensors = match tensors.and_then(|tensors| if takes { Ok(tensors) } else { landed(tensors) }) {
            Ok(tensors) => tensors,
            Err(code) => return code,
        };
        let mut chunk = Chunk { json: Bytes::new(), tensors };
        let bytes = json.len() + size(&chunk);
        match exchange.offer(
            || {
                chunk.json = Bytes::copy_from_slice(json);
                chunk
            },
            bytes,
        ) {
            Offered::Taken => BP_OK,
            Offered::Full => BP_WOULD_BLOCK,
            Offered::Cancelled => BP_CANCELLED,
        }
    })
}

/// Tensors of a plugin's as ours.
fn own_tensors(context: &PluginContext, rows: Rows<'_>) -> Result<Vec<Tensor>, bp_code> {
    let tensors = rows.anywhere(Reader::Lenient).map_err(|refused| refused.code())?;
    tensors.iter().map(|tensor| own_tensor(context, tensor)).collect()
}

/// Tensors in CPU memory, wherever they were.
fn landed(tensors: Vec<Tensor>) -> Result<Vec<Tensor>, bp_code> {
    if tensors.iter().all(|tensor| tensor.place.is_none()) {
        return Ok(tensors);
    }
    tensors.into_iter().map(|tensor| tensor.landed().map_err(|error| error.code as bp_code)).collect()
}

/// A tensor of a plugin's as ours: shared when it is dense and has a buffer, else copied.
fn own_tensor(context: &PluginContext, tensor: &read::Tensor<'_>) -> Result<Tensor, bp_code> {
    let refused = |refused: Refused| refused.code();
    let data = match tensor.memory {
        Memory::Lent(data) => tensor.dense(data).map_err(refused)?.into_owned().into(),
        Memory::Buffer { handle, start, len } => {
            let held = context.buffers.get(handle).ok_or(BP_STALE_HANDLE)?;
            let shared = held.slice(start, len).ok_or(BP_INVALID_ARGUMENT)?;
            match tensor.dense(&shared).map_err(refused)? {
                Cow::Owned(gathered) => gathered.into(),
                Cow::Borrowed(_) => shared,
            }
        }
        Memory::Device(at) => {
            let held = context.buffers.get(at.handle).ok_or(BP_STALE_HANDLE)?;
            let place = Place::of(&held, at).ok_or(BP_INVALID_ARGUMENT)?;
            return Ok(Tensor::on_device(tensor.name, tensor.dtype, tensor.shape.to_vec(), place));
        }
    };
    Tensor::new(tensor.name, tensor.dtype, tensor.shape.to_vec(), data).map_err(|_| BP_INVALID_ARGUMENT)
}

unsafe extern "C" fn finish(host: *const bp_host, sink: bp_sink, done: *const bp_done) -> bp_code {
    answer(|| {
        // SAFETY: the plugin passes the table it was given, and a struct valid until we return.
        let (context, done) = unsafe { (context(host), read::done(done, Reader::Lenient)) };
        let Some(context) = context else { return BP_NULL_ARGUMENT };
        let Ok(done) = done else { return BP_BAD_STRUCT };
        let Some(exchange) = context.exchanges.remove(sink) else {
            // What is let go of runs functions of plugins, and the lock is not held meanwhile.
            let gone = context.taken_away.lock().remove(&sink);
            drop(gone);
            return BP_STALE_HANDLE;
        };
        let usage = done.usage_json.bytes();
        let usage: Option<Usage> = if usage.is_empty() { None } else { serde_json::from_slice(usage).ok() };
        let mut poisoned = false;
        let result = if let Some(said) = done.error {
            let failure = said.map_or_else(
                |_unreadable| Failure {
                    error: Error::internal(format!("plugin `{}` failed without saying why", context.plugin)),
                    sub: BP_SUB_NONE,
                },
                Failure::from,
            );
            poisoned = failure.poisons();
            let mut error = failure.error;
            if error.code == ErrorCode::DeadlineExceeded && error.reason.is_empty() {
                error.reason = Cow::Borrowed("deadline_exceeded");
            }
            Err(error)
        } else {
            let confidence = (0.0..=1.0).contains(&done.confidence).then_some(done.confidence);
            Ok(Done { usage: usage.clone().unwrap_or_default(), confidence, ..Done::default() })
        };
        // The slot first, so that a caller who reads the end finds it free.
        exchange.returned(poisoned);
        exchange.end(result, usage);
        BP_OK
    })
}

// ---- extensions -------------------------------------------------------------------------------------------------

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
        start: Some(call_start),
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
    static DEVICE: bp_device_1 = bp_device_1 {
        struct_size: size_of::<bp_device_1>() as u32,
        flags: 0,
        wrap: Some(device_wrap),
        read: Some(device_read),
    };
    // SAFETY: the plugin passes the table it was given, and an id valid until we return.
    let (context, id) = unsafe { (context(host), id.text()) };
    match (context, id) {
        (Some(_), Some(BP_EXT_DEVICE_1)) => (&raw const DEVICE).cast(),
        (Some(_), Some(BP_EXT_COMPUTE_1)) => (&raw const COMPUTE).cast(),
        (Some(_), Some(BP_EXT_CALL_1)) => (&raw const CALL).cast(),
        (Some(context), Some(BP_EXT_LICENSE_1)) if context.licence.is_some() => (&raw const LICENSE).cast(),
        _ => std::ptr::null(),
    }
}

unsafe extern "C" fn device_wrap(
    host: *const bp_host,
    memory: *const bp_device_memory,
    out: *mut bp_buf,
) -> bp_code {
    answer(|| {
        // SAFETY: the plugin passes the table it was given, and a struct valid until we return.
        let (context, raw) = unsafe { (context(host), read::known(memory, Reader::Lenient)) };
        let Some(context) = context else { return BP_NULL_ARGUMENT };
        let Ok(bp_device_memory { dev_type, dev_id, data, nbytes, ctx, read, release, .. }) = raw else {
            return BP_BAD_STRUCT;
        };
        let (Some(read), Some(release), false, false) = (read, release, data.is_null(), out.is_null()) else {
            return BP_NULL_ARGUMENT;
        };
        let end = usize::try_from(nbytes).ok().and_then(|len| (data as usize).checked_add(len));
        let (Ok(len), Some(_)) = (isize::try_from(nbytes).map(isize::unsigned_abs), end) else {
            return BP_INVALID_ARGUMENT;
        };
        if dev_type == BP_DEV_CPU {
            return BP_INVALID_ARGUMENT;
        }
        let device = device::Owner { dev_type, dev_id, context, ctx, read };
        // SAFETY: the plugin promises memory that lasts until release, which nobody but it reads; `out` is a place to write to.
        unsafe {
            *out = context.buffers.insert(Held::new(Buffer::wrap(data.cast(), len, ctx, release).on(device)))
        };
        BP_OK
    })
}

unsafe extern "C" fn device_read(
    host: *const bp_host,
    buf: bp_buf,
    data: *const c_void,
    nbytes: u64,
    to: *mut c_void,
) -> bp_code {
    answer(|| {
        // SAFETY: the plugin passes the table it was given.
        let Some(context) = (unsafe { context(host) }) else { return BP_NULL_ARGUMENT };
        let Some(held) = context.buffers.get(buf) else { return BP_STALE_HANDLE };
        let Ok(len) = isize::try_from(nbytes).map(isize::unsigned_abs) else { return BP_OUT_OF_RANGE };
        if to.is_null() {
            return BP_NULL_ARGUMENT;
        }
        // SAFETY: not null, and the plugin passes room for as many bytes as it asks for.
        device::read(&held, data as usize, unsafe { std::slice::from_raw_parts_mut(to.cast(), len) })
    })
}

unsafe extern "C" fn acquire(
    host: *const bp_host,
    ticket: bp_ticket,
    want: u32,
    deadline_ns: i64,
    granted: *mut u32,
) -> bp_code {
    answer(|| {
        // SAFETY: the plugin passes the table it was given.
        let Some(context) = (unsafe { context(host) }) else { return BP_NULL_ARGUMENT };
        if granted.is_null() {
            return BP_NULL_ARGUMENT;
        }
        let Some(client) = context.tickets.get(ticket) else { return BP_STALE_HANDLE };
        match client.acquire(want.max(1), clock::instant(deadline_ns)) {
            Ok(threads) => {
                // SAFETY: not null, and the plugin passes a place to write to.
                unsafe { *granted = threads };
                BP_OK
            }
            Err(_) => BP_DEADLINE_EXCEEDED,
        }
    })
}

unsafe extern "C" fn release(host: *const bp_host, ticket: bp_ticket, granted: u32) -> bp_code {
    answer(|| {
        // SAFETY: the plugin passes the table it was given.
        let Some(context) = (unsafe { context(host) }) else { return BP_NULL_ARGUMENT };
        let Some(client) = context.tickets.get(ticket) else { return BP_STALE_HANDLE };
        match client.release(granted) {
            Ok(()) => BP_OK,
            Err(_) => BP_BAD_STATE,
        }
    })
}

unsafe extern "C" fn license_state(host: *const bp_host, state: *mut i32, revision: *mut u64) -> bp_code {
    answer(|| {
        // SAFETY: the plugin passes the table it was given, and null or places to write to.
        let (context, state, revision) = unsafe { (context(host), state.as_mut(), revision.as_mut()) };
        let Some(gate) = context.and_then(|context| context.licence.as_ref()) else {
            return BP_NULL_ARGUMENT;
        };
        // The number first: who reads an old one with a new state only asks once more.
        if let Some(revision) = revision {
            *revision = gate.revision();
        }
        if let Some(state) = state {
            let standing = gate.standing();
            *state = match standing.state {
                State::Unknown => BP_LICENSE_UNKNOWN,
                State::Grace => BP_LICENSE_GRACE,
                _ if standing.serves => BP_LICENSE_OK,
                _ => BP_LICENSE_DENIED,
            };
        }
        BP_OK
    })
}

unsafe extern "C" fn license_feature(
    host: *const bp_host,
    tenant: bp_str,
    name: bp_str,
    value: *mut i64,
) -> bp_code {
    answer(|| {
        // SAFETY: the plugin passes the table it was given, texts valid until we return, and null or a place to write to.
        let (context, tenant, name, value) =
            unsafe { (context(host), tenant.text(), name.text(), value.as_mut()) };
        let gate = context.and_then(|context| context.licence.as_ref());
        let (Some(gate), Some(value)) = (gate, value) else { return BP_NULL_ARGUMENT };
        let (Some(tenant), Some(name)) = (tenant, name) else { return BP_INVALID_ARGUMENT };
        match gate.feature(tenant, name) {
            Some(has) => {
                *value = has;
                BP_OK
            }
            None => BP_NOT_FOUND,
        }
    })
}

unsafe extern "C" fn license_envelope(
    host: *const bp_host,
    buf: *mut c_void,
    capacity: u64,
    len: *mut u64,
) -> bp_code {
    answer(|| {
        // SAFETY: the plugin passes the table it was given.
        let gate = unsafe { context(host) }.and_then(|context| context.licence.as_ref());
        let Some(gate) = gate else { return BP_NULL_ARGUMENT };
        let snapshot = gate.snapshot();
        // SAFETY: the plugin passes memory for as many bytes as it says, and a place to write to.
        unsafe { copy_out(snapshot.envelope.as_deref().unwrap_or_default(), buf, capacity, len) }
    })
}

unsafe extern "C" fn license_install_id(
    host: *const bp_host,
    buf: *mut c_void,
    capacity: u64,
    len: *mut u64,
) -> bp_code {
    answer(|| {
        // SAFETY: the plugin passes the table it was given.
        let Some(context) = (unsafe { context(host) }) else { return BP_NULL_ARGUMENT };
        let id = context.shared.licences.get().map_or("", LicenceBook::install_id);
        // SAFETY: the plugin passes memory for as many bytes as it says, and a place to write to.
        unsafe { copy_out(id.as_bytes(), buf, capacity, len) }
    })
}

unsafe extern "C" fn call_start(host: *const bp_host, call: *const bp_call, out: *mut bp_req) -> bp_code {
    answer(|| {
        // SAFETY: the plugin passes the table it was given, and a call valid until we return.
        let (context, call) = unsafe { (context(host), read::call(call, Reader::Lenient)) };
        let Some(context) = context else { return BP_NULL_ARGUMENT };
        let Ok(call) = call else { return BP_BAD_STRUCT };
        let (Some(on_chunk), Some(on_done), false) = (call.on_chunk, call.on_done, out.is_null()) else {
            return BP_NULL_ARGUMENT;
        };
        let Some(parent) = context.exchanges.get(call.parent) else { return BP_STALE_HANDLE };
        let Some(hook) = context.shared.calls.get() else { return BP_FAILED_PRECONDITION };
        let parent = &parent.spec;
        let texts = (call.capability.text(), call.model.text(), call.params_json.text());
        let (Some(capability), Some(model), Some(params)) = texts else { return BP_INVALID_ARGUMENT };
        let itself = parent.trail.iter().any(|name| **name == *model);
        if MAX_DEPTH <= parent.trail.len() || itself {
            return BP_FAILED_PRECONDITION;
        }
        let mut request =
            Request::new(parent.caller.clone(), capability, if params.is_empty() { "{}" } else { params });
        request.model = (!model.is_empty()).then(|| model.to_owned());
        request.traceparent = (!parent.traceparent.is_empty()).then(|| parent.traceparent.clone());
        request.deadline = [parent.deadline, clock::instant(call.deadline_ns)].into_iter().flatten().min();
        request.priority = parent.priority;
        request.parent = Some(Parent { models: parent.trail.clone() });
        request.tensors = match own_tensors(context, call.tensors) {
            Ok(tensors) => tensors,
            Err(code) => return code,
        };
        request.device = call.flags & BP_CALL_DEVICE != 0;
        if request.device || request.tensors.iter().any(|tensor| tensor.place.is_some()) {
            // What is kept would keep memory of the device.
            request.cache = CacheUse::Bypass;
        }
        let cancelled = Arc::new(Notify::new());
        let handle = context.calls.insert(cancelled.clone());
        // SAFETY: not null, and the plugin passes a place to write to. Written before any callback can come.
        unsafe { *out = handle };
        let back = Back { ctx: call.ctx, on_chunk, on_done };
        hook(PluginCall { request: Some(request), back, cancelled, plugin: context, handle, ended: false });
        BP_OK
    })
}

unsafe extern "C" fn call_cancel(host: *const bp_host, call: bp_req) -> bp_code {
    answer(|| {
        // SAFETY: the plugin passes the table it was given.
        let Some(context) = (unsafe { context(host) }) else { return BP_NULL_ARGUMENT };
        match context.calls.get(call) {
            Some(cancelled) => {
                // Kept until somebody waits for it.
                cancelled.notify_one();
                BP_OK
            }
            None => BP_STALE_HANDLE,
        }
    })
}
