//! How the worker of each plugin broke down, the last time.

use crate::info::{CrashInfo, PluginInfo};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::OnceLock;

/// Of all plugins of a host: as many as there are.
#[derive(Default)]
pub(crate) struct Breakdowns {
    /// Counts each; set before the first plugin is loaded.
    pub count: OnceLock<Count>,
    last: Mutex<HashMap<String, CrashInfo>>,
}

/// Is told the plugin, and in a word how its worker ended.
pub(crate) type Count = Box<dyn Fn(&str, &str) + Send + Sync>;

impl Breakdowns {
    pub fn add(&self, plugin: &str, crash: CrashInfo) {
        if let Some(count) = self.count.get() {
            count(plugin, crash.kind);
        }
        self.last.lock().insert(plugin.to_owned(), crash);
    }

    /// Puts them where plugins are shown.
    pub fn show(&self, plugins: &mut [PluginInfo]) {
        let last = self.last.lock();
        for plugin in plugins.iter_mut().filter(|plugin| plugin.shadowed_by.is_none()) {
            plugin.last_crash = last.get(&plugin.id).cloned();
        }
    }
}
