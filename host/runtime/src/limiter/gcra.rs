//! A request rate: the generic cell rate algorithm in one atomic. Pure: `now` is nanoseconds of any clock that does not
//! go back.
//!
//! # Source
//! ITU-T I.371, annex A: the virtual scheduling form. `tat` is the theoretical arrival time of the next cell.

use std::sync::atomic::{AtomicU64, Ordering};

const MINUTE: u64 = 60_000_000_000;

/// At most `per_minute` requests in any minute on average, of which as many may come at once.
#[derive(Debug)]
pub struct Gcra {
    tat: AtomicU64,
    per_minute: u32,
}

/// How a rate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Requests that would be let through now.
    pub remaining: u64,
    /// Nanoseconds until it is as if nobody had come.
    pub reset: u64,
}

impl Gcra {
    /// A fresh rate. `per_minute` is at least 1.
    pub fn new(per_minute: u32) -> Self {
        Self { tat: AtomicU64::new(0), per_minute: per_minute.max(1) }
    }

    /// The limit.
    pub fn per_minute(&self) -> u32 {
        self.per_minute
    }

    fn interval(&self) -> u64 {
        MINUTE / u64::from(self.per_minute)
    }

    fn burst(&self) -> u64 {
        self.interval() * u64::from(self.per_minute)
    }

    /// Lets one request through.
    ///
    /// # Errors
    /// Nanoseconds to wait, after which one is let through if nobody comes between.
    pub fn admit(&self, now: u64) -> Result<(), u64> {
        let limit = now.saturating_add(self.burst());
        self.tat
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |tat| {
                let next = tat.max(now).saturating_add(self.interval());
                (next <= limit).then_some(next)
            })
            .map(drop)
            .map_err(|tat| (tat.max(now) + self.interval()).saturating_sub(limit))
    }

    /// Takes back a request that was let through and then refused by another limit.
    pub fn undo(&self, now: u64) {
        // Never below now: an old admission must not become credit for more than the burst.
        let _ = self.tat.fetch_update(Ordering::AcqRel, Ordering::Acquire, |tat| {
            Some(tat.saturating_sub(self.interval()).max(now.min(tat)))
        });
    }

    /// How it stands.
    pub fn standing(&self, now: u64) -> Standing {
        let tat = self.tat.load(Ordering::Acquire).max(now);
        let left = now.saturating_add(self.burst()).saturating_sub(tat);
        Standing { remaining: left / self.interval(), reset: tat - now }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever the arrivals: in any span, no more than its share and one burst.
        #[test]
        fn never_more_than_rate_and_burst(per_minute in 1u32..200, gaps in proptest::collection::vec(0u64..5_000_000_000, 1..300)) {
            let rate = Gcra::new(per_minute);
            let (mut now, mut let_through) = (1_000, Vec::new());
            for gap in gaps {
                now += gap;
                match rate.admit(now) {
                    Ok(()) => let_through.push(now),
                    Err(wait) => {
                        prop_assert!(wait > 0);
                        prop_assert!(Gcra { tat: AtomicU64::new(rate.tat.load(Ordering::Relaxed)), per_minute }.admit(now + wait).is_ok(), "waiting exactly that long is enough");
                        if wait > 1 {
                            prop_assert!(Gcra { tat: AtomicU64::new(rate.tat.load(Ordering::Relaxed)), per_minute }.admit(now + wait - 1).is_err(), "and less is not");
                        }
                    }
                }
            }
            for (place, from) in let_through.iter().enumerate() {
                for (count, to) in let_through[place..].iter().enumerate() {
                    let allowed = (to - from) / rate.interval() + u64::from(per_minute);
                    prop_assert!(count as u64 <= allowed);
                }
            }
        }

        #[test]
        fn undo_gives_back_exactly_one(per_minute in 1u32..100, before in 0u32..100) {
            let rate = Gcra::new(per_minute);
            for _ in 0..before { let _ = rate.admit(5); }
            let standing = rate.standing(5);
            if rate.admit(5).is_ok() {
                rate.undo(5);
            }
            prop_assert_eq!(rate.standing(5), standing);
        }
    }

    #[test]
    fn threads_together_get_no_more_than_one_would() {
        let rate = Gcra::new(100);
        let through = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8).map(|_| scope.spawn(|| (0..200).filter(|_| rate.admit(7).is_ok()).count())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
        });
        assert_eq!(through, 100);
    }
}
