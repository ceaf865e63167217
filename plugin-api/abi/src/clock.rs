//! The clock of deadlines: `CLOCK_MONOTONIC` in nanoseconds.
#![expect(unsafe_code, reason = "clock_gettime: std::time::Instant does not give its number away")]

use std::time::{Duration, Instant};

/// Nanoseconds of `CLOCK_MONOTONIC` now.
pub fn now_ns() -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec to write to; CLOCK_MONOTONIC always exists on Linux, so the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// The deadline as it crosses the ABI: 0 when there is none, never 0 otherwise.
pub fn deadline_ns(deadline: Option<Instant>) -> i64 {
    let Some(deadline) = deadline else { return 0 };
    let (now, now_ns) = (Instant::now(), now_ns());
    let offset = match deadline.checked_duration_since(now) {
        Some(left) => i64::try_from(left.as_nanos()).unwrap_or(i64::MAX / 2),
        None => -i64::try_from(now.duration_since(deadline).as_nanos()).unwrap_or(i64::MAX / 2),
    };
    now_ns.saturating_add(offset).max(1)
}

/// The instant of a deadline that came through the ABI.
pub fn instant(deadline_ns: i64) -> Option<Instant> {
    if deadline_ns == 0 {
        return None;
    }
    let left = deadline_ns.saturating_sub(now_ns());
    let now = Instant::now();
    Some(match u64::try_from(left) {
        Ok(left) => now + Duration::from_nanos(left),
        Err(_) => now.checked_sub(Duration::from_nanos(left.unsigned_abs())).unwrap_or(now),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_goes_round() {
        for deadline in [Instant::now() + Duration::from_secs(3), Instant::now() - Duration::from_millis(5)] {
            let back = instant(deadline_ns(Some(deadline))).unwrap();
            let error = back.max(deadline) - back.min(deadline);
            assert!(error < Duration::from_millis(5), "{error:?}");
        }
        assert_eq!(instant(deadline_ns(None)), None);
    }
}
