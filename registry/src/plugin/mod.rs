//! Plugin libraries, read without running any of their code.

mod elf;
mod inspect;
mod libraries;
mod linkage;
mod manifest;
pub(crate) mod portable;
mod report;
mod scan;

pub use inspect::{InspectError, MAX_NOTE, PluginFile, inspect, inspect_sealed};
pub use libraries::Needed;
pub use manifest::{
    AbiVersion, BuiltinModel, Isolation, LicenceClass, Manifest, Panics, Resources, RuntimeClass, Server,
};
pub use report::{Finding, Hosts, Report, report};
pub use scan::{Scanned, scan};
