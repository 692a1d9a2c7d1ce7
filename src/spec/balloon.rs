//! Memory that a guest lends back to its host.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{MemorySize, ParseMemorySizeError};

/// A memory balloon: the guest gives back what is in it, and may have no use for it until it is let out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balloon {
    /// How many bytes are to be in it from the start on; what is no whole page of 4 KiB does not count.
    pub size: u64,
    /// Whether the guest may take memory out of the balloon when it has none left, before it kills a process.
    pub deflate_on_oom: bool,
    /// Whether the guest reports free memory by itself, which the host then takes back until it is used again.
    pub reporting: bool,
}

/// Why a text is not a [`Balloon`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseBalloonError {
    /// The size is none.
    #[error(transparent)]
    Size(#[from] ParseMemorySizeError),
    /// What follows the size is unknown.
    #[error("{0:?} is no setting of a balloon: use reporting or no-deflate-on-oom")]
    Setting(String),
}

impl Balloon {
    /// An empty balloon that the guest may take memory out of when it has none left, without reports.
    #[must_use]
    pub const fn new() -> Self {
        Self { size: 0, deflate_on_oom: true, reporting: false }
    }
}

impl Default for Balloon {
    fn default() -> Self {
        Self::new()
    }
}

impl FromStr for Balloon {
    type Err = ParseBalloonError;

    /// `SIZE[,reporting][,no-deflate-on-oom]`, where SIZE may be 0.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(',');
        let size = match parts.next().unwrap_or_default() {
            "0" => 0,
            size => size.parse::<MemorySize>()?.bytes(),
        };
        let mut balloon = Self { size, ..Self::new() };
        for setting in parts {
            match setting {
                "reporting" => balloon.reporting = true,
                "no-deflate-on-oom" => balloon.deflate_on_oom = false,
                _ => return Err(ParseBalloonError::Setting(setting.to_owned())),
            }
        }
        Ok(balloon)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_balloon_is_a_size_with_settings() {
        let parse = |text: &str| text.parse::<Balloon>();
        assert_eq!(parse("0"), Ok(Balloon::new()));
        assert_eq!(parse("64M").unwrap().size, 64 << 20);
        let all = Balloon { size: 4096, deflate_on_oom: false, reporting: true };
        assert_eq!(parse("4K,reporting,no-deflate-on-oom"), Ok(all));
        for text in ["", "reporting", "x", "1"] {
            assert!(matches!(parse(text), Err(ParseBalloonError::Size(_))), "{text}");
        }
        for text in ["0,", "0,report", "4K,64M"] {
            assert!(matches!(parse(text), Err(ParseBalloonError::Setting(_))), "{text}");
        }
    }
}
