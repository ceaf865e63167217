//! DSSE: a payload, what it is, and signatures over both.
//!
//! Stricter than the standard asks, since we write every document we read: standard base64 in its canonical form only,
//! no member that is not ours, no key twice.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::json;
use super::{KeyId, Result, Role, SecretKey, Timestamp, TrustError, TrustSet, TrustedKey};

/// More signatures than any rotation needs.
const MAX_SIGNATURES: usize = 8;

/// A signed document as it came: nobody has checked it yet.
#[derive(Clone, PartialEq)]
pub struct Envelope {
    payload_type: String,
    payload: Vec<u8>,
    signatures: Vec<Signature>,
}

/// One signature of an envelope.
#[derive(Clone, PartialEq)]
pub struct Signature {
    /// Which key made it, as the envelope says; a hint, checked by the signature itself.
    pub key: KeyId,
    bytes: [u8; 64],
}

/// A payload that a trusted key signed for this purpose. Made by [`Envelope::verify`] only.
#[derive(Debug, Clone, PartialEq)]
pub struct VerifiedPayload {
    bytes: Vec<u8>,
    signers: Vec<TrustedKey>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    #[serde(rename = "payloadType")]
    payload_type: String,
    payload: String,
    signatures: Vec<WireSignature>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireSignature {
    keyid: String,
    sig: String,
}

/// What is signed: type and payload, each with its length, so that no byte can move from one to the other.
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut out = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    out.extend_from_slice(payload);
    out
}

impl Envelope {
    /// Signs `payload` with each of these keys; two while one takes the place of the other.
    pub fn sign(payload_type: &str, payload: Vec<u8>, keys: &[&SecretKey]) -> Self {
        let message = pae(payload_type, &payload);
        let sign = |key: &&SecretKey| Signature { key: key.public().id(), bytes: key.sign(&message) };
        Self { payload_type: payload_type.to_owned(), signatures: keys.iter().map(sign).collect(), payload }
    }

    /// Reads an envelope of at most `limit` bytes. Nothing in it is believed yet.
    pub fn parse(bytes: &[u8], limit: usize) -> Result<Self> {
        if bytes.len() > limit {
            return Err(TrustError::TooLarge { limit });
        }
        let wrong = |reason: String| TrustError::Envelope { reason };
        let value = json::parse(bytes).map_err(wrong)?;
        if value["signatures"].as_array().is_some_and(|all| !all.iter().all(Value::is_object)) {
            return Err(wrong("`signatures` holds what is no object".to_owned()));
        }
        let wire: Wire = json::of_object(value).map_err(wrong)?;
        let decode = |text: &str, member: &str| {
            STANDARD
                .decode(text)
                .map_err(|error| wrong(format!("`{member}` is not canonical base64: {error}")))
        };
        let payload = decode(&wire.payload, "payload")?;
        if wire.signatures.is_empty() {
            return Err(wrong("nobody signed it".to_owned()));
        }
        if wire.signatures.len() > MAX_SIGNATURES {
            return Err(wrong(format!("it has more than {MAX_SIGNATURES} signatures")));
        }
        let mut signatures: Vec<Signature> = Vec::new();
        for signature in &wire.signatures {
            let key = KeyId::hint(&signature.keyid)
                .ok_or_else(|| wrong(format!("`keyid` is `{}`, which is no id of a key", signature.keyid)))?;
            let bytes = decode(&signature.sig, "sig")?
                .try_into()
                .map_err(|_| wrong(format!("the signature by {key} has not 64 bytes")))?;
            if signatures.iter().any(|known| known.key == key) {
                return Err(wrong(format!("it is signed twice by {key}")));
            }
            signatures.push(Signature { key, bytes });
        }
        Ok(Self { payload_type: wire.payload_type, payload, signatures })
    }

    /// As bytes to store or send. The same envelope gives the same bytes.
    pub fn to_json(&self) -> Vec<u8> {
        let signature =
            |s: &Signature| WireSignature { keyid: s.key.to_string(), sig: STANDARD.encode(s.bytes) };
        let wire = Wire {
            payload_type: self.payload_type.clone(),
            payload: STANDARD.encode(&self.payload),
            signatures: self.signatures.iter().map(signature).collect(),
        };
        // Three members of text have no failing part.
        serde_json::to_vec(&wire).unwrap_or_default()
    }

    pub fn payload_type(&self) -> &str {
        &self.payload_type
    }

    pub fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    /// The payload that nobody has checked: to show it, never to act on it.
    pub fn unverified_payload(&self) -> &[u8] {
        &self.payload
    }

    /// Checks that a key of `trust` signed this, as a document of this type, and may sign such at `now`.
    ///
    /// One good signature is enough: while keys change a document has two, and a host may know only one. A wrong
    /// signature by a known key refuses the document whatever the others say. The payload is not looked at before.
    pub fn verify(
        &self,
        trust: &TrustSet,
        role: Role,
        payload_type: &str,
        now: Timestamp,
    ) -> Result<VerifiedPayload> {
        if self.payload_type != payload_type {
            return Err(TrustError::WrongType {
                expected: payload_type.to_owned(),
                found: self.payload_type.clone(),
            });
        }
        let message = pae(&self.payload_type, &self.payload);
        let mut signers = Vec::new();
        let mut refused = None;
        for signature in &self.signatures {
            let Some(key) = trust.key(&signature.key) else { continue };
            if !key.key.verifies(&message, &signature.bytes) {
                return Err(TrustError::BadSignature { signer: signature.key.clone() });
            }
            match trust.permits(key, role, now) {
                Ok(()) => signers.push(key.clone()),
                Err(reason) => refused = Some(reason),
            }
        }
        if signers.is_empty() {
            let signers = self.signatures.iter().map(|signature| signature.key.clone()).collect();
            return Err(refused.unwrap_or(TrustError::UnknownSigner { signers }));
        }
        Ok(VerifiedPayload { bytes: self.payload.clone(), signers })
    }
}

impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<_> = self.signatures.iter().map(|signature| signature.key.as_str()).collect();
        write!(f, "Envelope({}, {} bytes, {keys:?})", self.payload_type, self.payload.len())
    }
}

impl VerifiedPayload {
    /// The bytes that were signed.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The keys whose signatures were right, and which may sign this: at least one.
    pub fn signers(&self) -> &[TrustedKey] {
        &self.signers
    }

    /// A key among the signers that is trusted for this plugin.
    pub fn signer_for(&self, plugin: &str) -> Option<&TrustedKey> {
        self.signers.iter().find(|key| key.covers(plugin))
    }

    /// The payload as JSON with one reading only.
    pub fn json(&self) -> Result<Value> {
        json::parse(&self.bytes).map_err(|reason| TrustError::Payload { reason })
    }

    /// The payload as a `T`; the error names the member.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        json::typed(&self.bytes)
    }
}
