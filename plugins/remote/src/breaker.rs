//! The circuit breaker of an upstream: a server that is down is not asked by every request anew.
//!
//! Pure: it is told the time. Closed, it lets everything through; after [`THRESHOLD`] failures in a row it opens for a
//! while that doubles each time; then one request may try, and what becomes of it decides.

use std::time::{Duration, Instant};

/// Failures in a row until it opens.
const THRESHOLD: u32 = 5;
/// How long it stays open at first.
const FIRST: Duration = Duration::from_secs(1);
/// And at most.
const LONGEST: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub struct Breaker {
    failures: u32,
    state: State,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Closed,
    Open {
        until: Instant,
        wait: Duration,
    },
    /// One request is on its way to find out; `since` it left, should nobody ever say what became of it.
    Trying {
        since: Instant,
        wait: Duration,
    },
}

impl Breaker {
    /// Whether a request may go now.
    ///
    /// # Errors
    /// How long to wait.
    pub fn admit(&mut self, now: Instant) -> Result<(), Duration> {
        match self.state {
            State::Closed => Ok(()),
            State::Open { until, .. } if now < until => Err(until - now),
            State::Open { wait, .. } => {
                self.state = State::Trying { since: now, wait };
                Ok(())
            }
            State::Trying { since, wait } if LONGEST <= now.saturating_duration_since(since) => {
                self.state = State::Trying { since: now, wait };
                Ok(())
            }
            State::Trying { .. } => Err(FIRST),
        }
    }

    /// The server answered; that it refused a request is an answer too.
    pub fn answered(&mut self) {
        *self = Self::default();
    }

    /// It did not answer, or answered that it is broken.
    pub fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        let wait = match self.state {
            State::Trying { wait, .. } => (wait * 2).min(LONGEST),
            State::Closed if THRESHOLD <= self.failures => FIRST,
            State::Closed | State::Open { .. } => return,
        };
        self.state = State::Open { until: now + wait, wait };
    }

    /// Whether requests are kept from the server.
    pub fn is_open(&self) -> bool {
        !matches!(self.state, State::Closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_failures_in_a_row_tries_once_and_waits_longer() {
        let mut breaker = Breaker::default();
        let start = Instant::now();
        for _ in 1..THRESHOLD {
            breaker.failed(start);
            assert_eq!(breaker.admit(start), Ok(()));
        }
        breaker.answered();
        for _ in 0..THRESHOLD {
            assert_eq!(breaker.admit(start), Ok(()), "an answer starts the count anew");
            breaker.failed(start);
        }
        assert_eq!(breaker.admit(start), Err(FIRST));
        let mut now = start;
        let mut wait = FIRST;
        for _ in 0..10 {
            now += wait;
            assert_eq!(breaker.admit(now), Ok(()), "one may try");
            assert!(breaker.admit(now).is_err(), "and no other");
            breaker.failed(now);
            wait = (wait * 2).min(LONGEST);
            assert_eq!(breaker.admit(now), Err(wait));
        }
        now += wait;
        assert_eq!(breaker.admit(now), Ok(()));
        assert!(breaker.admit(now + LONGEST).is_ok(), "a trial that nobody tells of does not block for ever");
        breaker.answered();
        assert!(!breaker.is_open());
    }

    #[test]
    fn requests_that_left_before_it_opened_do_not_prolong_it() {
        let mut breaker = Breaker::default();
        let now = Instant::now();
        (0..50).for_each(|_| breaker.failed(now));
        assert_eq!(breaker.admit(now), Err(FIRST));
    }
}
