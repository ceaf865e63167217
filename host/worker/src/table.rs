//! The `bp_host` functions: what a plugin may ask of its host, passed on to it.
#![expect(unsafe_code, reason = "the worker's end of the C ABI")]

use crate::said::Said;
use crate::state::{Callbacks, HostTable, State, state};
use backplane_abi::read::{self, Memory, Reader, Rows};
use backplane_abi::table::*;
use backplane_abi::worker::{Tensor, ToHost, frame, own_tensors};
use std::ffi::c_void;
use std::sync::atomic::Ordering;

/// Bytes behind the table, for who claims more than there is.
const TAIL: usize = 512;

/// Makes the table that the plugin is given: of the size and with the flags that the host's has.
pub fn make(
    struct_size: u32,
    flags: u32,
    minor: u16,
    name: &[u8],
    version: &[u8],
    (compute, call, license): (bool, bool, bool),
) -> HostTable {
    let text = |bytes: &[u8]| {
        let kept = bytes.to_vec().leak();
        bp_str { ptr: kept.as_ptr().cast(), len: kept.len() as u64 }
    };
    let table = bp_host {
        struct_size,
        flags,
        abi_major: backplane_abi::ABI_MAJOR,
        abi_minor: minor,
        name: text(name),
        version: text(version),
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
    };
    let memory = vec![0u64; (size_of::<bp_host>() + TAIL) / 8].leak();
    let at = memory.as_mut_ptr().cast::<bp_host>();
    // SAFETY: aligned, and longer than the table.
    unsafe { at.write(table) };
    HostTable { at, compute, call, license }
}

/// The state, for who passes a table.
fn asked(host: *const bp_host) -> Option<&'static State> {
    if host.is_null() { None } else { state() }
}

impl From<read::Failure<'_>> for Said {
    fn from(raw: read::Failure<'_>) -> Self {
        Said {
            code: raw.code,
            sub: raw.sub,
            retry_after_ms: raw.retry_after_ms,
            message: raw.message.bytes().to_vec(),
            reason: raw.reason.bytes().to_vec(),
            details: raw.details_json.bytes().to_vec(),
        }
    }
}

unsafe extern "C" fn set_error(host: *const bp_host, err: bp_err, error: *const bp_error) -> bp_code {
    let (Some(state), false) = (asked(host), error.is_null()) else { return BP_NULL_ARGUMENT };
    // SAFETY: an error valid until we return.
    let Ok(failure) = (unsafe { read::failure(error, Reader::Lenient) }) else { return BP_BAD_STRUCT };
    match state.errors.lock().get_mut(&err) {
        Some(place) => {
            *place = Some(failure.into());
            BP_OK
        }
        None => BP_STALE_HANDLE,
    }
}

unsafe extern "C" fn log(host: *const bp_host, level: i32, message: bp_str, fields_json: bp_str) {
    let Some(state) = asked(host) else { return };
    // SAFETY: valid until we return.
    let (message, fields) = unsafe { (message.bytes(), fields_json.bytes()) };
    state.say(&frame(&ToHost::Log { level, message, fields }));
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
    let Some(state) = asked(host) else { return BP_NULL_ARGUMENT };
    if out.is_null() || data.is_null() {
        return BP_NULL_ARGUMENT;
    }
    if dev_type != BP_DEV_CPU {
        return BP_UNIMPLEMENTED;
    }
    if align != 0 && !align.is_power_of_two() {
        return BP_INVALID_ARGUMENT;
    }
    let Some((buffer, at)) = state.buffers.alloc(nbytes, align) else { return BP_RESOURCE_EXHAUSTED };
    // SAFETY: not null, and the plugin passes places to write to.
    unsafe {
        *out = buffer;
        *data = at;
    }
    BP_OK
}

unsafe extern "C" fn buf_wrap(
    host: *const bp_host,
    data: *mut c_void,
    nbytes: u64,
    ctx: *mut c_void,
    release: Option<unsafe extern "C" fn(ctx: *mut c_void)>,
    out: *mut bp_buf,
) -> bp_code {
    let Some(state) = asked(host) else { return BP_NULL_ARGUMENT };
    let (Some(release), false, false) = (release, data.is_null(), out.is_null()) else {
        return BP_NULL_ARGUMENT;
    };
    let end = usize::try_from(nbytes).ok().and_then(|len| (data as usize).checked_add(len));
    let (Ok(len), Some(_)) = (isize::try_from(nbytes).map(isize::unsigned_abs), end) else {
        return BP_INVALID_ARGUMENT;
    };
    // SAFETY: not null, and the plugin passes a place to write to.
    unsafe { *out = state.buffers.wrap(data, len, ctx, release) };
    BP_OK
}

unsafe extern "C" fn buf_retain(host: *const bp_host, buf: bp_buf) -> bp_code {
    asked(host).map_or(BP_NULL_ARGUMENT, |state| state.buffers.retain(buf))
}

unsafe extern "C" fn buf_release(host: *const bp_host, buf: bp_buf) -> bp_code {
    asked(host).map_or(BP_NULL_ARGUMENT, |state| state.buffers.release(buf))
}

unsafe extern "C" fn out_alloc(host: *const bp_host, sink: bp_sink, spec: *mut bp_tensor) -> bp_code {
    let Some(state) = asked(host) else { return BP_NULL_ARGUMENT };
    // SAFETY: a tensor valid until we return.
    let Ok(tensor) = (unsafe { read::known(spec, Reader::Lenient) }) else { return BP_BAD_STRUCT };
    if state.request(sink).is_none() {
        return BP_STALE_HANDLE;
    }
    if tensor.dev_type != BP_DEV_CPU {
        return BP_UNIMPLEMENTED;
    }
    let Some((buffer, at)) = state.buffers.alloc(tensor.nbytes, 0) else { return BP_RESOURCE_EXHAUSTED };
    // SAFETY: the struct was long enough to be read, so these members are there.
    unsafe {
        (*spec).data = at;
        (*spec).buffer = buffer;
        (*spec).byte_offset = 0;
    }
    BP_OK
}

// ---- results ----------------------------------------------------------------------------------------------------

/// Tensors of a plugin's, by the rules that the host has for them: what a plugin hears in this process is what it would
/// hear in the host's.
fn checked<'a>(state: &State, rows: Rows<'a>) -> Result<Vec<Tensor<'a>>, bp_code> {
    for tensor in rows.tensors(Reader::Lenient).map_err(|refused| refused.code())? {
        let Memory::Buffer { handle, start, len } = tensor.memory else { continue };
        match state.buffers.holds(handle, start, len) {
            Some(true) => {}
            Some(false) => return Err(BP_INVALID_ARGUMENT),
            None => return Err(BP_STALE_HANDLE),
        }
        // SAFETY: the buffer holds them, and the plugin has a reference of it for as long as the call lasts.
        let data = unsafe { tensor.memory.bytes() };
        tensor.check(data).map_err(|refused| refused.code())?;
    }
    let (at, count, stride) = rows.raw();
    // SAFETY: they were read.
    unsafe { own_tensors(at, count, stride) }.ok_or(BP_BAD_STRUCT)
}

unsafe extern "C" fn push(host: *const bp_host, sink: bp_sink, chunk: *const bp_chunk) -> bp_code {
    let Some(state) = asked(host) else { return BP_NULL_ARGUMENT };
    // SAFETY: a chunk valid until we return.
    let Ok(chunk) = (unsafe { read::chunk(chunk, Reader::Lenient) }) else { return BP_BAD_STRUCT };
    let Some(request) = state.request(sink) else { return BP_STALE_HANDLE };
    let json = chunk.json.bytes();
    if !backplane_abi::worker::is_object(json) {
        return BP_INVALID_ARGUMENT;
    }
    let tensors = match checked(state, chunk.tensors) {
        Ok(tensors) => tensors,
        Err(code) => return code,
    };
    if request.cancel.load(Ordering::Relaxed) != 0 {
        return BP_CANCELLED;
    }
    let bytes = json.len() as u64 + tensors.iter().map(|tensor| tensor.nbytes).sum::<u64>();
    // Held until it is said, so that pieces go in the order in which they were let in.
    let mut flow = request.flow.lock();
    let Some(flow) = &mut *flow else { return BP_STALE_HANDLE };
    // They came before the lane that the request came by.
    let Some(credits) = state.credits.get() else { return BP_INTERNAL };
    if !flow.admit(credits, bytes) {
        return BP_WOULD_BLOCK;
    }
    state.say(&frame(&ToHost::Push { request: sink, json, tensors }));
    BP_OK
}

unsafe extern "C" fn finish(host: *const bp_host, sink: bp_sink, done: *const bp_done) -> bp_code {
    let Some(state) = asked(host) else { return BP_NULL_ARGUMENT };
    // SAFETY: a struct valid until we return.
    let Ok(done) = (unsafe { read::done(done, Reader::Lenient) }) else { return BP_BAD_STRUCT };
    let Some(request) = state.requests.lock().remove(sink) else { return BP_STALE_HANDLE };
    // An error that cannot be read is one without a reason.
    let said = done.error.map(|error| error.map(Said::from).unwrap_or_default());
    request.done(state, || {
        state.say(&frame(&ToHost::Finish {
            request: sink,
            error: said.as_ref().map(Said::failure),
            usage: done.usage_json.bytes(),
            confidence: done.confidence,
        }));
    });
    BP_OK
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
    let Some(table) = asked(host).and_then(|state| state.host.get()) else { return std::ptr::null() };
    // SAFETY: an id valid until we return.
    match unsafe { id.text() } {
        Some(BP_EXT_COMPUTE_1) if table.compute => (&raw const COMPUTE).cast(),
        Some(BP_EXT_CALL_1) if table.call => (&raw const CALL).cast(),
        Some(BP_EXT_LICENSE_1) if table.license => (&raw const LICENSE).cast(),
        _ => std::ptr::null(),
    }
}

unsafe extern "C" fn license_state(host: *const bp_host, state: *mut i32, revision: *mut u64) -> bp_code {
    let Some(here) = asked(host) else { return BP_NULL_ARGUMENT };
    let answer = here.ask(|ask| frame(&ToHost::LicenseState { ask }));
    let number = answer.bytes.try_into().map(u64::from_le_bytes).unwrap_or_default();
    // SAFETY: null, or places to write to.
    unsafe {
        if let Some(state) = state.as_mut() {
            *state = answer.value as i32;
        }
        if let Some(revision) = revision.as_mut() {
            *revision = number;
        }
    }
    answer.code
}

unsafe extern "C" fn license_feature(
    host: *const bp_host,
    tenant: bp_str,
    name: bp_str,
    value: *mut i64,
) -> bp_code {
    let Some(here) = asked(host) else { return BP_NULL_ARGUMENT };
    if value.is_null() {
        return BP_NULL_ARGUMENT;
    }
    // SAFETY: valid until we return.
    let (tenant, name) = unsafe { (tenant.bytes(), name.bytes()) };
    let answer = here.ask(|ask| frame(&ToHost::LicenseFeature { ask, tenant, name }));
    if answer.code == BP_OK {
        // SAFETY: not null, and the plugin passes a place to write to.
        unsafe { *value = answer.value.cast_signed() };
    }
    answer.code
}

unsafe extern "C" fn license_envelope(
    host: *const bp_host,
    buf: *mut c_void,
    capacity: u64,
    len: *mut u64,
) -> bp_code {
    // SAFETY: passed on as they came.
    unsafe { license_bytes(host, false, buf, capacity, len) }
}

unsafe extern "C" fn license_install_id(
    host: *const bp_host,
    buf: *mut c_void,
    capacity: u64,
    len: *mut u64,
) -> bp_code {
    // SAFETY: passed on as they came.
    unsafe { license_bytes(host, true, buf, capacity, len) }
}

/// # Safety
/// As [`copy_out`].
unsafe fn license_bytes(
    host: *const bp_host,
    install_id: bool,
    buf: *mut c_void,
    capacity: u64,
    len: *mut u64,
) -> bp_code {
    let Some(here) = asked(host) else { return BP_NULL_ARGUMENT };
    let answer = here.ask(|ask| frame(&ToHost::LicenseBytes { ask, install_id }));
    // SAFETY: the caller's promise.
    unsafe { copy_out(&answer.bytes, buf, capacity, len) }
}

unsafe extern "C" fn acquire(
    host: *const bp_host,
    ticket: bp_ticket,
    want: u32,
    deadline_ns: i64,
    granted: *mut u32,
) -> bp_code {
    let Some(state) = asked(host) else { return BP_NULL_ARGUMENT };
    if granted.is_null() {
        return BP_NULL_ARGUMENT;
    }
    if !state.tickets.lock().contains_key(&ticket) {
        return BP_STALE_HANDLE;
    }
    let answer = state.ask(|ask| frame(&ToHost::Acquire { ask, ticket, want, deadline_ns }));
    if answer.code == BP_OK {
        let count = answer.value as u32;
        *state.tickets.lock().entry(ticket).or_default() += count;
        // SAFETY: not null, and the plugin passes a place to write to.
        unsafe { *granted = count };
    }
    answer.code
}

unsafe extern "C" fn release(host: *const bp_host, ticket: bp_ticket, granted: u32) -> bp_code {
    let Some(state) = asked(host) else { return BP_NULL_ARGUMENT };
    match state.tickets.lock().get_mut(&ticket) {
        Some(has) if granted <= *has => *has -= granted,
        Some(_) => return BP_BAD_STATE,
        None => return BP_STALE_HANDLE,
    }
    if 0 < granted {
        state.say(&frame(&ToHost::Release { ticket, granted }));
    }
    BP_OK
}

unsafe extern "C" fn call_start(host: *const bp_host, call: *const bp_call, out: *mut bp_req) -> bp_code {
    let Some(state) = asked(host) else { return BP_NULL_ARGUMENT };
    // SAFETY: a call valid until we return.
    let Ok(call) = (unsafe { read::call(call, Reader::Lenient) }) else { return BP_BAD_STRUCT };
    let (Some(on_chunk), Some(on_done), false) = (call.on_chunk, call.on_done, out.is_null()) else {
        return BP_NULL_ARGUMENT;
    };
    if state.request(call.parent).is_none() {
        return BP_STALE_HANDLE;
    }
    let tensors = match checked(state, call.tensors) {
        Ok(tensors) => tensors,
        Err(code) => return code,
    };
    let number = state.number();
    // SAFETY: not null, and the plugin passes a place to write to. Written before any callback can come.
    unsafe { *out = number };
    state.calls.lock().insert(number, Callbacks { ctx: call.ctx, on_chunk, on_done });
    let answer = state.ask(|ask| {
        frame(&ToHost::CallStart {
            ask,
            call: number,
            parent: call.parent,
            capability: call.capability.bytes(),
            model: call.model.bytes(),
            params: call.params_json.bytes(),
            tensors,
            deadline_ns: call.deadline_ns,
        })
    });
    if answer.code != BP_OK {
        state.calls.lock().remove(&number);
    }
    answer.code
}

unsafe extern "C" fn call_cancel(host: *const bp_host, call: bp_req) -> bp_code {
    let Some(state) = asked(host) else { return BP_NULL_ARGUMENT };
    if !state.calls.lock().contains_key(&call) {
        return BP_STALE_HANDLE;
    }
    state.say(&frame(&ToHost::CallCancel { call }));
    BP_OK
}
