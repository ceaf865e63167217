//! A vendor's word for what time it is at an installation whose clock was wrong.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::MAX_FILE;
use crate::trust::{
    Envelope, PublicKey, Result, Role, SecretKey, Timestamp, TrustError, TrustSet, armour, payload_type,
};

/// What its armour says it is.
pub const TIME_LABEL: &str = "TIME TOKEN";
/// How far the clock of the machine may be from what was signed.
const APART: i64 = 86_400;

/// Signed with a key that signs licences.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimeToken {
    pub v: u64,
    /// The owner of the key that signs it.
    pub issuer: String,
    /// The installation that it is for.
    pub install: String,
    pub time: Timestamp,
}

impl TimeToken {
    pub fn new(issuer: &str, install: &str, time: Timestamp) -> Self {
        Self { v: 1, issuer: issuer.to_owned(), install: install.to_owned(), time }
    }

    /// Signs it: an armoured file.
    pub fn seal(&self, key: &SecretKey) -> Result<String> {
        let payload =
            serde_json::to_vec(self).map_err(|error| TrustError::Payload { reason: error.to_string() })?;
        Ok(armour::write(TIME_LABEL, &[], &Envelope::sign(payload_type::TIME, payload, &[key]).to_json()))
    }

    /// Reads one that a trusted vendor signed for this installation, and whose key that was.
    pub fn read(bytes: &[u8], trust: &TrustSet, install: &str, now: Timestamp) -> Result<(Self, PublicKey)> {
        let wrong = |reason: String| TrustError::Payload { reason };
        if bytes.len() > MAX_FILE {
            return Err(TrustError::TooLarge { limit: MAX_FILE });
        }
        let file = armour::read(TIME_LABEL, &String::from_utf8_lossy(bytes))?;
        let payload =
            Envelope::parse(&file.body, MAX_FILE)?.verify(trust, Role::License, payload_type::TIME, now)?;
        let token: Self = payload.parse()?;
        if token.v != 1 {
            return Err(wrong(format!("`v` is {}, expected 1", token.v)));
        }
        let signer = payload.signers().iter().find(|key| key.owner == token.issuer).ok_or_else(|| {
            wrong(format!("`issuer`: it says to be of `{}`, whose key did not sign it", token.issuer))
        })?;
        if token.install != install {
            return Err(wrong(format!("`install`: it is for {}, and this is {install}", token.install)));
        }
        Ok((token, signer.key))
    }

    /// Whether the machine's clock shows the time that was signed, at the moment when it is to count.
    pub fn fits(&self, system: Timestamp) -> Result<()> {
        if system.since(self.time).abs() <= APART {
            return Ok(());
        }
        let reason = format!(
            "`time`: it says {}, and the clock of this machine {system}; set the clock right, and ask the vendor for one of today",
            self.time
        );
        Err(TrustError::Payload { reason })
    }
}

/// How the token of an issuer is called in the folder of licences.
pub(super) fn file_of(folder: &Path, issuer: &str) -> std::path::PathBuf {
    folder.join(format!("{}.time", crate::digest::Digest::of(issuer.as_bytes()).short()))
}
