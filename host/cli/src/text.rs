//! Figures as people read them.

pub use backplane_registry::size_text as bytes;
use std::time::{Duration, SystemTime};

/// `3 minutes ago`.
pub fn ago(then: SystemTime, now: SystemTime) -> String {
    match now.duration_since(then) {
        Ok(passed) if 5 <= passed.as_secs() => format!("{} ago", about(passed)),
        _ => "just now".to_owned(),
    }
}

/// `3 minutes`, rounded, in the largest unit that fits.
pub fn about(time: Duration) -> String {
    const UNITS: [(u64, &str); 6] = [
        (365 * 86_400, "year"),
        (30 * 86_400, "month"),
        (86_400, "day"),
        (3_600, "hour"),
        (60, "minute"),
        (1, "second"),
    ];
    let seconds = time.as_secs();
    let (unit, name) = UNITS.iter().find(|(unit, _)| *unit <= seconds).unwrap_or(&UNITS[5]);
    let count = (seconds + unit / 2) / unit;
    if count == 1 { format!("1 {name}") } else { format!("{count} {name}s") }
}

/// `62 ms`, `1.2 s`.
pub fn short(time: Duration) -> String {
    match time.as_millis() {
        millis if millis < 1000 => format!("{millis} ms"),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_in_the_largest_unit() {
        let texts =
            [0, 1, 59, 60, 299, 7_200, 40 * 86_400].map(|seconds| about(Duration::from_secs(seconds)));
        assert_eq!(
            texts,
            ["0 seconds", "1 second", "59 seconds", "1 minute", "5 minutes", "2 hours", "1 month"]
        );
        let now = SystemTime::now();
        assert_eq!(ago(now + Duration::from_secs(60), now), "just now");
        assert_eq!(ago(now - Duration::from_secs(120), now), "2 minutes ago");
        assert_eq!(short(Duration::from_millis(62)), "62 ms");
        assert_eq!(short(Duration::from_millis(1_234)), "1.2 s");
    }
}
