//! The first minutes of a version that has taken over: when it ends in quarantine, the one before serves again.

use super::run::{Run, point_at};
use crate::catalog::Found;
use crate::host::WeakHost;
use crate::upgrade::trial::Trial;
use backplane_registry::package::{Plugins, Version};
use backplane_registry::trust::Timestamp;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a version is new.
const NEW: Duration = Duration::from_secs(600);
/// How often it is asked for.
const LOOK: Duration = Duration::from_millis(250);

/// What is to be known for the way back, and nothing that keeps a version in memory.
pub struct Watch {
    pub host: WeakHost,
    pub id: String,
    /// The version that serves.
    pub new: Found,
    pub package: Version,
    /// The version before, and where it lies.
    pub before: String,
    pub path: PathBuf,
    pub packages: Plugins,
    pub trial: Arc<Trial>,
}

impl Watch {
    /// Looks until the version is no longer new, or another takes over; on a thread.
    pub fn begin(self) {
        let id = self.id.clone();
        let spawned = std::thread::Builder::new().name("upgraded".to_owned()).spawn(move || self.look());
        if let Err(error) = spawned {
            tracing::error!(plugin = id, %error, "no thread to look after the new version");
        }
    }

    fn look(self) {
        let until = Instant::now() + NEW;
        while Instant::now() < until {
            std::thread::sleep(LOOK);
            let Ok(host) = self.host.get() else { return };
            if host.is_stopping() || !host.parts().catalog.shelf().upgrades.is_last(&self.id, &self.trial) {
                return;
            }
            drop(host);
            if self.new.is_quarantined() && self.go_back() {
                return;
            }
        }
    }

    /// Whether that was tried: not while another plugin is upgraded.
    fn go_back(&self) -> bool {
        let Ok(host) = self.host.get() else { return true };
        if host.parts().catalog.shelf().upgrades.under_way().is_some() {
            return false;
        }
        let (id, version) = (&self.id, &self.package.version);
        let why =
            format!("{version} crashed again and again soon after it had taken over, and is in quarantine");
        tracing::error!(
            plugin = id,
            version,
            before = self.before,
            "{why}; the version before is to serve again"
        );
        let on_disk = point_at(&self.packages, id, &self.path, &self.package)
            .and_then(|()| self.packages.note_failed(&self.package, &self.before, &why, Timestamp::now()));
        if let Err(error) = on_disk {
            tracing::error!(plugin = id, %error, "there is no way back on disk");
            return true;
        }
        let run = Run::prepare(&host, self.host.clone(), id, false);
        drop(host);
        match run {
            Ok(run) => run.back_from(&why),
            Err(error) => tracing::error!(plugin = id, %error, "the version before cannot serve again"),
        }
        true
    }
}
