//! Whose turn it is to read the main connection of a worker.
//!
//! A thread of its own listens to it. But who hands over a request and waits until it was taken is woken by that anyway:
//! for as long it reads in the listener's place, so that an answer that comes before then wakes one thread and not two, the
//! second of which would then have to wake the first.

use parking_lot::{Condvar, Mutex};
use std::time::Duration;

/// Who has it.
#[derive(Default)]
pub struct Turn {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Somebody reads in the listener's place.
    taken: bool,
    /// The listener waits.
    resting: bool,
}

/// Somebody has it, until this is dropped.
pub struct Taken<'a>(&'a Turn);

impl Turn {
    /// Takes it, unless somebody has it.
    pub fn take(&self) -> Option<Taken<'_>> {
        let mut state = self.state.lock();
        if std::mem::replace(&mut state.taken, true) { None } else { Some(Taken(self)) }
    }

    /// For the listener: rests if somebody reads in its place, for so long at most. Whether somebody did.
    ///
    /// It is not woken when that one is done: mostly another takes the turn soon, and to be woken is what it is spared.
    pub fn rest(&self, most: Duration) -> bool {
        let mut state = self.state.lock();
        if !state.taken {
            return false;
        }
        state.resting = true;
        self.changed.wait_for(&mut state, most);
        state.resting = false;
        true
    }

    /// Has the listener listen, if nobody does in its place: there is something to wait for.
    pub fn wake(&self) {
        let state = self.state.lock();
        if state.resting && !state.taken {
            self.changed.notify_one();
        }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.0.state.lock().taken = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    const LONG: Duration = Duration::from_secs(120);

    #[test]
    fn one_has_it_and_the_listener_rests_until_it_is_needed() {
        let turn = Turn::default();
        assert!(!turn.rest(LONG), "nobody reads in its place");
        let taken = turn.take().unwrap();
        assert!(turn.take().is_none());
        std::thread::scope(|scope| {
            let listener = scope.spawn(|| {
                let start = Instant::now();
                assert!(turn.rest(LONG));
                start.elapsed()
            });
            while !turn.state.lock().resting {
                std::thread::yield_now();
            }
            turn.wake();
            assert!(turn.state.lock().resting || listener.is_finished(), "somebody reads");
            drop(taken);
            turn.wake();
            assert!(listener.join().unwrap() < LONG);
        });
        assert!(turn.take().is_some(), "who is done leaves it to the next");
        assert!(!turn.rest(LONG));
    }
}
