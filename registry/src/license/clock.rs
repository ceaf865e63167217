//! What time it is at least.
//!
//! Setting the clock back gives nothing, and no denial is needed for it: the time that counts is the latest of what the
//! system says, what was confirmed before, what was built and what was signed. A value is confirmed only after
//! [`CONFIRMED_AFTER`] of running time in which the clock never fell behind it, so that a clock that is wrong for an
//! hour burns no licence. One that was wrong for longer is mended by a [`TimeToken`](super::TimeToken) of the vendor, for that
//! vendor's licences.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::UsageLog;
use super::own::{remember, remembered};
use crate::trust::{PublicKey, Result, Timestamp, payload_type};

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
    /// By issuer: since when its licences go by what it signed, and no more by what was seen before.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    resets: BTreeMap<String, Reset>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Reset {
    /// Whose word it is.
    key: PublicKey,
    /// The time that was signed.
    time: Timestamp,
    /// `running` when it was taken.
    running: u64,
    /// The latest time that was confirmed since.
    confirmed: Timestamp,
}

/// What time it is, for whose licences.
#[derive(Debug, Clone, Copy)]
pub struct Now<'a> {
    /// Where nobody says otherwise.
    pub at: Timestamp,
    reset: Option<(&'a Clock, Timestamp)>,
}

impl From<Timestamp> for Now<'_> {
    fn from(at: Timestamp) -> Self {
        Self { at, reset: None }
    }
}

impl Now<'_> {
    /// For the licences of this issuer, to a plugin that names these keys of its vendor, if it names any.
    pub fn of_issuer(&self, issuer: &str, pinned: &[String]) -> Timestamp {
        let Some((clock, least)) = self.reset else { return self.at };
        let named = |reset: &&Reset| pinned.is_empty() || pinned.contains(&reset.key.to_string());
        clock.resets.get(issuer).filter(named).map_or(self.at, |reset| clock.since(reset).max(least))
    }

    /// The earliest of all.
    pub fn earliest(&self) -> Timestamp {
        let Some((clock, least)) = self.reset else { return self.at };
        clock.resets.values().map(|reset| clock.since(reset).max(least)).min().unwrap_or(self.at)
    }
}

impl Clock {
    pub fn new(system: Timestamp) -> Self {
        Self {
            first_seen: system,
            running: 0,
            confirmed: Timestamp::default(),
            candidate: (system, 0),
            last: system,
            resets: BTreeMap::new(),
        }
    }

    /// One for a state directory whose clock is not known: never before what was used here last.
    pub fn anew(state: &Path, system: Timestamp) -> Self {
        let used = UsageLog::at(state).read().ok().and_then(|entries| Some(entries.last()?.at));
        Self { confirmed: used.unwrap_or_default(), ..Self::new(system) }
    }

    /// From now on the licences of this issuer go by the time that it signed, and what is seen after. An older token than
    /// was taken before changes nothing. Whether it was taken.
    pub fn reset(&mut self, issuer: &str, key: PublicKey, time: Timestamp, system: Timestamp) -> bool {
        if self.resets.get(issuer).is_some_and(|known| time <= known.time) {
            return false;
        }
        let reset = Reset { key, time, running: self.running, confirmed: time };
        self.resets.insert(issuer.to_owned(), reset);
        // What waited for its confirmation was seen before.
        self.candidate = (system, self.running);
        self.last = system;
        true
    }

    /// The time that counts after a reset, but for what the system says.
    fn since(&self, reset: &Reset) -> Timestamp {
        let ran = i64::try_from(self.running.saturating_sub(reset.running)).unwrap_or(i64::MAX);
        reset.time.plus(ran).max(reset.confirmed)
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
            let confirmed = held.min(system);
            self.confirmed = self.confirmed.max(confirmed);
            self.resets.values_mut().for_each(|reset| reset.confirmed = reset.confirmed.max(confirmed));
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

    /// As [`now`](Self::now), for each issuer.
    pub fn times(&self, system: Timestamp, built: Timestamp, signed: Option<Timestamp>) -> Now<'_> {
        let least = [system, built].into_iter().chain(signed).max().unwrap_or(system);
        Now { at: self.now(system, built, signed), reset: Some((self, least)) }
    }

    pub fn confirmed(&self) -> Timestamp {
        self.confirmed
    }

    /// What this state directory remembers; nothing if it never had a clock. A record that this installation did not
    /// sign as it stands is refused.
    pub fn read(state: &Path) -> Result<Option<Self>> {
        remembered(state, &path(state), payload_type::CLOCK, MAX)
    }

    /// Lets the state directory remember it.
    pub fn write(&self, state: &Path) -> Result<()> {
        remember(state, &path(state), payload_type::CLOCK, self)
    }
}

/// More than the resets of a hundred vendors take.
const MAX: usize = 64 << 10;

fn path(state: &Path) -> PathBuf {
    state.join("licenses/clock.dsse")
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

    #[test]
    fn a_vendor_mends_the_clock_for_its_own_licences_and_once() {
        let key = |seed| crate::trust::SecretKey::of_seed(&[seed; 32]).public();
        let mut clock = Clock::new(at(0));
        // Wrong for two days of running: it is believed.
        let wrong = at(3650 * DAY);
        clock.observe(wrong, 24 * HOUR);
        clock.observe(wrong.plus(2 * DAY), 48 * HOUR);
        let times = |clock: &Clock, system| {
            let now = clock.times(system, Timestamp::default(), None);
            [now.at, now.of_issuer("acme", &[]), now.of_issuer("other", &[]), now.earliest()]
        };
        let system = at(3 * DAY);
        assert!(times(&clock, system).iter().all(|now| *now >= wrong));

        assert!(clock.reset("acme", key(1), at(3 * DAY), system));
        let [all, acme, other, earliest] = times(&clock, system);
        assert!(all >= wrong && other >= wrong, "what one vendor signs mends nothing of another's");
        assert_eq!((acme, earliest), (at(3 * DAY), at(3 * DAY)));
        let now = clock.times(system, Timestamp::default(), None);
        let named = |seed| now.of_issuer("acme", &[key(seed).to_string()]);
        assert!(
            named(1) == at(3 * DAY) && named(2) >= wrong,
            "a plugin that names its vendor's keys believes these"
        );

        // From there on it is as before: what ran counts, what is confirmed counts, and setting back gives nothing.
        clock.observe(at(4 * DAY), 24 * HOUR);
        clock.observe(at(5 * DAY), 24 * HOUR);
        assert!(times(&clock, at(0))[1] >= at(5 * DAY));
        assert!(!clock.reset("acme", key(1), at(3 * DAY), at(0)), "the same token again");
        assert!(times(&clock, at(0))[1] >= at(5 * DAY));
        let state = tempfile::tempdir().unwrap();
        clock.write(state.path()).unwrap();
        assert_eq!(Clock::read(state.path()).unwrap().unwrap(), clock);
    }

    #[test]
    fn a_record_that_somebody_wrote_is_refused_and_one_that_is_gone_begins_where_it_was_used() {
        let state = tempfile::tempdir().unwrap();
        let clock = Clock::new(at(DAY));
        clock.write(state.path()).unwrap();
        let good = std::fs::read(path(state.path())).unwrap();
        for place in 0..good.len() {
            let mut flipped = good.clone();
            flipped[place] ^= 1;
            std::fs::write(path(state.path()), flipped).unwrap();
            assert!(Clock::read(state.path()).is_err(), "byte {place} was flipped, and nobody saw it");
        }
        // As it once was written, and as another installation writes it.
        std::fs::write(path(state.path()), serde_json::to_vec(&clock).unwrap()).unwrap();
        assert!(Clock::read(state.path()).is_err());
        let other = tempfile::tempdir().unwrap();
        clock.write(other.path()).unwrap();
        std::fs::copy(path(other.path()), path(state.path())).unwrap();
        let refused = Clock::read(state.path()).unwrap_err().to_string();
        assert!(refused.contains("clock.dsse") && refused.contains("none of the keys"), "{refused}");

        std::fs::remove_file(path(state.path())).unwrap();
        assert_eq!(Clock::read(state.path()).unwrap(), None);
        assert_eq!(now(&Clock::anew(state.path(), at(0)), at(0)), at(0));
        let entry = crate::license::Entry {
            at: at(9 * DAY),
            plugin: "com.acme.x".to_owned(),
            licence: "lic_1".to_owned(),
            tenant: "default".to_owned(),
            month: "2027-01".to_owned(),
            tokens: 1,
            requests: 1,
            peak_nodes: 1,
            peak_gpus: 0,
        };
        UsageLog::at(state.path()).append(&entry).unwrap();
        assert_eq!(now(&Clock::anew(state.path(), at(0)), at(0)), at(9 * DAY));
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
