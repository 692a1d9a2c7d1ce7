//! Limits on what goes through a device in a second.

use std::num::NonZeroU64;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A sustained rate, and how much may come at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// How many a second: bytes, or operations.
    pub per_second: NonZeroU64,
    /// How many at once; `None` is a tenth of a second's.
    pub burst: Option<NonZeroU64>,
}

impl Rate {
    /// `per_second`, with the burst that goes with it.
    #[must_use]
    pub const fn new(per_second: NonZeroU64) -> Self {
        Self { per_second, burst: None }
    }
}

/// Why a text is not a [`Rate`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a rate: write a number above 0, with K, M or G after it where it is large, and /s (such as 20M/s)"
)]
pub struct ParseRateError(String);

impl FromStr for Rate {
    type Err = ParseRateError;

    /// An amount with one of its units, with or without `/s` after it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_amount(text.strip_suffix("/s").unwrap_or(text))
            .map(Self::new)
            .ok_or_else(|| ParseRateError(text.to_owned()))
    }
}

/// A number above 0, with an optional `K`, `M`, `G` or `T` (powers of 1024, in either case).
pub(super) fn parse_amount(text: &str) -> Option<NonZeroU64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        _ => return None,
    };
    NonZeroU64::new(number.parse::<u64>().ok()?.checked_mul(1 << shift)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_numbers_a_second() {
        for (text, per_second) in [("100/s", 100), ("100", 100), ("20M/s", 20 << 20), ("1k/s", 1024)] {
            assert_eq!(text.parse::<Rate>().unwrap(), Rate::new(NonZeroU64::new(per_second).unwrap()), "{text}");
        }
        for text in ["", "0", "0/s", "/s", "-1/s", "1.5M/s", "10/m", "10Mb/s", "99999999999999999999", "99999999T"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }
}
