//! Whether a worker has more memory or threads than it was granted.
//!
//! The kernel bounds neither as a whole: `RLIMIT_NPROC` counts a user's processes and not those of one process, and
//! `RLIMIT_DATA` leaves out memory that could be shared. So it is looked at, and ended.

use super::Confinement;
use super::process::Why;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How often it is looked at: as many threads as can be started in this time are borne.
const EVERY: Duration = Duration::from_millis(50);

/// Threads of a worker that serve no lane.
const OWN: u64 = 2;

/// One worker, watched.
pub struct Watch {
    status: PathBuf,
    memory: u64,
    threads: u64,
    last: Option<Instant>,
}

impl Watch {
    pub fn new(pid: u32, confinement: &Confinement) -> Self {
        let (memory, threads) = match confinement {
            Confinement::Nothing => (0, u64::MAX),
            Confinement::Sandbox(granted) => (granted.memory, u64::from(granted.threads)),
        };
        let memory = if memory == 0 { u64::MAX } else { memory };
        Self { status: format!("/proc/{pid}/status").into(), memory, threads, last: None }
    }

    /// Why it is to be ended, if it is. So many lanes it was given, each of which has a thread.
    pub fn look(&mut self, now: Instant, lanes: u64) -> Option<Why> {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < EVERY) {
            return None;
        }
        self.last = Some(now);
        // Of a process that is gone its connection tells.
        let status = std::fs::read_to_string(&self.status).ok()?;
        let used = used(&status);
        if self.memory < used.memory {
            return Some(Why::Memory);
        }
        (self.threads < used.threads.saturating_sub(OWN + lanes)).then_some(Why::Threads)
    }
}

struct Used {
    memory: u64,
    threads: u64,
}

/// From `/proc/<pid>/status`. Pages of files are not counted: a model that is mapped is the system's to drop.
fn used(status: &str) -> Used {
    let mut used = Used { memory: 0, threads: 0 };
    for line in status.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let value = value.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0);
        match key {
            "RssAnon" | "RssShmem" | "VmSwap" => used.memory += value * 1024,
            "Threads" => used.threads = value,
            _ => {}
        }
    }
    used
}

#[cfg(test)]
mod tests {
    use super::super::Granted;
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn it_counts_what_is_its_own() {
        let status = "Name:\tworker\nVmRSS:\t    9000 kB\nRssAnon:\t    1000 kB\nRssFile:\t    7000 kB\n\
                      RssShmem:\t     500 kB\nVmSwap:\t      24 kB\nThreads:\t12\n";
        let used = used(status);
        assert_eq!((used.memory, used.threads), (1524 * 1024, 12));
    }

    #[test]
    fn it_looks_now_and_then() {
        let granted =
            |memory, threads| Confinement::Sandbox(Granted { memory, threads, ..Granted::default() });
        let (own, now) = (std::process::id(), Instant::now());
        // More than a worker has that does nothing.
        let (stop, more) = (AtomicBool::new(false), OWN);
        std::thread::scope(|scope| {
            for _ in 0..more {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                });
            }
            assert_eq!(Watch::new(own, &granted(1 << 40, 10_000)).look(now, 0), None);
            assert_eq!(Watch::new(own, &granted(1, 10_000)).look(now, 0), Some(Why::Memory));
            assert_eq!(Watch::new(own, &granted(0, 0)).look(now, 10_000), None, "they serve lanes");
            let mut watch = Watch::new(own, &granted(0, 0));
            assert_eq!(watch.look(now, 0), Some(Why::Threads));
            assert_eq!(watch.look(now, 0), None, "it was looked at a moment ago");
            assert!(watch.look(now + EVERY, 0).is_some());
            stop.store(true, Ordering::Relaxed);
        });
    }
}
