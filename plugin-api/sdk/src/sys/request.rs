//! What becomes of a request: pieces, an end, and whether anybody waits for it.
#![expect(unsafe_code, reason = "the plugin's end of the C ABI")]

use super::host::{host_call, with_raw};
use super::log;
use super::tensor::Lending;
use crate::Result;
use crate::host::{Host, Level};
use crate::plugin::Done;
use crate::request::{Chunk, Pushed, Request};
use backplane_abi::table::*;
use std::sync::atomic::{AtomicU32, Ordering};

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
