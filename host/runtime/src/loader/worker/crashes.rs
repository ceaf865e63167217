//! What a plugin's crashes mean for its next start, and for a request that was there each time. Reads no clock.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

/// So long a crash counts.
const MEMORY: Duration = Duration::from_secs(600);
/// So many crashes within it, and the plugin is not started again.
const QUARANTINE: usize = 5;
/// So many crashes that a request was there for, and it is not served again.
const SUSPECT: u32 = 2;
/// The pause after the second crash; doubled with each further one.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Requests that are remembered.
const MOST_SUSPECTS: usize = 1024;

/// The crashes of one plugin.
#[derive(Debug, Default)]
pub struct Crashes {
    when: VecDeque<Instant>,
    /// Crashes, the last of them, and in which worker: several requests alike count once for one crash.
    suspects: HashMap<u64, (u32, Instant, u64)>,
}

/// Why a plugin is not started now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It crashed a moment ago.
    Wait(Duration),
    /// It crashes again and again.
    Quarantined,
}

impl Crashes {
    /// A worker died.
    pub fn add(&mut self, now: Instant) {
        self.forget(now);
        self.when.push_back(now);
    }

    /// This worker, the one that died, had these requests.
    pub fn suspect(&mut self, now: Instant, worker: u64, had: &[u64]) {
        for request in had {
            if self.suspects.len() < MOST_SUSPECTS || self.suspects.contains_key(request) {
                let seen = self.suspects.entry(*request).or_insert((0, now, 0));
                if seen.2 != worker {
                    *seen = (seen.0 + 1, now, worker);
                }
            }
        }
    }

    /// Whether it may be started.
    ///
    /// # Errors
    /// Why not.
    pub fn may_start(&mut self, now: Instant) -> Result<(), Refused> {
        self.forget(now);
        let Some(last) = self.when.back() else { return Ok(()) };
        if QUARANTINE <= self.when.len() {
            return Err(Refused::Quarantined);
        }
        // The first time at once.
        let doublings = self.when.len().saturating_sub(2) as u32;
        let pause = if self.when.len() < 2 { Duration::ZERO } else { PAUSE * 2u32.pow(doublings) };
        match (*last + pause.min(LONGEST_PAUSE)).checked_duration_since(now) {
            Some(left) if !left.is_zero() => Err(Refused::Wait(left)),
            _ => Ok(()),
        }
    }

    /// Whether this request was there for too many crashes.
    pub fn is_suspect(&self, now: Instant, request: u64) -> bool {
        self.suspects.get(&request).is_some_and(|(times, last, _)| {
            SUSPECT <= *times && now.saturating_duration_since(*last) < MEMORY
        })
    }

    fn forget(&mut self, now: Instant) {
        while self.when.front().is_some_and(|when| MEMORY <= now.saturating_duration_since(*when)) {
            self.when.pop_front();
        }
        self.suspects.retain(|_, (_, last, _)| now.saturating_duration_since(*last) < MEMORY);
    }
}

/// A number for what a request asks. Of long texts and tensors the length and both ends count, so that it costs no more
/// for a large one.
pub fn fingerprint<'a>(parts: impl Iterator<Item = &'a [u8]>) -> u64 {
    const END: usize = 2048;
    let mut hasher = DefaultHasher::new();
    for part in parts {
        part.len().hash(&mut hasher);
        hasher.write(&part[..part.len().min(END)]);
        hasher.write(&part[part.len().saturating_sub(END)..]);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_start_again_is_at_once_and_then_it_takes_longer_and_longer() {
        let start = Instant::now();
        let mut crashes = Crashes::default();
        assert_eq!(crashes.may_start(start), Ok(()));
        crashes.add(start);
        assert_eq!(crashes.may_start(start), Ok(()));
        for wait in [500, 1000, 2000] {
            crashes.add(start);
            let wait = Duration::from_millis(wait);
            assert_eq!(crashes.may_start(start), Err(Refused::Wait(wait)));
            assert_eq!(crashes.may_start(start + wait), Ok(()));
        }
        crashes.add(start);
        assert_eq!(crashes.may_start(start + LONGEST_PAUSE), Err(Refused::Quarantined));
        assert_eq!(crashes.may_start(start + MEMORY), Ok(()), "what is long ago is forgotten");
    }

    #[test]
    fn a_request_that_was_there_twice_is_suspect_for_a_while() {
        let start = Instant::now();
        let mut crashes = Crashes::default();
        crashes.suspect(start, 1, &[1, 2, 1]);
        assert!(!crashes.is_suspect(start, 1));
        crashes.suspect(start, 2, &[1]);
        assert_eq!([1, 2, 3].map(|request| crashes.is_suspect(start, request)), [true, false, false]);
        assert!(!crashes.is_suspect(start + MEMORY, 1));
    }

    #[test]
    fn a_fingerprint_tells_requests_apart() {
        let long = vec![7; 1 << 20];
        let of = |parts: &[&[u8]]| fingerprint(parts.iter().copied());
        assert_eq!(of(&[b"chat", &long]), of(&[b"chat", &long]));
        assert_ne!(of(&[b"chat", &long]), of(&[b"chat", &long[1..]]));
        assert_ne!(of(&[b"ab", b"c"]), of(&[b"a", b"bc"]));
    }
}
