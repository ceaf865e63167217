//! What this process takes of the machine, from `/proc/self`.

use super::Renderer;
use super::memory::resident_bytes;
use std::fs;
use std::time::Duration;

/// Ticks a second of the times in `/proc`: `USER_HZ`, 100 on every Linux we build for, whatever the kernel's own.
const TICKS: u64 = 100;

/// What this process takes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Process {
    /// CPU time of all its threads since it began.
    pub cpu: Duration,
    /// Its threads.
    pub threads: u64,
    /// When it began, from the machine's start.
    began: Duration,
    /// Address space in bytes.
    virtual_bytes: u64,
}

impl Process {
    /// Now. Nothing is known where there is no `/proc`.
    pub fn read() -> Self {
        fs::read_to_string("/proc/self/stat").ok().and_then(|text| Self::parse(&text)).unwrap_or_default()
    }

    /// Reads `/proc/<pid>/stat`. The name in brackets may hold anything, brackets included.
    fn parse(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        // The field numbers of proc_pid_stat(5), of which the first two are before the bracket and we count from 0.
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        let time = |ticks: u64| Duration::from_millis(ticks.saturating_mul(1000 / TICKS));
        Some(Self {
            cpu: time(number(14)? + number(15)?),
            threads: number(20)?,
            began: time(number(22)?),
            virtual_bytes: number(23)?,
        })
    }
}

/// Writes the figures that every Prometheus client calls by these names.
pub(super) fn render(out: &mut Renderer) {
    let now = Process::read();
    let seconds = now.cpu.as_secs_f64();
    out.counter("process_cpu_seconds_total", "CPU time of the process", &[], seconds);
    out.gauge("process_resident_memory_bytes", "Memory of the process", &[], resident_bytes() as f64);
    out.gauge("process_virtual_memory_bytes", "Address space of the process", &[], now.virtual_bytes as f64);
    out.gauge("process_threads", "Threads of the process", &[], now.threads as f64);
    if let Some(open) = open_fds() {
        out.gauge("process_open_fds", "Open files of the process", &[], open as f64);
    }
    if let Some(max) = max_fds() {
        out.gauge("process_max_fds", "Files that the process may have open", &[], max as f64);
    }
    if let Some(booted) = booted() {
        let began = booted + now.began.as_secs_f64();
        out.gauge("process_start_time_seconds", "When the process began, seconds since 1970", &[], began);
    }
}

fn open_fds() -> Option<usize> {
    // One of them is the folder being read.
    Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1))
}

fn max_fds() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

fn booted() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let text = "42 (a) b) (c) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 7 0 1000 123456 99 184467 1 1 0\n";
        let process = Process::parse(text).expect("it is whole");
        assert_eq!(process.cpu, Duration::from_secs(3));
        assert_eq!((process.threads, process.virtual_bytes), (7, 123_456));
        assert_eq!(process.began, Duration::from_secs(10));
        assert_eq!(Process::parse("42 (short) S 1"), None);
        assert_eq!(Process::parse(""), None);
    }

    #[test]
    fn this_process_has_threads_and_uses_time() {
        let before = Process::read();
        assert!(before.threads >= 1);
        let mut sum = 0_u64;
        while Process::read().cpu == before.cpu {
            sum = (0..100_000).fold(sum, |sum, n| std::hint::black_box(sum ^ n));
        }
        assert!(Process::read().cpu > before.cpu);
    }
}
