//! What was done to the installed plugins, one line of JSON each, oldest first. Nothing is ever taken out of it.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::{Result, io as at};
use super::verify::Level;
use crate::trust::{KeyId, Timestamp};

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    Install,
    Rollback,
    Remove,
    /// A running host tried it and went back to the version before.
    Failed,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub at: Timestamp,
    pub act: Act,
    pub id: String,
    pub version: String,
    /// The first 12 digits, as in the folder's name.
    pub digest: String,
    /// The version that was in use before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<KeyId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<Level>,
    /// Where the package came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Why a host went back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Adds a line; it is on the disk when this returns.
pub(crate) fn append(path: &Path, entry: &Entry) -> Result<()> {
    let mut line = serde_json::to_string(entry).map_err(io::Error::other).map_err(at("write", path))?;
    line.push('\n');
    let write = || {
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        // One call, so that a line is there whole or not at all.
        file.write_all(line.as_bytes())?;
        file.sync_all()
    };
    write().map_err(at("write", path))
}

/// All lines that can be read: one that was cut off by a power failure is passed over.
pub(crate) fn read(path: &Path) -> Result<Vec<Entry>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(at("read", path)(error)),
    }
}
