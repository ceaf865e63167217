//! Why somebody is not let in, or a key could not be managed.

use crate::actor::Panicked;
use crate::error::{Error, ErrorCode};
use crate::store::StoreError;
use actix::MailboxError;
use std::path::PathBuf;
use std::time::Duration;

/// What can go wrong with keys.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// No key was given.
    #[error("no API key was given; send it as `authorization: Bearer <key>`")]
    Missing,
    /// It is not a key, or nobody's, or revoked, or expired: which of them is not said.
    #[error(
        "the API key is not valid; check it, or have an administrator make one with `backplane key create`"
    )]
    Invalid,
    /// As [`Invalid`](Self::Invalid), and so were many before it from the same address.
    #[error(
        "the API key is not valid, as were many before it from this address; check it, or have an administrator make one \
         with `backplane key create`"
    )]
    TooMany {
        /// When a wrong key is looked at again as a first one is.
        retry_after: Duration,
    },
    /// A new key was asked for with something that cannot be.
    #[error("`{param}` {problem}")]
    Unfit {
        /// Which member.
        param: &'static str,
        /// What is wrong with it, and what would be right.
        problem: &'static str,
    },
    /// There is no such key to manage.
    #[error("there is no key `{0}`; see `backplane key ls`")]
    NotFound(String),
    /// A key that is revoked was to be changed.
    #[error("key `{0}` is revoked, and stays so; make another with `backplane key create`")]
    Revoked(String),
    /// The store failed.
    #[error("the key store is not available, so nothing was changed; retry, and see the log")]
    Store(#[from] StoreError),
    /// The file of the first admin key cannot be written.
    #[error("the admin key cannot be written to {}: {source}", .path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The actor is being restarted.
    #[error(transparent)]
    Restarting(#[from] Panicked),
    /// The actor is gone.
    #[error("keys cannot be managed now; retry, and restart the host if that does not help")]
    Gone(#[from] MailboxError),
    /// The system gives no random bytes.
    #[error("the system gives no random bytes: {0}")]
    Random(#[from] getrandom::Error),
}

impl AuthError {
    /// What a caller can act on.
    pub fn code(&self) -> ErrorCode {
        match self {
            AuthError::Missing | AuthError::Invalid => ErrorCode::Unauthenticated,
            AuthError::TooMany { .. } => ErrorCode::ResourceExhausted,
            AuthError::Unfit { .. } | AuthError::Revoked(_) => ErrorCode::InvalidArgument,
            AuthError::NotFound(_) => ErrorCode::NotFound,
            AuthError::Store(_) | AuthError::Restarting(_) | AuthError::Gone(_) => ErrorCode::Unavailable,
            AuthError::KeyFile { .. } | AuthError::Random(_) => ErrorCode::Internal,
        }
    }

    /// For machines.
    fn reason(&self) -> &'static str {
        match self {
            AuthError::Missing => "missing_api_key",
            AuthError::Invalid => "invalid_api_key",
            AuthError::TooMany { .. } => "too_many_invalid_keys",
            AuthError::Unfit { .. } => "invalid_value",
            AuthError::NotFound(_) => "key_not_found",
            AuthError::Revoked(_) => "key_revoked",
            AuthError::Store(_) => "key_store_unavailable",
            AuthError::Restarting(_) | AuthError::Gone(_) => "auth_unavailable",
            AuthError::KeyFile { .. } | AuthError::Random(_) => "",
        }
    }
}

impl From<AuthError> for Error {
    fn from(error: AuthError) -> Self {
        if let AuthError::Store(cause) = &error {
            tracing::error!(error = %cause, "the key store failed");
        }
        let out = Error::new(error.code(), error.to_string()).with_reason(error.reason());
        match error {
            AuthError::Unfit { param, .. } => out.with_param(param),
            AuthError::TooMany { retry_after } => out.with_retry_after(retry_after),
            _ => out,
        }
    }
}
