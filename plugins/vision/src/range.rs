//! Numbers of a request and of a card, each within its range.

use backplane_plugin::prelude::*;
use std::fmt::Display;
use std::ops::RangeInclusive;

/// A number of a card, by its name in its section.
///
/// # Errors
/// When it does not lie within the range.
pub fn within<T: PartialOrd + Display>(
    name: &str,
    number: T,
    range: RangeInclusive<T>,
) -> Result<(), String> {
    match range.contains(&number) {
        true => Ok(()),
        false => Err(format!("`{name}` is {number}, and lies between {} and {}", range.start(), range.end())),
    }
}

/// A number between 0 and 1.
///
/// # Errors
/// When it is not.
pub fn fraction(name: &'static str, asked: Option<f32>, default: f32) -> Result<f32> {
    match asked {
        Some(number) if !(0.0..=1.0).contains(&number) => {
            Err(Error::invalid(format!("`{name}` is {number}, and lies between 0 and 1")).with_param(name))
        }
        asked => Ok(asked.unwrap_or(default)),
    }
}

/// A number of things, one at the least.
///
/// # Errors
/// When it is 0 or more than `most`.
pub fn count(name: &'static str, asked: Option<u32>, default: u32, most: u32) -> Result<u32> {
    match asked {
        Some(number) if !(1..=most).contains(&number) => {
            Err(Error::invalid(format!("`{name}` is {number}, and lies between 1 and {most}"))
                .with_param(name))
        }
        asked => Ok(asked.unwrap_or(default).clamp(1, most)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_range_is_named() {
        assert_eq!(fraction("min_score", None, 0.3).unwrap(), 0.3);
        assert_eq!(fraction("min_score", Some(1.0), 0.3).unwrap(), 1.0);
        for number in [-0.1, 1.1, f32::NAN] {
            let refused = fraction("min_score", Some(number), 0.3).unwrap_err();
            assert!(
                refused.message.contains("`min_score` is") && refused.message.contains("between 0 and 1")
            );
        }
        assert_eq!(count("limit", None, 5000, 1000).unwrap(), 1000);
        assert!(count("limit", Some(0), 5, 10).is_err() && count("limit", Some(11), 5, 10).is_err());
    }
}
