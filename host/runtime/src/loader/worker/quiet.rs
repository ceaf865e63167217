//! Whether this machine has cores to spare, so that a thread may keep one while it waits.

use backplane_abi::clock;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

/// How long an answer holds: to ask takes longer than to look.
const HOLDS_NS: i64 = 1_000_000;

/// Asked when somebody wants to know; nothing runs meanwhile.
pub struct Quiet {
    loads: Option<File>,
    cores: u32,
    asked: AtomicI64,
    quiet: AtomicBool,
}

impl Quiet {
    /// Of a machine with so many cores. One that has a single core, or does not say how busy it is, never is.
    pub fn new(cores: u32) -> Self {
        let loads = if 1 < cores { File::open("/proc/loadavg").ok() } else { None };
        Self { loads, cores, asked: AtomicI64::new(i64::MIN), quiet: AtomicBool::new(false) }
    }

    /// Whether no thread of the machine waits for a core.
    pub fn is_so(&self) -> bool {
        let (now, asked) = (clock::now_ns(), self.asked.load(Ordering::Relaxed));
        if now.saturating_sub(asked) < HOLDS_NS {
            return self.quiet.load(Ordering::Relaxed);
        }
        self.asked.store(now, Ordering::Relaxed);
        let mut text = [0; 128];
        let read = self.loads.as_ref().and_then(|file| file.read_at(&mut text, 0).ok());
        let quiet = read.and_then(|len| runnable(text.get(..len)?)).is_some_and(|some| some <= self.cores);
        self.quiet.store(quiet, Ordering::Relaxed);
        quiet
    }
}

/// Threads that have a core or wait for one, from `/proc/loadavg`: who asks is one of them.
fn runnable(loads: &[u8]) -> Option<u32> {
    std::str::from_utf8(loads).ok()?.split(' ').nth(3)?.split_once('/')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_how_many_want_a_core() {
        assert_eq!(runnable(b"21.00 20.77 16.36 3/431 18004\n"), Some(3));
        assert_eq!(runnable(b"21.00 20.77 16.36\n"), None);
        assert_eq!(runnable(b"\xff"), None);
        assert!(runnable(&std::fs::read("/proc/loadavg").unwrap()).is_some_and(|some| 0 < some));
    }

    #[test]
    fn a_machine_with_a_core_for_each_is_quiet_and_one_without_is_not() {
        assert!(Quiet::new(u32::MAX).is_so());
        assert!(!Quiet { cores: 0, ..Quiet::new(2) }.is_so(), "who asks has none");
        assert!(!Quiet::new(1).is_so(), "who answers has none");
        let unknown = Quiet { loads: None, ..Quiet::new(u32::MAX) };
        assert!(!unknown.is_so());
    }

    #[test]
    fn it_asks_now_and_then() {
        let quiet = Quiet { loads: None, ..Quiet::new(u32::MAX) };
        quiet.quiet.store(true, Ordering::Relaxed);
        quiet.asked.store(clock::now_ns() + HOLDS_NS, Ordering::Relaxed);
        assert!(quiet.is_so(), "what was said still holds");
        quiet.asked.store(clock::now_ns() - HOLDS_NS, Ordering::Relaxed);
        assert!(!quiet.is_so());
    }
}
