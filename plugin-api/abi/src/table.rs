//! The structs of `backplane.h`, member for member. Read the header for what they mean.
#![expect(
    unsafe_code,
    reason = "this is the ABI: raw views of foreign memory are made here and nowhere else"
)]
#![allow(missing_docs, reason = "the header is the manual; saying it twice would let the two drift")]

use std::ffi::{c_char, c_void};

pub type bp_code = i32;
pub type bp_req = u64;
pub type bp_sink = u64;
pub type bp_buf = u64;
pub type bp_err = u64;
pub type bp_ticket = u64;

pub const BP_OK: bp_code = 0;
pub const BP_CANCELLED: bp_code = 1;
pub const BP_INVALID_ARGUMENT: bp_code = 3;
pub const BP_DEADLINE_EXCEEDED: bp_code = 4;
pub const BP_NOT_FOUND: bp_code = 5;
pub const BP_RESOURCE_EXHAUSTED: bp_code = 8;
pub const BP_FAILED_PRECONDITION: bp_code = 9;
pub const BP_OUT_OF_RANGE: bp_code = 11;
pub const BP_UNIMPLEMENTED: bp_code = 12;
pub const BP_INTERNAL: bp_code = 13;
pub const BP_UNAVAILABLE: bp_code = 14;
pub const BP_WOULD_BLOCK: bp_code = 32;
pub const BP_STALE_HANDLE: bp_code = -1;
pub const BP_NULL_ARGUMENT: bp_code = -2;
pub const BP_BAD_STATE: bp_code = -3;
pub const BP_BAD_STRUCT: bp_code = -4;

pub const BP_SUB_NONE: i32 = 0;
pub const BP_SUB_PANIC: i32 = 1;
pub const BP_SUB_POISONED: i32 = 2;
pub const BP_SUB_FATAL: i32 = 3;

pub const BP_FLAG_REQUIRED_MASK: u32 = 0xFFFF_0000;
pub const BP_TENSOR_READ_ONLY: u32 = 1;
pub const BP_REQUEST_CONFIDENCE: u32 = 1;
pub const BP_REQUEST_STREAM: u32 = 2;
pub const BP_REQUEST_DEVICE: u32 = 4;
pub const BP_CALL_DEVICE: u32 = 1;

pub const BP_DEV_CPU: i32 = 1;
pub const BP_DEV_CUDA: i32 = 2;
pub const BP_DEV_EXT: i32 = 12;

pub const BP_SYNC_NONE: i32 = 0;
pub const BP_SYNC_CUDA_EVENT: i32 = 2;

pub const BP_SERIAL: i32 = 0;
pub const BP_CONCURRENT: i32 = 1;
pub const BP_CONTINUOUS: i32 = 2;

pub const BP_BID_REASON_FORMAT: i32 = 1;
pub const BP_BID_REASON_DEVICE: i32 = 2;
pub const BP_BID_REASON_MEMORY: i32 = 3;
pub const BP_BID_REASON_LICENCE: i32 = 4;
pub const BP_BID_REASON_RUNTIME: i32 = 5;

pub const BP_HEALTH_READY: i32 = 0;
pub const BP_HEALTH_DEGRADED: i32 = 1;
pub const BP_HEALTH_NOT_READY: i32 = 2;
pub const BP_HEALTH_FAILED: i32 = 3;

pub const BP_LICENSE_UNKNOWN: i32 = 0;
pub const BP_LICENSE_OK: i32 = 1;
pub const BP_LICENSE_GRACE: i32 = 2;
pub const BP_LICENSE_DENIED: i32 = 3;

pub const BP_EXT_COMPUTE_1: &str = "bp.compute/1";
pub const BP_EXT_CALL_1: &str = "bp.call/1";
pub const BP_EXT_DEVICE_1: &str = "bp.device/1";
pub const BP_EXT_DEVICE_INPUTS_1: &str = "bp.device_inputs/1";
pub const BP_EXT_LICENSE_1: &str = "bp.license/1";
pub const BP_EXT_TOKENS_1: &str = "bp.tokens/1";
pub const BP_EXT_STATS_1: &str = "bp.stats/1";

#[derive(Clone, Copy)]
#[repr(C)]
pub struct bp_str {
    pub ptr: *const c_char,
    pub len: u64,
}

impl bp_str {
    pub const EMPTY: bp_str = bp_str { ptr: std::ptr::null(), len: 0 };

    /// A view of `text`; valid as long as `text` is.
    pub const fn new(text: &str) -> bp_str {
        bp_str { ptr: text.as_ptr().cast(), len: text.len() as u64 }
    }

    /// The bytes behind it, empty for a null pointer.
    ///
    /// # Safety
    /// `ptr` is null or valid for `len` bytes that nobody changes during `'a`.
    pub unsafe fn bytes<'a>(self) -> &'a [u8] {
        if self.ptr.is_null() || self.len == 0 || self.len > isize::MAX as u64 {
            return &[];
        }
        // SAFETY: the caller's promise; null and absurd lengths were turned away above.
        unsafe { std::slice::from_raw_parts(self.ptr.cast(), self.len as usize) }
    }

    /// The text behind it; `None` when it is not UTF-8.
    ///
    /// # Safety
    /// As [`bp_str::bytes`].
    pub unsafe fn text<'a>(self) -> Option<&'a str> {
        // SAFETY: the caller's promise.
        std::str::from_utf8(unsafe { self.bytes() }).ok()
    }

    /// The text behind it, with what is not UTF-8 replaced.
    ///
    /// # Safety
    /// As [`bp_str::bytes`].
    pub unsafe fn lossy<'a>(self) -> std::borrow::Cow<'a, str> {
        // SAFETY: the caller's promise.
        String::from_utf8_lossy(unsafe { self.bytes() })
    }
}

/// Declares the structs and, beside them, the list of their members that the layout test reads.
macro_rules! tables {
    ($( $(#[$meta:meta])* struct $name:ident { $($field:ident: $type:ty,)* } )*) => {
        $( $(#[$meta])* #[derive(Clone, Copy)] #[repr(C)] pub struct $name { $(pub $field: $type,)* } )*

        /// Struct, size, and each member with its offset: what a C compiler must agree to.
        #[doc(hidden)]
        pub fn layout() -> Vec<(&'static str, usize, Vec<(&'static str, usize, usize)>)> {
            fn size<S, T>(_: fn(&S) -> &T) -> usize { size_of::<T>() }
            vec![$( (
                stringify!($name),
                size_of::<$name>(),
                vec![$( (
                    stringify!($field),
                    std::mem::offset_of!($name, $field),
                    size::<$name, $type>(|s| &s.$field),
                ) ),*],
            ) ),*]
        }
    };
}

type BpFree = Option<unsafe extern "C" fn(ctx: *mut c_void)>;

tables! {
    struct bp_error {
        struct_size: u32, flags: u32,
        code: bp_code, sub: i32, retry_after_ms: u32, reserved: u32,
        message: bp_str, reason: bp_str, details_json: bp_str,
    }

    struct bp_tensor {
        struct_size: u32, flags: u32,
        name: bp_str,
        dev_type: i32, dev_id: i32,
        code: u8, bits: u8, lanes: u16, ndim: i32,
        shape: *const i64, strides: *const i64,
        byte_offset: u64, nbytes: u64,
        data: *mut c_void,
        buffer: bp_buf,
        sync_kind: i32, layout: i32, sync: u64,
    }

    struct bp_request {
        struct_size: u32, flags: u32,
        id: bp_req, sink: bp_sink,
        capability: bp_str, params_json: bp_str,
        r#in: *const bp_tensor, n_in: u32, in_stride: u32,
        request_id: bp_str, traceparent: bp_str, tenant: bp_str,
        deadline_ns: i64,
        cancel: *const u32,
        priority: i32, capability_version: u32,
    }

    struct bp_chunk {
        struct_size: u32, flags: u32,
        json: bp_str,
        tensors: *const bp_tensor, n_tensors: u32, stride: u32,
    }

    struct bp_done {
        struct_size: u32, flags: u32,
        error: *const bp_error,
        usage_json: bp_str,
        confidence: f64,
    }

    struct bp_query {
        struct_size: u32, flags: u32,
        capability: bp_str, format: bp_str, model_json: bp_str,
        shapes: *const bp_tensor, n_shapes: u32, stride: u32,
        input_bytes: u64,
        slo_p99_us: u32, dev_type: i32, dev_id: i32, capability_version: u32,
    }

    struct bp_bid {
        struct_size: u32, flags: u32,
        score: u16, quality: u16,
        est_p50_us: u32, est_p99_us: u32, max_batch: u32, valid_ms: u32, load_ms: u32,
        bytes_dev: u64, bytes_host: u64,
        reason: i32, reserved: u32,
        text: bp_str,
    }

    struct bp_host {
        struct_size: u32, flags: u32,
        abi_major: u16, abi_minor: u16, reserved: u32,
        ctx: *mut c_void,
        name: bp_str, version: bp_str,
        get_extension: Option<unsafe extern "C" fn(host: *const bp_host, id: bp_str) -> *const c_void>,
        set_error: Option<unsafe extern "C" fn(host: *const bp_host, err: bp_err, error: *const bp_error) -> bp_code>,
        log: Option<unsafe extern "C" fn(host: *const bp_host, level: i32, message: bp_str, fields_json: bp_str)>,
        buf_alloc: Option<unsafe extern "C" fn(
            host: *const bp_host, dev_type: i32, dev_id: i32, nbytes: u64, align: u64,
            out: *mut bp_buf, data: *mut *mut c_void) -> bp_code>,
        buf_wrap: Option<unsafe extern "C" fn(
            host: *const bp_host, data: *mut c_void, nbytes: u64, ctx: *mut c_void, release: BpFree,
            out: *mut bp_buf) -> bp_code>,
        buf_retain: Option<unsafe extern "C" fn(host: *const bp_host, buf: bp_buf) -> bp_code>,
        buf_release: Option<unsafe extern "C" fn(host: *const bp_host, buf: bp_buf) -> bp_code>,
        out_alloc: Option<unsafe extern "C" fn(host: *const bp_host, sink: bp_sink, spec: *mut bp_tensor) -> bp_code>,
        push: Option<unsafe extern "C" fn(host: *const bp_host, sink: bp_sink, chunk: *const bp_chunk) -> bp_code>,
        finish: Option<unsafe extern "C" fn(host: *const bp_host, sink: bp_sink, done: *const bp_done) -> bp_code>,
    }

    struct bp_placement {
        struct_size: u32, flags: u32,
        ticket: bp_ticket,
        dev_type: i32, dev_id: i32,
        threads: u32, index: u32,
    }

    struct bp_instance {
        struct_size: u32, flags: u32,
        self_: *mut c_void,
        submit: Option<unsafe extern "C" fn(
            instance: *mut bp_instance, requests: *const bp_request, n: u32, stride: u32, err: bp_err) -> bp_code>,
        cancel: Option<unsafe extern "C" fn(instance: *mut bp_instance, request: bp_req) -> bp_code>,
        health: Option<unsafe extern "C" fn(instance: *mut bp_instance, state: *mut i32, err: bp_err) -> bp_code>,
        quiesce: Option<unsafe extern "C" fn(instance: *mut bp_instance, deadline_ns: i64) -> bp_code>,
        get_extension: Option<unsafe extern "C" fn(instance: *mut bp_instance, id: bp_str) -> *const c_void>,
        destroy: Option<unsafe extern "C" fn(instance: *mut bp_instance)>,
    }

    struct bp_model {
        struct_size: u32, flags: u32,
        self_: *mut c_void,
        exec_class: i32, max_inflight: u32, max_batch: u32, cancel_grace_ms: u32,
        describe_json: bp_str,
        instance_new: Option<unsafe extern "C" fn(
            model: *mut bp_model, placement: *const bp_placement, out: *mut *mut bp_instance, err: bp_err) -> bp_code>,
        get_extension: Option<unsafe extern "C" fn(model: *mut bp_model, id: bp_str) -> *const c_void>,
        close: Option<unsafe extern "C" fn(model: *mut bp_model)>,
    }

    struct bp_plugin {
        struct_size: u32, flags: u32,
        self_: *mut c_void,
        abi_minor_built: u16, abi_minor_min: u16, reserved: u32,
        id: bp_str, version: bp_str,
        init: Option<unsafe extern "C" fn(plugin: *mut bp_plugin, config_json: bp_str, err: bp_err) -> bp_code>,
        bid: Option<unsafe extern "C" fn(plugin: *mut bp_plugin, query: *const bp_query, out: *mut bp_bid) -> bp_code>,
        model_open: Option<unsafe extern "C" fn(
            plugin: *mut bp_plugin, model_json: bp_str, out: *mut *mut bp_model, err: bp_err) -> bp_code>,
        get_extension: Option<unsafe extern "C" fn(plugin: *mut bp_plugin, id: bp_str) -> *const c_void>,
        shutdown: Option<unsafe extern "C" fn(plugin: *mut bp_plugin)>,
    }

    struct bp_compute_1 {
        struct_size: u32, flags: u32,
        acquire: Option<unsafe extern "C" fn(
            host: *const bp_host, ticket: bp_ticket, want: u32, deadline_ns: i64, granted: *mut u32) -> bp_code>,
        release: Option<unsafe extern "C" fn(host: *const bp_host, ticket: bp_ticket, granted: u32) -> bp_code>,
    }

    struct bp_call {
        struct_size: u32, flags: u32,
        parent: bp_req,
        capability: bp_str, model: bp_str, params_json: bp_str,
        r#in: *const bp_tensor, n_in: u32, in_stride: u32,
        deadline_ns: i64,
        ctx: *mut c_void,
        on_chunk: Option<unsafe extern "C" fn(ctx: *mut c_void, chunk: *const bp_chunk) -> bp_code>,
        on_done: Option<unsafe extern "C" fn(ctx: *mut c_void, done: *const bp_done)>,
    }

    struct bp_call_1 {
        struct_size: u32, flags: u32,
        start: Option<unsafe extern "C" fn(host: *const bp_host, call: *const bp_call, out: *mut bp_req) -> bp_code>,
        cancel: Option<unsafe extern "C" fn(host: *const bp_host, call: bp_req) -> bp_code>,
    }

    struct bp_device_memory {
        struct_size: u32, flags: u32,
        dev_type: i32, dev_id: i32,
        data: *mut c_void, nbytes: u64,
        ctx: *mut c_void,
        read: Option<unsafe extern "C" fn(
            ctx: *mut c_void, offset: u64, nbytes: u64, to: *mut c_void, err: bp_err) -> bp_code>,
        release: BpFree,
    }

    struct bp_device_1 {
        struct_size: u32, flags: u32,
        wrap: Option<unsafe extern "C" fn(
            host: *const bp_host, memory: *const bp_device_memory, out: *mut bp_buf) -> bp_code>,
        read: Option<unsafe extern "C" fn(
            host: *const bp_host, buf: bp_buf, data: *const c_void, nbytes: u64, to: *mut c_void) -> bp_code>,
    }

    struct bp_device_inputs_1 {
        struct_size: u32, flags: u32,
        takes: Option<unsafe extern "C" fn(model: *mut bp_model, dev_type: i32, dev_id: i32) -> bp_code>,
    }

    struct bp_license_1 {
        struct_size: u32, flags: u32,
        state: Option<unsafe extern "C" fn(host: *const bp_host, state: *mut i32, revision: *mut u64) -> bp_code>,
        feature: Option<unsafe extern "C" fn(
            host: *const bp_host, tenant: bp_str, name: bp_str, value: *mut i64) -> bp_code>,
        envelope: Option<unsafe extern "C" fn(
            host: *const bp_host, buf: *mut c_void, capacity: u64, len: *mut u64) -> bp_code>,
        install_id: Option<unsafe extern "C" fn(
            host: *const bp_host, buf: *mut c_void, capacity: u64, len: *mut u64) -> bp_code>,
    }

    struct bp_tokens_1 {
        struct_size: u32, flags: u32,
        count: Option<unsafe extern "C" fn(
            model: *mut bp_model, capability: bp_str, params_json: bp_str, tokens: *mut u64, err: bp_err) -> bp_code>,
    }

    struct bp_stats_1 {
        struct_size: u32, flags: u32,
        read: Option<unsafe extern "C" fn(
            model: *mut bp_model, ctx: *mut c_void,
            each: Option<unsafe extern "C" fn(ctx: *mut c_void, name: bp_str, value: f64)>) -> bp_code>,
    }
}

/// Answers `envelope` and `install_id` of [`bp_license_1`] with these bytes.
///
/// # Safety
/// `buf` is null or has room for `capacity` bytes; `len` is null or a place to write to.
pub unsafe fn copy_out(bytes: &[u8], buf: *mut c_void, capacity: u64, len: *mut u64) -> bp_code {
    if len.is_null() || (buf.is_null() && capacity != 0) {
        return BP_NULL_ARGUMENT;
    }
    // SAFETY: not null, and the caller's promise.
    unsafe { *len = bytes.len() as u64 };
    if bytes.is_empty() {
        return BP_NOT_FOUND;
    }
    if capacity < bytes.len() as u64 {
        return BP_OUT_OF_RANGE;
    }
    // SAFETY: `buf` has room for as many, by the caller's promise; memory of two owners does not overlap.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), buf.cast::<u8>(), bytes.len()) };
    BP_OK
}

/// Signature of `bp_entry_v1`.
pub type EntryV1 = unsafe extern "C" fn(host: *const bp_host, out: *mut *mut bp_plugin) -> bp_code;

/// How a plugin is entered: the function behind its symbol, or what stands for it.
pub trait Enter: Send + Sync {
    /// `bp_entry_v1`.
    ///
    /// # Safety
    /// As the header says of `bp_entry_v1`.
    unsafe fn enter(&self, host: *const bp_host, out: *mut *mut bp_plugin) -> bp_code;
}

impl Enter for EntryV1 {
    unsafe fn enter(&self, host: *const bp_host, out: *mut *mut bp_plugin) -> bp_code {
        // SAFETY: the caller's promise.
        unsafe { self(host, out) }
    }
}

/// A type whose every bit pattern of zeroes is a value: null pointers, absent functions, empty strings.
///
/// # Safety
/// Implemented only for the tables above, which consist of integers, floats, raw pointers and optional functions.
pub unsafe trait Zeroable: Sized {
    /// All zero, with `struct_size` still to be set.
    fn zeroed() -> Self {
        // SAFETY: the trait's promise.
        unsafe { std::mem::zeroed() }
    }
}

/// Structs that begin with `struct_size` and `flags`.
///
/// # Safety
/// `repr(C)`, and the first two members are `struct_size: u32, flags: u32`.
pub unsafe trait Sized32: Zeroable + Copy {
    /// All zero but for the size.
    fn new() -> Self {
        let mut this = Self::zeroed();
        // SAFETY: the trait's promise: the first member is a u32.
        unsafe { *(&raw mut this).cast::<u32>() = size_of::<Self>() as u32 };
        this
    }

    /// Copies the struct that somebody else wrote, as far as they knew it; the rest is zero.
    ///
    /// `least`: how many bytes must be there for the struct to make sense at all. `None` for a null pointer, a
    /// smaller struct, or a required flag.
    ///
    /// # Safety
    /// `from` is null or points to at least `max(8, struct_size)` readable bytes.
    unsafe fn read(from: *const Self, least: usize) -> Option<Self> {
        if from.is_null() {
            return None;
        }
        // SAFETY: the caller's promise: at least 8 bytes are readable.
        let [size, flags] = unsafe { from.cast::<[u32; 2]>().read_unaligned() };
        if (size as usize) < least.max(8) || flags & BP_FLAG_REQUIRED_MASK != 0 {
            return None;
        }
        // SAFETY: the caller's promise.
        unsafe { Self::view(from) }
    }

    /// As [`Sized32::read`], but whatever its size and flags say: for one who passes it on to be judged.
    ///
    /// # Safety
    /// As [`Sized32::read`].
    unsafe fn view(from: *const Self) -> Option<Self> {
        if from.is_null() {
            return None;
        }
        // SAFETY: the caller's promise: at least 8 bytes are readable.
        let size = unsafe { from.cast::<u32>().read_unaligned() } as usize;
        // Size and flags are always there.
        let size = size.max(8);
        let mut this = Self::zeroed();
        // SAFETY: both sides hold `min(size, size_of::<Self>())` bytes, and `Self` is plain data (Zeroable).
        unsafe {
            std::ptr::copy_nonoverlapping(
                from.cast::<u8>(),
                (&raw mut this).cast::<u8>(),
                size.min(size_of::<Self>()),
            );
        }
        Some(this)
    }
}

macro_rules! zeroable {
    ($($name:ident)*) => { $(
        // SAFETY: integers, floats, raw pointers and `Option<fn>`: zero is a value of each.
        unsafe impl Zeroable for $name {}
        // SAFETY: declared above with struct_size and flags first.
        unsafe impl Sized32 for $name {}
    )* };
}

zeroable!(bp_error bp_tensor bp_request bp_chunk bp_done bp_query bp_bid bp_host bp_placement bp_instance bp_model
    bp_plugin bp_compute_1 bp_call bp_call_1 bp_device_memory bp_device_1 bp_device_inputs_1 bp_license_1 bp_tokens_1
    bp_stats_1);
