//! What a packaged library has to be.

use super::error::Problem;
use super::manifest::PackageManifest;
use crate::plugin::{PluginFile, portable};

/// Whether the linker would map this library and nothing of somebody else's.
pub(crate) fn check(library: &PluginFile) -> Result<(), Problem> {
    portable::check(library).map_err(Problem::Refused)
}

/// Whether the library says of itself what the signed manifest says of it.
pub(crate) fn check_manifest(library: &PluginFile, signed: &PackageManifest) -> Result<(), Problem> {
    if library.manifest_text == signed.plugin.text {
        return Ok(());
    }
    let (said, signed) = (&library.manifest, &signed.plugin);
    let differs = if said.id != signed.id {
        format!("`id` is `{}` there, signed is `{}`", said.id, signed.id)
    } else if said.version != signed.version {
        format!("`version` is `{}` there, signed is `{}`", said.version, signed.version)
    } else {
        "pack it again with this library".to_owned()
    };
    Err(Problem::Refused(format!("the library's own plugin.toml is not the one that was signed: {differs}")))
}
