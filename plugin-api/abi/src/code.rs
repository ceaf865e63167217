//! Canonical codes: what a caller can act on.

use std::fmt;

/// The sixteen error codes of gRPC, with their numbers, as they cross the ABI.
///
/// # Source
/// `google/rpc/code.proto`; the numbers are part of the ABI (`backplane.h`, `bp_code`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Code {
    /// The caller left.
    Cancelled = 1,
    /// Nobody knows.
    Unknown = 2,
    /// The request is wrong whatever the state of the system.
    InvalidArgument = 3,
    /// It took too long.
    DeadlineExceeded = 4,
    /// There is no such thing.
    NotFound = 5,
    /// There already is such a thing.
    AlreadyExists = 6,
    /// The caller is known and may not.
    PermissionDenied = 7,
    /// Memory, slots or quota are used up; it may work later.
    ResourceExhausted = 8,
    /// The system must change first: a missing runtime, an expired licence.
    FailedPrecondition = 9,
    /// Somebody else was faster.
    Aborted = 10,
    /// Valid in form, beyond a limit: a prompt longer than the context.
    OutOfRange = 11,
    /// Not built.
    Unimplemented = 12,
    /// A bug in the plugin or the host.
    Internal = 13,
    /// Transient.
    Unavailable = 14,
    /// A file is corrupt.
    DataLoss = 15,
    /// The caller is not known.
    Unauthenticated = 16,
}

impl Code {
    /// Every code, in the order of its number.
    pub const ALL: [Code; 16] = [
        Code::Cancelled,
        Code::Unknown,
        Code::InvalidArgument,
        Code::DeadlineExceeded,
        Code::NotFound,
        Code::AlreadyExists,
        Code::PermissionDenied,
        Code::ResourceExhausted,
        Code::FailedPrecondition,
        Code::Aborted,
        Code::OutOfRange,
        Code::Unimplemented,
        Code::Internal,
        Code::Unavailable,
        Code::DataLoss,
        Code::Unauthenticated,
    ];

    /// The code with this number. A number we do not know reads as [`Code::Internal`], as the header says.
    pub fn from_raw(raw: i32) -> Code {
        Code::ALL.into_iter().find(|code| *code as i32 == raw).unwrap_or(Code::Internal)
    }

    /// The canonical name in lower snake case.
    pub fn name(self) -> &'static str {
        match self {
            Code::Cancelled => "cancelled",
            Code::Unknown => "unknown",
            Code::InvalidArgument => "invalid_argument",
            Code::DeadlineExceeded => "deadline_exceeded",
            Code::NotFound => "not_found",
            Code::AlreadyExists => "already_exists",
            Code::PermissionDenied => "permission_denied",
            Code::ResourceExhausted => "resource_exhausted",
            Code::FailedPrecondition => "failed_precondition",
            Code::Aborted => "aborted",
            Code::OutOfRange => "out_of_range",
            Code::Unimplemented => "unimplemented",
            Code::Internal => "internal",
            Code::Unavailable => "unavailable",
            Code::DataLoss => "data_loss",
            Code::Unauthenticated => "unauthenticated",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_round_and_unknown_ones_read_as_internal() {
        for code in Code::ALL {
            assert_eq!(Code::from_raw(code as i32), code);
        }
        assert_eq!(Code::from_raw(0), Code::Internal);
        assert_eq!(Code::from_raw(99), Code::Internal);
    }
}
