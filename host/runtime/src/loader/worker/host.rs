//! Calls of the host's table, with what a worker said.
#![expect(unsafe_code, reason = "calls the functions of a bp_host")]

use super::crashes::Fingerprint;
use super::link::Link;
use backplane_abi::read::{self, Reader};
use backplane_abi::table::*;
use backplane_abi::worker::{Body, Failure, Tensor, ToHost, ToWorker, frame, own_tensors, raw_tensors};
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The table of a host. Its functions are [any], and it outlives every plugin.
#[derive(Clone, Copy)]
pub struct HostSide {
    at: *const bp_host,
    pub known: bp_host,
    compute: Option<bp_compute_1>,
    license: Option<bp_license_1>,
    call: Option<bp_call_1>,
}
// SAFETY: every function of bp_host is tagged [any] in the header, and the host outlives the plugin.
unsafe impl Send for HostSide {}
// SAFETY: as above.
unsafe impl Sync for HostSide {}

fn text(bytes: &[u8]) -> bp_str {
    bp_str { ptr: bytes.as_ptr().cast(), len: bytes.len() as u64 }
}

fn raw_error(failure: &Failure<'_>) -> bp_error {
    bp_error {
        code: failure.code,
        sub: failure.sub,
        retry_after_ms: failure.retry_after_ms,
        message: text(failure.message),
        reason: text(failure.reason),
        details_json: text(failure.details),
        ..bp_error::new()
    }
}

/// More than a licence takes.
const MAX_LICENSE: usize = 1 << 20;

/// From this length on a tensor is handed over where it lies, in the memory it came in.
const SHARED: usize = 16 << 10;

impl HostSide {
    /// # Safety
    /// `at` is null or the table of a host that outlives everything.
    pub unsafe fn new(at: *const bp_host) -> Option<HostSide> {
        // SAFETY: the caller's promise.
        let known = unsafe { bp_host::view(at) }?;
        let mut this = HostSide { at, known, compute: None, license: None, call: None };
        this.compute = this.extension(BP_EXT_COMPUTE_1);
        this.call = this.extension(BP_EXT_CALL_1);
        this.license = this.extension(BP_EXT_LICENSE_1);
        Some(this)
    }

    fn extension<T: read::Size>(&self, id: &'static str) -> Option<T> {
        // Whether this host is one at all is for the plugin to say; who is asked nothing does no harm.
        let end = std::mem::offset_of!(bp_host, get_extension) + 8;
        let get = self.known.get_extension.filter(|_| end <= self.known.struct_size as usize)?;
        // SAFETY: the host's function with its own table; the table of the extension lives as long as the host.
        unsafe { read::known(get(self.at, bp_str::new(id)).cast(), Reader::Lenient) }.ok()
    }

    pub fn has_compute(&self) -> bool {
        self.compute.is_some()
    }

    pub fn has_license(&self) -> bool {
        self.license.is_some()
    }

    pub fn license_state(&self) -> (bp_code, i32, u64) {
        let (mut state, mut revision) = (BP_LICENSE_UNKNOWN, 0);
        let code = self.license.and_then(|license| license.state).map_or(BP_UNIMPLEMENTED, |read| {
            // SAFETY: the host's function, and places to write to.
            unsafe { read(self.at, &raw mut state, &raw mut revision) }
        });
        (code, state, revision)
    }

    pub fn license_feature(&self, tenant: &[u8], name: &[u8]) -> (bp_code, i64) {
        let mut value = 0;
        let code = self.license.and_then(|license| license.feature).map_or(BP_UNIMPLEMENTED, |feature| {
            // SAFETY: the host's function; the texts are valid until it returns, and there is a place to write to.
            unsafe { feature(self.at, text(tenant), text(name), &raw mut value) }
        });
        (code, value)
    }

    /// The signed bytes, or the id of the installation; nothing where there is none.
    pub fn license_bytes(&self, install_id: bool) -> Vec<u8> {
        let read = self.license.and_then(|known| if install_id { known.install_id } else { known.envelope });
        let Some(read) = read else { return Vec::new() };
        let mut bytes: Vec<u8> = Vec::new();
        loop {
            let mut len = 0;
            // SAFETY: the host's function, with as much room as is said, and a place to write to.
            let code = unsafe { read(self.at, bytes.as_mut_ptr().cast(), bytes.len() as u64, &raw mut len) };
            match (code, usize::try_from(len)) {
                (BP_OK, Ok(len)) => {
                    bytes.truncate(len);
                    return bytes;
                }
                // Another may take its place between two calls.
                (BP_OUT_OF_RANGE, Ok(len)) if bytes.len() < len && len <= MAX_LICENSE => bytes.resize(len, 0),
                _ => return Vec::new(),
            }
        }
    }

    pub fn has_call(&self) -> bool {
        self.call.is_some()
    }

    pub fn set_error(&self, err: bp_err, failure: &Failure<'_>) {
        if let Some(set) = self.known.set_error {
            // SAFETY: the host's function; the error is valid until it returns.
            unsafe { set(self.at, err, &raw_error(failure)) };
        }
    }

    pub fn log(&self, level: i32, message: &[u8], fields: &[u8]) {
        if let Some(log) = self.known.log {
            // SAFETY: the host's function; the texts are valid until it returns.
            unsafe { log(self.at, level, text(message), text(fields)) };
        }
    }

    /// Hands over a piece of a result. Large tensors stay in `body`, which the host then keeps.
    pub fn push(&self, sink: bp_sink, json: &[u8], tensors: &[Tensor<'_>], body: &Arc<Body>) -> bp_code {
        unsafe extern "C" fn release(ctx: *mut c_void) {
            // SAFETY: the pointer of an Arc that `wrap` gave away, once for each release.
            drop(unsafe { Arc::from_raw(ctx.cast::<Body>().cast_const()) });
        }
        let Some(push) = self.known.push else { return BP_UNIMPLEMENTED };
        let mut raw = raw_tensors(tensors);
        let mut buffers = Vec::new();
        for tensor in &mut raw {
            let (Some(wrap), true) = (self.known.buf_wrap, SHARED as u64 <= tensor.nbytes) else { continue };
            let ctx = Arc::into_raw(body.clone()).cast_mut().cast();
            let mut buffer = 0;
            // SAFETY: the host's function; the memory is the body's, which lasts until its release.
            let code =
                unsafe { wrap(self.at, tensor.data, tensor.nbytes, ctx, Some(release), &raw mut buffer) };
            if code == BP_OK {
                tensor.buffer = buffer;
                buffers.push(buffer);
            } else {
                // SAFETY: it was not taken, so that release is not called.
                drop(unsafe { Arc::from_raw(ctx.cast::<Body>().cast_const()) });
            }
        }
        let chunk = bp_chunk {
            json: text(json),
            tensors: raw.as_ptr(),
            n_tensors: raw.len() as u32,
            stride: size_of::<bp_tensor>() as u32,
            ..bp_chunk::new()
        };
        // SAFETY: the host's function; everything is valid until it returns.
        let code = unsafe { push(self.at, sink, &chunk) };
        if let Some(release) = self.known.buf_release {
            for buffer in buffers {
                // SAFETY: the host's function; our own reference of each.
                unsafe { release(self.at, buffer) };
            }
        }
        code
    }

    pub fn finish(&self, sink: bp_sink, error: Option<&Failure<'_>>, usage: &[u8], confidence: f64) {
        let raw = error.map(raw_error);
        let error = raw.as_ref().map_or(std::ptr::null(), |error| &raw const *error);
        let done = bp_done { error, usage_json: text(usage), confidence, ..bp_done::new() };
        if let Some(finish) = self.known.finish {
            // SAFETY: the host's function; everything is valid until it returns.
            unsafe { finish(self.at, sink, &done) };
        }
    }

    /// Asks for threads; waits until `deadline_ns`.
    pub fn acquire(&self, ticket: bp_ticket, want: u32, deadline_ns: i64) -> (bp_code, u32) {
        let mut granted = 0;
        let code = self.compute.and_then(|compute| compute.acquire).map_or(BP_UNIMPLEMENTED, |acquire| {
            // SAFETY: the host's function, and a place to write to.
            unsafe { acquire(self.at, ticket, want, deadline_ns, &raw mut granted) }
        });
        (code, granted)
    }

    pub fn release(&self, ticket: bp_ticket, granted: u32) {
        if let Some(release) = self.compute.and_then(|compute| compute.release) {
            // SAFETY: the host's function.
            unsafe { release(self.at, ticket, granted) };
        }
    }

    /// Starts a call to another capability, for the worker's call number `number`.
    pub fn call_start(
        &self,
        link: &Arc<Link>,
        number: u64,
        parent: bp_req,
        said: &ToHost<'_>,
    ) -> (bp_code, bp_req) {
        let ToHost::CallStart { capability, model, params, tensors, deadline_ns, .. } = said else {
            return (BP_INTERNAL, 0);
        };
        let Some(start) = self.call.and_then(|call| call.start) else { return (BP_UNIMPLEMENTED, 0) };
        let raw = raw_tensors(tensors);
        let ctx = Box::into_raw(Box::new(Back { link: link.clone(), number }));
        let call = bp_call {
            parent,
            capability: text(capability),
            model: text(model),
            params_json: text(params),
            r#in: raw.as_ptr(),
            n_in: raw.len() as u32,
            in_stride: size_of::<bp_tensor>() as u32,
            deadline_ns: *deadline_ns,
            ctx: ctx.cast(),
            on_chunk: Some(on_chunk),
            on_done: Some(on_done),
            ..bp_call::new()
        };
        let mut handle = 0;
        // SAFETY: the host's function; everything in the call is copied by it.
        let code = unsafe { start(self.at, &call, &raw mut handle) };
        if code != BP_OK {
            // SAFETY: no callback comes then, says the header.
            drop(unsafe { Box::from_raw(ctx) });
        }
        (code, handle)
    }

    pub fn call_cancel(&self, call: bp_req) {
        if let Some(cancel) = self.call.and_then(|call| call.cancel) {
            // SAFETY: the host's function; a stale call is for it to ignore.
            unsafe { cancel(self.at, call) };
        }
    }
}

/// Whose call it is.
struct Back {
    link: Arc<Link>,
    number: u64,
}

unsafe extern "C" fn on_chunk(ctx: *mut c_void, chunk: *const bp_chunk) -> bp_code {
    // SAFETY: the ctx of `call_start`, until on_done; a chunk valid until we return.
    let (back, chunk) = unsafe { (&*ctx.cast::<Back>(), read::chunk(chunk, Reader::Lenient)) };
    let Ok(chunk) = chunk else { return BP_BAD_STRUCT };
    let (at, count, stride) = chunk.tensors.raw();
    // SAFETY: valid until we return.
    let Some(tensors) = (unsafe { own_tensors(at, count, stride) }) else { return BP_BAD_STRUCT };
    let json = chunk.json.bytes();
    match back.link.tell(&frame(&ToWorker::CallChunk { call: back.number, json, tensors })) {
        true => BP_OK,
        false => BP_CANCELLED,
    }
}

unsafe extern "C" fn on_done(ctx: *mut c_void, done: *const bp_done) {
    // SAFETY: the ctx of `call_start`, given back here and not used again; a struct valid until we return.
    let (back, done) = unsafe { (Box::from_raw(ctx.cast::<Back>()), read::done(done, Reader::Lenient)) };
    // Whatever it is, the plugin waits for an end.
    let broken = || Failure {
        code: BP_INTERNAL,
        sub: BP_SUB_NONE,
        retry_after_ms: 0,
        message: b"the host ended the call with a malformed struct",
        reason: b"",
        details: b"",
    };
    let (error, usage, confidence) = match &done {
        Ok(done) => {
            let error = done.error.as_ref().map(|error| error.as_ref().map_or_else(|_| broken(), own));
            (error, done.usage_json.bytes(), done.confidence)
        }
        Err(_) => (Some(broken()), &b""[..], -1.0),
    };
    back.link.call_ended(back.number);
    back.link.tell(&frame(&ToWorker::CallDone { call: back.number, error, usage, confidence }));
}

fn own<'a>(error: &read::Failure<'a>) -> Failure<'a> {
    Failure {
        code: error.code,
        sub: error.sub,
        retry_after_ms: error.retry_after_ms,
        message: error.message.bytes(),
        reason: error.reason.bytes(),
        details: error.details_json.bytes(),
    }
}

/// The cancel word of a request: valid until the request is finished.
#[derive(Clone, Copy)]
pub struct CancelWord(pub *const u32);
// SAFETY: it is only read, atomically, and by rule of the header from any thread.
unsafe impl Send for CancelWord {}

impl CancelWord {
    pub fn is_set(self) -> bool {
        // SAFETY: null, or valid until finish; the link forgets it before it finishes the request.
        !self.0.is_null() && unsafe { (*self.0.cast::<AtomicU32>()).load(Ordering::Relaxed) } != 0
    }
}

/// What a request asks: its capability, its parameters, and the bytes of its tensors, where the host has them.
#[derive(Clone)]
pub struct Content(Vec<(*const u8, usize)>);
// SAFETY: the memory is only read, and by rule of the header it does not change before the request is finished.
unsafe impl Send for Content {}
// SAFETY: as above.
unsafe impl Sync for Content {}

impl Content {
    /// # Safety
    /// The memory is valid until the request is finished, and it is dropped before.
    pub unsafe fn new<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Self {
        Self(parts.map(|part| (part.as_ptr(), part.len())).collect())
    }

    /// Its bytes.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|(_, len)| *len as u64).sum()
    }

    pub fn fingerprint(&self) -> Fingerprint {
        // SAFETY: slices when they were taken, and valid until finish; the link finishes a request after it asked this.
        Fingerprint::of(self.0.iter().map(|(at, len)| unsafe { std::slice::from_raw_parts(*at, *len) }))
    }
}
