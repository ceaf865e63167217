//! A rate: the generic cell rate algorithm, one atomic. Pure: `now` is nanoseconds of one clock.
//!
//! # Source
//! ITU-T I.371, annex A, the virtual scheduling form. The state is the theoretical arrival time of the next cell: how far
//! it lies ahead of now is how much was taken and has not flowed back yet.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What is allowed: `limit` in a `period` on average, `limit` at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    limit: u64,
    /// Nanoseconds that one takes to flow back. Rounded up, so that rounding never allows more.
    interval: u64,
}

impl Rate {
    /// A rate; a limit of zero counts as 1.
    pub fn new(limit: u64, period: Duration) -> Self {
        let limit = limit.max(1);
        let period = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX);
        Self { limit, interval: period.div_ceil(limit).max(1) }
    }

    /// So many a minute.
    pub fn per_minute(limit: u32) -> Self {
        Self::new(u64::from(limit), Duration::from_secs(60))
    }

    /// How many.
    pub fn limit(self) -> u64 {
        self.limit
    }

    fn cost(self, n: u64) -> u64 {
        self.interval.saturating_mul(n)
    }

    /// How far the state may lie ahead of now.
    fn tolerance(self) -> u64 {
        self.cost(self.limit)
    }
}

/// Why it was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// After exactly so many nanoseconds it is let through, if nobody comes between.
    For(u64),
    /// It is more than may come at once: no waiting helps.
    ForEver,
}

/// How it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// How many would be let through now.
    pub remaining: u64,
    /// Nanoseconds until it is as if nobody had come.
    pub reset: u64,
}

/// What one caller has taken of one rate. The rate is given with each call, so that it may change without forgiving what
/// was taken.
#[derive(Debug, Default)]
pub struct Gcra(AtomicU64);

impl Gcra {
    /// Takes `n`.
    ///
    /// # Errors
    /// When that is too many, now or ever. Nothing is taken then.
    pub fn take(&self, rate: Rate, n: u64, now: u64) -> Result<(), Refused> {
        if rate.limit < n {
            return Err(Refused::ForEver);
        }
        let next = |state: u64| state.max(now).saturating_add(rate.cost(n));
        let latest = now.saturating_add(rate.tolerance());
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
                Some(next(state)).filter(|next| *next <= latest)
            })
            .map(drop)
            .map_err(|state| Refused::For(next(state) - latest))
    }

    /// Replaces `taken` by what it was in the end. More than was taken becomes debt, which is waited off; less flows back,
    /// but never so far that more than a burst is free.
    pub fn settle(&self, rate: Rate, taken: u64, actual: u64, now: u64) {
        let (more, less) = (rate.cost(actual.saturating_sub(taken)), rate.cost(taken.saturating_sub(actual)));
        let settled = |state: u64| match more {
            0 => state.saturating_sub(less).max(state.min(now)),
            _ => state.max(now).saturating_add(more),
        };
        // Never refused: the closure always has a value.
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| Some(settled(state)));
    }

    /// How it stands. Changes nothing.
    pub fn standing(&self, rate: Rate, now: u64) -> Standing {
        let ahead = self.0.load(Ordering::Acquire).saturating_sub(now);
        Standing { remaining: rate.tolerance().saturating_sub(ahead) / rate.interval, reset: ahead }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: u64 = 60_000_000_000;

    /// The same rule told the other way round: a bucket that holds a burst and is filled by a unit a nanosecond.
    struct Bucket {
        units: u64,
        filled_at: u64,
        rate: Rate,
    }

    impl Bucket {
        fn take(&mut self, n: u64, now: u64) -> bool {
            self.units = self.units.saturating_add(now - self.filled_at).min(self.rate.tolerance());
            self.filled_at = now;
            let left = self.units.checked_sub(self.rate.cost(n));
            self.units = left.unwrap_or(self.units);
            left.is_some()
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Forward(u64),
        Back(u64),
        Take(u64),
        /// Settles the last that is open.
        Settle(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (0..MINUTE / 4).prop_map(Step::Forward),
            1 => (0..MINUTE).prop_map(Step::Back),
            8 => (1u64..12).prop_map(Step::Take),
            2 => (0u64..20).prop_map(Step::Settle),
        ];
        proptest::collection::vec(step, 1..300)
    }

    proptest! {
        #[test]
        fn agrees_with_the_bucket(limit in 1u64..60, takes in proptest::collection::vec((0..MINUTE / 4, 1u64..12), 1..300)) {
            let rate = Rate::new(limit, Duration::from_secs(60));
            let (gcra, mut now) = (Gcra::default(), 10 * MINUTE);
            let mut bucket = Bucket { units: rate.tolerance(), filled_at: now, rate };
            for (gap, n) in takes {
                now += gap;
                prop_assert_eq!(gcra.take(rate, n, now).is_ok(), bucket.take(n, now));
            }
        }

        /// Debts, refunds, and a clock that goes either way: never more than a burst and what flowed back in all the time
        /// that was ever seen; and whoever waits as long as told is let in.
        #[test]
        fn any_order_of_calls_on_any_clock(limit in 1u64..60, steps in steps()) {
            let rate = Rate::new(limit, Duration::from_secs(60));
            let gcra = Gcra::default();
            let mut now = 10 * MINUTE;
            let (mut earliest, mut latest, mut used, mut open) = (now, now, 0u64, Vec::new());
            for step in steps {
                match step {
                    Step::Forward(by) => now += by,
                    Step::Back(by) => now -= by.min(now),
                    Step::Settle(actual) => {
                        let Some(n) = open.pop() else { continue };
                        gcra.settle(rate, n, actual, now);
                        used = used - n + actual;
                    }
                    Step::Take(n) => match gcra.take(rate, n, now) {
                        Ok(()) => {
                            used += n;
                            open.push(n);
                            prop_assert!(rate.cost(used) <= rate.tolerance() + (latest.max(now) - earliest.min(now)));
                        }
                        Err(Refused::ForEver) => prop_assert!(limit < n),
                        Err(Refused::For(wait)) => {
                            let again = |after| Gcra(AtomicU64::new(gcra.0.load(Ordering::Relaxed))).take(rate, n, now + after);
                            prop_assert_eq!(again(wait), Ok(()), "waiting exactly that long is enough");
                            prop_assert_eq!(again(wait - 1), Err(Refused::For(1)), "and less is not");
                        }
                    },
                }
                (earliest, latest) = (earliest.min(now), latest.max(now));
            }
        }

        #[test]
        fn in_any_span_no_more_than_its_share_and_one_burst(limit in 1u64..200, gaps in proptest::collection::vec(0u64..5_000_000_000, 1..300)) {
            let rate = Rate::new(limit, Duration::from_secs(60));
            let gcra = Gcra::default();
            let (mut now, mut through) = (1_000, Vec::new());
            for gap in gaps {
                now += gap;
                if gcra.take(rate, 1, now).is_ok() {
                    through.push(now);
                }
            }
            for (place, from) in through.iter().enumerate() {
                for (count, to) in through[place..].iter().enumerate() {
                    // Counted from zero.
                    prop_assert!((count as u64) < limit + (to - from) / rate.interval);
                }
            }
        }

        #[test]
        fn what_is_taken_back_is_as_if_it_had_never_been(limit in 1u64..100, before in 0u64..100, n in 1u64..20) {
            let rate = Rate::new(limit, Duration::from_secs(60));
            let gcra = Gcra::default();
            for _ in 0..before { let _ = gcra.take(rate, 1, 5); }
            let standing = gcra.standing(rate, 5);
            if gcra.take(rate, n, 5).is_ok() {
                gcra.settle(rate, n, 0, 5);
            }
            prop_assert_eq!(gcra.standing(rate, 5), standing);
        }

        #[test]
        fn what_was_used_beyond_is_waited_off(limit in 2u64..100, over in 1u64..1000) {
            let rate = Rate::new(limit, Duration::from_secs(60));
            let gcra = Gcra::default();
            gcra.take(rate, 1, 7).unwrap();
            gcra.settle(rate, 1, limit + over, 7);
            prop_assert_eq!(gcra.standing(rate, 7).remaining, 0);
            prop_assert_eq!(gcra.take(rate, 1, 7), Err(Refused::For((over + 1) * rate.interval)));
        }
    }

    #[test]
    fn a_late_refund_makes_no_more_than_a_burst() {
        let rate = Rate::per_minute(10);
        let gcra = Gcra::default();
        gcra.take(rate, 10, 0).unwrap();
        gcra.settle(rate, 10, 0, 3 * MINUTE);
        assert_eq!(gcra.standing(rate, 3 * MINUTE), Standing { remaining: 10, reset: 0 });
        gcra.take(rate, 10, 3 * MINUTE).unwrap();
        assert!(gcra.take(rate, 1, 3 * MINUTE).is_err());
    }

    #[test]
    fn another_limit_forgives_nothing() {
        let (gcra, before, after) = (Gcra::default(), Rate::per_minute(10), Rate::per_minute(20));
        gcra.take(before, 10, 0).unwrap();
        assert_eq!(gcra.standing(after, 0).remaining, 0);
    }

    #[test]
    fn threads_together_get_what_one_would() {
        let (gcra, rate) = (Gcra::default(), Rate::per_minute(100));
        let through: usize = std::thread::scope(|scope| {
            let count = || (0..200).filter(|_| gcra.take(rate, 1, 7).is_ok()).count();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(count)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(through, 100);
    }
}
