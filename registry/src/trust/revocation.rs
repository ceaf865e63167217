//! What was taken back: licences, keys, plugin files.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    Envelope, KeyId, Level, Result, Role, Timestamp, TrustError, TrustSet, TrustedKey, VerifiedPayload,
    payload_type,
};
use crate::digest::Digest;

/// More than a list of ten thousand entries takes.
pub const MAX_LIST: usize = 1 << 20;

/// The payload of a revocation list. A list is whole: the newest of a key takes the place of those before it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RevocationList {
    /// Higher than that of the list before.
    pub serial: u64,
    pub iat: Timestamp,
    /// From when on a newer list is expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub licenses: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub keys: BTreeSet<KeyId>,
    /// SHA-256 of plugin libraries and packages.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub plugin_digests: BTreeSet<String>,
}

/// The highest serial seen, of each kind of document and each key on its own: else one leaked key could sign the highest
/// number there is and keep out every list to come.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ratchet(BTreeMap<String, u64>);

impl Ratchet {
    /// Notes `serial` for each signer that has not signed a higher one. An older document is refused; the same again
    /// is fine. Of several signers one is enough: beside a leaked key's serial a sound one's still counts.
    pub fn advance(&mut self, kind: &str, signers: &[TrustedKey], serial: u64) -> Result<()> {
        let mut known = 0;
        let mut fine = false;
        for signer in signers {
            let highest = self.0.entry(format!("{kind} {}", signer.id())).or_insert(serial);
            if serial >= *highest {
                *highest = serial;
                fine = true;
            }
            known = known.max(*highest);
        }
        if fine { Ok(()) } else { Err(TrustError::OldSerial { known, found: serial }) }
    }
}

/// The revocation lists in force, each with who said it.
#[derive(Debug, Clone, Default)]
pub struct Revocations(Vec<(TrustedKey, RevocationList)>);

impl Revocations {
    /// Checks a list's signature and reads it.
    pub fn verify(
        envelope: &Envelope,
        trust: &TrustSet,
        now: Timestamp,
    ) -> Result<(VerifiedPayload, RevocationList)> {
        let payload = envelope.verify(trust, Role::Revocation, payload_type::REVOCATIONS, now)?;
        let list: RevocationList = payload.parse()?;
        Ok((payload, list))
    }

    /// Puts a checked list in force, in the name of each who signed it.
    pub fn add(&mut self, signers: &[TrustedKey], list: &RevocationList) {
        self.0.extend(signers.iter().map(|signer| (signer.clone(), list.clone())));
    }

    /// Whether this licence was taken back by its issuer, or by the project.
    pub fn revokes_license(&self, id: &str, issuer: &str) -> bool {
        self.any(|signer, list| speaks_for(signer, issuer) && list.licenses.contains(id))
    }

    /// Whether this key was taken back by its owner, or by the project.
    pub fn revokes_key(&self, key: &TrustedKey) -> bool {
        let id = key.id();
        self.any(|signer, list| speaks_for(signer, &key.owner) && list.keys.contains(&id))
    }

    /// Whether this file of this plugin was taken back by who speaks for the plugin, or by the project.
    pub fn revokes_digest(&self, digest: &Digest, plugin: &str) -> bool {
        let digest = digest.to_string();
        self.any(|signer, list| {
            (signer.level == Level::Core || signer.covers(plugin)) && list.plugin_digests.contains(&digest)
        })
    }

    /// Takes the keys that these lists revoke out of `trust`.
    pub fn apply(&self, trust: &mut TrustSet) {
        let gone: Vec<KeyId> = trust.keys().filter(|key| self.revokes_key(key)).map(TrustedKey::id).collect();
        gone.into_iter().for_each(|id| trust.revoke(id));
    }

    /// The newest date that a list bears: it is at least so late.
    pub fn newest_date(&self) -> Option<Timestamp> {
        self.0.iter().map(|(_, list)| list.iat).max()
    }

    /// Who should have sent a newer list by now.
    pub fn stale(&self, now: Timestamp) -> impl Iterator<Item = (&TrustedKey, Timestamp)> {
        self.0.iter().filter_map(move |(signer, list)| {
            list.expires.filter(|&expires| expires <= now).map(|expires| (signer, expires))
        })
    }

    pub fn lists(&self) -> impl Iterator<Item = (&TrustedKey, &RevocationList)> {
        self.0.iter().map(|(signer, list)| (signer, list))
    }

    fn any(&self, says: impl Fn(&TrustedKey, &RevocationList) -> bool) -> bool {
        self.0.iter().any(|(signer, list)| says(signer, list))
    }
}

/// A vendor takes back what is the vendor's own; the project may take back anybody's.
fn speaks_for(signer: &TrustedKey, owner: &str) -> bool {
    signer.level == Level::Core || signer.owner == owner
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::SecretKey;

    fn key(seed: u8, owner: &str) -> TrustedKey {
        TrustedKey::new(SecretKey::of_seed(&[seed; 32]).public(), owner, &Role::ALL)
    }

    fn list(serial: u64) -> RevocationList {
        RevocationList {
            serial,
            iat: Timestamp::of_unix(1_000),
            expires: Some(Timestamp::of_unix(2_000)),
            licenses: BTreeSet::from(["lic_1".to_owned()]),
            keys: BTreeSet::from([key(1, "").id(), key(2, "").id()]),
            plugin_digests: BTreeSet::from([Digest::of(b"bad").to_string()]),
        }
    }

    #[test]
    fn a_vendor_revokes_its_own_and_the_project_anybodys() {
        let mut vendor = Revocations::default();
        let acme = key(1, "acme").plugins(vec!["com.acme.*".parse().unwrap()]);
        vendor.add(std::slice::from_ref(&acme), &list(1));
        assert!(vendor.revokes_license("lic_1", "acme") && !vendor.revokes_license("lic_1", "other"));
        assert!(!vendor.revokes_license("lic_2", "acme"));
        assert!(vendor.revokes_key(&key(1, "acme")) && !vendor.revokes_key(&key(2, "other")));
        let bad = Digest::of(b"bad");
        assert!(vendor.revokes_digest(&bad, "com.acme.x") && !vendor.revokes_digest(&bad, "com.other.x"));

        let mut core = Revocations::default();
        core.add(&[key(9, "backplane").level(Level::Core)], &list(1));
        assert!(core.revokes_license("lic_1", "other") && core.revokes_key(&key(2, "other")));
        assert!(core.revokes_digest(&bad, "com.other.x"));

        let mut trust = TrustSet::default();
        trust.add(acme);
        trust.add(key(2, "other"));
        vendor.apply(&mut trust);
        assert!(trust.is_revoked(&key(1, "").id()) && !trust.is_revoked(&key(2, "").id()));
        assert_eq!(vendor.newest_date(), Some(Timestamp::of_unix(1_000)));
        assert_eq!(vendor.stale(Timestamp::of_unix(1_999)).count(), 0);
        assert_eq!(vendor.stale(Timestamp::of_unix(2_000)).count(), 1);
    }

    #[test]
    fn an_old_list_is_refused_and_a_leaked_key_blocks_no_other() {
        let mut ratchet = Ratchet::default();
        ratchet.advance("r", &[key(1, "a")], 5).unwrap();
        ratchet.advance("r", &[key(1, "a")], 5).unwrap();
        assert!(matches!(
            ratchet.advance("r", &[key(1, "a")], 4),
            Err(TrustError::OldSerial { known: 5, found: 4 })
        ));
        ratchet.advance("other", &[key(1, "a")], 1).unwrap();
        ratchet.advance("r", &[key(1, "a")], u64::MAX).unwrap();
        ratchet.advance("r", &[key(2, "a")], 6).unwrap();
        ratchet.advance("r", &[key(1, "a"), key(2, "a")], 7).unwrap();
        assert!(ratchet.advance("r", &[key(2, "a")], 6).is_err());
    }
}
