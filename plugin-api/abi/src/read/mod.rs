//! What the other side of a table wrote, read once and in one place: a host reads a plugin's errors, pieces, ends and
//! calls here, a plugin its host's, and a worker process reads as the host does, so that all of them hear the same answer.
//!
//! Nothing is believed that can be checked: how long a struct is, what it must not be null for, that text is UTF-8, that a
//! count is one, that a shape, its strides and its bytes fit together. What cannot be checked is the promise of each
//! `unsafe fn` here: a pointer that is not null leads where the header says it leads.
//!
//! - Ownership: what is returned *borrows*, for the `'a` that the caller names, and copies but the structs themselves. The
//!   header gives the lengths: a host function's arguments until it returns, a request until its `finish`.
//! - [`size`]: how much of a struct has to be there.
//! - [`tensor`]: tensors, whose parts must fit together.
//! - [`strided`]: elements that lie apart.
//! - [`strings`]: byte strings, one after the other.
//!
//! # Source
//! `backplane.h`: "Rules" (sizes and flags), "Ownership", and the comment of each struct. `bp_tensor` is DLPack's
//! `DLTensor`, whose strides count elements.
#![expect(unsafe_code, reason = "follows the pointers that the other side of the ABI passes")]

pub mod size;
pub mod strided;
pub mod strings;
pub mod tensor;

#[cfg(test)]
mod tests;

pub use size::{Size, known};
pub use tensor::{Memory, OnDevice, Rows, Tensor};

use crate::table::*;
use std::ffi::c_void;
use std::fmt;
use std::marker::PhantomData;

/// Who reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// Takes what it can make sense of: a host in service, which may be newer or older than who writes.
    Lenient,
    /// Takes the header to the letter: who judges plugins, and a plugin that reads its host.
    Strict,
}

/// Why something was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Null, shorter than it makes sense, or with a flag that has to be understood: which struct.
    Struct(&'static str),
    /// An array of tensors that is nowhere, or whose rows are too short.
    Rows {
        /// How many it claims.
        count: u32,
        /// How far apart, in bytes.
        stride: u32,
    },
    /// Not UTF-8: which text.
    Text(&'static str),
    /// A tensor whose parts do not fit together.
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong with it; goes on where "tensor `name`" ends.
        what: String,
        /// What the header has for it.
        code: bp_code,
    },
}

impl Refused {
    /// What a function of a table answers.
    pub fn code(&self) -> bp_code {
        match self {
            Refused::Struct(_) | Refused::Rows { .. } => BP_BAD_STRUCT,
            Refused::Text(_) => BP_INVALID_ARGUMENT,
            Refused::Tensor { code, .. } => *code,
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Struct(what) => {
                write!(f, "`{what}` is null, too short, or has a flag that is not known")
            }
            Refused::Rows { count, stride } => {
                write!(f, "{count} tensors are at no address, or too close at a stride of {stride} bytes")
            }
            Refused::Text(what) => write!(f, "{what} is not UTF-8"),
            Refused::Tensor { name, what, .. } => write!(f, "tensor `{name}` {what}"),
        }
    }
}

/// Text of the other side's.
#[derive(Clone, Copy)]
pub struct Str<'a>(bp_str, PhantomData<&'a [u8]>);

impl<'a> Str<'a> {
    /// # Safety
    /// As [`bp_str::bytes`].
    pub unsafe fn new(raw: bp_str) -> Self {
        Self(raw, PhantomData)
    }

    /// Its bytes, whatever they are; none for a null pointer.
    pub fn bytes(self) -> &'a [u8] {
        // SAFETY: the promise of `new`.
        unsafe { self.0.bytes() }
    }

    /// Its text; `None` when it is not UTF-8.
    pub fn text(self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()).ok()
    }

    /// Whether it has a length and no address. It reads as empty.
    pub fn is_nowhere(self) -> bool {
        self.0.ptr.is_null() && self.0.len > 0
    }
}

/// `bp_error`.
#[derive(Clone, Copy)]
pub struct Failure<'a> {
    /// As it was said; any number.
    pub code: bp_code,
    /// `BP_SUB_*`, or any number.
    pub sub: i32,
    /// 0: not said.
    pub retry_after_ms: u32,
    /// For people.
    pub message: Str<'a>,
    /// For programs.
    pub reason: Str<'a>,
    /// An object, if it is what it should be.
    pub details_json: Str<'a>,
}

/// Reads an error.
///
/// # Errors
/// [`Refused::Struct`].
///
/// # Safety
/// `at` is null, or valid for `'a` with everything in it.
pub unsafe fn failure<'a>(at: *const bp_error, reader: Reader) -> Result<Failure<'a>, Refused> {
    // SAFETY: the caller's promise, for each.
    unsafe {
        let raw = known(at, reader)?;
        Ok(Failure {
            code: raw.code,
            sub: raw.sub,
            retry_after_ms: raw.retry_after_ms,
            message: Str::new(raw.message),
            reason: Str::new(raw.reason),
            details_json: Str::new(raw.details_json),
        })
    }
}

/// `bp_chunk`.
#[derive(Clone, Copy)]
pub struct Chunk<'a> {
    /// An object or nothing, if it is what it should be.
    pub json: Str<'a>,
    /// Its tensors, not looked at yet.
    pub tensors: Rows<'a>,
}

/// Reads a piece of a result.
///
/// # Errors
/// [`Refused::Struct`].
///
/// # Safety
/// As [`failure`].
pub unsafe fn chunk<'a>(at: *const bp_chunk, reader: Reader) -> Result<Chunk<'a>, Refused> {
    // SAFETY: the caller's promise, for each.
    unsafe {
        let raw = known(at, reader)?;
        let tensors = Rows::new(raw.tensors, raw.n_tensors, raw.stride);
        Ok(Chunk { json: Str::new(raw.json), tensors })
    }
}

/// `bp_done`.
#[derive(Clone)]
pub struct Done<'a> {
    /// `None`: it went well. An error that cannot be read is one all the same.
    pub error: Option<Result<Failure<'a>, Refused>>,
    /// An object or nothing, if it is what it should be.
    pub usage_json: Str<'a>,
    /// As it was said; any number.
    pub confidence: f64,
}

/// Reads the end of a result.
///
/// # Errors
/// [`Refused::Struct`].
///
/// # Safety
/// As [`failure`].
pub unsafe fn done<'a>(at: *const bp_done, reader: Reader) -> Result<Done<'a>, Refused> {
    // SAFETY: the caller's promise, for each.
    unsafe {
        let raw = known(at, reader)?;
        let error = (!raw.error.is_null()).then(|| failure(raw.error, reader));
        Ok(Done { error, usage_json: Str::new(raw.usage_json), confidence: raw.confidence })
    }
}

/// `bp_call`.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    /// `BP_CALL_*`.
    pub flags: u32,
    /// The request it is made for.
    pub parent: bp_req,
    /// What is asked for.
    pub capability: Str<'a>,
    /// Of which model; empty: of whichever serves it.
    pub model: Str<'a>,
    /// An object or nothing, if it is what it should be.
    pub params_json: Str<'a>,
    /// Its tensors, not looked at yet.
    pub tensors: Rows<'a>,
    /// `CLOCK_MONOTONIC`; 0: none.
    pub deadline_ns: i64,
    /// Goes with the two functions.
    pub ctx: *mut c_void,
    /// For each piece of the answer.
    pub on_chunk: Option<OnChunk>,
    /// Once, at its end.
    pub on_done: Option<OnDone>,
}

/// `bp_call.on_chunk`.
pub type OnChunk = unsafe extern "C" fn(ctx: *mut c_void, chunk: *const bp_chunk) -> bp_code;
/// `bp_call.on_done`.
pub type OnDone = unsafe extern "C" fn(ctx: *mut c_void, done: *const bp_done);

/// Reads what a plugin asks another capability.
///
/// # Errors
/// [`Refused::Struct`].
///
/// # Safety
/// As [`failure`].
pub unsafe fn call<'a>(at: *const bp_call, reader: Reader) -> Result<Call<'a>, Refused> {
    // SAFETY: the caller's promise, for each.
    unsafe {
        let raw = known(at, reader)?;
        Ok(Call {
            flags: raw.flags,
            parent: raw.parent,
            capability: Str::new(raw.capability),
            model: Str::new(raw.model),
            params_json: Str::new(raw.params_json),
            tensors: Rows::new(raw.r#in, raw.n_in, raw.in_stride),
            deadline_ns: raw.deadline_ns,
            ctx: raw.ctx,
            on_chunk: raw.on_chunk,
            on_done: raw.on_done,
        })
    }
}
