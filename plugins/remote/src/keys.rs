//! Which of several keys a request is sent with: each in turn, those that the server limits or refuses resting.
//!
//! Pure: it is told the time.

use std::time::{Duration, Instant};

/// How long a key that was refused is left alone: it may be mended at the server without a word to us.
pub const REFUSED: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Keys {
    /// Until when each rests.
    rest: Vec<Option<Instant>>,
    next: usize,
}

impl Keys {
    pub fn new(count: usize) -> Self {
        Self { rest: vec![None; count], next: 0 }
    }

    /// The next one that does not rest.
    ///
    /// # Errors
    /// How long until the first may be used again.
    pub fn pick(&mut self, now: Instant) -> Result<usize, Duration> {
        let count = self.rest.len();
        let usable = |key: &usize| self.rest[*key].is_none_or(|until| until <= now);
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_take_turns_and_rest() {
        let mut keys = Keys::new(3);
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        assert_eq!((0..4).map(|_| keys.pick(now).unwrap()).collect::<Vec<_>>(), [0, 1, 2, 0]);
        keys.rest(1, at(5));
        assert_eq!((0..3).map(|_| keys.pick(now).unwrap()).collect::<Vec<_>>(), [2, 0, 2]);
        keys.rest(0, at(3));
        keys.rest(2, at(9));
        assert_eq!(keys.pick(now), Err(Duration::from_secs(3)));
        assert_eq!(keys.pick(at(3)), Ok(0));
        assert_eq!(keys.pick(at(5)), Ok(1));
    }
}
