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
    /// How long a request has to wait, if it may not go now.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        match self.state {
            State::Closed => None,
            State::Open { until, .. } => {
                Some(until.saturating_duration_since(now)).filter(|wait| !wait.is_zero())
            }
            State::Trying { since, .. } if LONGEST <= now.saturating_duration_since(since) => None,
            State::Trying { .. } => Some(FIRST),
        }
    }

    /// Whether a request may go now.
    ///
    /// # Errors
    /// How long to wait.
    pub fn admit(&mut self, now: Instant) -> Result<(), Duration> {
        if let Some(wait) = self.wait(now) {
            return Err(wait);
        }
        if let State::Open { wait, .. } | State::Trying { wait, .. } = self.state {
            self.state = State::Trying { since: now, wait };
        }
        Ok(())
    }

    /// The server began to answer: requests may go, and what failed before is forgotten when the answer is whole.
    pub fn begun(&mut self) {
        self.state = State::Closed;
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
    fn who_begins_and_breaks_off_each_time_does_not_answer() {
        let mut breaker = Breaker::default();
        let mut now = Instant::now();
        for _ in 0..THRESHOLD {
            assert_eq!(breaker.admit(now), Ok(()));
            breaker.begun();
            breaker.failed(now);
        }
        for _ in 0..3 {
            assert_eq!(breaker.admit(now), Err(FIRST));
            now += FIRST;
            assert_eq!(breaker.admit(now), Ok(()));
            breaker.begun();
            assert_eq!(breaker.admit(now), Ok(()), "while it answers, others may go");
            breaker.failed(now);
        }
        now += FIRST;
        breaker.begun();
        breaker.answered();
        breaker.failed(now);
        assert_eq!(breaker.admit(now), Ok(()));
    }

    #[test]
    fn requests_that_left_before_it_opened_do_not_prolong_it() {
        let mut breaker = Breaker::default();
        let now = Instant::now();
        (0..50).for_each(|_| breaker.failed(now));
        assert_eq!(breaker.admit(now), Err(FIRST));
    }
}
