//! Values that carry their unit: `"30s"`, `"8MiB"`, `"80%"`.

use crate::job::KeepAlive;
use crate::limiter::Period;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A length of time as the file writes it: `"30s"`, `"1h 30m"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

/// A number of bytes as the file writes it: `"64KiB"`, `"8MiB"`, `"1.5GB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

/// An amount of memory as the file writes it: a size, or a part of what the machine has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MemoryBudget {
    /// Percent of the memory this process may use, 0..=100.
    Percent(f64),
    /// Bytes.
    Bytes(u64),
}

impl MemoryBudget {
    /// In bytes, where the machine has `total`.
    pub fn bytes(self, total: u64) -> u64 {
        match self {
            MemoryBudget::Percent(percent) => (total as f64 * percent / 100.0) as u64,
            MemoryBudget::Bytes(bytes) => bytes,
        }
    }
}

/// How long a model stays open as the file writes it: a length of time, or `"forever"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep(pub KeepAlive);

/// What a budget counts for as the file writes it: `"day"`, `"total"`, `"15m"`. The same words as of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window(pub Period);

/// Units of time in nanoseconds, the larger first.
const SPANS: [(&str, u128); 6] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
];

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match humantime::parse_duration(text) {
            Ok(duration) => Ok(Span(duration)),
            Err(_) => Err("not a length of time; write `500ms`, `30s`, `5m` or `1h 30m`".to_owned()),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `75s` and `1d`, where humantime would write `1m 15s` and `1day`.
        let nanos = self.0.as_nanos();
        let (unit, factor) =
            SPANS.iter().find(|(_, factor)| nanos.is_multiple_of(*factor)).unwrap_or(&("ns", 1));
        if nanos == 0 { f.write_str("0s") } else { write!(f, "{}{unit}", nanos / factor) }
    }
}

/// Units of size, the larger first; the first five are what we write.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "not a size; write `512KiB`, `8MiB` or `1.5GiB`".to_owned();
        let text = text.trim();
        let split = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(wrong)?;
        let (number, unit) = (text[..split].trim(), &text[split..]);
        let (_, factor) = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(wrong)?;
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(*factor).map(Size).ok_or_else(wrong);
        }
        match number.parse::<f64>() {
            Ok(part) if (0.0..1e6).contains(&part) => Ok(Size((part * *factor as f64).round() as u64)),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, factor) = UNITS[..5]
            .iter()
            .find(|(_, factor)| self.0 != 0 && self.0.is_multiple_of(*factor))
            .unwrap_or(&UNITS[4]);
        write!(f, "{}{unit}", self.0 / factor)
    }
}

impl FromStr for MemoryBudget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "not an amount of memory; write `80%` or `8GiB`".to_owned();
        match text.trim().strip_suffix('%') {
            Some(number) => match number.trim().parse::<f64>() {
                Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(MemoryBudget::Percent(percent)),
                _ => Err("not a part of the memory; write `1%` to `100%`".to_owned()),
            },
            None => Size::from_str(text).map(|size| MemoryBudget::Bytes(size.0)).map_err(|_| wrong()),
        }
    }
}

impl fmt::Display for MemoryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MemoryBudget::Percent(percent) => write!(f, "{percent}%"),
            MemoryBudget::Bytes(bytes) => Size(*bytes).fmt(f),
        }
    }
}

impl FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "forever" => Ok(Keep(KeepAlive::Forever)),
            _ => match Span::from_str(text) {
                Ok(span) => Ok(Keep(KeepAlive::For(span.0))),
                Err(_) => Err("not a length of time; write `5m`, `0s` or `forever`".to_owned()),
            },
        }
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            KeepAlive::Forever => f.write_str("forever"),
            KeepAlive::For(duration) => Span(duration).fmt(f),
        }
    }
}

impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            "not a window; write `minute`, `hour`, `day`, `month`, `total`, or whole seconds such as `15m`";
        text.parse().map(Window).map_err(|_| wrong.to_owned())
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Reads any of them from text, and says what was expected when it is not text.
struct Text<T> {
    expected: &'static str,
    of: std::marker::PhantomData<T>,
}

impl<T: FromStr<Err = String>> de::Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

macro_rules! as_text {
    ($type:ident, $expected:literal, $($example:literal),+) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(Text { expected: $expected, of: std::marker::PhantomData })
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                Cow::Borrowed(stringify!($type))
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "examples": [$($example),+] })
            }
        }
    };
}

as_text!(Span, "a length of time in quotes, such as \"30s\" or \"5m\"", "500ms", "30s", "1h 30m");
as_text!(Size, "a size in quotes, such as \"512KiB\" or \"8MiB\"", "512KiB", "8MiB");
as_text!(MemoryBudget, "an amount of memory in quotes, such as \"80%\" or \"8GiB\"", "80%", "8GiB");
as_text!(
    Window,
    "a window in quotes, such as \"day\", \"month\" or \"15m\"",
    "minute",
    "day",
    "month",
    "total",
    "15m"
);
as_text!(Keep, "a length of time in quotes, such as \"5m\", or \"forever\"", "5m", "0s", "forever");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_in_both_systems() {
        for (text, bytes) in [
            ("0B", 0),
            ("7B", 7),
            ("64KiB", 65_536),
            ("8 MiB", 8 << 20),
            ("1.5gib", 3 << 29),
            ("2MB", 2_000_000),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "8", "8 parsecs", "-1MiB", "MiB", "99999999999TiB", "NaNMiB", "1e3MiB"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_budget_is_a_part_or_a_size() {
        assert_eq!("80%".parse(), Ok(MemoryBudget::Percent(80.0)));
        assert_eq!(MemoryBudget::Percent(12.5).bytes(1 << 30), 1 << 27);
        assert_eq!("8GiB".parse::<MemoryBudget>().map(|budget| budget.bytes(1)), Ok(8 << 30));
        for text in ["0%", "101%", "%", "eighty", "-5%", "NaN%"] {
            assert!(text.parse::<MemoryBudget>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_model_is_kept_for_a_while_or_for_ever() {
        assert_eq!("forever".parse(), Ok(Keep(KeepAlive::Forever)));
        assert_eq!("0s".parse(), Ok(Keep(KeepAlive::For(Duration::ZERO))));
        assert!("-1".parse::<Keep>().is_err());
        assert!("5".parse::<Span>().is_err(), "a number without a unit says nothing");
    }

    #[test]
    fn a_window_has_the_words_that_a_key_s_has() {
        for text in ["minute", "hour", "day", "month", "total", "15m"] {
            let window = text.parse::<Window>().unwrap();
            assert_eq!((window.0, window.to_string()), (text.parse().unwrap(), text.to_owned()));
        }
        assert_eq!("1d".parse(), Ok(Window(Period::DAY)));
        for text in ["week", "0s", "500ms", ""] {
            assert!(text.parse::<Window>().unwrap_err().contains("`month`"), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(bytes: u64, millis in 0..10_000_000_000_u64, percent in 1..=100_u32) {
            prop_assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
            let span = Span(Duration::from_millis(millis));
            prop_assert_eq!(span.to_string().parse(), Ok(span));
            let budget = MemoryBudget::Percent(f64::from(percent));
            prop_assert_eq!(budget.to_string().parse(), Ok(budget));
        }
    }
}
