//! The windows that budgets are counted in, aligned to UTC. Pure: `now` is nanoseconds since 1970.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

const SECOND: u64 = 1_000_000_000;
const DAY: u64 = 86_400;

/// How long a budget lasts before it is whole again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Period {
    /// So many seconds, at least 1; windows begin at multiples of it since 1970, so minutes, hours and days begin where
    /// UTC has them begin.
    Seconds(u64),
    /// A calendar month in UTC.
    Month,
    /// For ever: what is spent stays spent.
    Total,
}

impl Period {
    /// A minute.
    pub const MINUTE: Self = Period::Seconds(60);
    /// An hour.
    pub const HOUR: Self = Period::Seconds(3600);
    /// A day.
    pub const DAY: Self = Period::Seconds(DAY);

    const NAMES: [(&'static str, Period); 5] = [
        ("minute", Period::MINUTE),
        ("hour", Period::HOUR),
        ("day", Period::DAY),
        ("month", Period::Month),
        ("total", Period::Total),
    ];

    /// The window of this period at `now`.
    pub fn at(self, now: u64) -> Window {
        let seconds = now / SECOND;
        let number = match self {
            Period::Seconds(length) => seconds / length.max(1),
            Period::Month => month_of(seconds / DAY),
            Period::Total => 0,
        };
        Window { period: self, number: number as i64 }
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((name, _)) = Period::NAMES.iter().find(|(_, period)| period == self) {
            return f.write_str(name);
        }
        match self {
            Period::Seconds(length) => humantime::format_duration(Duration::from_secs(*length)).fmt(f),
            // Both have names.
            Period::Month | Period::Total => Ok(()),
        }
    }
}

/// A text that is no period.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no window: it must be `minute`, `hour`, `day`, `month`, `total`, or whole seconds such as `15m`"
)]
pub struct BadPeriod(String);

impl FromStr for Period {
    type Err = BadPeriod;

    fn from_str(text: &str) -> Result<Self, BadPeriod> {
        if let Some((_, period)) = Period::NAMES.iter().find(|(name, _)| *name == text) {
            return Ok(*period);
        }
        let length = humantime::parse_duration(text).ok().filter(|length| length.subsec_nanos() == 0);
        match length.map(|length| length.as_secs()) {
            Some(seconds @ 1..) => Ok(Period::Seconds(seconds)),
            _ => Err(BadPeriod(text.to_owned())),
        }
    }
}

impl serde::Serialize for Period {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Period {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// One window of a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Window {
    /// Of this period.
    pub period: Period,
    /// Counted since 1970.
    pub number: i64,
}

impl Window {
    /// When it ends; `None`: never.
    pub fn end(self) -> Option<u64> {
        let next = u64::try_from(self.number).unwrap_or(0).saturating_add(1);
        let seconds = match self.period {
            Period::Seconds(length) => next.saturating_mul(length),
            Period::Month => first_day_of(next).saturating_mul(DAY),
            Period::Total => return None,
        };
        Some(seconds.saturating_mul(SECOND))
    }

    /// Whether it is over.
    pub fn has_ended(self, now: u64) -> bool {
        self.end().is_some_and(|end| end <= now)
    }

    /// Whether it comes right after `other`.
    pub fn follows(self, other: Window) -> bool {
        self.period == other.period && self.number == other.number.saturating_add(1)
    }
}

/// The month that a day since 1970 falls in, counted from January 1970.
///
/// # Source
/// Howard Hinnant, "chrono-compatible low-level date algorithms", `civil_from_days`: years begin in March, so that the
/// leap day is the last.
fn month_of(day: u64) -> u64 {
    let day = day + 719_468;
    let (era, day_of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_since_march = (5 * day_of_year + 2) / 153;
    (era * 400 + year_of_era) * 12 + month_since_march + 2 - 1970 * 12
}

/// The first day since 1970 of a month, counted from January 1970. `days_from_civil` of the same source.
fn first_day_of(month: u64) -> u64 {
    let since_march = month.saturating_add(1970 * 12 - 2).min(u64::MAX / 1_000_000);
    let (year, month_since_march) = (since_march / 12, since_march % 12);
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_year = (153 * month_since_march + 2) / 5;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `2026-11-21T07:00:00Z` to nanoseconds.
    fn utc(text: &str) -> u64 {
        let time = humantime::parse_rfc3339(text).unwrap();
        time.duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64
    }

    #[test]
    fn windows_begin_and_end_where_the_calendar_has_them() {
        for (period, now, end) in [
            (Period::MINUTE, "2026-11-21T07:30:59Z", "2026-11-21T07:31:00Z"),
            (Period::HOUR, "2026-11-21T07:00:00Z", "2026-11-21T08:00:00Z"),
            (Period::DAY, "2026-12-31T23:59:59Z", "2027-01-01T00:00:00Z"),
            (Period::Month, "2026-11-21T07:00:00Z", "2026-12-01T00:00:00Z"),
            (Period::Month, "2028-02-29T23:00:00Z", "2028-03-01T00:00:00Z"),
            (Period::Month, "2027-02-28T23:00:00Z", "2027-03-01T00:00:00Z"),
            (Period::Month, "2100-02-28T23:00:00Z", "2100-03-01T00:00:00Z"),
            (Period::Month, "1970-01-01T00:00:00Z", "1970-02-01T00:00:00Z"),
        ] {
            assert_eq!(period.at(utc(now)).end(), Some(utc(end)), "{period} at {now}");
        }
        assert_eq!(Period::Total.at(utc("2026-11-21T07:30:00Z")).end(), None);
    }

    #[test]
    fn periods_read_as_they_are_written() {
        for text in ["minute", "hour", "day", "month", "total", "15m", "7days"] {
            let period: Period = text.parse().unwrap();
            assert_eq!(period.to_string(), text);
            let json = serde_json::to_string(&period).unwrap();
            assert_eq!(serde_json::from_str::<Period>(&json).unwrap(), period);
        }
        for wrong in ["", "0s", "1500ms", "-1m", "fortnight"] {
            assert!(wrong.parse::<Period>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn every_moment_is_in_one_window(now in 0u64..4_000_000_000_000_000_000, length in 1u64..10_000_000) {
            for period in [Period::Seconds(length), Period::Month] {
                let window = period.at(now);
                let end = window.end().unwrap();
                prop_assert!(!window.has_ended(now) && window.has_ended(end));
                prop_assert_eq!(period.at(end - 1), window);
                prop_assert!(period.at(end).follows(window));
            }
        }
    }
}
