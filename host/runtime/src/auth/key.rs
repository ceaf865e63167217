//! What a key looks like: `bp_live_<12 id>_<43 secret><6 checksum>`, all base62. Pure.
//!
//! The prefix lets scanners find leaked keys; the checksum turns most typing mistakes and all inventions away before
//! anything is looked up. The secret has 256 bits, so its plain SHA-256 can be stored: there is nothing to guess.

use sha2::{Digest, Sha256};
use std::fmt;

const PREFIX: &str = "bp_live_";
const ID: usize = 12;
const SECRET: usize = 43;
const CHECKSUM: usize = 6;
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A key somebody showed: well formed, not yet known to be anybody's.
pub struct PresentedKey<'a> {
    /// Its public part.
    pub id: &'a str,
    secret: &'a str,
}

impl PresentedKey<'_> {
    /// What is stored of its secret.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.secret.as_bytes()).into()
    }
}

impl fmt::Debug for PresentedKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PresentedKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Reads a key; `None` when it is not one.
pub fn parse(text: &str) -> Option<PresentedKey<'_>> {
    let body = text.strip_prefix(PREFIX)?;
    if body.len() != ID + 1 + SECRET + CHECKSUM || !body.is_ascii() {
        return None;
    }
    let (id, rest) = body.split_at(ID);
    let rest = rest.strip_prefix('_')?;
    if !id.bytes().chain(rest.bytes()).all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    let (secret, sum) = rest.split_at(SECRET);
    (checksum(id, secret) == sum).then_some(PresentedKey { id, secret })
}

/// Makes a key from 55 or more random bytes. Returns its id, its text and the hash to store.
pub fn make(random: &[u8; 64]) -> (String, String, [u8; 32]) {
    // 62 does not divide 256: the first digits are a little likelier (5 in 256 against 4), which costs 0.02 bits of 5.95
    // a digit and leaves 255 of 256.
    let digit = |byte: &u8| char::from(DIGITS[usize::from(*byte) % 62]);
    let id: String = random[..ID].iter().map(digit).collect();
    let secret: String = random[ID..ID + SECRET].iter().map(digit).collect();
    let hash = Sha256::digest(secret.as_bytes()).into();
    let text = format!("{PREFIX}{id}_{secret}{}", checksum(&id, &secret));
    (id, text, hash)
}

/// CRC-32 of id and secret in base62: catches typing mistakes, protects nothing.
fn checksum(id: &str, secret: &str) -> String {
    let mut crc = crc32fast::Hasher::new();
    crc.update(id.as_bytes());
    crc.update(secret.as_bytes());
    let mut left = crc.finalize();
    let mut digits = [b'0'; CHECKSUM];
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[(left % 62) as usize];
        left /= 62;
    }
    digits.iter().copied().map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_made_key_is_read_back(random in proptest::array::uniform32(any::<u8>())) {
            let mut bytes = [0; 64];
            bytes[..32].copy_from_slice(&random);
            bytes[32..].copy_from_slice(&random);
            let (id, text, hash) = make(&bytes);
            let read = parse(&text).unwrap();
            prop_assert_eq!((read.id, read.hash()), (id.as_str(), hash));
            let debug = format!("{read:?}");
            prop_assert!(!debug.contains(&text[21..40]));
        }

        #[test]
        fn one_wrong_character_is_seen(place in 8usize..70, with in "[0-9A-Za-z]") {
            let (_, text, _) = make(&[9; 64]);
            let mut wrong = text.clone();
            wrong.replace_range(place..place + 1, &with);
            prop_assert!(wrong == text || parse(&wrong).is_none());
        }

        #[test]
        fn rubbish_is_no_key(text in ".*") {
            prop_assert!(parse(&text).is_none());
            let text = format!("bp_live_{text}");
            prop_assert!(parse(&text).is_none());
        }
    }
}
