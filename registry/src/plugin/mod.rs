//! Plugin libraries, read without running any of their code.

mod elf;
mod inspect;
mod manifest;
mod scan;

pub use inspect::{InspectError, MAX_NOTE, PluginFile, inspect};
pub use manifest::{
    AbiVersion, BuiltinModel, Isolation, LicenceClass, Manifest, Panics, Resources, RuntimeClass,
};
pub use scan::{Scanned, scan};
