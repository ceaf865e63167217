//! Errors on their way from a plugin to the host.

use backplane_abi::table::bp_code;
use backplane_abi::worker::Failure;

/// `bp_error`, copied.
#[derive(Clone, Debug, Default)]
pub struct Said {
    pub code: bp_code,
    pub sub: i32,
    pub retry_after_ms: u32,
    pub message: Vec<u8>,
    pub reason: Vec<u8>,
    pub details: Vec<u8>,
}

impl Said {
    pub fn failure(&self) -> Failure<'_> {
        Failure {
            code: self.code,
            sub: self.sub,
            retry_after_ms: self.retry_after_ms,
            message: &self.message,
            reason: &self.reason,
            details: &self.details,
        }
    }
}
