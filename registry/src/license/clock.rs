//! What time it is at least.
//!
//! Setting the clock back gives nothing, and no denial is needed for it: the time that counts is the latest of what the
//! system says, what was confirmed before, what was built and what was signed. A value is confirmed only after
//! [`CONFIRMED_AFTER`] of running time in which the clock never fell behind it, so that a clock that is wrong for an
//! hour burns no licence.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::trust::{Result, Timestamp, TrustError, parse_typed, read_capped, write_atomic};

/// Running seconds after which a clock value counts for good.
pub const CONFIRMED_AFTER: u64 = 24 * 3600;
/// A step back of up to this is a correction, not worth a word.
const TOLERANCE: i64 = 3600;

/// What is remembered of the clock. It reads none itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Clock {
    /// When this was first looked at.
    first_seen: Timestamp,
    /// Seconds of running since then, over all restarts, by a clock that nobody can set.
    running: u64,
    /// The latest confirmed time.
    confirmed: Timestamp,
    /// A value that waits for its confirmation, and `running` when it was read.
    candidate: (Timestamp, u64),
    /// The system's clock at the last look.
    last: Timestamp,
}

impl Clock {
    pub fn new(system: Timestamp) -> Self {
        Self {
            first_seen: system,
            running: 0,
            confirmed: Timestamp::default(),
            candidate: (system, 0),
            last: system,
        }
    }

    /// Looks at the clock after `ran` more seconds of running. Returns the seconds that it was set back, if that is
    /// worth a warning.
    pub fn observe(&mut self, system: Timestamp, ran: u64) -> Option<i64> {
        self.running = self.running.saturating_add(ran);
        let (value, since) = self.candidate;
        let elapsed = self.running - since;
        let held = value.plus(i64::try_from(elapsed).unwrap_or(i64::MAX));
        if system < held.plus(-TOLERANCE) {
            self.candidate = (system, self.running);
        } else if elapsed >= CONFIRMED_AFTER {
            self.confirmed = self.confirmed.max(held.min(system));
            self.candidate = (system, self.running);
        }
        let expected = self.last.plus(i64::try_from(ran).unwrap_or(i64::MAX));
        self.last = system;
        Some(expected.since(system)).filter(|&back| back > TOLERANCE)
    }

    /// The time that counts. `signed` is the newest date that the vendor in question signed: a vendor's dates count for
    /// its own licences only, or one vendor could expire another's.
    pub fn now(&self, system: Timestamp, built: Timestamp, signed: Option<Timestamp>) -> Timestamp {
        let ran = i64::try_from(self.running).unwrap_or(i64::MAX);
        let at_least = self.first_seen.plus(ran);
        [system, self.confirmed, built, at_least].into_iter().chain(signed).max().unwrap_or(system)
    }

    pub fn confirmed(&self) -> Timestamp {
        self.confirmed
    }

    /// What this state directory remembers; nothing if it never had a clock.
    pub fn read(state: &Path) -> Result<Option<Self>> {
        match read_capped(&path(state), 4 << 10) {
            Err(TrustError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            read => parse_typed(&read?).map(Some),
        }
    }

    /// Lets the state directory remember it.
    pub fn write(&self, state: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).unwrap_or_default();
        write_atomic(&path(state), text.as_bytes(), 0o600)
    }
}

fn path(state: &Path) -> PathBuf {
    state.join("licenses/clock.json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR: u64 = 3600;
    const DAY: i64 = 86_400;
    const START: i64 = 1_800_000_000;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::of_unix(START + seconds)
    }

    fn now(clock: &Clock, system: Timestamp) -> Timestamp {
        clock.now(system, Timestamp::default(), None)
    }

    #[test]
    fn a_wrong_jump_of_some_hours_burns_nothing() {
        let mut clock = Clock::new(at(0));
        clock.observe(at(3600), HOUR);
        let wrong = at(3650 * DAY);
        assert_eq!(clock.observe(wrong, HOUR), None);
        assert_eq!(now(&clock, wrong), wrong);
        clock.observe(wrong.plus(20 * 3600), 20 * HOUR);
        let back = clock.observe(at(23 * 3600), HOUR);
        assert!(back.is_some_and(|back| back > 3649 * DAY), "{back:?}");
        assert_eq!(now(&clock, at(23 * 3600)), at(23 * 3600));
        assert!(clock.confirmed() < at(2 * DAY));
    }

    #[test]
    fn what_held_for_a_day_of_running_counts_for_good() {
        let mut clock = Clock::new(at(0));
        for _ in 0..3 {
            // Eight hours of running a day, over restarts.
            let system = clock.last.plus(DAY);
            clock.observe(system, 8 * HOUR);
        }
        assert_eq!(clock.confirmed(), at(DAY), "a day of running after the first look");
        clock.observe(at(0), 0);
        assert_eq!(now(&clock, at(0)), at(DAY));
    }

    #[test]
    fn setting_the_clock_back_every_day_gives_nothing() {
        let mut clock = Clock::new(at(0));
        for day in 1..=400 {
            assert!(clock.observe(at(0), 23 * HOUR).is_some());
            assert!(now(&clock, at(0)) >= at(day * 23 * 3600));
        }
    }

    #[test]
    fn builds_and_signed_dates_are_the_past() {
        let clock = Clock::new(at(0));
        assert_eq!(clock.now(at(0), at(5), None), at(5));
        assert_eq!(clock.now(at(0), at(5), Some(at(9))), at(9));
        let text = serde_json::to_string(&clock).unwrap();
        assert_eq!(serde_json::from_str::<Clock>(&text).unwrap(), clock);
    }

    proptest! {
        /// Whatever the clock does, the least time never falls, and nothing is confirmed that was not shown for a day.
        #[test]
        fn the_least_time_never_falls(steps in proptest::collection::vec((-400 * DAY..400 * DAY, 0..30 * HOUR), 1..60)) {
            let mut clock = Clock::new(at(0));
            let (mut system, mut least, mut latest) = (at(0), at(0), at(0));
            for (jump, ran) in steps {
                system = system.plus(jump).plus(i64::try_from(ran).unwrap());
                latest = latest.max(system);
                clock.observe(system, ran);
                let next = now(&clock, Timestamp::default());
                prop_assert!(next >= least);
                prop_assert!(clock.confirmed() <= latest);
                least = next;
            }
        }
    }
}
