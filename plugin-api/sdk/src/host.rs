//! What the host does for a plugin.

use backplane_abi::table::bp_host;

/// The host that loaded this plugin. Usable from any thread, for as long as the plugin lives.
#[derive(Clone, Copy)]
pub struct Host(pub(crate) *const bp_host);

/// How much a line of the log matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the usual five")]
#[repr(i32)]
pub enum Level {
    Error = 1,
    Warn = 2,
    Info = 3,
    Debug = 4,
    Trace = 5,
}

impl Host {
    /// Writes a line to the host's log, under this plugin's name.
    pub fn log(&self, level: Level, message: impl AsRef<str>) {
        crate::sys::log(*self, level, message.as_ref());
    }

    /// The licence of this plugin. `None` where the manifest's `licence_class` is `"open"`, or the host knows no licences.
    pub fn license(&self) -> Option<crate::License> {
        crate::sys::license(*self)
    }

    /// Name of the host program and its version.
    pub fn name_and_version(&self) -> (String, String) {
        crate::sys::host_name(*self)
    }
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Host")
    }
}
