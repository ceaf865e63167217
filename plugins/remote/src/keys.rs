//! Which of several keys a request is sent with: each in turn, those that the server limits or refuses resting.
//!
//! Pure: it is told the time.

use std::time::{Duration, Instant};

/// How long a key that was refused is left alone: it may be mended at the server without a word to us.
pub const REFUSED: Duration = Duration::from_secs(60);
/// Refusals in a row that may as well be the requests' fault, until a key rests. It is shared by all callers: one who is
/// refused for what it asked must not take it from the others.
const SEVERAL: u32 = 5;
/// How long it rests then; twice as long after each more, up to [`REFUSED`].
const FIRST: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Keys {
    /// Until when each rests.
    rest: Vec<Option<Instant>>,
    /// Refusals of each in a row of which nobody knows whose fault they are.
    suspected: Vec<u32>,
    next: usize,
}

impl Keys {
    pub fn new(count: usize) -> Self {
        Self { rest: vec![None; count], suspected: vec![0; count], next: 0 }
    }

    /// The next one that does not rest and is none of those `tried`.
    ///
    /// # Errors
    /// How long until the first may be used again.
    pub fn pick(&mut self, now: Instant, tried: &[usize]) -> Result<usize, Duration> {
        let count = self.rest.len();
        let usable = |key: &usize| !tried.contains(key) && self.rest[*key].is_none_or(|until| until <= now);
        match (0..count).map(|step| (self.next + step) % count).find(usable) {
            Some(key) => {
                self.next = (key + 1) % count;
                Ok(key)
            }
            None => {
                let first = self.rest.iter().flatten().min().copied();
                Err(first.map_or(Duration::ZERO, |until| until.saturating_duration_since(now)))
            }
        }
    }

    /// Leaves a key alone for a while.
    pub fn rest(&mut self, key: usize, until: Instant) {
        self.rest[key] = Some(until);
    }

    /// The server took it, whatever became of the request.
    pub fn taken(&mut self, key: usize) {
        self.suspected[key] = 0;
    }

    /// It was refused or limited, or the request was: several times in a row say that it was the key.
    pub fn suspect(&mut self, key: usize, now: Instant) {
        self.suspected[key] = self.suspected[key].saturating_add(1);
        if let Some(more) = self.suspected[key].checked_sub(SEVERAL) {
            let wait = FIRST * 2u32.saturating_pow(more.min(6));
            self.rest(key, now + wait.min(REFUSED));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_take_turns_and_rest() {
        let mut keys = Keys::new(3);
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        assert_eq!((0..4).map(|_| keys.pick(now, &[]).unwrap()).collect::<Vec<_>>(), [0, 1, 2, 0]);
        keys.rest(1, at(5));
        assert_eq!((0..3).map(|_| keys.pick(now, &[]).unwrap()).collect::<Vec<_>>(), [2, 0, 2]);
        keys.rest(0, at(3));
        keys.rest(2, at(9));
        assert_eq!(keys.pick(now, &[]), Err(Duration::from_secs(3)));
        assert_eq!(keys.pick(at(3), &[]), Ok(0));
        assert_eq!(keys.pick(at(5), &[]), Ok(1));
    }

    #[test]
    fn a_request_tries_each_once() {
        let mut keys = Keys::new(2);
        let now = Instant::now();
        assert_eq!(keys.pick(now, &[0]), Ok(1));
        assert_eq!(keys.pick(now, &[1]), Ok(0));
        assert_eq!(keys.pick(now, &[0, 1]), Err(Duration::ZERO));
    }

    #[test]
    fn one_rests_after_several_doubts_in_a_row_and_longer_each_time() {
        let mut keys = Keys::new(1);
        let mut now = Instant::now();
        for _ in 0..9 {
            keys.suspect(0, now);
            keys.suspect(0, now);
            assert_eq!(keys.pick(now, &[]), Ok(0));
            keys.taken(0);
        }
        (1..SEVERAL).for_each(|_| keys.suspect(0, now));
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
            assert_eq!(keys.pick(now, &[]), Ok(0));
            keys.suspect(0, now);
            let wait = Duration::from_secs(seconds);
            assert_eq!(keys.pick(now, &[]), Err(wait));
            now += wait;
        }
        keys.taken(0);
        keys.suspect(0, now);
        assert_eq!(keys.pick(now, &[]), Ok(0), "an answer starts the count anew");
    }
}
