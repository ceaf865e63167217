//! Tokens in a window: a ledger. Pure: `now` is seconds since 1970.
//!
//! What a request may cost is reserved before it runs and settled after. Spent and reserved together never pass the
//! limit, however many ask at once; a request that in the end cost more than was reserved leaves the ledger above the
//! limit, and the next one pays for it by waiting.

use parking_lot::Mutex;
use std::time::Duration;

/// The ledger of one key.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    /// Seconds; 0 is for ever.
    window: i64,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct State {
    window_start: i64,
    spent: u64,
    reserved: u64,
}

/// Tokens that were set aside, in which window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Start of the window.
    pub window_start: i64,
    /// How many.
    pub tokens: u64,
}

/// Why tokens could not be set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Short {
    /// More than the whole budget: no waiting helps.
    Never,
    /// So many are left, and the window ends in so many seconds (`None`: never).
    Now { remaining: u64, resets_in: Option<i64> },
}

/// How a budget stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Tokens that can be set aside.
    pub remaining: u64,
    /// Seconds until the window ends; `None`: never.
    pub resets_in: Option<i64>,
}

impl Budget {
    /// A budget of `limit` tokens; a window of zero is for ever.
    pub fn new(limit: u64, window: Duration) -> Self {
        let window = i64::try_from(window.as_secs()).unwrap_or(i64::MAX);
        Self { limit, window, state: Mutex::default() }
    }

    /// The limit.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    fn start(&self, now: i64) -> i64 {
        if self.window == 0 { 0 } else { now.div_euclid(self.window) * self.window }
    }

    /// Begins a new window when it is time. A clock that went back stays in the window it was in: no free tokens.
    fn roll(&self, state: &mut State, now: i64) {
        let start = self.start(now);
        if state.window_start < start {
            *state = State { window_start: start, ..State::default() };
        }
    }

    /// Sets `tokens` aside.
    ///
    /// # Errors
    /// When there are not that many.
    pub fn reserve(&self, tokens: u64, now: i64) -> Result<Held, Short> {
        let mut state = self.state.lock();
        self.roll(&mut state, now);
        if self.limit < tokens {
            return Err(Short::Never);
        }
        let remaining = self.limit.saturating_sub(state.spent).saturating_sub(state.reserved);
        if remaining < tokens {
            return Err(Short::Now { remaining, resets_in: self.resets_in(&state, now) });
        }
        state.reserved += tokens;
        Ok(Held { window_start: state.window_start, tokens })
    }

    /// Replaces what was set aside by what it cost.
    pub fn settle(&self, held: Held, cost: u64) {
        let mut state = self.state.lock();
        // In a window that has ended nobody counts any more.
        if state.window_start == held.window_start {
            state.reserved = state.reserved.saturating_sub(held.tokens);
            state.spent = state.spent.saturating_add(cost);
        }
    }

    /// Adds what was spent before a restart.
    pub fn restore(&self, window_start: i64, tokens: u64, now: i64) {
        let mut state = self.state.lock();
        self.roll(&mut state, now.max(window_start));
        if state.window_start == self.start(window_start) {
            state.spent = state.spent.saturating_add(tokens);
        }
    }

    /// Start of the window, and what was spent in it.
    pub fn spent(&self) -> (i64, u64) {
        let state = self.state.lock();
        (state.window_start, state.spent)
    }

    fn resets_in(&self, state: &State, now: i64) -> Option<i64> {
        (self.window != 0).then(|| (state.window_start + self.window - now).max(1))
    }

    /// How it stands.
    pub fn standing(&self, now: i64) -> Standing {
        let mut state = self.state.lock();
        self.roll(&mut state, now);
        Standing {
            remaining: self.limit.saturating_sub(state.spent).saturating_sub(state.reserved),
            resets_in: self.resets_in(&state, now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn what_is_set_aside_and_spent_never_passes_the_limit() {
        let budget = Budget::new(100, MINUTE);
        let held = budget.reserve(60, 0).unwrap();
        assert_eq!(budget.reserve(60, 1), Err(Short::Now { remaining: 40, resets_in: Some(59) }));
        assert_eq!(budget.reserve(101, 1), Err(Short::Never));
        budget.settle(held, 10);
        assert_eq!(budget.standing(1).remaining, 90);
        let held = budget.reserve(90, 2).unwrap();
        budget.settle(held, 200);
        assert_eq!(budget.standing(3).remaining, 0, "over-use is not forgotten");
        assert_eq!(budget.standing(60).remaining, 100, "until the window ends");
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing() {
        let budget = Budget::new(10, MINUTE);
        let held = budget.reserve(10, 120).unwrap();
        budget.settle(held, 10);
        assert_eq!(budget.standing(30).remaining, 0);
        assert_eq!(budget.standing(180).remaining, 10);
    }

    #[test]
    fn a_late_settlement_does_not_touch_the_next_window() {
        let budget = Budget::new(10, MINUTE);
        let held = budget.reserve(10, 0).unwrap();
        assert_eq!(budget.standing(60).remaining, 10);
        budget.settle(held, 10);
        assert_eq!(budget.standing(60).remaining, 10);
    }

    #[test]
    fn sixty_four_callers_at_once_get_no_more_than_there_is() {
        let budget = Budget::new(100, Duration::ZERO);
        let got = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..64)
                .map(|_| scope.spawn(|| (0..10).filter(|_| budget.reserve(3, 5).is_ok()).count()))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
        });
        assert_eq!(got, 33);
    }

    proptest! {
        #[test]
        fn any_order_of_events_keeps_the_books(events in proptest::collection::vec((0u64..40, 0u64..60, any::<bool>()), 1..100)) {
            let budget = Budget::new(100, Duration::ZERO);
            let (mut open, mut spent): (Vec<Held>, u64) = (Vec::new(), 0);
            for (tokens, cost, settles) in events {
                if settles && !open.is_empty() {
                    let held = open.remove(0);
                    budget.settle(held, cost);
                    spent += cost;
                } else if let Ok(held) = budget.reserve(tokens, 0) {
                    open.push(held);
                    let reserved: u64 = open.iter().map(|held| held.tokens).sum();
                    prop_assert!(tokens == 0 || spent + reserved <= 100);
                }
                prop_assert_eq!(budget.spent().1, spent);
            }
        }
    }
}
