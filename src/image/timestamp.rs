//! Moments as image configurations write them.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// The variable that says what time a reproducible build is to believe it is (reproducible-builds.org).
const SOURCE_DATE: &str = "SOURCE_DATE_EPOCH";
const DAY: i64 = 86_400;
/// The last second of the year 9999, which is the last that RFC 3339 can write.
const LAST: i64 = 253_402_300_799;

/// A moment, in whole seconds. Shown as RFC 3339 writes times, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

/// Why a text is no moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{SOURCE_DATE}={0:?} is not a number of seconds since 1970, as `date +%s` prints it")]
pub struct ParseTimestampError(String);

impl Timestamp {
    /// What the clock says.
    #[must_use]
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_secs()).unwrap_or(LAST).min(LAST))
    }

    /// What `SOURCE_DATE_EPOCH` says; `None` where it is not set, or empty.
    ///
    /// # Errors
    /// It is no number of seconds between 1970 and the year 9999.
    pub fn of_source() -> Result<Option<Self>, ParseTimestampError> {
        let Some(value) = std::env::var_os(SOURCE_DATE).filter(|value| !value.is_empty()) else { return Ok(None) };
        let text = value.to_string_lossy();
        let seconds = text.parse().ok().filter(|seconds| (0..=LAST).contains(seconds));
        seconds.map(|seconds| Some(Self(seconds))).ok_or_else(|| ParseTimestampError(text.into_owned()))
    }

    /// Seconds since 1970.
    #[must_use]
    pub const fn seconds(self) -> i64 {
        self.0
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, rest) = (self.0.div_euclid(DAY), self.0.rem_euclid(DAY));
        // Years are counted from the first of March on, so that leap days come last; 400 years are 146,097 days.
        let days = days + 719_468;
        let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * march_month + 2) / 5 + 1;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        let year = era * 400 + year_of_era + i64::from(month <= 2);
        let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_shown_as_date_shows_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (LAST, "9999-12-31T23:59:59Z"),
            (-1, "1969-12-31T23:59:59Z"),
        ] {
            assert_eq!(Timestamp(seconds).to_string(), text);
        }
    }
}
