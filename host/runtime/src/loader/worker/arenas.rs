//! Memory that a worker is lent for large calls, kept for the next: new pages cost more than what is written to them.

use super::Confinement;
use backplane_abi::worker::{Arena, Out};
use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// Bytes that are kept for one worker.
const MOST: usize = 128 << 20;
/// Part of the memory that a worker is granted: what it is lent counts as its own.
const PART: u64 = 8;
/// What nobody needed for so long is given back.
const UNUSED: Duration = Duration::from_secs(5);

/// What one worker is lent between two calls.
pub struct Arenas {
    most: usize,
    kept: Mutex<Vec<(Instant, Arena)>>,
}

impl Arenas {
    pub fn new(confinement: &Confinement) -> Self {
        let most = match confinement {
            Confinement::Sandbox(granted) if granted.memory != 0 => {
                MOST.min(usize::try_from(granted.memory / PART).unwrap_or(MOST))
            }
            _ => MOST,
        };
        Self { most, kept: Mutex::default() }
    }

    /// Memory with this frame: some that is kept and has room, or new. `None` when it is better sent by itself.
    pub fn lend(&self, out: &Out<'_>) -> Option<Arena> {
        let kept = {
            let mut kept = self.kept.lock();
            let fit = kept.iter().enumerate().filter(|(_, (_, arena))| out.len() <= arena.room());
            let best = fit.min_by_key(|(_, (_, arena))| arena.room()).map(|(at, _)| at);
            best.map(|at| kept.swap_remove(at).1)
        };
        match kept {
            Some(mut arena) => arena.write(out).then_some(arena),
            // With the room that it has to spare.
            None if self.most / 4 * 3 < out.len() => None,
            None => Arena::new(out).ok(),
        }
    }

    /// Keeps what the worker reads no more; those that are not kept any more for it.
    pub fn back(&self, arena: Arena, now: Instant) -> Vec<u64> {
        let mut kept = self.kept.lock();
        kept.push((now, arena));
        kept.sort_by_key(|(used, _)| std::cmp::Reverse(*used));
        let mut sum = 0usize;
        let fits = kept.iter().take_while(|(_, arena)| {
            sum = sum.saturating_add(arena.room());
            sum <= self.most
        });
        let fits = fits.count();
        kept.drain(fits..).map(|(_, arena)| arena.id()).collect()
    }

    /// Gives back what nobody needed for a while.
    pub fn unused(&self, now: Instant) -> Vec<u64> {
        let mut gone = Vec::new();
        self.kept.lock().retain(|(used, arena)| {
            let keeps = now.saturating_duration_since(*used) < UNUSED;
            if !keeps {
                gone.push(arena.id());
            }
            keeps
        });
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::super::Granted;
    use super::*;
    use backplane_abi::worker::{Call, frame};

    fn lend(arenas: &Arenas, len: usize) -> Option<Arena> {
        arenas.lend(&frame(&Call::Init { config: &vec![7; len] }))
    }

    #[test]
    fn the_same_memory_serves_the_next_call_that_fits() {
        let (arenas, now) = (Arenas::new(&Confinement::Nothing), Instant::now());
        let small = lend(&arenas, 200_000).unwrap();
        let large = lend(&arenas, 2_000_000).unwrap();
        let (first, second) = (small.id(), large.id());
        assert_ne!(first, second, "one is in use");
        assert!(arenas.back(large, now).is_empty() && arenas.back(small, now).is_empty());
        let again = lend(&arenas, 199_999).unwrap();
        assert_eq!(again.id(), first, "the smallest that fits");
        assert_eq!(lend(&arenas, 1_999_999).unwrap().id(), second);
        assert!(lend(&arenas, 100_000).is_some_and(|new| new.id() != first && new.id() != second));
    }

    #[test]
    fn no_more_is_kept_than_is_bounded_and_for_no_longer_than_it_is_needed() {
        let granted = Granted { memory: 8 << 20, ..Granted::default() };
        let (arenas, now) = (Arenas::new(&Confinement::Sandbox(granted)), Instant::now());
        assert!(lend(&arenas, 2 << 20).is_none(), "an eighth of what it is granted");
        let all: Vec<_> = (0..3).map(|_| lend(&arenas, 400_000).unwrap()).collect();
        let ids: Vec<_> = all.iter().map(Arena::id).collect();
        let gone: Vec<_> = all
            .into_iter()
            .zip(0..)
            .flat_map(|(arena, at)| arenas.back(arena, now + UNUSED * at / 10))
            .collect();
        assert_eq!(gone, ids[..1], "the one that was used first");
        assert!(arenas.unused(now + UNUSED).is_empty());
        assert_eq!(arenas.unused(now + UNUSED + UNUSED / 10), ids[1..2]);
        assert_eq!(arenas.unused(now + UNUSED * 2), ids[2..]);
    }
}
