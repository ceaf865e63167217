//! Tokens in a window: a ledger. Pure: `now` is nanoseconds since 1970.
//!
//! What a request may cost is reserved before it runs and settled after. Spent and reserved together never pass the
//! limit, however many ask at once. A request that cost more than it had reserved leaves the ledger above the limit, and
//! whoever comes next waits for it.
//!
//! One rule for every way a clock or a setting can jump: **a window that has not ended is carried into the one that takes
//! its place.** So a clock that was set back, or another period, gives no tokens away; and since only windows that have
//! not ended are carried, a clock that was wrong for a while locks nobody out beyond the end of the current window.

use super::window::{Period, Window};
use parking_lot::Mutex;
use std::time::Duration;

/// What may be spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// So many tokens.
    pub limit: u64,
    /// In each window of this.
    pub period: Period,
}

/// The ledger of one key. The allowance is given with each call, so that it may change without forgiving what was spent.
#[derive(Debug, Default)]
pub struct Budget(Mutex<Ledger>);

/// Changes as one, hence the lock; it is held for a few additions and never across a system call.
#[derive(Debug, Default)]
struct Ledger {
    window: Option<Window>,
    spent: u64,
    reserved: u64,
    /// The window before and what was used in it, for a clock that comes back to it.
    before: Option<(Window, u64)>,
    /// Counts the times the ledger began anew: what was reserved before counts no more.
    opened: u64,
}

/// What a request may cost, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// With less it cannot be done.
    pub least: u64,
    /// More it does not use.
    pub most: u64,
}

impl Estimate {
    /// So much and no less.
    pub fn exactly(tokens: u64) -> Self {
        Self { least: tokens, most: tokens }
    }
}

impl From<u64> for Estimate {
    fn from(tokens: u64) -> Self {
        Self::exactly(tokens)
    }
}

/// Tokens that were set aside.
#[derive(Debug, PartialEq, Eq)]
pub struct Hold {
    /// In this window.
    pub window: Window,
    /// So many.
    pub tokens: u64,
    opened: u64,
}

/// Why tokens could not be set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Short {
    /// So many are left.
    Now(Standing),
    /// It is more than the whole budget: no waiting helps.
    ForEver,
}

/// How a budget stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Tokens that requests have cost.
    pub spent: u64,
    /// Tokens that are set aside for requests that are open.
    pub reserved: u64,
    /// Tokens that can be set aside.
    pub remaining: u64,
    /// Until the window ends; `None`: it never does.
    pub resets_in: Option<Duration>,
}

impl Budget {
    /// Sets tokens aside: the most that is asked for, or what is left. Nothing is let through once the budget is used up,
    /// even if it might cost nothing: the least that is set aside is one token.
    ///
    /// # Errors
    /// When there are not as many as the least, now or ever.
    pub fn reserve(
        &self,
        allowance: Allowance,
        wanted: impl Into<Estimate>,
        now: u64,
    ) -> Result<Hold, Short> {
        let wanted = wanted.into();
        let mut ledger = self.0.lock();
        let (window, remaining) = ledger.fits(allowance, wanted.least, now)?;
        let tokens = wanted.most.max(wanted.least).clamp(1, remaining);
        ledger.reserved += tokens;
        Ok(Hold { window, tokens, opened: ledger.opened })
    }

    /// Whether so many could be set aside now.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve).
    pub fn check(&self, allowance: Allowance, least: u64, now: u64) -> Result<(), Short> {
        self.0.lock().fits(allowance, least, now).map(drop)
    }

    /// Replaces what was set aside by what it cost. What was set aside in a window that has ended was charged to that one.
    pub fn settle(&self, hold: Hold, cost: u64) {
        let mut ledger = self.0.lock();
        if ledger.opened == hold.opened {
            ledger.reserved = ledger.reserved.saturating_sub(hold.tokens);
            ledger.spent = ledger.spent.saturating_add(cost);
        }
    }

    /// Adds what was spent before a restart.
    pub fn restore(&self, window: Window, tokens: u64, now: u64) {
        if !window.has_ended(now) {
            let mut ledger = self.0.lock();
            ledger.window.get_or_insert(window);
            ledger.spent = ledger.spent.saturating_add(tokens);
        }
    }

    /// The window it is in, and what was spent in it.
    pub fn spent(&self) -> Option<(Window, u64)> {
        let ledger = self.0.lock();
        ledger.window.map(|window| (window, ledger.spent))
    }

    /// How it stands.
    pub fn standing(&self, allowance: Allowance, now: u64) -> Standing {
        let mut ledger = self.0.lock();
        let window = ledger.roll(allowance.period, now);
        ledger.standing(allowance.limit, window, now)
    }
}

impl Ledger {
    /// The window now and what is left in it, if that is as many as `least`.
    fn fits(&mut self, allowance: Allowance, least: u64, now: u64) -> Result<(Window, u64), Short> {
        let least = least.max(1);
        if allowance.limit < least {
            return Err(Short::ForEver);
        }
        let window = self.roll(allowance.period, now);
        let standing = self.standing(allowance.limit, window, now);
        if standing.remaining < least {
            return Err(Short::Now(standing));
        }
        Ok((window, standing.remaining))
    }

    fn standing(&self, limit: u64, window: Window, now: u64) -> Standing {
        Standing {
            spent: self.spent,
            reserved: self.reserved,
            remaining: limit.saturating_sub(self.spent).saturating_sub(self.reserved),
            resets_in: window.end().map(|end| Duration::from_nanos(end.saturating_sub(now))),
        }
    }

    /// Begins a new window when it is time. Returns the one that counts.
    fn roll(&mut self, period: Period, now: u64) -> Window {
        let next = period.at(now);
        let Some(window) = self.window.replace(next) else { return next };
        if window == next {
            return next;
        }
        if window.has_ended(now) {
            // What is still reserved is charged to the window it was reserved in.
            self.before = Some((window, self.spent.saturating_add(self.reserved)));
            (self.spent, self.reserved) = (0, 0);
            self.opened += 1;
            return next;
        }
        if window.follows(next) {
            // A clock that was corrected around a window's end: the new window has begun, and stays.
            self.window = Some(window);
            return window;
        }
        if let Some((before, used)) = self.before.take()
            && !before.has_ended(now)
        {
            self.spent = self.spent.saturating_add(used);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;
    const MINUTE: u64 = 60 * SECOND;

    fn a_minute(limit: u64) -> Allowance {
        Allowance { limit, period: Period::MINUTE }
    }

    fn spend(budget: &Budget, allowance: Allowance, tokens: u64, now: u64) -> bool {
        budget.reserve(allowance, tokens, now).map(|hold| budget.settle(hold, tokens)).is_ok()
    }

    #[test]
    fn what_is_set_aside_and_spent_never_passes_the_limit() {
        let (budget, allowance) = (Budget::default(), a_minute(100));
        let hold = budget.reserve(allowance, 60, 0).unwrap();
        let standing =
            Standing { spent: 0, reserved: 60, remaining: 40, resets_in: Some(Duration::from_secs(59)) };
        assert_eq!(budget.reserve(allowance, 60, SECOND), Err(Short::Now(standing)));
        assert_eq!(budget.reserve(allowance, 101, SECOND), Err(Short::ForEver));
        budget.settle(hold, 10);
        assert_eq!(budget.standing(allowance, SECOND).remaining, 90);
        let hold = budget.reserve(allowance, 90, 2 * SECOND).unwrap();
        budget.settle(hold, 200);
        assert_eq!(budget.standing(allowance, 3 * SECOND).remaining, 0, "over-use is not forgotten");
        assert!(
            budget.reserve(allowance, 0, 3 * SECOND).is_err(),
            "not even for a request that may cost nothing"
        );
        assert_eq!(budget.standing(allowance, MINUTE).remaining, 100, "until the window ends");
    }

    #[test]
    fn who_takes_what_there_is_gets_what_is_left_and_not_less_than_the_least() {
        let (budget, allowance) = (Budget::default(), a_minute(100));
        let wanted = |least, most| Estimate { least, most };
        let first = budget.reserve(allowance, wanted(10, 60), 0).unwrap();
        let second = budget.reserve(allowance, wanted(10, 60), 0).unwrap();
        assert_eq!((first.tokens, second.tokens), (60, 40));
        let Err(Short::Now(standing)) = budget.reserve(allowance, wanted(1, 60), 0) else { panic!() };
        assert_eq!((standing.remaining, standing.reserved), (0, 100));
        budget.settle(second, 31);
        assert!(budget.check(allowance, 9, 0).is_ok() && budget.check(allowance, 10, 0).is_err());
        assert!(budget.reserve(allowance, wanted(10, u64::MAX), 0).is_err());
        assert_eq!(budget.reserve(allowance, wanted(9, u64::MAX), 0).unwrap().tokens, 9);
        assert_eq!(budget.reserve(allowance, wanted(101, u64::MAX), 0), Err(Short::ForEver));
    }

    #[test]
    fn a_late_settlement_does_not_touch_the_next_window() {
        let (budget, allowance) = (Budget::default(), a_minute(10));
        let hold = budget.reserve(allowance, 10, 0).unwrap();
        assert_eq!(budget.standing(allowance, MINUTE).remaining, 10);
        budget.settle(hold, 10);
        assert_eq!(budget.standing(allowance, MINUTE).remaining, 10);
    }

    #[test]
    fn a_clock_that_is_corrected_around_a_windows_end_gives_nothing_away() {
        let (budget, allowance) = (Budget::default(), a_minute(100));
        assert!(spend(&budget, allowance, 80, 59 * SECOND));
        assert!(spend(&budget, allowance, 50, 60 * SECOND));
        let standing = budget.standing(allowance, 59 * SECOND);
        assert_eq!((standing.remaining, standing.resets_in), (50, Some(Duration::from_secs(61))));
        assert_eq!(budget.standing(allowance, 61 * SECOND).remaining, 50);
    }

    #[test]
    fn a_year_forward_and_back_gives_nothing_away_and_locks_nobody_out() {
        let year = 365 * 86_400 * SECOND;
        let (budget, allowance) = (Budget::default(), a_minute(100));
        assert!(spend(&budget, allowance, 30, 0));
        assert!(spend(&budget, allowance, 50, year));
        assert_eq!(
            budget.standing(allowance, SECOND).remaining,
            20,
            "both were spent in the minute that it really is"
        );
        assert_eq!(budget.standing(allowance, MINUTE).remaining, 100, "and the next is whole");
    }

    #[test]
    fn another_period_forgives_nothing() {
        let budget = Budget::default();
        let now = 40 * 86_400 * SECOND;
        assert!(spend(&budget, Allowance { limit: 100, period: Period::DAY }, 60, now));
        let month = Allowance { limit: 100, period: Period::Month };
        assert_eq!(budget.standing(month, now).remaining, 40);
        assert_eq!(
            budget.standing(Allowance { limit: 70, ..month }, now).remaining,
            10,
            "nor does another limit"
        );
    }

    #[test]
    fn what_was_spent_before_a_restart_counts_until_its_window_ends() {
        let (budget, allowance) = (Budget::default(), a_minute(100));
        budget.restore(Period::MINUTE.at(0), 70, MINUTE);
        budget.restore(Period::MINUTE.at(MINUTE), 20, MINUTE);
        assert_eq!(budget.spent(), Some((Period::MINUTE.at(MINUTE), 20)));
        assert_eq!(budget.standing(allowance, MINUTE).remaining, 80);
    }

    #[test]
    fn sixty_four_callers_at_once_get_no_more_than_there_is() {
        let (budget, allowance) = (Budget::default(), Allowance { limit: 100, period: Period::Total });
        let got: usize = std::thread::scope(|scope| {
            let count = || (0..10).filter(|_| budget.reserve(allowance, 3, 5).is_ok()).count();
            let threads: Vec<_> = (0..64).map(|_| scope.spawn(count)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(got, 33);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Wait(u64),
        Reserve(u64),
        Settle(usize, u64),
        /// The clock goes wrong by so many seconds, and is set right at the next.
        Wrong(i64),
    }

    fn steps(clock: bool) -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            2 => (0u64..40).prop_map(Step::Wait),
            6 => (0u64..60).prop_map(Step::Reserve),
            4 => (any::<usize>(), 0u64..1000).prop_map(|(which, part)| Step::Settle(which, part)),
            u32::from(clock) => (-10_000i64..10_000).prop_map(Step::Wrong),
        ];
        proptest::collection::vec(step, 1..200)
    }

    proptest! {
        /// Against a simulator that remembers every reservation with its window.
        #[test]
        fn any_order_of_calls_agrees_with_the_books(steps in steps(false)) {
            let (budget, allowance) = (Budget::default(), a_minute(100));
            let mut now = 1_000_000 * SECOND;
            // Window, tokens, whether open.
            let mut all: Vec<(Window, u64, Option<Hold>)> = Vec::new();
            for step in steps {
                let window = Period::MINUTE.at(now);
                let used: u64 = all.iter().filter(|(in_window, ..)| *in_window == window).map(|(_, tokens, _)| tokens).sum();
                match step {
                    Step::Wait(seconds) => now += seconds * SECOND,
                    Step::Wrong(_) => {}
                    Step::Reserve(tokens) => {
                        let got = budget.reserve(allowance, tokens, now);
                        prop_assert_eq!(got.is_ok(), used + tokens.max(1) <= 100);
                        if let Ok(hold) = got {
                            all.push((window, hold.tokens, Some(hold)));
                        }
                    }
                    Step::Settle(which, part) => {
                        let open: Vec<_> = all.iter_mut().filter(|(.., hold)| hold.is_some()).collect();
                        if open.is_empty() { continue }
                        let index = which % open.len();
                        let (_, tokens, hold) = open.into_iter().nth(index).unwrap();
                        let hold = hold.take().unwrap();
                        *tokens = hold.tokens * part / 1000;
                        budget.settle(hold, *tokens);
                    }
                }
                let window = Period::MINUTE.at(now);
                let used: u64 = all.iter().filter(|(in_window, ..)| *in_window == window).map(|(_, tokens, _)| tokens).sum();
                prop_assert_eq!(budget.standing(allowance, now).remaining, 100 - used);
            }
        }

        /// However the clock jumps: between two visits to the right time, no more than one budget is spent in a window,
        /// and once the window after next has begun, the budget is whole again.
        #[test]
        fn a_wrong_clock_locks_nobody_out(steps in steps(true)) {
            let (budget, allowance) = (Budget::default(), a_minute(100));
            let (mut right, mut wrong) = (1_000_000 * SECOND, 0i64);
            for step in steps {
                let now = right.saturating_add_signed(wrong * SECOND as i64);
                match step {
                    Step::Wait(seconds) => right += seconds * SECOND,
                    Step::Wrong(by) => wrong = if wrong == 0 { by } else { 0 },
                    Step::Reserve(tokens) => drop(spend(&budget, allowance, tokens.max(1), now)),
                    Step::Settle(..) => {}
                }
            }
            budget.standing(allowance, right);
            prop_assert_eq!(budget.standing(allowance, right + 2 * MINUTE).remaining, 100);
        }
    }
}
