//! The tables of a plugin that is in a worker.
//!
//! They outlive workers: a model knows what it was opened from and an instance where it was placed, so that a worker that
//! died is started again, and made to be what it was, by the next call that needs it.
//!
//! - `plugin`: the plugin's own table.
//! - `revival`: which worker a call goes to, and whether one that died is started again.
//! - `model`, `instance`: theirs.
//! - `submit`: requests on their way into a worker.

pub use instance::end;

mod instance;
mod model;
mod plugin;
mod revival;
mod submit;

use super::host::HostSide;
use backplane_abi::table::*;
use backplane_abi::worker::{Failure, Return};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What the header says returns promptly. A worker that takes longer is ended.
const PROMPT: Duration = Duration::from_secs(5);

/// An error of ours.
struct Said {
    code: bp_code,
    message: String,
    reason: &'static str,
    retry_after: Duration,
}

impl Said {
    fn new(code: bp_code, message: impl Into<String>, reason: &'static str) -> Self {
        Self { code, message: message.into(), reason, retry_after: Duration::ZERO }
    }

    fn failure(&self) -> Failure<'_> {
        Failure {
            code: self.code,
            sub: BP_SUB_NONE,
            retry_after_ms: self.retry_after.as_millis() as u32,
            message: self.message.as_bytes(),
            reason: self.reason.as_bytes(),
            details: b"",
        }
    }
}

const UNAVAILABLE: bp_code = 14;

/// A number for a model, an instance or a request: never the same one twice.
fn number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn text(bytes: &[u8]) -> bp_str {
    bp_str { ptr: bytes.as_ptr().cast(), len: bytes.len() as u64 }
}

/// Passes on the reason of a call, and its code.
fn report(host: &HostSide, err: bp_err, returned: &Return<'_>) -> bp_code {
    if let Some(failure) = &returned.error {
        host.set_error(err, failure);
    }
    returned.code
}
