//! Points in time as signed documents write them: whole seconds of UTC, RFC 3339 with `Z`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::format_description::well_known::Rfc3339;
use time::{Date, OffsetDateTime, Time};

/// Seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

/// A day of UTC, `2027-11-01`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(Date);

impl Timestamp {
    /// The end of year 9999: what can be written.
    const MAX: i64 = 253_402_300_799;

    /// The system's clock. Pure logic is given `now`; this is for the edges.
    pub fn now() -> Self {
        Self::of_unix(OffsetDateTime::now_utc().unix_timestamp())
    }

    /// Clamped to what can be written.
    pub fn of_unix(seconds: i64) -> Self {
        Self(seconds.clamp(0, Self::MAX))
    }

    pub fn unix(self) -> i64 {
        self.0
    }

    /// So many seconds later, or earlier.
    pub fn plus(self, seconds: i64) -> Self {
        Self::of_unix(self.0.saturating_add(seconds))
    }

    pub fn plus_days(self, days: u32) -> Self {
        self.plus(i64::from(days) * 86_400)
    }

    /// Seconds from `earlier` to this; negative if it is later.
    pub fn since(self, earlier: Self) -> i64 {
        self.0 - earlier.0
    }

    pub fn day(self) -> Day {
        Day(self.date_time().date())
    }

    fn date_time(self) -> OffsetDateTime {
        // Clamped at its making; what `time` could not hold is 1970.
        OffsetDateTime::from_unix_timestamp(self.0).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }
}

impl Day {
    /// Its first second.
    pub fn start(self) -> Timestamp {
        Timestamp::of_unix(self.0.with_time(Time::MIDNIGHT).assume_utc().unix_timestamp())
    }

    /// `2026-11`, for monthly limits.
    pub fn month(self) -> String {
        format!("{:04}-{:02}", self.0.year(), u8::from(self.0.month()))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.date_time().format(&Rfc3339).unwrap_or_default())
    }
}

impl FromStr for Timestamp {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no time of UTC such as `2026-11-21T12:00:00Z`");
        let parsed = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| wrong())?;
        let moment = Self::of_unix(parsed.unix_timestamp());
        // One way to write each: this refuses offsets, fractions, lower case and leap seconds.
        if moment.to_string() == text { Ok(moment) } else { Err(wrong()) }
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.0.year(), u8::from(self.0.month()), self.0.day())
    }
}

impl FromStr for Day {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let midnight: Result<Timestamp, _> = format!("{text}T00:00:00Z").parse();
        midnight.map(Timestamp::day).map_err(|_| format!("`{text}` is no day such as `2026-11-21`"))
    }
}

macro_rules! as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
as_text!(Timestamp);
as_text!(Day);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_in_one_way() {
        let text = "2026-11-21T12:00:00Z";
        let moment: Timestamp = text.parse().unwrap();
        assert_eq!((moment.to_string().as_str(), moment.unix()), (text, 1_795_262_400));
        for wrong in [
            "2026-11-21T12:00:00+01:00",
            "2026-11-21T12:00:00.5Z",
            "2026-11-21t12:00:00z",
            "2026-11-21 12:00:00Z",
            "2026-02-29T00:00:00Z",
            "2026-06-30T23:59:60Z",
            "1969-12-31T23:59:59Z",
            "",
        ] {
            assert!(wrong.parse::<Timestamp>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn days_and_months_follow_utc() {
        let moment: Timestamp = "2026-12-31T23:59:59Z".parse().unwrap();
        assert_eq!(
            (moment.day().to_string().as_str(), moment.day().month().as_str()),
            ("2026-12-31", "2026-12")
        );
        assert_eq!(moment.plus(1).day().month(), "2027-01");
        assert_eq!("2028-02-29".parse::<Day>().unwrap().start().to_string(), "2028-02-29T00:00:00Z");
        assert!("2027-02-29".parse::<Day>().is_err());
    }

    #[test]
    fn sums_end_where_writing_ends() {
        assert_eq!(Timestamp::now().plus(i64::MAX).to_string(), "9999-12-31T23:59:59Z");
        assert_eq!(Timestamp::now().plus(i64::MIN).unix(), 0);
    }
}
