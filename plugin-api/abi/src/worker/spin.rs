//! When a thread that waits for the other process looks again and again before it sleeps, and for how long.
//!
//! To sleep and to be woken takes longer than a small request does, above all where the thread's core has gone to sleep
//! meanwhile. So a thread looks for [`LONGEST`] first, if that has been worth it lately: where what it waits for takes
//! longer, it soon looks at one wait of many only, and sleeps at once at all others. Nobody looks who has nothing to wait
//! for but a request that may come some day: a wait that was in vain is followed by sleep.
//!
//! It does not offer its core to others meanwhile: who yields on a busy machine is last in line, and comes back after
//! milliseconds. Whether the machine has a core to spare is for the host to know, before; if another thread takes this one
//! all the same, and nothing has come meanwhile, it sleeps.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a thread looks at most.
pub const LONGEST: Duration = Duration::from_micros(50);
/// Between two looks so much time does not pass, unless the core was another's.
const TAKEN: Duration = Duration::from_micros(10);
/// One wait of so many, as a power of two, is looked at where that was in vain again and again.
const RAREST: u32 = 6;

/// How the waits of one thread, or of one connection, have been.
#[derive(Debug, Default)]
pub struct Spin {
    /// In vain, less those that were not.
    vain: AtomicU32,
    /// Waits that are not looked at.
    skip: AtomicU32,
}

impl Spin {
    /// Whether this wait is looked at.
    fn begins(&self) -> bool {
        // Two threads that count at once miscount by one, which is no matter.
        let skip = self.skip.load(Ordering::Relaxed);
        self.skip.store(skip.saturating_sub(1), Ordering::Relaxed);
        skip == 0
    }

    /// It was, and something came meanwhile or not.
    fn ended(&self, came: bool) {
        let vain = self.vain.load(Ordering::Relaxed);
        let vain = if came { vain.saturating_sub(1) } else { RAREST.min(vain + 1) };
        self.vain.store(vain, Ordering::Relaxed);
        if !came {
            self.skip.store((1 << vain) - 1, Ordering::Relaxed);
        }
    }
}

/// The threads of a process that look at the same time: no more than leave cores for those they wait for.
#[derive(Debug)]
pub struct Lookers {
    most: u32,
    now: AtomicU32,
}

impl Lookers {
    /// So many at most; 0: nobody looks.
    pub const fn new(most: u32) -> Self {
        Self { most, now: AtomicU32::new(0) }
    }

    /// Looks until something has come, for as long as is worth it. Whether it has; if not, it is time to sleep.
    pub fn wait(&self, spin: &Spin, mut come: impl FnMut() -> bool) -> bool {
        if self.most == 0 || !spin.begins() {
            return false;
        }
        let found =
            if self.now.fetch_add(1, Ordering::Relaxed) < self.most { look(spin, &mut come) } else { false };
        self.now.fetch_sub(1, Ordering::Relaxed);
        found
    }
}

fn look(spin: &Spin, come: &mut impl FnMut() -> bool) -> bool {
    if come() {
        // That was no wait, and says nothing of the next.
        return true;
    }
    let start = Instant::now();
    let mut before = start;
    loop {
        std::hint::spin_loop();
        let came = come();
        let now = Instant::now();
        let wanted = TAKEN < now - before;
        if came || wanted || LONGEST < now - start {
            spin.ended(came);
            return came;
        }
        before = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of so many waits, in which something comes in time or not, how many are looked at.
    fn looked(spin: &Spin, waits: u32, comes: bool) -> u32 {
        let one = |_| {
            let looks = spin.begins();
            if looks {
                spin.ended(comes);
            }
            u32::from(looks)
        };
        (0..waits).map(one).sum()
    }

    #[test]
    fn what_comes_in_time_is_waited_for_awake() {
        assert_eq!(looked(&Spin::default(), 1000, true), 1000);
    }

    #[test]
    fn what_does_not_costs_one_wait_of_many() {
        let spin = Spin::default();
        // The first, then one of 2, 4, 8, 16, 32, and from then on of 64.
        assert_eq!(looked(&spin, 64 + 640, false), 6 + 10);
        assert!(looked(&spin, 64, true) < 64, "it does not know yet");
        assert_eq!(looked(&spin, 100, true), 100, "now it does");
        assert_eq!(looked(&spin, 1, false), 1);
    }

    #[test]
    fn it_looks_for_a_while_and_no_more_do_than_may() {
        let lookers = Lookers::new(1);
        let (spin, mut looks) = (Spin::default(), 0);
        let found = lookers.wait(&spin, || {
            looks += 1;
            looks == 3
        });
        // Unless another took the core: then it is told to sleep.
        assert!(found || looks == 2, "{looks}");
        let start = Instant::now();
        assert!(!lookers.wait(&Spin::default(), || false));
        assert!(start.elapsed() < Duration::from_secs(10));
        let twice = lookers.wait(&Spin::default(), || {
            assert!(!lookers.wait(&Spin::default(), || true), "there is one");
            true
        });
        assert!(twice);
        assert!(!Lookers::new(0).wait(&Spin::default(), || true), "nobody may");
    }
}
