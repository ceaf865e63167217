//! Why a package is not made, not installed or not loaded.

use std::fmt;
use std::io;
use std::path::Path;

/// What is wrong, and with what.
#[derive(Debug, thiserror::Error)]
#[error("{origin}: {problem}")]
pub struct PackageError {
    /// The file, address or plugin.
    pub origin: String,
    #[source]
    pub problem: Problem,
}

pub type Result<T, E = PackageError> = std::result::Result<T, E>;

/// What is wrong with a package. Each has a stable [`code`](Self::code).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    #[error("cannot {action} it: {source}")]
    Io { action: &'static str, source: io::Error },

    #[error("not a plugin package: {0}")]
    NotAPackage(String),

    #[error("its manifest: {0}")]
    Manifest(String),

    #[error("it is not signed")]
    Unsigned,

    #[error("{0}")]
    Untrusted(String),

    #[error("its contents are not what was signed: {0}; get it anew")]
    Modified(String),

    #[error("refused: {0}")]
    Refused(String),

    #[error("not for this host: {0}")]
    Platform(String),

    #[error("it was revoked: {0}")]
    Revoked(String),

    #[error("{0}")]
    Policy(String),

    #[error("{0}")]
    NotFound(String),

    #[error("{0}")]
    Index(String),

    #[error("{0}")]
    Busy(String),
}

impl Problem {
    /// A word for scripts.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "io",
            Self::NotAPackage(_) => "package_invalid",
            Self::Manifest(_) => "package_manifest_invalid",
            Self::Unsigned => "package_unsigned",
            Self::Untrusted(_) => "package_untrusted",
            Self::Modified(_) => "package_modified",
            Self::Refused(_) => "package_refused",
            Self::Platform(_) => "package_platform",
            Self::Revoked(_) => "package_revoked",
            Self::Policy(_) => "package_policy",
            Self::NotFound(_) => "package_not_found",
            Self::Index(_) => "index_refused",
            Self::Busy(_) => "package_busy",
        }
    }

    pub(crate) fn at(self, path: &Path) -> PackageError {
        self.of(path.display())
    }

    pub(crate) fn of(self, origin: impl fmt::Display) -> PackageError {
        PackageError { origin: origin.to_string(), problem: self }
    }
}

/// An error of the system at a file.
pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PackageError {
    let origin = path.display().to_string();
    move |source| Problem::Io { action, source }.of(origin)
}
