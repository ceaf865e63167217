//! What a commercial plugin asks of its licence.

use crate::{Code, Error, Host, Result};
use std::fmt;

/// The licence of this plugin, as the host knows it: [`Host::license`]. It is the same one for as long as the plugin lives;
/// what it says changes when a licence is installed, ends or is taken back.
///
/// What [`standing`](Self::standing) and [`feature`](Self::feature) say is the host's policy, which an operator could change.
/// A plugin that must be sure takes the signed bytes ([`envelope`](Self::envelope)), checks them against a key of its own,
/// and does so again when [`revision`](Self::revision) is another and at least once an hour.
#[derive(Clone, Copy)]
pub struct License {
    pub(crate) host: Host,
    pub(crate) table: crate::sys::LicenseTable,
}

/// How a plugin stands with its licence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nobody has looked yet, which is not the same as unlicensed.
    Unknown,
    /// It serves.
    Licensed,
    /// It has ended, and serves for some days more.
    Grace,
    /// There is none, or none that serves.
    Denied,
}

impl License {
    /// How it stands now.
    pub fn standing(&self) -> Standing {
        crate::sys::license_state(self).0
    }

    /// Another number after each change of the licence, or of how it stands.
    pub fn revision(&self) -> u64 {
        crate::sys::license_state(self).1
    }

    /// What a tenant has of a feature: 1 is on, another number says how much. Nothing when it is off, not this tenant's,
    /// or the licence does not serve.
    pub fn feature(&self, tenant: &str, name: &str) -> Option<i64> {
        crate::sys::license_feature(self, tenant, name)
    }

    /// As [`feature`](Self::feature), for a request that cannot do without.
    ///
    /// # Errors
    /// `feature_not_licensed`, naming the feature.
    pub fn require(&self, tenant: &str, name: &str) -> Result<i64> {
        self.feature(tenant, name).ok_or_else(|| not_licensed(name))
    }

    /// The signed bytes: a DSSE envelope as JSON, whose payload is the licence.
    pub fn envelope(&self) -> Option<Vec<u8>> {
        crate::sys::license_bytes(self, false)
    }

    /// The id of this installation, which a licence may be bound to.
    pub fn install_id(&self) -> Option<String> {
        String::from_utf8(crate::sys::license_bytes(self, true)?).ok()
    }
}

/// The refusal of a request that asks for more than is licensed.
pub(crate) fn not_licensed(name: &str) -> Error {
    let message = format!("the feature `{name}` is not licensed; ask the vendor for a licence that has it");
    Error::new(Code::PermissionDenied, message).with_reason("feature_not_licensed")
}

impl fmt::Debug for License {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("License")
    }
}
