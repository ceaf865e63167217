//! What a plugin's crashes mean for its next start, and for a request that was there each time. Reads no clock.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// So long a crash counts.
const MEMORY: Duration = Duration::from_secs(600);
/// So many crashes within it, and the plugin is not started again.
const QUARANTINE: usize = 5;
/// So many crashes that a request was there for, and it is not served again.
const SUSPECT: u32 = 2;
/// The pause after the second crash, and after a start that failed; doubled with each further one.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Requests that are remembered.
const MOST_SUSPECTS: usize = 1024;

/// The crashes of one plugin.
#[derive(Debug, Default)]
pub struct Crashes {
    /// Part of a pause that is added to it.
    spread: f64,
    when: Vec<Instant>,
    /// Starts in a row that failed without a crash, and the last of them.
    failed: Option<(u32, Instant)>,
    /// Crashes, the last of them, and in which worker: several requests alike count once for one crash.
    suspects: HashMap<Fingerprint, (u32, Instant, u64)>,
}

/// What a request asks, as a number: of all of its bytes, with a key of this process, so that nobody can make one request
/// that is taken for another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint {
    len: u64,
    hash: u64,
}

impl Fingerprint {
    /// Reads them all: a GiB takes about a second, so it is asked for only where there was a crash.
    pub fn of<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Self {
        static KEY: OnceLock<RandomState> = OnceLock::new();
        let mut hasher = KEY.get_or_init(RandomState::new).build_hasher();
        let mut len = 0;
        for part in parts {
            part.hash(&mut hasher);
            len += part.len() as u64;
        }
        Self { len, hash: hasher.finish() }
    }
}

/// Why a plugin is not started now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It crashed a moment ago, or could not be started.
    Wait(Duration),
    /// It crashes again and again.
    Quarantined,
}

impl Crashes {
    /// Its pauses are up to a quarter longer: plugins that crash together, as when the machine's memory ran out, are not
    /// all started again at once.
    pub fn new() -> Self {
        let chance = RandomState::new().build_hasher().finish() as u32;
        Self { spread: f64::from(chance) / f64::from(u32::MAX) / 4.0, ..Self::default() }
    }

    /// A worker died, perhaps a while ago: to be said once of each.
    pub fn add(&mut self, at: Instant) {
        self.when.push(at);
    }

    /// It could not be started, and that was no crash: it pauses as after one, and nothing is held against it.
    pub fn failed(&mut self, now: Instant) {
        let times = self.failed.map_or(0, |(times, _)| times);
        self.failed = Some((times.saturating_add(1), now));
    }

    /// It was started.
    pub fn started(&mut self) {
        self.failed = None;
    }

    /// This worker, the one that died, had these requests.
    pub fn suspect(&mut self, now: Instant, worker: u64, had: &[Fingerprint]) {
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
        if QUARANTINE <= self.when.len() {
            return Err(Refused::Quarantined);
        }
        // After the first crash at once.
        let pause = |times| pause(times).mul_f64(1.0 + self.spread);
        let crashed = self.when.iter().max().map(|last| *last + pause(self.when.len() as u32 - 1));
        let failed = self.failed.map(|(times, last)| last + pause(times));
        match crashed.max(failed).and_then(|until| until.checked_duration_since(now)) {
            Some(left) if !left.is_zero() => Err(Refused::Wait(left)),
            _ => Ok(()),
        }
    }

    /// Whether a request of so many bytes may be one that was there for too many crashes: the others need not be read.
    pub fn may_suspect(&self, now: Instant, len: u64) -> bool {
        self.suspects.iter().any(|(request, seen)| request.len == len && convicts(seen, now))
    }

    /// Whether this request was there for too many crashes.
    pub fn is_suspect(&self, now: Instant, request: Fingerprint) -> bool {
        self.suspects.get(&request).is_some_and(|seen| convicts(seen, now))
    }

    fn forget(&mut self, now: Instant) {
        self.when.retain(|when| now.saturating_duration_since(*when) < MEMORY);
        self.suspects.retain(|_, (_, last, _)| now.saturating_duration_since(*last) < MEMORY);
    }
}

/// The pause before the next start, after so many that did not do; before the first none is made.
fn pause(times: u32) -> Duration {
    match times.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => PAUSE.saturating_mul(2u32.saturating_pow(doublings)).min(LONGEST_PAUSE),
    }
}

fn convicts((times, last, _): &(u32, Instant, u64), now: Instant) -> bool {
    SUSPECT <= *times && now.saturating_duration_since(*last) < MEMORY
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
    fn plugins_that_crash_together_are_not_started_together() {
        let start = Instant::now();
        let waits = [(); 8].map(|()| {
            let mut crashes = Crashes::new();
            crashes.add(start);
            assert_eq!(crashes.may_start(start), Ok(()), "after the first there is no pause");
            crashes.add(start);
            match crashes.may_start(start) {
                Err(Refused::Wait(wait)) => wait,
                other => panic!("{other:?}"),
            }
        });
        assert!(waits.iter().all(|wait| (PAUSE..=PAUSE + PAUSE / 4).contains(wait)), "{waits:?}");
        assert!(waits.iter().any(|wait| *wait != waits[0]), "{waits:?}");
    }

    #[test]
    fn a_crash_that_is_heard_of_late_counts_for_when_it_was() {
        let start = Instant::now();
        let mut crashes = Crashes::default();
        crashes.add(start + PAUSE);
        crashes.add(start);
        assert_eq!(crashes.may_start(start + PAUSE), Err(Refused::Wait(PAUSE)), "after the last of them");
        assert_eq!(crashes.may_start(start + MEMORY), Ok(()), "the first is forgotten, and one is borne");
        assert_eq!(crashes.when, [start + PAUSE]);
    }

    #[test]
    fn a_start_that_failed_makes_it_pause_and_is_no_crash() {
        let start = Instant::now();
        let mut crashes = Crashes::default();
        for wait in [500, 1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000] {
            crashes.failed(start);
            let wait = Duration::from_millis(wait);
            assert_eq!(crashes.may_start(start), Err(Refused::Wait(wait)));
            assert_eq!(crashes.may_start(start + wait), Ok(()));
        }
        crashes.started();
        assert_eq!(crashes.may_start(start), Ok(()));
        // The longer pause is made.
        crashes.failed(start);
        for _ in 0..3 {
            crashes.add(start);
        }
        assert_eq!(crashes.may_start(start), Err(Refused::Wait(PAUSE * 2)));
    }

    fn print(parts: &[&[u8]]) -> Fingerprint {
        Fingerprint::of(parts.iter().copied())
    }

    #[test]
    fn a_request_that_was_there_twice_is_suspect_for_a_while() {
        let start = Instant::now();
        let mut crashes = Crashes::default();
        let [one, two, three] = [b"one", b"two", b"333"].map(|text| print(&[text]));
        crashes.suspect(start, 1, &[one, two, one]);
        assert!(!crashes.is_suspect(start, one) && !crashes.may_suspect(start, 3));
        crashes.suspect(start, 2, &[one]);
        assert_eq!([one, two, three].map(|request| crashes.is_suspect(start, request)), [true, false, false]);
        assert_eq!([2, 3, 4].map(|len| crashes.may_suspect(start, len)), [false, true, false]);
        assert!(!crashes.is_suspect(start + MEMORY, one) && !crashes.may_suspect(start + MEMORY, 3));
    }

    #[test]
    fn a_fingerprint_tells_requests_apart() {
        let long = vec![7; 1 << 20];
        assert_eq!(print(&[b"chat", &long]), print(&[b"chat", &long]));
        assert_ne!(print(&[b"chat", &long]), print(&[b"chat", &long[1..]]));
        assert_ne!(print(&[b"ab", b"c"]), print(&[b"a", b"bc"]));
        // Wherever they differ: who knew where nobody looks could have another's request taken for one that crashes.
        for at in [0, 2048, long.len() / 2, long.len() - 1] {
            let mut other = long.clone();
            other[at] ^= 1;
            assert_ne!(print(&[b"chat", &long]), print(&[b"chat", &other]), "{at}");
        }
        // And by a key that nobody knows.
        let mut unkeyed = std::hash::DefaultHasher::new();
        b"chat"[..].hash(&mut unkeyed);
        assert_ne!(print(&[b"chat"]).hash, unkeyed.finish());
    }
}
