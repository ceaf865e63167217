//! The host's functions, as a plugin calls them.

use super::{Buffer, CallInput, Host, License, Owner, Scarce, Taken, device, new_handle};
use crate::answer::{Chunk, End, Failure, TensorOutput};
use crate::fault::Fault;
use crate::input::Reader;
use backplane_abi::clock;
use backplane_abi::read::{self, OnChunk, OnDone, Str};
use backplane_abi::table::*;
use serde_json::Value;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The host behind a table.
///
/// # Safety
/// `host` is null or the table of a [`Host`].
pub(super) unsafe fn this(host: *const bp_host) -> Option<&'static Host> {
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

pub(super) unsafe extern "C" fn get_extension(host: *const bp_host, id: bp_str) -> *const c_void {
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
        BP_EXT_DEVICE_1 => (&raw const device::TABLE).cast(),
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

pub(super) unsafe extern "C" fn set_error(
    host: *const bp_host,
    err: bp_err,
    error: *const bp_error,
) -> bp_code {
    let host = host!(host);
    if error.is_null() {
        host.fault(Fault::Null { function: "set_error", argument: "error" });
        return BP_NULL_ARGUMENT;
    }
    if !host.errors.lock().contains_key(&err) {
        host.fault(Fault::StaleError);
        return BP_STALE_HANDLE;
    }
    // SAFETY: a bp_error by the header, valid until we return.
    let failure = match unsafe { read::failure(error, read::Reader::Strict) } {
        Ok(failure) => failure,
        Err(refused) => return host.refuse("set_error", &refused),
    };
    let Some(failure) = host.failure("set_error", &failure) else { return BP_BAD_STRUCT };
    host.errors.lock().insert(err, Some(failure));
    BP_OK
}

pub(super) unsafe extern "C" fn log(host: *const bp_host, level: i32, message: bp_str, fields_json: bp_str) {
    // SAFETY: plugins pass the table they were given, and text that lives through the call.
    let (Some(host), message, fields) = (unsafe { (this(host), Str::new(message), Str::new(fields_json)) })
    else {
        return;
    };
    let message = host.text("log", "message", message);
    host.object("log", "fields_json", fields);
    let mut lines = host.log.lock();
    if lines.len() < 1000 {
        lines.push((level, message.unwrap_or_default()));
    }
}

pub(super) unsafe extern "C" fn buf_alloc(
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

pub(super) unsafe extern "C" fn buf_wrap(
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
    let buffer = Buffer { data: data.cast(), len: nbytes as usize, plugin: 1, host: 0, owner, device: None };
    // SAFETY: not null; a place to write to, says the header.
    unsafe { *out = host.keep(buffer) };
    BP_OK
}

pub(super) unsafe extern "C" fn buf_retain(host: *const bp_host, buf: bp_buf) -> bp_code {
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

pub(super) unsafe extern "C" fn buf_release(host: *const bp_host, buf: bp_buf) -> bp_code {
    let host = host!(host);
    if host.unref(buf, 1, 0) {
        return BP_OK;
    }
    host.fault(Fault::StaleBuffer { function: "buf_release" });
    BP_STALE_HANDLE
}

pub(super) unsafe extern "C" fn out_alloc(
    host: *const bp_host,
    sink: bp_sink,
    spec: *mut bp_tensor,
) -> bp_code {
    let host = host!(host);
    // SAFETY: a bp_tensor by the header.
    let raw = match unsafe { read::known(spec, read::Reader::Lenient) } {
        Ok(raw) => raw,
        Err(refused) => return host.refuse("out_alloc", &refused),
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

pub(super) unsafe extern "C" fn push(host: *const bp_host, sink: bp_sink, chunk: *const bp_chunk) -> bp_code {
    let host = host!(host);
    // SAFETY: a bp_chunk by the header, valid until we return.
    let raw = match unsafe { read::chunk(chunk, read::Reader::Strict) } {
        Ok(raw) => raw,
        Err(refused) => return host.refuse("push", &refused),
    };
    let Some(exchange) = host.open_exchange("push", sink) else { return BP_STALE_HANDLE };
    let Some(json) = host.object("push", "the JSON of a chunk", raw.json) else { return BP_INVALID_ARGUMENT };
    let devices = exchange.input.flags & BP_REQUEST_DEVICE != 0;
    let Taken { tensors, held, on_device } = match host.tensors("push", raw.tensors, devices) {
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
    state.on_device.extend(on_device);
    drop(state);
    exchange.changed.notify_all();
    BP_OK
}

pub(super) unsafe extern "C" fn finish(host: *const bp_host, sink: bp_sink, done: *const bp_done) -> bp_code {
    let host = host!(host);
    // SAFETY: a bp_done by the header, valid until we return.
    let raw = match unsafe { read::done(done, read::Reader::Strict) } {
        Ok(raw) => raw,
        Err(refused) => return host.refuse("finish", &refused),
    };
    let Some(exchange) = host.open_exchange("finish", sink) else { return BP_STALE_HANDLE };
    let usage = host.object("finish", "usage_json", raw.usage_json).unwrap_or(Value::Null);
    if raw.confidence.is_nan() || raw.confidence > 1.0 {
        host.fault(Fault::BadConfidence);
    }
    let end = match raw.error {
        None => End::Done { usage, confidence: (raw.confidence >= 0.0).then_some(raw.confidence) },
        Some(Ok(failure)) => End::Failed(host.failure("finish", &failure).unwrap_or_default()),
        Some(Err(refused)) => {
            host.refuse("finish", &refused);
            End::Failed(Failure::default())
        }
    };
    if exchange.end(end) {
        return BP_OK;
    }
    host.fault(Fault::AfterFinish { function: "finish" });
    BP_STALE_HANDLE
}

// ---- bp.compute/1: as many threads as asked for or allowed, counted -------------------------------------------------------

unsafe extern "C" fn acquire(
    host: *const bp_host,
    ticket: bp_ticket,
    want: u32,
    deadline_ns: i64,
    granted: *mut u32,
) -> bp_code {
    let host = host!(host);
    let deadline = clock::instant(deadline_ns);
    while host.most_threads.load(Ordering::Relaxed) == 0 {
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return BP_DEADLINE_EXCEEDED;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut tickets = host.tickets.lock();
    let Some(count) = tickets.get_mut(&ticket) else {
        host.fault(Fault::UnknownHandle { function: "bp.compute/1 acquire" });
        return BP_STALE_HANDLE;
    };
    if granted.is_null() {
        return BP_NULL_ARGUMENT;
    }
    let grant = want.clamp(1, host.most_threads.load(Ordering::Relaxed).max(1));
    *count += grant;
    // SAFETY: not null; a place to write to, says the header.
    unsafe { *granted = grant };
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
struct Callbacks {
    ctx: *mut c_void,
    on_chunk: Option<OnChunk>,
    on_done: Option<OnDone>,
}
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
    // SAFETY: a bp_call by the header, valid until we return.
    let raw = match unsafe { read::call(call, read::Reader::Strict) } {
        Ok(raw) => raw,
        Err(refused) => return host.refuse("bp.call/1 start", &refused),
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
    let tensors = match host.tensors(function, raw.tensors, false) {
        Ok(Taken { tensors, .. }) => tensors,
        Err(code) => return code,
    };
    // SAFETY: not null; a place to write to.
    unsafe { *out = new_handle() };
    let input = CallInput { capability, model, params, tensors };
    let back = Callbacks { ctx: raw.ctx, on_chunk: raw.on_chunk, on_done: raw.on_done };
    std::thread::spawn(move || {
        let back = back;
        let Callbacks { ctx, on_chunk, on_done } = back;
        // Whatever becomes of it, the call ends: the plugin waits for that.
        let result = catch_unwind(AssertUnwindSafe(|| answering(&input))).unwrap_or_else(|_| {
            let message = format!("what the test answers `{}` with panicked", input.capability);
            Err(Failure { code: BP_INTERNAL, message, ..Failure::default() })
        });
        if let (Ok(chunks), Some(on_chunk)) = (&result, on_chunk) {
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
                if unsafe { on_chunk(ctx, &chunk) } != BP_OK {
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
        if let Some(on_done) = on_done {
            // SAFETY: once, as the last use of ctx.
            unsafe { on_done(ctx, &bp_done { error, confidence: -1.0, ..bp_done::new() }) };
        }
    });
    BP_OK
}

/// Answers come at once here, so there is nothing to cancel.
unsafe extern "C" fn call_cancel(_host: *const bp_host, _call: bp_req) -> bp_code {
    BP_OK
}
