//! Whether a worker takes more processors than it was granted. From then on it has what others leave.
//!
//! The compute pool bounds what asks it; nothing makes a plugin ask. Who may end a worker may lower it, without being root,
//! and once lowered it cannot raise itself: a thread of it then weighs a 68th of one of the host's.

use backplane_abi::worker::LONGEST;
use std::time::{Duration, Instant};

/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(1);
/// So many times in a row, and it is lowered: what is loaded or warmed up may take a while.
const IN_A_ROW: u32 = 5;
/// What goes beyond whole processors for reading and answering, of one.
const SLACK: f64 = 0.25;
/// The lowest there is.
const LOWEST: i32 = 19;
/// Ticks a second of the times in `/proc`: `USER_HZ`, 100 on every Linux we build for, whatever the kernel's own.
const TICKS: f64 = 100.0;

/// One worker, watched.
pub struct Burn {
    pid: u32,
    /// Processors that it may take beyond the threads that it has of the compute pool.
    cores: f64,
    /// When this began, what it had used and how often it might have looked for a call by then.
    since: Option<(Instant, f64, u64)>,
    /// The most threads it has had since.
    held: u32,
    over: u32,
}

impl Burn {
    pub fn new(pid: u32, cores: u32) -> Self {
        Self { pid, cores: f64::from(cores), since: None, held: 0, over: 0 }
    }

    /// Looks at it, and lowers it if it took too much for too long. `held`: threads of the compute pool that it has now.
    /// `looks`: how often it was told that it may look for the next call. Whether it was lowered for the first time.
    pub fn look(&mut self, now: Instant, held: u32, looks: u64) -> bool {
        self.held = self.held.max(held);
        if self.since.is_some_and(|(since, ..)| now.saturating_duration_since(since) < EVERY) {
            return false;
        }
        // Of a process that is gone its connection tells.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid));
        let Some(used) = stat.ok().and_then(|stat| seconds(&stat)) else { return false };
        if !self.is_over(now, used, held, looks) {
            return false;
        }
        // Again each time: a thread that was being started just then may have been left out.
        let group = rustix::process::Pid::from_raw(self.pid.cast_signed());
        let lowered = rustix::process::setpriority_pgrp(group, LOWEST);
        self.over == IN_A_ROW && lowered.is_ok()
    }

    /// Whether it has been too much for too long, with so many seconds of processors used up to now.
    fn is_over(&mut self, now: Instant, used: f64, held: u32, looks: u64) -> bool {
        let most = std::mem::replace(&mut self.held, held);
        let Some((since, before, then)) = self.since.replace((now, used, looks)) else { return false };
        let time = now.saturating_duration_since(since).as_secs_f64();
        let looked = LONGEST.as_secs_f64() * looks.saturating_sub(then) as f64 / time;
        let may = self.cores + f64::from(most) + looked + SLACK;
        self.over = if may < (used - before) / time { self.over.saturating_add(1) } else { 0 };
        IN_A_ROW <= self.over
    }
}

/// Seconds of processors that a process used, from `/proc/<pid>/stat`. Its name, the second field, may be anything.
fn seconds(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11).map(|field| field.parse::<f64>().ok());
    Some((fields.next()?? + fields.next()??) / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_what_was_used() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 187 0 0 0 150 50 0 0 20 0 3 0 1234 0 0";
        assert_eq!(seconds(stat), Some(2.0));
        assert_eq!(seconds("7 (a) S 1"), None);
        let own = std::fs::read_to_string("/proc/self/stat").unwrap();
        assert!(seconds(&own).is_some_and(|used| (0.0..1e6).contains(&used)));
    }

    /// In the seconds of a worker that has one processor and the threads it asks for, how much it takes in each.
    fn over(seconds: &[(f64, u32)]) -> Vec<bool> {
        over_looking(0, seconds)
    }

    /// The same, which may look for the next call so often in each.
    fn over_looking(looks: u64, seconds: &[(f64, u32)]) -> Vec<bool> {
        let (mut burn, start) = (Burn::new(0, 1), Instant::now());
        let mut used = 0.0;
        assert!(!burn.is_over(start, used, 0, 0));
        let each = seconds.iter().zip(1..).map(|(&(cores, held), second)| {
            used += cores;
            burn.held = burn.held.max(held);
            burn.is_over(start + EVERY * second, used, 0, looks * u64::from(second))
        });
        each.collect()
    }

    #[test]
    fn what_lasts_is_too_much_and_what_was_granted_is_not() {
        assert_eq!(over(&[(8.0, 0); 6]), [false, false, false, false, true, true]);
        assert!(!over(&[(1.2, 0); 50]).contains(&true), "one processor is its own");
        assert!(!over(&[(4.2, 3); 50]).contains(&true), "the compute pool gave it three");
        let bursts = [(8.0, 0), (8.0, 0), (8.0, 0), (8.0, 0), (0.1, 0)].repeat(5);
        assert!(!over(&bursts).contains(&true), "it is over before it lasts");
        let more = [(1.7, 0); 50];
        assert!(over(&more).contains(&true));
        assert!(!over_looking(10_000, &more).contains(&true), "half of it is looking for the next call");
    }
}
