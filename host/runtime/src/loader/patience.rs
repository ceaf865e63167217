//! Questions to a plugin that must be answered at once, asked so that one that is not costs nobody more than a moment.

use parking_lot::{Condvar, Mutex};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Threads that may be inside a plugin's answers at once.
const MOST: usize = 32;

/// Asks questions of one kind, each on a thread of its own. While one is overdue no other is asked, so a plugin that
/// hangs keeps [`MOST`] threads at the most, and holds up only who asked first.
#[derive(Debug)]
pub struct Patience {
    /// Name of its threads.
    thread: String,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    /// Threads that are at it.
    running: AtomicUsize,
    /// Those among them that nobody waits for any more.
    overdue: AtomicUsize,
    /// Questions that got no answer in time.
    late: AtomicU64,
}

/// Nothing was answered in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Late {
    /// It was asked, and did not answer within this.
    After(Duration),
    /// It was not asked: it is still at an earlier question.
    Busy,
}

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::After(limit) => write!(f, "did not answer within {limit:?}"),
            Self::Busy => f.write_str("has not answered an earlier question yet"),
        }
    }
}

/// Where an answer is put, and whether somebody still waits for it.
enum Slot<T> {
    Open,
    Filled(T),
    Abandoned,
}

impl Patience {
    /// For questions to this plugin.
    pub fn with(plugin: &str) -> Self {
        Self { thread: format!("ask {plugin}"), counts: Arc::default() }
    }

    /// Questions that got no answer in time, so far.
    pub fn late(&self) -> u64 {
        self.counts.late.load(Ordering::Relaxed)
    }

    /// What `question` answers within `limit`. It keeps what it needs, since it may run for longer.
    ///
    /// # Errors
    /// When there is no answer in time.
    pub fn ask<T: Send + 'static>(
        &self,
        limit: Duration,
        question: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Late> {
        let late = |late| {
            self.counts.late.fetch_add(1, Ordering::Relaxed);
            late
        };
        let counts = self.counts.clone();
        let another = |running| (running < MOST).then_some(running + 1);
        if counts.overdue.load(Ordering::Acquire) != 0
            || counts.running.fetch_update(Ordering::AcqRel, Ordering::Acquire, another).is_err()
        {
            return Err(late(Late::Busy));
        }
        let until = Instant::now() + limit;
        let shared = Arc::new((Mutex::new(Slot::Open), Condvar::new()));
        let inner = shared.clone();
        let spawned = std::thread::Builder::new().name(self.thread.clone()).spawn(move || {
            // The SDK catches panics; one of ours must not leave the counts wrong.
            let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(question)).ok();
            let (slot, filled) = &*inner;
            let mut slot = slot.lock();
            match &*slot {
                Slot::Abandoned => drop(counts.overdue.fetch_sub(1, Ordering::AcqRel)),
                _ => *slot = Slot::Filled(answer),
            }
            counts.running.fetch_sub(1, Ordering::AcqRel);
            filled.notify_one();
        });
        if spawned.is_err() {
            self.counts.running.fetch_sub(1, Ordering::AcqRel);
            return Err(late(Late::Busy));
        }
        let (slot, filled) = &*shared;
        let mut slot = slot.lock();
        filled.wait_while_until(&mut slot, |slot| matches!(slot, Slot::Open), until);
        match std::mem::replace(&mut *slot, Slot::Abandoned) {
            Slot::Filled(Some(answer)) => Ok(answer),
            Slot::Filled(None) => Err(late(Late::Busy)),
            Slot::Open | Slot::Abandoned => {
                self.counts.overdue.fetch_add(1, Ordering::AcqRel);
                Err(late(Late::After(limit)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn what_is_answered_in_time_is_given() {
        let patience = Patience::with("tests");
        let answers: Vec<_> = (0..100).map(|n| patience.ask(SOON, move || n * 2)).collect();
        assert_eq!(answers, (0..100).map(|n| Ok(n * 2)).collect::<Vec<_>>());
        assert_eq!(patience.late(), 0);
    }

    #[test]
    fn one_that_hangs_holds_up_once_and_keeps_one_thread() {
        let patience = Patience::with("tests");
        let (release, held) = mpsc::channel::<()>();
        let limit = Duration::from_millis(50);
        assert_eq!(patience.ask(limit, move || held.recv().ok()), Err(Late::After(limit)));
        let began = Instant::now();
        for _ in 0..100 {
            assert_eq!(patience.ask(SOON, || ()), Err(Late::Busy));
        }
        assert!(began.elapsed() < SOON, "nobody waits for it again");
        assert_eq!(patience.counts.running.load(Ordering::Relaxed), 1);
        assert_eq!(patience.late(), 101);
        release.send(()).unwrap();
        let deadline = Instant::now() + SOON;
        while patience.ask(SOON, || ()).is_err() {
            assert!(Instant::now() < deadline, "it is asked again when it is back");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(patience.counts.overdue.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_question_that_panics_is_not_answered_and_nothing_is_left_of_it() {
        let patience = Patience::with("tests");
        assert_eq!(patience.ask(SOON, || panic!("asked to")), Err::<(), _>(Late::Busy));
        assert_eq!(patience.ask(SOON, || 1), Ok(1));
        let counts = &patience.counts;
        assert_eq!(counts.running.load(Ordering::Relaxed) + counts.overdue.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn many_at_once_keep_to_the_bound() {
        let patience = Patience::with("tests");
        let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        std::thread::scope(|scope| {
            for _ in 0..2 * MOST {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let (inside, most) = (inside.clone(), most.clone());
                        patience
                            .ask(SOON, move || {
                                most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                                std::thread::sleep(Duration::from_millis(1));
                                inside.fetch_sub(1, Ordering::SeqCst);
                            })
                            .ok();
                    }
                });
            }
        });
        let most = most.load(Ordering::SeqCst);
        assert!(1 < most && most <= MOST, "{most}");
    }
}
