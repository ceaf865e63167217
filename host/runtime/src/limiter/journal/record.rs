//! A record of the journal and its line.

use super::Open;
use crate::limiter::{Period, Window};
use crate::store::Owner;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::io::Write;

/// What a line says. Both kinds say whose tokens they are, so that one is of use without the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record<'a> {
    /// What happened.
    pub kind: Kind,
    /// Tells reservations apart.
    pub serial: u64,
    tenant: Cow<'a, str>,
    key: Cow<'a, str>,
    period: Period,
    window: i64,
    /// Set aside, or spent.
    pub tokens: u64,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    request: Cow<'a, str>,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Tokens were set aside.
    #[serde(rename = "reserve")]
    Reserve,
    /// It is known what they came to.
    #[serde(rename = "settle")]
    Settle,
}

impl<'a> Record<'a> {
    /// The record of a reservation.
    pub fn reserve(serial: u64, open: &'a Open) -> Self {
        Self { request: Cow::Borrowed(&open.request), ..Self::new(Kind::Reserve, serial, open, open.tokens) }
    }

    /// The record of its end.
    pub fn settle(serial: u64, open: &'a Open, tokens: u64) -> Self {
        Self::new(Kind::Settle, serial, open, tokens)
    }

    fn new(kind: Kind, serial: u64, open: &'a Open, tokens: u64) -> Self {
        Self {
            kind,
            serial,
            tenant: Cow::Borrowed(&open.owner.tenant),
            key: Cow::Borrowed(&open.owner.key),
            period: open.window.period,
            window: open.window.number,
            tokens,
            request: Cow::Borrowed(""),
        }
    }

    /// Whose they are, and in which window.
    pub fn account(&self) -> (Owner, Window) {
        let owner = Owner { tenant: (*self.tenant).into(), key: (*self.key).into() };
        (owner, Window { period: self.period, number: self.window })
    }

    /// Adds its line.
    pub fn encode(&self, to: &mut Vec<u8>) {
        let start = to.len();
        to.extend_from_slice(b"00000000 ");
        // Strings and numbers into memory: neither part can fail.
        let _ = serde_json::to_writer(&mut *to, self);
        let crc = crc32fast::hash(&to[start + 9..]);
        let _ = write!(&mut to[start..start + 8], "{crc:08x}");
        to.push(b'\n');
    }

    /// Reads a line, without its end. `None` when it is damaged.
    pub fn decode(line: &'a [u8]) -> Option<Self> {
        let (crc, json) = line.split_at_checked(9)?;
        // Compared as text: there is one way to write a checksum.
        let expected = format!("{:08x} ", crc32fast::hash(json));
        (crc == expected.as_bytes()).then(|| serde_json::from_slice(json).ok())?
    }
}
