//! What changes when a configuration is read again.

use super::Config;
use super::layers::{join, leaves};
use crate::info::{ChangedModel, PluginChanges};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What a reload changed: settings by key path, models and plugins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReloadReport {
    /// Every key whose value is another now.
    pub changed: Vec<String>,
    /// Every key that takes effect at the next start and is not what the host was started with: until then that is in
    /// force.
    pub needs_restart: Vec<String>,
    /// Models that came, went, or have another card.
    pub models: Vec<ChangedModel>,
    /// What was found in the plugin folders.
    pub plugins: PluginChanges,
    /// Names in the configuration that no model and no plugin here has.
    pub warnings: Vec<String>,
}

/// Keys, and beginnings of keys, that are read once: sockets and threads are made from them, plugins are told them
/// when they are initialised, and a log line's form is fixed when logging begins.
pub(super) const READ_ONCE: [&str; 23] = [
    "server.address",
    "server.workers",
    "server.body_limit",
    "server.uri_limit",
    "server.header_limit",
    "server.max_headers",
    "server.json_depth",
    "server.first_byte_timeout",
    "server.header_timeout",
    "server.body_timeout",
    "server.body_total_timeout",
    "server.body_rate",
    "server.send_timeout",
    "server.keep_alive",
    "server.max_connections",
    "server.cors_origins",
    "fetch",
    "plugins.isolation",
    "plugins.workers",
    "plugins.settings",
    "plugins.trust",
    "compute",
    "log",
];

/// Compares two configurations.
pub fn diff(old: &Config, new: &Config) -> ReloadReport {
    let values = |config: &Config| -> BTreeMap<String, _> {
        leaves(&config.raw).into_iter().map(|(path, value)| (join(&path), value)).collect()
    };
    let (before, after) = (values(old), values(new));
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let changed: Vec<String> =
        keys.into_iter().filter(|key| before.get(*key) != after.get(*key)).cloned().collect();
    let needs_restart =
        changed.iter().filter(|key| READ_ONCE.iter().any(|read| is_below(key, read))).cloned().collect();
    ReloadReport { changed, needs_restart, ..ReloadReport::default() }
}

pub(super) fn is_below(key: &str, section: &str) -> bool {
    key.strip_prefix(section).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}
