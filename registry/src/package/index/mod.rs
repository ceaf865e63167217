//! A registry of packages: a tree of files that any web server hands out, or a folder.
//!
//! ```text
//! timestamp.dsse          signed: the serial, the snapshot's hash, until when it is to be believed
//! blobs/sha256/<hex>      everything else, by its hash, and so never changed:
//!                           the snapshot, signed: each plugin's list, and the revocations
//!                           lists: one line of JSON for each version
//!                           packages
//! ```
//!
//! Only `timestamp.dsse` is ever replaced, so a copy taken meanwhile is whole, and `cp -r` mirrors a registry. A client
//! follows the hashes from there: it cannot be given parts of two states. It remembers the highest serial of each key,
//! so it cannot be led back; and a timestamp ends, so it cannot be kept where it is.

mod client;
mod fetch;
mod make;
mod sources;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::trust::Timestamp;

pub use client::Index;
pub use make::{Changes, make};
pub use sources::{Registries, Registry};

const TIMESTAMP: &str = "timestamp.dsse";
const TIMESTAMP_TYPE: &str = "application/vnd.backplane.timestamp.v1+json";
/// The longest timestamp, snapshot and list that are read.
const MAX_TIMESTAMP: u64 = 64 << 10;
const MAX_SNAPSHOT: u64 = 16 << 20;
const MAX_LIST: u64 = 16 << 20;

/// Where a blob lies in the tree.
fn blob(digest: &Digest) -> String {
    format!("blobs/sha256/{digest}")
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TimestampDoc {
    serial: u64,
    snapshot: Digest,
    expires: Timestamp,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SnapshotDoc {
    serial: u64,
    /// Plugin id to its list.
    plugins: BTreeMap<String, Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revocations: Option<Digest>,
}

/// A version that a registry has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    pub version: String,
    /// Of the signed manifest.
    pub digest: Digest,
    /// Of the package's file.
    pub sha256: Digest,
    pub size: u64,
    pub abi: String,
    pub platform: String,
    /// Not to be installed any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub yanked: bool,
}
