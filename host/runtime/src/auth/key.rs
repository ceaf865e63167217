//! What a key looks like: `bp_live_<12 id>_<43 secret><6 checksum>`, all base62. Pure, but for the random bytes.
//!
//! The prefix lets scanners find leaked keys; the checksum turns away typing mistakes and inventions before anything is
//! looked up. The secret has 256 bits, so its plain SHA-256 may be stored: there is nothing to guess.

use sha2::{Digest, Sha256};
use std::fmt;

const PREFIX: &str = "bp_live_";
const ID: usize = 12;
const SECRET: usize = 43;
const CHECKSUM: usize = 6;
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A key somebody showed: well formed, not yet known to be anybody's.
pub struct Shown<'a> {
    /// Its public part.
    pub id: &'a str,
    secret: &'a str,
}

impl Shown<'_> {
    /// What is stored of its secret.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.secret.as_bytes()).into()
    }
}

impl fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shown").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Reads a key; `None` when it is not one.
pub fn parse(text: &str) -> Option<Shown<'_>> {
    let body = text.strip_prefix(PREFIX)?;
    if body.len() != ID + 1 + SECRET + CHECKSUM || !body.is_ascii() {
        return None;
    }
    let (id, rest) = body.split_at(ID);
    let (secret, sum) = rest.strip_prefix('_')?.split_at(SECRET);
    let good = |part: &str| part.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let unsummed = &text[..text.len() - CHECKSUM];
    (good(id) && good(secret) && checksum(unsummed) == sum.as_bytes()).then_some(Shown { id, secret })
}

/// Makes a new key: its text, which holds id and secret.
///
/// # Errors
/// When the system gives no random bytes.
pub fn generate() -> Result<String, getrandom::Error> {
    Ok(with_checksum(&format!("{PREFIX}{}_{}", digits(ID)?, digits(SECRET)?)))
}

/// A key's text but for its checksum, and its checksum.
pub(super) fn with_checksum(text: &str) -> String {
    text.chars().chain(checksum(text).map(char::from)).collect()
}

/// So many random digits, each as likely as any other.
fn digits(count: usize) -> Result<String, getrandom::Error> {
    // The largest multiple of 62 in a byte: the bytes above it would favour the first digits.
    const FAIR: u8 = 248;
    let mut text = String::with_capacity(count);
    let mut random = [0; 64];
    while text.len() < count {
        getrandom::fill(&mut random)?;
        let fair = random.iter().filter(|byte| **byte < FAIR).take(count - text.len());
        text.extend(fair.map(|byte| char::from(DIGITS[usize::from(*byte % 62)])));
    }
    Ok(text)
}

/// CRC-32 in base62: catches mistakes, protects nothing.
fn checksum(text: &str) -> [u8; CHECKSUM] {
    let mut left = crc32fast::hash(text.as_bytes());
    let mut sum = [b'0'; CHECKSUM];
    for digit in sum.iter_mut().rev() {
        *digit = DIGITS[(left % 62) as usize];
        left /= 62;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_key_is_read_back_and_shows_nothing_of_its_secret() {
        let (one, other) = (generate().unwrap(), generate().unwrap());
        assert_eq!(one.len(), 70);
        let (read, second) = (parse(&one).unwrap(), parse(&other).unwrap());
        assert!(read.id != second.id && read.hash() != second.hash());
        assert_eq!((read.id, read.secret), (&one[8..20], &one[21..64]));
        assert!(!format!("{read:?}").contains(read.secret));
    }

    #[test]
    fn the_format_is_what_was_published() {
        // Computed apart from this code: `zlib.crc32` and base62 in Python.
        let text = "bp_live_AAAAAAAAAAAA_0123456789012345678901234567890123456789012CRCSUM";
        let unsummed = &text[..64];
        let sum = checksum(unsummed);
        assert_eq!(std::str::from_utf8(&sum).unwrap(), PUBLISHED);
        assert!(parse(&format!("{unsummed}{PUBLISHED}")).is_some());
        assert!(parse(text).is_none());
    }

    const PUBLISHED: &str = "1Hqj9a";

    proptest! {
        #[test]
        fn one_wrong_character_is_seen(place in 0usize..70, with in "[ -~]") {
            let key = generate().unwrap();
            let mut wrong = key.clone();
            wrong.replace_range(place..place + 1, &with);
            prop_assert!(wrong == key || parse(&wrong).is_none());
        }

        #[test]
        fn two_characters_that_changed_places_are_seen(place in 8usize..69) {
            let key = generate().unwrap();
            let mut wrong = key.clone().into_bytes();
            wrong.swap(place, place + 1);
            let wrong = String::from_utf8(wrong).unwrap();
            prop_assert!(wrong == key || parse(&wrong).is_none());
        }

        #[test]
        fn rubbish_is_no_key(text in ".{0,100}", same_length in "[0-9A-Za-z]{12}_[0-9A-Za-z]{49}", wide in "\\PC{62}") {
            for text in [text.clone(), format!("bp_live_{text}"), format!("bp_live_{same_length}"), format!("bp_live_{wide}")] {
                prop_assert!(parse(&text).is_none());
            }
        }
    }
}
