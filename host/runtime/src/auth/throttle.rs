//! Wrong keys, counted by the address they come from. Pure: `now` is nanoseconds of one clock.
//!
//! A secret has 256 bits, so this is not what keeps it: no rate of guessing finds one. It stops a client that goes on
//! with a key that does not work, and tells the operator that somebody tries. That is why a right key is let in from any
//! address at any time: who shares an address with a guesser, behind a proxy or a NAT, is not shut out by them.

use crate::limiter::gcra::{Gcra, Rate, Refused};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

/// Wrong keys that an address may show a minute, and at once.
const PER_MINUTE: u32 = 30;
/// Addresses that are remembered. Those beyond are counted as one.
const REMEMBERED: usize = 4096;
/// How often what has expired is looked for where there is no more room.
const SWEEP: u64 = 1_000_000_000;

/// Who showed wrong keys lately.
#[derive(Debug)]
pub struct Failures {
    rate: Rate,
    by_address: HashMap<IpAddr, Failed>,
    others: Failed,
    swept: u64,
}

#[derive(Debug, Default)]
struct Failed {
    taken: Gcra,
    /// The last wrong key was one too many.
    refused: bool,
}

/// One wrong key too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany {
    /// When the next wrong key is looked at as a first one is.
    pub retry_after: Duration,
    /// The one before was not too many: worth a line in the log.
    pub first: bool,
}

impl Default for Failures {
    fn default() -> Self {
        let rate = Rate::per_minute(PER_MINUTE);
        Self { rate, by_address: HashMap::new(), others: Failed::default(), swept: 0 }
    }
}

impl Failures {
    /// Counts a wrong key.
    ///
    /// # Errors
    /// When it is one too many.
    pub fn count(&mut self, from: IpAddr, now: u64) -> Result<(), TooMany> {
        let from = site(from);
        let known = self.by_address.contains_key(&from);
        if !known && self.by_address.len() >= REMEMBERED {
            self.sweep(now);
        }
        let failed = if known || self.by_address.len() < REMEMBERED {
            self.by_address.entry(from).or_default()
        } else {
            &mut self.others
        };
        let taken = failed.taken.take(self.rate, 1, now);
        let first = !std::mem::replace(&mut failed.refused, taken.is_err());
        taken.map_err(|refused| match refused {
            Refused::For(wait) => TooMany { retry_after: Duration::from_nanos(wait), first },
            Refused::ForEver => TooMany { retry_after: Duration::from_secs(60), first },
        })
    }

    /// Forgets those that are as if they had never failed.
    fn sweep(&mut self, now: u64) {
        if now.abs_diff(self.swept) >= SWEEP {
            self.swept = now;
            let rate = self.rate;
            self.by_address.retain(|_, failed| failed.taken.standing(rate, now).reset > 0);
        }
    }
}

/// What one customer of a network has: an IPv4 address, or 2⁶⁴ of IPv6.
fn site(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000_000_000;

    fn address(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(n).into()
    }

    fn exhaust(failures: &mut Failures, from: IpAddr, now: u64) -> TooMany {
        for _ in 0..PER_MINUTE {
            failures.count(from, now).unwrap();
        }
        failures.count(from, now).unwrap_err()
    }

    #[test]
    fn waiting_as_long_as_told_is_enough_and_less_is_not() {
        let mut failures = Failures::default();
        let refused = exhaust(&mut failures, address(1), MINUTE);
        assert_eq!(refused, TooMany { retry_after: Duration::from_secs(2), first: true });
        let again = failures.count(address(1), MINUTE + 1).unwrap_err();
        assert_eq!((again.first, again.retry_after), (false, Duration::from_nanos(1_999_999_999)));
        let wait = u64::try_from(refused.retry_after.as_nanos()).unwrap();
        assert!(failures.count(address(1), MINUTE + wait - 1).is_err());
        assert_eq!(failures.count(address(1), MINUTE + wait), Ok(()));
        assert!(failures.count(address(1), MINUTE + wait).unwrap_err().first, "told anew");
        assert_eq!(failures.count(address(2), MINUTE), Ok(()), "another address is another matter");
    }

    #[test]
    fn one_customer_is_one_address() {
        let mut failures = Failures::default();
        exhaust(&mut failures, "2001:db8::1".parse().unwrap(), MINUTE);
        assert!(failures.count("2001:db8::ffff:1".parse().unwrap(), MINUTE).is_err());
        assert!(failures.count("2001:db8:0:1::1".parse().unwrap(), MINUTE).is_ok());
        exhaust(&mut failures, "192.0.2.1".parse().unwrap(), MINUTE);
        assert!(failures.count("::ffff:192.0.2.1".parse().unwrap(), MINUTE).is_err());
    }

    #[test]
    fn any_number_of_addresses_takes_bounded_memory_and_is_still_held() {
        let mut failures = Failures::default();
        let held = (0..100_000).filter(|&n| failures.count(address(n), MINUTE).is_err()).count();
        assert_eq!(failures.by_address.len(), REMEMBERED);
        assert_eq!(held, 100_000 - REMEMBERED - PER_MINUTE as usize);
        assert_eq!(failures.count(address(0), MINUTE), Ok(()), "who is known is counted alone");
        failures.count(address(2_000_000), 3 * MINUTE).unwrap();
        assert_eq!(failures.by_address.len(), 1, "and what is over is forgotten");
    }
}
