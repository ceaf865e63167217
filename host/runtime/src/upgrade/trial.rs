//! The trial of a new version: which requests it gets, how it does beside the old one, and what follows from that.

use crate::config::UpgradeConfig;
use crate::error::{Error, ErrorCode};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Which of the two versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Old,
    New,
}

/// Requests that ended, and those of them that failed by the plugin's own doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub ended: u64,
    pub failed: u64,
}

#[derive(Default)]
struct Counters {
    ended: AtomicU64,
    failed: AtomicU64,
}

impl Counters {
    fn read(&self) -> Tally {
        // Failures first: one that comes between the two must not make more failures than requests.
        let failed = self.failed.load(Ordering::Acquire);
        Tally { ended: self.ended.load(Ordering::Acquire), failed }
    }
}

/// A trial under way. Requests read and count in it; it waits for nobody.
pub struct Trial {
    share: f64,
    /// Requests that asked whether they are for the new version.
    asked: AtomicU64,
    open: AtomicBool,
    old: Counters,
    new: Counters,
    /// Requests that the old version answered after the new one had failed them.
    moved: AtomicU64,
    /// The first failure of the new version.
    first: Mutex<Option<String>>,
}

impl Trial {
    /// A trial in which `share` of the requests are for the new version. It begins closed.
    pub fn new(share: f64) -> Self {
        Self {
            share,
            asked: AtomicU64::new(0),
            open: AtomicBool::new(false),
            old: Counters::default(),
            new: Counters::default(),
            moved: AtomicU64::new(0),
            first: Mutex::default(),
        }
    }

    /// From now on the new version gets its share, or nothing any more.
    pub fn set_open(&self, open: bool) {
        self.open.store(open, Ordering::Release);
    }

    /// The part of new requests that is for the new version now.
    pub fn share(&self) -> f64 {
        if self.open.load(Ordering::Acquire) { self.share } else { 0.0 }
    }

    /// Whether the next request is for the new version. Spread evenly: of ten requests it is one, not perhaps two.
    pub fn takes(&self) -> bool {
        if !self.open.load(Ordering::Acquire) {
            return false;
        }
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        let due = |requests: u64| (requests as f64 * self.share).floor();
        // The first is for the new version: with little traffic it would else come to nothing.
        due(asked + 1) > due(asked) || (asked == 0 && self.share > 0.0)
    }

    /// Counts the end of a request.
    pub fn count(&self, side: Side, failure: Option<&Error>) {
        let counters = if side == Side::Old { &self.old } else { &self.new };
        if let Some(error) = failure.filter(|error| is_fault(error)) {
            if side == Side::New {
                self.first.lock().get_or_insert_with(|| error.message.clone());
            }
            counters.failed.fetch_add(1, Ordering::Release);
        }
        counters.ended.fetch_add(1, Ordering::Release);
    }

    /// Counts a request that the old version is asked to answer in place of the new one.
    pub fn count_moved(&self) {
        self.moved.fetch_add(1, Ordering::Relaxed);
    }

    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    pub fn tally(&self, side: Side) -> Tally {
        if side == Side::Old { self.old.read() } else { self.new.read() }
    }

    /// What the new version's first failure was.
    pub fn first_failure(&self) -> String {
        self.first.lock().clone().unwrap_or_default()
    }
}

/// Whether a failure is the plugin's doing: not the caller's, not a limit's, and not that of too many requests.
pub fn is_fault(error: &Error) -> bool {
    may_move(error) && error.reason != "overloaded" || error.code == ErrorCode::DeadlineExceeded
}

/// Whether the other version may answer in place of one that failed like this.
pub fn may_move(error: &Error) -> bool {
    matches!(
        error.code,
        ErrorCode::Internal
            | ErrorCode::Unavailable
            | ErrorCode::Unknown
            | ErrorCode::DataLoss
            | ErrorCode::Unimplemented
    )
}

/// What is to become of a trial.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It goes on.
    Wait,
    /// All requests are for the new version from now on.
    Pass,
    /// The old version keeps all.
    Fail(String),
}

/// Judges a trial. Pure.
///
/// More may fail than in the old version by `failures`, counted as if the trial ended with `requests`: a first failure
/// among few requests is no half of them.
pub fn judge(old: Tally, new: Tally, since: Duration, rules: &UpgradeConfig) -> Verdict {
    let of = |tally: Tally, requests: u64| tally.failed as f64 / requests.max(1) as f64;
    let allowed = of(old, old.ended) + rules.failures;
    if of(new, new.ended.max(rules.requests)) > allowed {
        return Verdict::Fail(format!(
            "{} of its {} requests failed, and {} of {} in the version before",
            new.failed, new.ended, old.failed, old.ended
        ));
    }
    if rules.requests <= new.ended || rules.hold <= since {
        // What is rare among many may be much among few.
        if new.failed > 0 && of(new, new.ended) > allowed {
            return Verdict::Fail(format!("{} of its {} requests failed", new.failed, new.ended));
        }
        return Verdict::Pass;
    }
    Verdict::Wait
}

impl Trial {
    /// Judges this trial, which began at `since`.
    pub fn verdict(&self, since: Instant, rules: &UpgradeConfig) -> Verdict {
        judge(self.tally(Side::Old), self.tally(Side::New), since.elapsed(), rules)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RULES: UpgradeConfig = UpgradeConfig {
        share: 0.1,
        requests: 100,
        hold: Duration::from_secs(30),
        failures: 0.02,
        drain: Duration::ZERO,
    };

    fn tally(ended: u64, failed: u64) -> Tally {
        Tally { ended, failed }
    }

    #[test]
    fn one_of_ten_requests_is_for_the_new_version_and_none_before_and_after() {
        let trial = Trial::new(0.1);
        assert!(!(0..100).any(|_| trial.takes()));
        assert_eq!(trial.share(), 0.0);
        trial.set_open(true);
        assert!(trial.takes(), "the first");
        assert_eq!((0..999).filter(|_| trial.takes()).count(), 100);
        trial.set_open(false);
        assert!(!(0..100).any(|_| trial.takes()));
    }

    #[test]
    fn it_passes_by_requests_or_by_time() {
        let soon = Duration::from_secs(1);
        assert_eq!(judge(tally(900, 0), tally(99, 0), soon, &RULES), Verdict::Wait);
        assert_eq!(judge(tally(900, 0), tally(100, 0), soon, &RULES), Verdict::Pass);
        assert_eq!(judge(tally(0, 0), tally(0, 0), RULES.hold, &RULES), Verdict::Pass, "nobody asked");
    }

    #[test]
    fn it_fails_as_soon_as_too_much_has_failed() {
        let soon = Duration::from_secs(1);
        let verdict = |old, new| judge(old, new, soon, &RULES);
        assert_eq!(verdict(tally(900, 0), tally(20, 2)), Verdict::Wait, "two of a hundred may");
        assert!(matches!(verdict(tally(900, 0), tally(20, 3)), Verdict::Fail(_)));
        assert_eq!(verdict(tally(900, 0), tally(100, 2)), Verdict::Pass);
        assert_eq!(verdict(tally(100, 50), tally(100, 50)), Verdict::Pass, "the old version fails as much");
        assert!(matches!(verdict(tally(100, 0), tally(0, 0)), Verdict::Wait));
        let few = judge(tally(10, 0), tally(4, 2), RULES.hold, &RULES);
        assert!(matches!(few, Verdict::Fail(_)), "two of four, when the time is over: {few:?}");
    }

    #[test]
    fn what_is_the_callers_doing_counts_as_no_failure() {
        let trial = Trial::new(1.0);
        for code in [ErrorCode::InvalidArgument, ErrorCode::Cancelled, ErrorCode::OutOfRange] {
            trial.count(Side::New, Some(&Error::new(code, "no")));
        }
        trial.count(Side::New, Some(&Error::unavailable("full").with_reason("overloaded")));
        assert_eq!(trial.tally(Side::New), tally(4, 0));
        trial.count(Side::New, Some(&Error::internal("it broke")));
        trial.count(Side::New, Some(&Error::deadline("it hung")));
        assert_eq!(trial.tally(Side::New), tally(6, 2));
        assert_eq!(trial.first_failure(), "it broke");
        assert!(!may_move(&Error::deadline("it hung")), "there is no time left");
    }

    proptest! {
        #[test]
        fn the_share_is_as_said(share in 0.0f64..=1.0, requests in 1u64..2000) {
            let trial = Trial::new(share);
            trial.set_open(true);
            let taken = (0..requests).filter(|_| trial.takes()).count() as f64;
            prop_assert!((taken - requests as f64 * share).abs() <= 1.0 + 1e-6);
        }

        #[test]
        fn a_version_that_fails_no_more_than_the_old_one_passes(ended in 100u64..5000, failed in 0u64..100) {
            let verdict = judge(tally(ended, failed), tally(ended, failed), RULES.hold, &RULES);
            prop_assert_eq!(verdict, Verdict::Pass);
        }
    }
}
