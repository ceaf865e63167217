//! A plugin that needs a licence, its vendor, and an operator who trusts the vendor.

#![allow(dead_code, clippy::unwrap_used, reason = "each test uses its part; a helper fails by panicking")]

use crate::support::slow;
use backplane::{Config, Host};
use backplane_registry::license::{Licence, Licences};
use backplane_registry::trust::{
    Envelope, RevocationList, Role, SecretKey, Timestamp, TrustStore, TrustedKey, payload_type,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

pub const PLUGIN: &str = "com.acme.slow";
pub const FREE: &str = "org.free.slow";

pub fn vendor() -> SecretKey {
    SecretKey::of_seed(&[1; 32])
}

/// A state directory that trusts the vendor, and a folder with a plugin that needs a licence and one that does not.
pub struct Site {
    pub state: tempfile::TempDir,
    pub plugins: tempfile::TempDir,
}

impl Site {
    pub fn new(settings: &[&str]) -> Self {
        let site = Self { state: tempfile::tempdir().unwrap(), plugins: tempfile::tempdir().unwrap() };
        let key = vendor().public();
        let more = format!("MORE=\"licence_class = 'commercial'\\nvendor_keys = ['{key}']\\n\"");
        let settings: Vec<&str> = settings.iter().copied().chain([more.as_str()]).collect();
        slow(site.plugins.path(), "libpaid.so", PLUGIN, &settings);
        slow(site.plugins.path(), "libfree.so", FREE, &["VERSION=\"9.0.0\""]);
        trust(site.state.path());
        site
    }

    pub fn host(&self, change: impl FnOnce(&mut Config)) -> Host {
        let mut config = Config::for_tests();
        change(&mut config);
        let builder = Host::builder().config(config).state_dir(self.state.path());
        builder.plugin_dir(self.plugins.path()).start().unwrap()
    }

    /// As [`license`].
    pub fn license(&self, id: &str, serial: u64, members: Value) {
        license(self.state.path(), id, serial, members);
    }

    pub fn revoke(&self, id: &str) {
        let list = RevocationList {
            serial: 1,
            iat: Timestamp::now(),
            expires: None,
            licenses: BTreeSet::from([id.to_owned()]),
            keys: BTreeSet::new(),
            plugin_digests: BTreeSet::new(),
        };
        let payload = serde_json::to_vec(&list).unwrap();
        let list = Envelope::sign(payload_type::REVOCATIONS, payload, &[&vendor()]).to_json();
        TrustStore::at(self.state.path()).add_revocations(&list, Timestamp::now()).unwrap();
    }
}

pub fn days(days: i64) -> String {
    seconds(days * 86_400)
}

pub fn seconds(seconds: i64) -> String {
    Timestamp::now().plus(seconds).to_string()
}

/// Installs a licence that runs for a year, with these members instead.
pub fn license(state: &Path, id: &str, serial: u64, members: Value) {
    let mut licence = json!({
        "v": 1, "id": id, "serial": serial, "issuer": "acme-ai",
        "licensee": {"id": "cus_42", "name": "Example GmbH"}, "product": {"plugin": PLUGIN},
        "iat": days(-10), "nbf": days(-10), "exp": days(365),
    });
    licence.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    let licence: Licence = serde_json::from_value(licence).unwrap();
    let sealed = licence.seal(&[&vendor()]).unwrap();
    Licences::at(state).install(id, sealed.as_bytes()).unwrap();
}

/// The operator trusts the vendor.
pub fn trust(state: &Path) {
    let key = TrustedKey::new(vendor().public(), "acme-ai", &[Role::License, Role::Revocation]);
    TrustStore::at(state).add(key).unwrap();
}
