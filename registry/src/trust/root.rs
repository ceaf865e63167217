//! Whom somebody vouches for: a signed list of keys, and of who signs the next list.
//!
//! An operator who accepts a root believes the keys in it, at the level that it gives them, and the roots that follow it: each
//! is signed by enough of the keys of the one before. So the keys that vouch can change, one after the other, and who has
//! too few of them changes nothing.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{
    Envelope, KeyId, Level, PublicKey, Result, Role, SecretKey, Timestamp, TrustError, TrustSet, TrustedKey,
    parse_typed, payload_type,
};

/// More than a thousand keys take.
pub const MAX_ROOT: usize = 1 << 20;

/// The payload of a root.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    /// One more than that of the root before.
    pub version: u64,
    /// From when on it is not believed: the next has to come before.
    pub expires: Timestamp,
    /// So many of `roots` have to sign the next.
    pub threshold: usize,
    pub roots: Vec<PublicKey>,
    /// Whom it vouches for.
    #[serde(default, rename = "key")]
    pub keys: Vec<TrustedKey>,
}

impl Root {
    /// Signs it.
    pub fn seal(&self, keys: &[&SecretKey]) -> Result<Vec<u8>> {
        self.sound()?;
        let payload =
            serde_json::to_vec(self).map_err(|error| TrustError::Payload { reason: error.to_string() })?;
        Ok(Envelope::sign(payload_type::ROOT, payload, keys).to_json())
    }

    /// Reads a root that follows `before`, or is the first. It may have ended: [`in_force`](Self::in_force) says so.
    pub fn read(bytes: &[u8], before: Option<&Self>) -> Result<Self> {
        let envelope = Envelope::parse(bytes, MAX_ROOT)?;
        // Whose signatures are to be looked for; believed once there are enough of them.
        let said: Self = parse_typed(envelope.unverified_payload())?;
        let mut known = TrustSet::default();
        for key in said.roots.iter().chain(before.iter().flat_map(|root| &root.roots)) {
            known.add(TrustedKey::new(*key, "a root", &[Role::Index]));
        }
        let payload = envelope.verify(&known, Role::Index, payload_type::ROOT, Timestamp::default())?;
        let root: Self = payload.parse()?;
        root.sound()?;
        let signers: BTreeSet<KeyId> = payload.signers().iter().map(TrustedKey::id).collect();
        enough(&root, &signers, "its own")?;
        match before {
            Some(before) if *before == root => {}
            Some(before) => {
                enough(before, &signers, "the present root's")?;
                if root.version != before.version + 1 {
                    let reason = format!("its version is {}, expected {}", root.version, before.version + 1);
                    return Err(TrustError::Root { reason });
                }
            }
            None => {}
        }
        Ok(root)
    }

    /// Whether it is believed at `now`.
    pub fn in_force(&self, now: Timestamp) -> Result<()> {
        if now < self.expires {
            return Ok(());
        }
        let reason = format!("version {} ended at {}; get the next", self.version, self.expires);
        Err(TrustError::Root { reason })
    }

    fn sound(&self) -> Result<()> {
        let wrong = |reason: String| Err(TrustError::Root { reason });
        let distinct: BTreeSet<KeyId> = self.roots.iter().map(PublicKey::id).collect();
        if distinct.len() != self.roots.len() {
            return wrong("`roots` names a key twice".to_owned());
        }
        if self.threshold == 0 || self.threshold > self.roots.len() {
            let reason = format!("`threshold` is {}, of {} keys", self.threshold, self.roots.len());
            return wrong(reason);
        }
        if let Some(key) = self.keys.iter().find(|key| key.level == Level::Org) {
            let reason =
                format!("the key {} of {} has no `level`: `verified` or `core`", key.id(), key.owner);
            return wrong(reason);
        }
        match self.keys.iter().find(|key| distinct.contains(&key.id())) {
            Some(key) => wrong(format!("{} signs roots, so it signs nothing else", key.id())),
            None => Ok(()),
        }
    }
}

fn enough(root: &Root, signers: &BTreeSet<KeyId>, whose: &str) -> Result<()> {
    let count = root.roots.iter().filter(|key| signers.contains(&key.id())).count();
    if count >= root.threshold {
        return Ok(());
    }
    let reason = format!("{count} of {whose} keys signed it, {} are needed", root.threshold);
    Err(TrustError::Root { reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(seed: u8) -> SecretKey {
        SecretKey::of_seed(&[seed; 32])
    }

    fn root(version: u64, threshold: usize, roots: &[u8]) -> Root {
        let vendor = TrustedKey::new(secret(99).public(), "acme", &[Role::Plugin]).level(Level::Verified);
        Root {
            version,
            expires: Timestamp::of_unix(2_000),
            threshold,
            roots: roots.iter().map(|seed| secret(*seed).public()).collect(),
            keys: vec![vendor],
        }
    }

    fn sealed(root: &Root, signers: &[u8]) -> Vec<u8> {
        let keys: Vec<SecretKey> = signers.iter().map(|seed| secret(*seed)).collect();
        root.seal(&keys.iter().collect::<Vec<_>>()).unwrap()
    }

    fn refused(bytes: &[u8], before: Option<&Root>) -> String {
        Root::read(bytes, before).unwrap_err().to_string()
    }

    #[test]
    fn the_next_root_is_signed_by_enough_of_the_keys_before_it_and_of_its_own() {
        let first = root(1, 2, &[1, 2, 3]);
        assert_eq!(Root::read(&sealed(&first, &[1, 3]), None).unwrap(), first);
        assert!(refused(&sealed(&first, &[1]), None).contains("1 of its own keys signed it, 2 are needed"));
        assert!(refused(&sealed(&first, &[8, 9]), None).contains("none of the keys"));

        // One key after the other gives way.
        let second = root(2, 2, &[2, 3, 4]);
        for signers in [&[2, 3][..], &[1, 2, 4]] {
            assert_eq!(Root::read(&sealed(&second, signers), Some(&first)).unwrap(), second, "{signers:?}");
        }
        let few = refused(&sealed(&second, &[3, 4]), Some(&first));
        assert!(few.contains("1 of the present root's keys signed it, 2 are needed"), "{few}");
        let few = refused(&sealed(&second, &[1, 2]), Some(&first));
        assert!(few.contains("1 of its own keys"), "{few}");

        // Nothing is left out, nothing comes back, and the same again is fine.
        let third = root(3, 2, &[2, 3, 4]);
        assert!(refused(&sealed(&third, &[2, 3]), Some(&first)).contains("version is 3, expected 2"));
        assert!(refused(&sealed(&first, &[1, 2, 3]), Some(&second)).contains("version is 1, expected 3"));
        assert_eq!(Root::read(&sealed(&second, &[2, 3]), Some(&second)).unwrap(), second);
        let other = Root { keys: Vec::new(), ..second.clone() };
        assert!(refused(&sealed(&other, &[2, 3]), Some(&second)).contains("version is 2, expected 3"));
        assert!(second.in_force(Timestamp::of_unix(1_999)).is_ok());
        assert!(second.in_force(Timestamp::of_unix(2_000)).unwrap_err().to_string().contains("ended at"));
    }

    #[test]
    fn a_root_that_makes_no_sense_is_neither_signed_nor_read() {
        let says = |root: Root, says: &str| {
            let refused = root.seal(&[&secret(1)]).unwrap_err().to_string();
            assert!(refused.contains(says), "{says}: {refused}");
            let payload = serde_json::to_vec(&root).unwrap();
            let forged = Envelope::sign(payload_type::ROOT, payload, &[&secret(1)]).to_json();
            assert!(Root::read(&forged, None).is_err());
        };
        says(root(1, 0, &[1]), "`threshold` is 0");
        says(root(1, 2, &[1]), "`threshold` is 2, of 1 keys");
        says(root(1, 1, &[1, 1]), "twice");
        says(root(1, 1, &[1, 99]), "signs nothing else");
        let mut org = root(1, 1, &[1]);
        org.keys[0].level = Level::Org;
        says(org, "has no `level`");
        let bytes = sealed(&root(1, 1, &[1]), &[1]);
        for place in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[place] ^= 1;
            assert!(Root::read(&flipped, None).is_err(), "byte {place}");
        }
    }
}
