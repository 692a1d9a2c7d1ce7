//! Limits as values that cannot be invalid.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An amount of memory in bytes, at least one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MemorySize(u64);

/// Why a text is not a [`MemorySize`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseMemorySizeError {
    /// Not digits with one of the known suffixes.
    #[error("{0:?} is not a size: use a number with B, K, M, G or T, such as 128M (1K = 1024)")]
    NotASize(String),
    /// Zero, or less than a page.
    #[error("{0:?} is too small: a memory size is at least 4K")]
    TooSmall(String),
    /// More than 64 bits of bytes.
    #[error("{0:?} is too large: it does not fit in 64 bits")]
    TooLarge(String),
}

impl MemorySize {
    /// `mib` mebibytes.
    #[must_use]
    pub const fn from_mib(mib: u32) -> Self {
        Self((mib as u64) << 20)
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for MemorySize {
    type Err = ParseMemorySizeError;

    /// Digits, then an optional unit as docker takes it: `b`, `k`, `m`, `g`, `t`, in either case,
    /// optionally followed by `b` or `ib`. All units are powers of 1024; no unit means bytes.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let not_a_size = || ParseMemorySizeError::NotASize(text.to_owned());
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        if number.is_empty() {
            return Err(not_a_size());
        }
        let shift = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(not_a_size()),
        };
        let too_large = || ParseMemorySizeError::TooLarge(text.to_owned());
        let bytes = number.parse::<u64>().map_err(|_| too_large())?.checked_mul(1 << shift).ok_or_else(too_large)?;
        if bytes < 4096 {
            return Err(ParseMemorySizeError::TooSmall(text.to_owned()));
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u32, &str); 4] = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        for (shift, unit) in UNITS {
            if self.0 >> shift > 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{} {unit}", self.0 >> shift);
            }
        }
        write!(f, "{} B", self.0)
    }
}

/// A number of CPUs in thousandths: whole for a microVM, a share of CPU time for a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CpuLimit {
    millis: u32,
}

/// Why a text is not a [`CpuLimit`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a number of CPUs: use a number above 0 such as 2 or 0.5, with at most three decimals")]
pub struct ParseCpuLimitError(String);

impl CpuLimit {
    /// `cpus` whole CPUs.
    ///
    /// # Panics
    /// Where `cpus` is 0.
    #[must_use]
    pub const fn whole(cpus: u16) -> Self {
        assert!(cpus > 0, "a CPU limit is above 0");
        Self { millis: cpus as u32 * 1000 }
    }

    /// The limit in thousandths of a CPU.
    #[must_use]
    pub const fn millis(self) -> u32 {
        self.millis
    }

    /// The number of CPUs, where it is a whole one.
    #[must_use]
    pub fn as_whole(self) -> Option<u32> {
        self.millis.is_multiple_of(1000).then_some(self.millis / 1000)
    }
}

impl FromStr for CpuLimit {
    type Err = ParseCpuLimitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseCpuLimitError(text.to_owned());
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || fraction.len() > 3 {
            return Err(error());
        }
        let thousandths: u32 = format!("{fraction:0<3}").parse().map_err(|_| error())?;
        let millis = whole
            .parse::<u32>()
            .ok()
            .and_then(|n| n.checked_mul(1000))
            .and_then(|n| n.checked_add(thousandths))
            .filter(|&n| n > 0)
            .ok_or_else(error)?;
        Ok(Self { millis })
    }
}

impl fmt::Display for CpuLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", f64::from(self.millis) / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_the_units_docker_takes() {
        for (text, bytes) in
            [("4096", 4096), ("128M", 128 << 20), ("1g", 1 << 30), ("512KiB", 512 << 10), ("2tb", 2 << 40)]
        {
            assert_eq!(text.parse::<MemorySize>().unwrap().bytes(), bytes, "{text}");
        }
    }

    #[test]
    fn sizes_that_are_none_are_refused() {
        for text in ["", "M", "12X", "-1", "1.5G", " 1M"] {
            assert!(matches!(text.parse::<MemorySize>(), Err(ParseMemorySizeError::NotASize(_))), "{text}");
        }
        for text in ["0", "0M", "1", "4095"] {
            assert!(matches!(text.parse::<MemorySize>(), Err(ParseMemorySizeError::TooSmall(_))), "{text}");
        }
        for text in ["99999999999999999999", "99999999T"] {
            assert!(matches!(text.parse::<MemorySize>(), Err(ParseMemorySizeError::TooLarge(_))), "{text}");
        }
    }

    #[test]
    fn cpus_are_whole_or_fractions() {
        assert_eq!("2".parse::<CpuLimit>().unwrap().as_whole(), Some(2));
        assert_eq!("0.5".parse::<CpuLimit>().unwrap().millis(), 500);
        assert_eq!("1.25".parse::<CpuLimit>().unwrap().as_whole(), None);
        for text in ["0", "0.0", "", ".", "1.", "-1", "1e3", "0.0001", "two", "99999999"] {
            assert!(text.parse::<CpuLimit>().is_err(), "{text}");
        }
    }
}
