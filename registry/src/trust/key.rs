//! Ed25519 keys, their ids and their files.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::armour::{self, Armoured};
use super::store::{read_capped, write_new};
use super::{Result, TrustError};
use crate::digest::Digest;

const PUBLIC: &str = "PUBLIC KEY";
const SECRET: &str = "SECRET KEY";
const ALGORITHM: &str = "ed25519:";
/// More than any key file of ours.
const MAX_FILE: usize = 4 << 10;

/// Names a public key: the first 128 bits of its SHA-256, in hexadecimal. Made from the key, so that nobody can choose
/// another's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyId(String);

impl TryFrom<String> for KeyId {
    type Error = TrustError;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<KeyId> for String {
    fn from(id: KeyId) -> Self {
        id.0
    }
}

impl KeyId {
    /// A signature's hint at its key. What is no id names no key.
    pub(super) fn hint(text: &str) -> Option<Self> {
        let fine = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        fine.then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for KeyId {
    type Err = TrustError;

    fn from_str(text: &str) -> Result<Self> {
        Self::hint(text).ok_or_else(|| TrustError::Key {
            text: text.to_owned(),
            reason: "expected an id of 32 lower-case hexadecimal digits".to_owned(),
        })
    }
}

/// A key that checks signatures. Written `ed25519:` and base64, on one line, in manifests and configurations.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    pub fn id(&self) -> KeyId {
        let mut hex = Digest::of(self.0.as_bytes()).to_string();
        hex.truncate(32);
        KeyId(hex)
    }

    /// Strict: no small-order key, no second encoding of a signature.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.0.verify_strict(message, &ed25519_dalek::Signature::from_bytes(signature)).is_ok()
    }

    fn of_bytes(bytes: &[u8], text: &str) -> Result<Self> {
        let wrong = |reason: &str| TrustError::Key { text: text.to_owned(), reason: reason.to_owned() };
        let bytes = bytes.try_into().map_err(|_| wrong("a public key has 32 bytes"))?;
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| wrong("it is no point of the curve"))?;
        if key.is_weak() { Err(wrong("it is a weak key, which anybody can sign for")) } else { Ok(Self(key)) }
    }

    /// Armoured, for a file: the owner is who says to own it, no more.
    pub fn to_armour(&self, owner: &str) -> String {
        armour::write(PUBLIC, &[("Owner", owner), ("Id", self.id().as_str())], self.0.as_bytes())
    }

    /// Reads a file of [`to_armour`](Self::to_armour), or with the one line of [`Display`](fmt::Display). Returns the
    /// owner too, if the file names one.
    pub fn read(path: &Path) -> Result<(Self, Option<String>)> {
        let bytes = read_capped(path, MAX_FILE)?;
        let text = String::from_utf8_lossy(&bytes);
        Self::parse_file(&text).map_err(|error| in_file(path, error))
    }

    fn parse_file(text: &str) -> Result<(Self, Option<String>)> {
        if text.trim_start_matches('\u{feff}').trim().starts_with(ALGORITHM) {
            return Ok((text.trim_start_matches('\u{feff}').trim().parse()?, None));
        }
        if text.contains(&armour::begin(SECRET)) {
            let reason = "it is the secret key: keep it to yourself, and hand out the public one".to_owned();
            return Err(TrustError::Armour { label: PUBLIC.to_owned(), reason });
        }
        let file = armour::read(PUBLIC, text)?;
        let key = Self::of_bytes(&file.body, "the file's body")?;
        same_id(&file, &key.id())?;
        Ok((key, file.header("Owner").map(str::to_owned)))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.id())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{ALGORITHM}{}", STANDARD.encode(self.0.as_bytes()))
    }
}

impl FromStr for PublicKey {
    type Err = TrustError;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |reason: &str| TrustError::Key { text: text.to_owned(), reason: reason.to_owned() };
        let body = text
            .strip_prefix(ALGORITHM)
            .ok_or_else(|| wrong("expected `ed25519:` and 44 characters of base64"))?;
        let bytes =
            STANDARD.decode(body).map_err(|_| wrong("what follows `ed25519:` is not canonical base64"))?;
        Self::of_bytes(&bytes, text)
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A key that signs. Its bytes are wiped when it is dropped, and it is never shown.
pub struct SecretKey(SigningKey);

impl SecretKey {
    pub fn generate() -> Result<Self> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| TrustError::NoRandomness(error.to_string()))?;
        let key = Self(SigningKey::from_bytes(&seed));
        seed.fill(0);
        Ok(key)
    }

    /// The key of these 32 bytes: for test vectors.
    pub fn of_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    pub(super) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }

    /// Writes it to a file that only this user may read. A file that is there already stays: a key that is overwritten
    /// is lost.
    pub fn write(&self, path: &Path, owner: &str) -> Result<()> {
        let id = self.public().id();
        let text = armour::write(SECRET, &[("Owner", owner), ("Id", id.as_str())], self.0.as_bytes());
        write_new(path, text.as_bytes(), 0o600)
    }

    /// Reads a file of [`write`](Self::write), and the owner it names. A file that others may read is refused.
    pub fn read(path: &Path) -> Result<(Self, String)> {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = path.metadata().map_err(TrustError::io("read", path))?.permissions().mode();
        if mode & 0o077 != 0 {
            let reason = format!("others may read this secret key; `chmod 600 {}`", path.display());
            return Err(TrustError::File { path: path.to_owned(), reason });
        }
        let bytes = read_capped(path, MAX_FILE)?;
        Self::parse_file(&String::from_utf8_lossy(&bytes)).map_err(|error| in_file(path, error))
    }

    fn parse_file(text: &str) -> Result<(Self, String)> {
        let file = armour::read(SECRET, text)?;
        let seed = file.body.as_slice().try_into().map_err(|_| TrustError::Key {
            text: "the file's body".to_owned(),
            reason: "a secret key has 32 bytes".to_owned(),
        })?;
        let key = Self(SigningKey::from_bytes(seed));
        same_id(&file, &key.public().id())?;
        Ok((key, file.header("Owner").unwrap_or_default().to_owned()))
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({})", self.public().id())
    }
}

/// A damaged key file is told apart from another key.
fn same_id(file: &Armoured, id: &KeyId) -> Result<()> {
    match file.header("Id") {
        Some(said) if said != id.as_str() => Err(TrustError::Key {
            text: said.to_owned(),
            reason: format!("the key in this file has the id {id}: the file was changed or damaged"),
        }),
        _ => Ok(()),
    }
}

fn in_file(path: &Path, error: TrustError) -> TrustError {
    TrustError::File { path: path.to_owned(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn hex<const N: usize>(text: &str) -> [u8; N] {
        std::array::from_fn(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
    }

    #[test]
    fn signatures_are_those_of_rfc_8032() {
        let key =
            SecretKey::of_seed(&hex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"));
        let public: [u8; 32] = hex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c");
        assert_eq!(key.public().0.as_bytes(), &public);
        let expected: [u8; 64] = hex(
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        );
        assert_eq!(key.sign(&[0x72]), expected);
        assert!(key.public().verifies(&[0x72], &expected));
        assert!(!key.public().verifies(&[0x73], &expected));
    }

    #[test]
    fn a_key_comes_back_from_its_files_and_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let key = SecretKey::generate().unwrap();
        let secret = folder.path().join("acme.key");
        key.write(&secret, "acme-ai").unwrap();
        assert_eq!(secret.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let (read, owner) = SecretKey::read(&secret).unwrap();
        assert_eq!((read.public(), owner.as_str()), (key.public(), "acme-ai"));
        assert!(matches!(key.write(&secret, "x"), Err(TrustError::Io { .. })), "a key is never overwritten");

        let public = folder.path().join("acme.pub");
        std::fs::write(&public, key.public().to_armour("acme-ai")).unwrap();
        assert_eq!(PublicKey::read(&public).unwrap(), (key.public(), Some("acme-ai".to_owned())));
        std::fs::write(&public, format!("{}\n", key.public())).unwrap();
        assert_eq!(PublicKey::read(&public).unwrap(), (key.public(), None));
    }

    #[test]
    fn a_key_file_that_is_not_right_is_refused_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let key = SecretKey::generate().unwrap();
        let secret = folder.path().join("acme.key");
        key.write(&secret, "acme-ai").unwrap();
        std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o640)).unwrap();
        assert!(SecretKey::read(&secret).unwrap_err().to_string().contains("chmod 600"));
        assert!(PublicKey::read(&secret).unwrap_err().to_string().contains("it is the secret key"));
        std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
        let text = std::fs::read_to_string(&secret).unwrap();
        let other = SecretKey::generate().unwrap().public().id();
        std::fs::write(&secret, text.replace(key.public().id().as_str(), other.as_str())).unwrap();
        assert!(SecretKey::read(&secret).unwrap_err().to_string().contains("changed or damaged"));
        std::fs::write(&secret, vec![b'x'; 1 << 20]).unwrap();
        assert!(SecretKey::read(&secret).unwrap_err().to_string().contains("larger than 4096"));
    }

    #[test]
    fn a_line_that_is_no_key_is_refused() {
        let small_order = format!("ed25519:{}", STANDARD.encode([0_u8; 32]));
        for (text, says) in [
            ("AAAA", "expected `ed25519:`"),
            ("ed25519:AAA", "not canonical base64"),
            ("ed25519:AAAA", "has 32 bytes"),
            (small_order.as_str(), "weak key"),
        ] {
            let refused = text.parse::<PublicKey>().unwrap_err().to_string();
            assert!(refused.contains(says), "{text} => {refused}");
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        let key = SecretKey::of_seed(&[7; 32]);
        assert_eq!(format!("{key:?}"), format!("SecretKey({})", key.public().id()));
    }
}
