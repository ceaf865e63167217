//! What a library asks of the dynamic linker, and whether every machine can give it. Constructors run when a library is
//! mapped, so this is read from the file, before.

use super::PluginFile;

/// Libraries that a plugin may expect of every machine: the C and C++ runtimes, and what belongs to a GPU's driver.
/// Everything else is linked statically.
const EXPECTED: [&str; 13] = [
    "ld-linux-aarch64.so.1",
    "ld-linux-x86-64.so.2",
    "libatomic.so.1",
    "libc.so.6",
    "libcuda.so.1",
    "libdl.so.2",
    "libgcc_s.so.1",
    "libgomp.so.1",
    "libm.so.6",
    "libpthread.so.0",
    "librt.so.1",
    "libstdc++.so.6",
    "libvulkan.so.1",
];

/// Whether the linker would map this library and nothing of somebody else's.
///
/// # Errors
/// In words, with what would mend it.
pub(crate) fn check(library: &PluginFile) -> Result<(), String> {
    if let Some(path) = library.search.iter().flat_map(|paths| paths.split(':')).find(|path| !is_origin(path))
    {
        return Err(format!(
            "the library looks for others in `{}` (RPATH); link it without `-rpath`, or remove it with \
             `patchelf --remove-rpath`",
            path.escape_debug()
        ));
    }
    if let Some(name) = library.pulls.first() {
        return Err(format!("the library has the linker map `{}` beside it", name.escape_debug()));
    }
    if let Some(name) = library.needed.iter().find(|name| !EXPECTED.contains(&name.as_str())) {
        return Err(format!(
            "the library needs `{}`, which not every machine has; link it statically",
            name.escape_debug()
        ));
    }
    Ok(())
}

/// In memory there is no folder that the library came from, so this finds nothing.
fn is_origin(path: &str) -> bool {
    matches!(path, "$ORIGIN" | "${ORIGIN}")
}
