//! The host's table, and its extension `bp.compute/1`.
#![expect(unsafe_code, reason = "the plugin's end of the C ABI")]

use super::text;
use crate::host::{Host, Level};
use crate::plugin::Permit;
use crate::{Error, Result};
use backplane_abi::clock;
use backplane_abi::code::Code;
use backplane_abi::read::{self, Reader, Size};
use backplane_abi::table::*;
use std::time::Instant;

/// Calls a function of the host's table; absent ones answer UNIMPLEMENTED.
macro_rules! host_call {
    ($host:expr, $name:ident ( $($arg:expr),* )) => {{
        let host: Host = $host;
        // SAFETY: `entry` checked that the table reaches up to `finish`; the host outlives the plugin; the arguments
        // are valid for the call, as the header asks.
        unsafe { match (*host.0).$name { Some(function) => function(host.0, $($arg),*), None => BP_UNIMPLEMENTED } }
    }};
}
pub(super) use host_call;

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
pub(super) fn with_raw<R>(error: &Error, with: impl FnOnce(&bp_error) -> R) -> R {
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

pub(super) fn set_error(host: Host, err: bp_err, error: &Error) {
    with_raw(error, |raw| {
        host_call!(host, set_error(err, raw));
    });
}

/// The host's extension, if it is there and at least as long as we need it.
pub(super) fn extension<T: Size>(host: Host, id: &'static str) -> Option<T> {
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

/// Gives so many of its threads back.
pub fn release(permit: &Permit, threads: u32) {
    if !permit.pooled || threads == 0 {
        return;
    }
    if let Some(release) =
        extension::<bp_compute_1>(permit.host, BP_EXT_COMPUTE_1).and_then(|table| table.release)
    {
        // SAFETY: a function of the host's.
        unsafe { release(permit.host.0, permit.ticket, threads) };
    }
}
