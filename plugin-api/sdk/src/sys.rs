//! The tables behind the traits: the one module of the SDK with `unsafe` in it.
//!
//! Inwards, [`entry`] makes a `bp_plugin` out of a [`Plugin`] and every function of it catches panics. Outwards, the
//! free functions call the host. Strings and tensors of a request are borrowed from the host until `finish`, which
//! is why [`Request`] lends them only for as long as it lives itself.
#![expect(unsafe_code, reason = "the plugin's end of the C ABI; everything above this file is safe")]

use crate::call::{Answer, AnswerTensor, Call};
use crate::host::{Host, Level};
use crate::license::{License, Standing};
use crate::plugin::{Done, Execution, Health, Instance, Model, ModelSpec, Permit, Plugin, Query, Seat};
use crate::request::{Chunk, Pushed, Request};
use crate::tensor::{Tensor, TensorView};
use crate::{Error, Result};
use backplane_abi::code::Code;
use backplane_abi::read::{self, Reader, Refused, Rows, Size, Str};
use backplane_abi::table::*;
use backplane_abi::{ABI_MINOR, clock};
use serde_json::Value;
use std::borrow::Cow;
use std::cell::RefCell;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

// SAFETY: every function of bp_host is tagged [any] in the header, and the host outlives the plugin.
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}
// SAFETY: the raw pointers point to memory of the host's that stays valid and unchanged until finish (header,
// bp_request), whatever thread reads it.
unsafe impl Send for Request {}
// SAFETY: as above; all methods that take &self only read, or call host functions tagged [any].
unsafe impl Sync for Request {}

/// Runs foreign or fallible code; a panic becomes an error that poisons the instance.
pub fn guard<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| Err(panic_error(payload)))
}

fn panic_error(payload: Box<dyn std::any::Any + Send>) -> Error {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "with something that is not text".to_owned());
    // A payload whose Drop panics would unwind out of here, across the C boundary.
    std::mem::forget(payload);
    Error::panic(text)
}

// ---- the plugin's side ------------------------------------------------------------------------------------------

struct PluginBox<P> {
    table: bp_plugin,
    host: Host,
    plugin: OnceLock<P>,
}

/// What `bp_entry_v1` of `export_plugin!` does.
///
/// # Safety
/// As the header says of `bp_entry_v1`: `host` is a host's table that outlives the plugin, `out` can be written to.
pub unsafe fn entry<P: Plugin>(
    version: &'static str,
    host: *const bp_host,
    out: *mut *mut bp_plugin,
) -> bp_code {
    if host.is_null() || out.is_null() {
        return BP_NULL_ARGUMENT;
    }
    // SAFETY: the caller's promise.
    if unsafe { read::known(host, Reader::Strict) }.is_err() {
        return BP_BAD_STRUCT;
    }
    let mut plugin =
        Box::new(PluginBox::<P> { table: bp_plugin::new(), host: Host(host), plugin: OnceLock::new() });
    plugin.table = bp_plugin {
        abi_minor_built: ABI_MINOR,
        abi_minor_min: 0,
        id: bp_str::new(P::ID),
        version: bp_str::new(version),
        init: Some(init::<P>),
        bid: Some(bid::<P>),
        model_open: Some(model_open::<P>),
        shutdown: Some(shutdown::<P>),
        ..bp_plugin::new()
    };
    let plugin = Box::into_raw(plugin);
    // SAFETY: just made; the table is the first thing the host sees of it, `self_` the way back. Null was checked.
    unsafe {
        (*plugin).table.self_ = plugin.cast();
        *out = &raw mut (*plugin).table;
    }
    BP_OK
}

/// The box behind a table that [`entry`] made.
///
/// # Safety
/// `plugin` came from `entry::<P>` and was not shut down.
unsafe fn plugin_of<'a, P: Plugin>(plugin: *mut bp_plugin) -> &'a PluginBox<P> {
    // SAFETY: the caller's promise; `self_` was set by `entry`.
    unsafe { &*(*plugin).self_.cast::<PluginBox<P>>() }
}

unsafe extern "C" fn init<P: Plugin>(plugin: *mut bp_plugin, config_json: bp_str, err: bp_err) -> bp_code {
    // SAFETY: the host calls with what `entry` gave it.
    let this = unsafe { plugin_of::<P>(plugin) };
    if this.plugin.get().is_some() {
        return BP_BAD_STATE;
    }
    answer(this.host, err, || {
        // SAFETY: valid until we return, says the header.
        let text = unsafe { config_json.bytes() };
        let config =
            if text.is_empty() { Value::Object(Default::default()) } else { serde_json::from_slice(text)? };
        let made = P::init(this.host, &config)?;
        this.plugin.set(made).map_err(|_| Error::internal("init was called twice"))
    })
}

thread_local! {
    /// Text of the last bid on this thread: the header lets the host read it until the next.
    static BID_TEXT: RefCell<String> = const { RefCell::new(String::new()) };
}

unsafe extern "C" fn bid<P: Plugin>(
    plugin: *mut bp_plugin,
    query: *const bp_query,
    out: *mut bp_bid,
) -> bp_code {
    // SAFETY: the host calls with what `entry` gave it; the query is valid until we return.
    let (this, query) = unsafe { (plugin_of::<P>(plugin), bp_query::read(query, 0)) };
    // SAFETY: null, or a bid of the host's that says how long it is.
    let (Some(query), Some(_)) = (query, unsafe { bp_bid::read(out, 0) }) else { return BP_BAD_STRUCT };
    let Some(plugin) = this.plugin.get() else { return BP_BAD_STATE };
    let claim = guard(|| {
        Ok(plugin.bid(&Query {
            capability: text(&query.capability),
            format: text(&query.format),
            model_json: text(&query.model_json),
            input_bytes: query.input_bytes,
        }))
    });
    let claim = match claim {
        Ok(claim) => claim,
        Err(error) => {
            log(this.host, Level::Error, &format!("bid: {error}"));
            return BP_INTERNAL;
        }
    };
    BID_TEXT.with_borrow_mut(|text| *text = claim.text);
    let filled = bp_bid {
        score: claim.score.min(1000),
        quality: claim.quality.min(1000),
        max_batch: 0,
        valid_ms: claim.valid_ms,
        bytes_dev: claim.device_bytes,
        bytes_host: claim.host_bytes,
        reason: claim.reason as i32,
        text: BID_TEXT.with_borrow(|text| bp_str::new(text)),
        ..bp_bid::new()
    };
    // SAFETY: not null; the host says in struct_size how much of it may be written.
    unsafe { write_known(&filled, out) };
    BP_OK
}

/// Writes as much of `from` as the other side has room for, and leaves its `struct_size` as it is.
///
/// # Safety
/// `to` points to `struct_size` bytes that can be written.
unsafe fn write_known<T: Sized32>(from: &T, to: *mut T) {
    // SAFETY: the caller's promise; both begin with struct_size (Sized32).
    unsafe {
        let room = to.cast::<u32>().read();
        let size = (room as usize).min(size_of::<T>());
        std::ptr::copy_nonoverlapping((&raw const *from).cast::<u8>(), to.cast::<u8>(), size);
        to.cast::<u32>().write(room);
    }
}

unsafe extern "C" fn model_open<P: Plugin>(
    plugin: *mut bp_plugin,
    model_json: bp_str,
    out: *mut *mut bp_model,
    err: bp_err,
) -> bp_code {
    // SAFETY: the host calls with what `entry` gave it.
    let this = unsafe { plugin_of::<P>(plugin) };
    let Some(plugin) = this.plugin.get() else { return BP_BAD_STATE };
    if out.is_null() {
        return BP_NULL_ARGUMENT;
    }
    answer(this.host, err, || {
        // SAFETY: valid until we return.
        let spec: ModelSpec = serde_json::from_slice(unsafe { model_json.bytes() })?;
        let model = ModelBox::leak(this.host, &spec, plugin.open(&spec)?)?;
        // SAFETY: the host passes a place to write to.
        unsafe { *out = model };
        Ok(())
    })
}

unsafe extern "C" fn shutdown<P: Plugin>(plugin: *mut bp_plugin) {
    // SAFETY: the host calls this once, with what `entry` gave it and nothing else left of it.
    let this = unsafe { Box::from_raw((*plugin).self_.cast::<PluginBox<P>>()) };
    let host = this.host;
    if let Err(error) = guard(|| {
        drop(this);
        Ok(())
    }) {
        log(host, Level::Error, &format!("shutdown: {error}"));
    }
}

struct ModelBox {
    table: bp_model,
    host: Host,
    describe: String,
    card: Arc<Card>,
    model: Box<dyn Model>,
}

/// What a model was opened to serve.
struct Card {
    name: String,
    capabilities: Vec<String>,
}

impl Card {
    /// Requests for other capabilities are refused by the SDK, so that no plugin answers a question nobody asked.
    fn serves(&self, capability: &str) -> bool {
        self.capabilities.is_empty() || self.capabilities.iter().any(|served| served == capability)
    }

    fn refuse(&self, request: Request) {
        let (name, asked, served) = (&self.name, request.capability(), self.capabilities.join("`, `"));
        let message = format!("model `{name}` does not serve `{asked}`, it serves `{served}`");
        request.finish(Err(Error::new(Code::Unimplemented, message)));
    }
}

impl ModelBox {
    fn leak(host: Host, spec: &ModelSpec, model: Box<dyn Model>) -> Result<*mut bp_model> {
        let describe = serde_json::to_string(&model.describe())
            .map_err(|error| Error::internal(format!("the model's description is not JSON: {error}")))?;
        let (exec_class, max_inflight, max_batch) = match model.execution() {
            Execution::Serial { max_batch } => (BP_SERIAL, 1, max_batch),
            Execution::Concurrent { max_inflight, max_batch } => (BP_CONCURRENT, max_inflight, max_batch),
            Execution::Continuous { max_inflight } => (BP_CONTINUOUS, max_inflight, 1),
        };
        let card = Arc::new(Card { name: spec.name.clone(), capabilities: spec.capabilities.clone() });
        let boxed = Box::into_raw(Box::new(ModelBox { table: bp_model::new(), host, describe, card, model }));
        // SAFETY: just made, and nobody else has it yet. `describe` does not move: it is behind the box.
        unsafe {
            (*boxed).table = bp_model {
                self_: boxed.cast(),
                exec_class,
                max_inflight: max_inflight.max(1),
                max_batch: max_batch.max(1),
                cancel_grace_ms: 5_000,
                describe_json: bp_str::new(&(*boxed).describe),
                instance_new: Some(instance_new),
                get_extension: Some(model_extension),
                close: Some(model_close),
                ..bp_model::new()
            };
            Ok(&raw mut (*boxed).table)
        }
    }
}

/// # Safety
/// `model` came from [`ModelBox::leak`] and was not closed.
unsafe fn model_of<'a>(model: *mut bp_model) -> &'a ModelBox {
    // SAFETY: the caller's promise.
    unsafe { &*(*model).self_.cast::<ModelBox>() }
}

unsafe extern "C" fn instance_new(
    model: *mut bp_model,
    placement: *const bp_placement,
    out: *mut *mut bp_instance,
    err: bp_err,
) -> bp_code {
    // SAFETY: the host calls with what model_open gave it, and a valid placement.
    let (this, placement) = unsafe { (model_of(model), bp_placement::read(placement, 0)) };
    answer(this.host, err, || {
        let placement =
            placement.ok_or_else(|| Error::internal("instance_new was called without a placement"))?;
        let seat = Seat {
            host: this.host,
            ticket: placement.ticket,
            threads: placement.threads.max(1),
            index: placement.index,
        };
        let instance = this.model.instance(&seat)?;
        let boxed = Box::into_raw(Box::new(InstanceBox {
            table: bp_instance::new(),
            host: this.host,
            card: this.card.clone(),
            instance,
        }));
        // SAFETY: just made, nobody else has it yet; the host passes a place to write to.
        unsafe {
            (*boxed).table = bp_instance {
                self_: boxed.cast(),
                submit: Some(submit),
                cancel: Some(cancel),
                health: Some(health),
                quiesce: Some(quiesce),
                destroy: Some(instance_destroy),
                ..bp_instance::new()
            };
            *out = &raw mut (*boxed).table;
        }
        Ok(())
    })
}

unsafe extern "C" fn model_extension(_model: *mut bp_model, id: bp_str) -> *const c_void {
    static TOKENS: bp_tokens_1 =
        bp_tokens_1 { struct_size: size_of::<bp_tokens_1>() as u32, flags: 0, count: Some(count_tokens) };
    static STATS: bp_stats_1 =
        bp_stats_1 { struct_size: size_of::<bp_stats_1>() as u32, flags: 0, read: Some(read_stats) };
    match text(&id) {
        BP_EXT_TOKENS_1 => (&raw const TOKENS).cast(),
        BP_EXT_STATS_1 => (&raw const STATS).cast(),
        _ => std::ptr::null(),
    }
}

unsafe extern "C" fn count_tokens(
    model: *mut bp_model,
    capability: bp_str,
    params_json: bp_str,
    tokens: *mut u64,
    err: bp_err,
) -> bp_code {
    // SAFETY: the host calls with what model_open gave it.
    let this = unsafe { model_of(model) };
    answer(this.host, err, || {
        let counted = this.model.count_tokens(text(&capability), text(&params_json))?;
        let counted =
            counted.ok_or_else(|| Error::new(Code::Unimplemented, "this model does not count tokens"))?;
        // SAFETY: the host passes a place to write to.
        unsafe { *tokens = counted };
        Ok(())
    })
}

unsafe extern "C" fn read_stats(
    model: *mut bp_model,
    ctx: *mut c_void,
    each: Option<unsafe extern "C" fn(ctx: *mut c_void, name: bp_str, value: f64)>,
) -> bp_code {
    // SAFETY: the host calls with what model_open gave it.
    let this = unsafe { model_of(model) };
    let Some(each) = each else { return BP_NULL_ARGUMENT };
    answer(this.host, 0, || {
        // SAFETY: `ctx` and `each` belong together and are valid until we return.
        this.model.stats(&mut |name, value| unsafe { each(ctx, bp_str::new(name), value) });
        Ok(())
    })
}

unsafe extern "C" fn model_close(model: *mut bp_model) {
    // SAFETY: the host calls this once, with no instance left.
    let this = unsafe { Box::from_raw((*model).self_.cast::<ModelBox>()) };
    let host = this.host;
    if let Err(error) = guard(|| {
        drop(this);
        Ok(())
    }) {
        log(host, Level::Error, &format!("closing a model: {error}"));
    }
}

struct InstanceBox {
    table: bp_instance,
    host: Host,
    card: Arc<Card>,
    instance: Box<dyn Instance>,
}

/// # Safety
/// `instance` came from [`instance_new`] and was not destroyed.
unsafe fn instance_of<'a>(instance: *mut bp_instance) -> &'a InstanceBox {
    // SAFETY: the caller's promise.
    unsafe { &*(*instance).self_.cast::<InstanceBox>() }
}

unsafe extern "C" fn submit(
    instance: *mut bp_instance,
    requests: *const bp_request,
    n: u32,
    stride: u32,
    _err: bp_err,
) -> bp_code {
    // SAFETY: the host calls with what instance_new gave it.
    let this = unsafe { instance_of(instance) };
    if requests.is_null() || (stride as usize) < 8 {
        return BP_BAD_STRUCT;
    }
    let mut taken = Vec::with_capacity(n as usize);
    for row in 0..n as usize {
        // SAFETY: n rows at this stride, says the header; each begins with its size.
        let raw = unsafe { read::known(requests.byte_add(row * stride as usize), Reader::Strict) };
        match raw {
            Ok(raw) => taken.push(Request { raw, host: this.host, finished: false }),
            Err(_refused) => {
                // An error leaves every request with the host, so none may be finished by its Drop.
                taken.iter_mut().for_each(|request| request.finished = true);
                return BP_BAD_STRUCT;
            }
        }
    }
    // From here on every request is finished, by the instance or by its Drop: the answer is OK even after a panic.
    if let Err(error) = guard(|| {
        let foreign = taken.extract_if(.., |request| !this.card.serves(request.capability()));
        foreign.for_each(|request| this.card.refuse(request));
        if !taken.is_empty() {
            this.instance.submit(taken);
        }
        Ok(())
    }) {
        log(this.host, Level::Error, &format!("submit: {error}"));
    }
    BP_OK
}

unsafe extern "C" fn cancel(instance: *mut bp_instance, request: bp_req) -> bp_code {
    // SAFETY: the host calls with what instance_new gave it.
    let this = unsafe { instance_of(instance) };
    answer(this.host, 0, || {
        this.instance.cancel(request);
        Ok(())
    })
}

unsafe extern "C" fn health(instance: *mut bp_instance, state: *mut i32, err: bp_err) -> bp_code {
    // SAFETY: the host calls with what instance_new gave it.
    let this = unsafe { instance_of(instance) };
    answer(this.host, err, || {
        let (raw, why) = match this.instance.health() {
            Health::Ready => (BP_HEALTH_READY, None),
            Health::Degraded(why) => (BP_HEALTH_DEGRADED, Some(why)),
            Health::NotReady(why) => (BP_HEALTH_NOT_READY, Some(why)),
            Health::Failed(why) => (BP_HEALTH_FAILED, Some(why)),
        };
        // SAFETY: the host passes a place to write to.
        unsafe { *state = raw };
        if let Some(why) = why {
            set_error(this.host, err, &Error::new(Code::Unavailable, why));
        }
        Ok(())
    })
}

unsafe extern "C" fn quiesce(instance: *mut bp_instance, deadline_ns: i64) -> bp_code {
    // SAFETY: the host calls with what instance_new gave it.
    let this = unsafe { instance_of(instance) };
    answer(this.host, 0, || {
        if this.instance.quiesce(clock::instant(deadline_ns)) {
            Ok(())
        } else {
            Err(Error::new(Code::DeadlineExceeded, "requests are still open"))
        }
    })
}

unsafe extern "C" fn instance_destroy(instance: *mut bp_instance) {
    // SAFETY: the host calls this once, with no request open.
    let this = unsafe { Box::from_raw((*instance).self_.cast::<InstanceBox>()) };
    let host = this.host;
    if let Err(error) = guard(|| {
        drop(this);
        Ok(())
    }) {
        log(host, Level::Error, &format!("destroying an instance: {error}"));
    }
}

/// Runs the body of a table's function: errors and panics become a code, with the reason left in `err`.
fn answer(host: Host, err: bp_err, work: impl FnOnce() -> Result<()>) -> bp_code {
    match guard(work) {
        Ok(()) => BP_OK,
        Err(error) => {
            if err != 0 {
                set_error(host, err, &error);
            } else {
                log(host, Level::Error, &error.message);
            }
            error.code as bp_code
        }
    }
}

// ---- the host's side --------------------------------------------------------------------------------------------

/// Calls a function of the host's table; absent ones answer UNIMPLEMENTED.
macro_rules! host_call {
    ($host:expr, $name:ident ( $($arg:expr),* )) => {{
        let host: Host = $host;
        // SAFETY: `entry` checked that the table reaches up to `finish`; the host outlives the plugin; the arguments
        // are valid for the call, as the header asks.
        unsafe { match (*host.0).$name { Some(function) => function(host.0, $($arg),*), None => BP_UNIMPLEMENTED } }
    }};
}

/// Text of the host's or of ours, which may not be UTF-8.
pub fn bytes(from: &bp_str) -> &[u8] {
    // SAFETY: as `text`.
    unsafe { from.bytes() }
}

/// Text of the host's or of ours; what is not UTF-8 reads as empty.
pub fn text(from: &bp_str) -> &str {
    // SAFETY: the structs we are given hold strings valid for as long as the struct is used (header, Ownership), and
    // the borrow of `from` is no longer than that.
    unsafe { from.text() }.unwrap_or_default()
}

pub fn log(host: Host, level: Level, message: &str) {
    // SAFETY: as host_call.
    unsafe {
        if let Some(log) = (*host.0).log {
            log(host.0, level as i32, bp_str::new(message), bp_str::EMPTY);
        }
    }
}

pub fn host_name(host: Host) -> (String, String) {
    // SAFETY: the host outlives the plugin.
    let table = unsafe { &*host.0 };
    (text(&table.name).to_owned(), text(&table.version).to_owned())
}

/// Shows `error` as the struct that crosses the ABI, for the length of `with`.
fn with_raw<R>(error: &Error, with: impl FnOnce(&bp_error) -> R) -> R {
    let details = if error.details.is_empty() {
        String::new()
    } else {
        serde_json::to_string(&error.details).unwrap_or_default()
    };
    with(&bp_error {
        code: error.code as bp_code,
        sub: match (error.panicked, error.fatal, error.poisons) {
            (true, ..) => BP_SUB_PANIC,
            (_, true, _) => BP_SUB_FATAL,
            (_, _, true) => BP_SUB_POISONED,
            _ => BP_SUB_NONE,
        },
        retry_after_ms: error
            .retry_after
            .map_or(0, |wait| u32::try_from(wait.as_millis()).unwrap_or(u32::MAX)),
        message: bp_str::new(&error.message),
        reason: bp_str::new(error.reason.as_deref().unwrap_or_default()),
        details_json: bp_str::new(&details),
        ..bp_error::new()
    })
}

fn set_error(host: Host, err: bp_err, error: &Error) {
    with_raw(error, |raw| {
        host_call!(host, set_error(err, raw));
    });
}

pub fn finish(request: &Request, result: Result<Done>) {
    let finish = |raw: &bp_done| {
        let code = host_call!(request.host, finish(request.raw.sink, raw));
        if code != BP_OK && code != BP_STALE_HANDLE {
            log(request.host, Level::Error, &format!("finish was refused with {code}"));
        }
    };
    match result {
        Ok(done) => {
            let usage =
                done.usage.map(|usage| serde_json::to_string(&usage).unwrap_or_default()).unwrap_or_default();
            finish(&bp_done {
                usage_json: bp_str::new(&usage),
                confidence: done.confidence.unwrap_or(-1.0),
                ..bp_done::new()
            });
        }
        Err(error) => {
            with_raw(&error, |raw| finish(&bp_done { error: raw, confidence: -1.0, ..bp_done::new() }));
        }
    }
}

pub fn is_cancelled(request: &Request) -> bool {
    let word = request.raw.cancel;
    // SAFETY: null, or a word that stays valid until finish, and is written by the host as an atomic.
    !word.is_null() && unsafe { &*word.cast::<AtomicU32>() }.load(Ordering::Relaxed) != 0
}

pub fn push(request: &Request, chunk: &Chunk) -> Pushed {
    let tensors = Lending::new(request.host, &chunk.tensors);
    let raw = bp_chunk {
        json: bp_str::new(&chunk.json),
        tensors: tensors.rows.as_ptr(),
        n_tensors: tensors.rows.len() as u32,
        stride: size_of::<bp_tensor>() as u32,
        ..bp_chunk::new()
    };
    match host_call!(request.host, push(request.raw.sink, &raw)) {
        BP_OK => Pushed::Taken,
        BP_WOULD_BLOCK => Pushed::Full,
        _ => Pushed::Cancelled,
    }
}

/// Tensors of ours as the structs that cross, for the length of one call of the host. Dropped, it gives back its own
/// references to the buffers; those that the host took stay.
struct Lending<'a> {
    host: Host,
    rows: Vec<bp_tensor>,
    _tensors: &'a [Tensor],
}

impl<'a> Lending<'a> {
    fn new(host: Host, tensors: &'a [Tensor]) -> Self {
        let row = |tensor: &Tensor| {
            let (code, bits) = tensor.dtype.raw();
            let large = tensor.data.len() >= SHARE_FROM;
            bp_tensor {
                name: bp_str::new(&tensor.name),
                dev_type: BP_DEV_CPU,
                code,
                bits,
                lanes: 1,
                ndim: tensor.shape.len() as i32,
                shape: tensor.shape.as_ptr(),
                nbytes: tensor.data.len() as u64,
                data: tensor.data.as_ptr().cast_mut().cast(),
                // Where no buffer can be had the host copies.
                buffer: if large { tensor.data.share(host).unwrap_or_default() } else { 0 },
                ..bp_tensor::new()
            }
        };
        Self { host, rows: tensors.iter().map(row).collect(), _tensors: tensors }
    }
}

impl Drop for Lending<'_> {
    fn drop(&mut self) {
        for row in self.rows.iter().filter(|row| row.buffer != 0) {
            host_call!(self.host, buf_release(row.buffer));
        }
    }
}

/// From this size on a tensor is shared with the host rather than copied by it: below, the copy is cheaper than the
/// handle.
const SHARE_FROM: usize = 4096;

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

    fn as_ptr(&self) -> *const u8 {
        self.0.as_bytes().as_ptr()
    }

    /// A buffer of the host's over this memory, with one reference.
    fn share(&self, host: Host) -> Option<bp_buf> {
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

pub fn tensors(request: &Request) -> Result<Vec<TensorView<'_>>> {
    let raw = &request.raw;
    // SAFETY: n_in rows at in_stride, valid until finish (header, bp_request), and the views borrow the request.
    views(unsafe { Rows::new(raw.r#in, raw.n_in, raw.in_stride) })
}

/// The tensors of an array, each with a name of its own.
fn views(rows: Rows<'_>) -> Result<Vec<TensorView<'_>>> {
    let read = rows.tensors(Reader::Strict).map_err(|refused| match &refused {
        Refused::Rows { count, stride } => {
            Error::internal(format!("the host sent {count} tensors at a stride of {stride} bytes"))
        }
        Refused::Struct(_) => Error::invalid("a tensor of the request is malformed"),
        Refused::Text(_) => Error::invalid(refused.to_string()),
        Refused::Tensor { name, .. } => Error::invalid(refused.to_string()).with_param(name),
    })?;
    let tensors = read.iter().map(view).collect::<Result<Vec<_>>>()?;
    let mut names: Vec<_> = tensors.iter().map(TensorView::name).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Error::invalid(format!("tensor `{}` comes twice", pair[0])).with_param(pair[0])),
        None => Ok(tensors),
    }
}

/// A tensor as the SDK shows it: in CPU memory, dense, with exactly the bytes that its shape takes. After this
/// function nothing about its shape is in doubt.
fn view<'a>(tensor: &read::Tensor<'a>) -> Result<TensorView<'a>> {
    let &read::Tensor { name, dtype, shape, strides, memory } = tensor;
    if strides.is_some() {
        return Err(Error::invalid(format!("tensor `{name}` is not dense")).with_param(name));
    }
    // SAFETY: the host's own, which its data lies in whether or not a buffer is named (header, bp_tensor).
    let data = unsafe { memory.bytes() };
    tensor.check(data).map_err(|refused| Error::invalid(refused.to_string()).with_param(name))?;
    Ok(TensorView { name, dtype, shape, data })
}

// ---- extensions of the host -------------------------------------------------------------------------------------

/// The host's extension, if it is there and at least as long as we need it.
fn extension<T: Size>(host: Host, id: &'static str) -> Option<T> {
    // SAFETY: as host_call; the table lives as long as the host.
    unsafe {
        let get = (*host.0).get_extension?;
        read::known(get(host.0, bp_str::new(id)).cast::<T>(), Reader::Strict).ok()
    }
}

pub fn acquire(host: Host, ticket: u64, want: u32, deadline: Option<Instant>) -> Result<Permit> {
    let want = want.max(1);
    let Some(acquire) = extension::<bp_compute_1>(host, BP_EXT_COMPUTE_1).and_then(|table| table.acquire)
    else {
        return Ok(Permit { host, ticket, granted: want, pooled: false });
    };
    let mut granted = 0;
    // SAFETY: a function of the host's, with a place to write to.
    match unsafe { acquire(host.0, ticket, want, clock::deadline_ns(deadline), &raw mut granted) } {
        BP_OK => Ok(Permit { host, ticket, granted, pooled: true }),
        BP_DEADLINE_EXCEEDED => {
            Err(Error::new(Code::DeadlineExceeded, "no CPU thread was free before the deadline"))
        }
        code => Err(Error::internal(format!("the host refused CPU threads with {code}"))),
    }
}

pub fn release(permit: &Permit) {
    if !permit.pooled {
        return;
    }
    if let Some(release) =
        extension::<bp_compute_1>(permit.host, BP_EXT_COMPUTE_1).and_then(|table| table.release)
    {
        // SAFETY: a function of the host's.
        unsafe { release(permit.host.0, permit.ticket, permit.granted) };
    }
}

/// The functions of `bp.license/1`, all of them there.
#[derive(Clone, Copy)]
pub struct LicenseTable {
    state: unsafe extern "C" fn(*const bp_host, *mut i32, *mut u64) -> bp_code,
    feature: unsafe extern "C" fn(*const bp_host, bp_str, bp_str, *mut i64) -> bp_code,
    bytes: [unsafe extern "C" fn(*const bp_host, *mut c_void, u64, *mut u64) -> bp_code; 2],
}

pub fn license(host: Host) -> Option<License> {
    let known = extension::<bp_license_1>(host, BP_EXT_LICENSE_1)?;
    let bytes = [known.envelope?, known.install_id?];
    Some(License { host, table: LicenseTable { state: known.state?, feature: known.feature?, bytes } })
}

pub fn license_state(license: &License) -> (Standing, u64) {
    let (mut state, mut revision) = (BP_LICENSE_UNKNOWN, 0);
    // SAFETY: a function of the host's, with places to write to.
    let code = unsafe { (license.table.state)(license.host.0, &raw mut state, &raw mut revision) };
    let standing = match (code, state) {
        (BP_OK, BP_LICENSE_OK) => Standing::Licensed,
        (BP_OK, BP_LICENSE_GRACE) => Standing::Grace,
        (BP_OK, BP_LICENSE_DENIED) => Standing::Denied,
        _ => Standing::Unknown,
    };
    (standing, revision)
}

pub fn license_feature(license: &License, tenant: &str, name: &str) -> Option<i64> {
    let mut value = 0;
    let (tenant, name) = (bp_str::new(tenant), bp_str::new(name));
    // SAFETY: a function of the host's, with texts that are valid until it returns and a place to write to.
    let code = unsafe { (license.table.feature)(license.host.0, tenant, name, &raw mut value) };
    (code == BP_OK).then_some(value)
}

pub fn license_bytes(license: &License, install_id: bool) -> Option<Vec<u8>> {
    /// More than a licence takes.
    const MOST: u64 = 1 << 20;
    let read = license.table.bytes[usize::from(install_id)];
    let mut bytes: Vec<u8> = Vec::new();
    loop {
        let mut len = 0;
        // SAFETY: a function of the host's, with as much room as is said and a place to write to.
        let code =
            unsafe { read(license.host.0, bytes.as_mut_ptr().cast(), bytes.len() as u64, &raw mut len) };
        match code {
            BP_OK => {
                bytes.truncate(len as usize);
                return Some(bytes);
            }
            // Another may take its place between two calls.
            BP_OUT_OF_RANGE if (bytes.len() as u64) < len && len <= MOST => bytes.resize(len as usize, 0),
            _ => return None,
        }
    }
}

/// Where the callbacks of a call leave what came.
#[derive(Default)]
struct Inbox {
    state: Mutex<Received>,
    done: Condvar,
}

#[derive(Default)]
struct Received {
    answer: Answer,
    /// What was wrong with a piece: the host hears only that the call is to end, the plugin hears why.
    broken: Option<Error>,
    end: Option<Result<()>>,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Received> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub fn call(call: Call<'_>) -> Result<Answer> {
    let host = call.request.host;
    let table = extension::<bp_call_1>(host, BP_EXT_CALL_1)
        .ok_or_else(|| Error::new(Code::Unimplemented, "this host does not let plugins call each other"))?;
    let (Some(start), Some(cancel)) = (table.start, table.cancel) else {
        return Err(Error::new(Code::Unimplemented, "this host does not let plugins call each other"));
    };
    let inbox = Arc::new(Inbox::default());
    let ctx = Arc::into_raw(inbox.clone());
    let tensors = Lending::new(host, &call.tensors);
    let raw = bp_call {
        parent: call.request.raw.id,
        capability: bp_str::new(call.capability),
        model: bp_str::new(call.model),
        params_json: bp_str::new(&call.params),
        r#in: tensors.rows.as_ptr(),
        n_in: tensors.rows.len() as u32,
        in_stride: size_of::<bp_tensor>() as u32,
        deadline_ns: clock::deadline_ns(call.deadline),
        ctx: ctx.cast_mut().cast(),
        on_chunk: Some(on_chunk),
        on_done: Some(on_done),
        ..bp_call::new()
    };
    let mut handle = 0;
    // SAFETY: a function of the host's; everything in `raw` is copied, or shared by its buffer, before it returns.
    let code = unsafe { start(host.0, &raw, &raw mut handle) };
    drop(tensors);
    if code != BP_OK {
        // SAFETY: no callback comes after an error, so the reference given away is still ours.
        drop(unsafe { Arc::from_raw(ctx) });
        let why = match code {
            BP_FAILED_PRECONDITION => "plugins call each other too deep, or this call would wait for itself",
            BP_STALE_HANDLE => "the request it is made for is finished",
            BP_UNIMPLEMENTED => "the host does not take tensors of this kind",
            _ => "the host refused the call",
        };
        return Err(Error::new(Code::from_raw(code), format!("call of `{}`: {why}", call.capability)));
    }
    let mut state = inbox.lock();
    let mut cancelled = false;
    loop {
        if let Some(result) = state.end.take() {
            return result.map(|()| std::mem::take(&mut state.answer));
        }
        if !cancelled && call.request.is_cancelled() {
            cancelled = true;
            // SAFETY: a function of the host's.
            unsafe { cancel(host.0, handle) };
        }
        state = inbox
            .done
            .wait_timeout(state, Duration::from_millis(5))
            .unwrap_or_else(PoisonError::into_inner)
            .0;
    }
}

unsafe extern "C" fn on_chunk(ctx: *mut c_void, chunk: *const bp_chunk) -> bp_code {
    // SAFETY: `ctx` is the Arc of `call`, alive until on_done; the chunk is valid until we return.
    let (inbox, chunk) = unsafe { (&*ctx.cast::<Inbox>(), read::chunk(chunk, Reader::Strict)) };
    let Ok(chunk) = chunk else { return BP_BAD_STRUCT };
    let taken = guard(|| {
        let json = String::from_utf8_lossy(chunk.json.bytes());
        let tensors = views(chunk.tensors)?;
        let tensors: Vec<_> = tensors.iter().map(AnswerTensor::copy).collect();
        let mut state = inbox.lock();
        if !json.is_empty() {
            state.answer.json.push(json.into_owned());
        }
        state.answer.tensors.extend(tensors);
        Ok(())
    });
    match taken {
        Ok(()) => BP_OK,
        Err(error) => {
            let code = error.code as bp_code;
            inbox.lock().broken.get_or_insert(error);
            code
        }
    }
}

unsafe extern "C" fn on_done(ctx: *mut c_void, done: *const bp_done) {
    // SAFETY: `ctx` is the Arc of `call`, given away to exactly this last callback.
    let inbox = unsafe { Arc::from_raw(ctx.cast::<Inbox>()) };
    let read = guard(|| {
        // SAFETY: valid until we return.
        let malformed = |_refused| Error::internal("the host ended the call with a malformed struct");
        let done = unsafe { read::done(done, Reader::Strict) }.map_err(malformed)?;
        match done.error {
            None => Ok((done.usage_json.text().unwrap_or_default().to_owned(), done.confidence)),
            Some(error) => Err(from_raw(&error.map_err(malformed)?)),
        }
    });
    let mut state = inbox.lock();
    let end = match (state.broken.take(), read) {
        (Some(error), _) | (None, Err(error)) => Err(error),
        (None, Ok((usage_json, confidence))) => {
            state.answer.usage_json = usage_json;
            state.answer.confidence = (confidence >= 0.0).then_some(confidence);
            Ok(())
        }
    };
    state.end = Some(end);
    inbox.done.notify_all();
}

fn from_raw(raw: &read::Failure<'_>) -> Error {
    let text = |text: Str<'_>| text.text().unwrap_or_default().to_owned();
    let mut error = Error::new(Code::from_raw(raw.code), text(raw.message));
    error.reason = Some(text(raw.reason)).filter(|reason| !reason.is_empty());
    error.details = serde_json::from_slice(raw.details_json.bytes()).unwrap_or_default();
    error.retry_after =
        (raw.retry_after_ms > 0).then(|| Duration::from_millis(u64::from(raw.retry_after_ms)));
    error
}
