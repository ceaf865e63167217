//! The frozen `abi_stable` root module.
//!
//! The C table is the ABI. Rust plugins built with the SDK additionally export this module, so that the host can
//! let `abi_stable` compare layouts at load time and turn a mismatched build of `abi_stable` itself or of this
//! crate's major version into a readable error instead of undefined behaviour.
//!
//! It has one field and never gets another: a host whose `abi_stable` table grew rejects every older plugin
//! (docs/decisions/001-one-c-table.md). It is loaded by [`check`] only, since `load_from_file` answers every path with
//! the first library it ever loaded.

use abi_stable::StableAbi;
use abi_stable::library::{RootModule, lib_header_from_path};
use abi_stable::package_version_strings;
use abi_stable::sabi_types::VersionStrings;
use core::ffi::c_void;
use std::path::Path;

/// What a library exports that has the root module.
pub const SYMBOL: &str = "_1as_0lib_1header_0root_bmodule_bloader";

/// Lets `abi_stable` compare the layout of the root module in a library that is mapped with ours.
///
/// # Errors
/// Its whole report, of hundreds of lines; [`brief`] has those that say it.
pub fn check(library: &Path) -> Result<(), String> {
    let checked = lib_header_from_path(library).and_then(|header| header.init_root_module::<RootRef>());
    checked.map(drop).map_err(|error| error.to_string())
}

/// The lines of a report of [`check`] that say what is wrong.
pub fn brief(report: &str) -> String {
    let mut lines = report.lines().map(str::trim).filter(|line| !line.is_empty());
    let from = lines.by_ref().skip_while(|line| !line.starts_with("Error:")).take(5).collect::<Vec<_>>();
    if from.is_empty() { report.lines().take(3).collect::<Vec<_>>().join(" ") } else { from.join(" ") }
}

/// The root module. Frozen.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = RootRef, prefix_fields = RootPrefix)))]
#[sabi(missing_field(panic))]
pub struct Root {
    /// The same function as the exported symbol `bp_entry_v1`, with its tables erased: their layout is held by
    /// size and offset, not by `abi_stable`. (Written out here, since the derive does not see through an alias,
    /// and without `unsafe`, which it does not know on function pointers with parameters; the contract of the
    /// header holds all the same.)
    #[sabi(last_prefix_field)]
    pub entry: extern "C" fn(*const c_void, *mut *mut c_void) -> i32,
}

impl RootModule for RootRef {
    abi_stable::declare_root_module_statics! {RootRef}
    const BASE_NAME: &'static str = "backplane_plugin";
    const NAME: &'static str = "backplane_plugin";
    const VERSION_STRINGS: VersionStrings = package_version_strings!();
}
