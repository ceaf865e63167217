//! Plugin packages.

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
pub use pack::{PackOptions, Packed, pack, sign};
pub use path::{BadPath, PackagePath};
pub use seal::{SealedFile, seal};
pub use store::order;
pub use store::{Checked, Installed, KEEP, Plugins, Version};
pub use verify::{Level, Package, Trust, Verified, open};
