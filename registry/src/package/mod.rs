//! Plugin packages: one signed file, checked before anything of it is unpacked, and again each time it is loaded.
//! `docs/packages.md` has the format and the steps.
//!
//! - `pack`: from a library to a package.
//! - `verify`: the signature, then everything that was signed.
//! - `payload`, `unpack`: the archive, read against the manifest; files below one folder or nothing at all.
//! - `library`: what a library has to be.
//! - `store`, `ledger`: what is installed.
//! - `seal`: a copy in memory that nobody can change.
//! - `index`: registries.

mod error;
mod file;
pub mod index;
mod ledger;
mod library;
mod manifest;
mod pack;
mod path;
mod payload;
mod seal;
mod store;
mod unpack;
mod verify;

pub use error::{PackageError, Problem, Result};
pub use file::EXTENSION;
pub use ledger::{Act, Entry};
pub use manifest::{FileEntry, PackageManifest, Payload, Platform};
pub use pack::{PackOptions, Packed, pack, sign, signed_digest};
pub use path::{BadPath, PackagePath};
pub use seal::{SealedFile, seal};
pub use store::{Checked, Installed, KEEP, Plugins, Version, order};
pub use verify::{Level, Package, Trust, Verified, open};
