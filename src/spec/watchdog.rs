//! A watchdog for a microVM.

use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A device that hears from the guest again and again, or the microVM ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watchdog {
    /// After how many seconds of silence. The guest may choose fewer.
    pub seconds: NonZeroU16,
    /// What happens then.
    pub action: WatchdogAction,
}

/// What becomes of a guest that does not feed its watchdog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum WatchdogAction {
    /// The machine ends.
    #[default]
    Stop,
    /// The guest's kernel gets a non-maskable interrupt, so that it panics and says where it hangs. The machine ends then, or
    /// after as long a silence again.
    Panic,
}

/// A text is not a [`Watchdog`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not SECONDS[,action=stop|panic] with 1 to 65535 seconds")]
pub struct ParseWatchdogError(String);

impl FromStr for Watchdog {
    type Err = ParseWatchdogError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseWatchdogError(text.to_owned());
        let (seconds, action) = match text.split_once(',') {
            None => (text, WatchdogAction::default()),
            Some((seconds, "action=stop")) => (seconds, WatchdogAction::Stop),
            Some((seconds, "action=panic")) => (seconds, WatchdogAction::Panic),
            Some(_) => return Err(error()),
        };
        Ok(Self { seconds: seconds.parse().map_err(|_| error())?, action })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_is_a_time_and_an_action() {
        let watchdog = |seconds, action| Watchdog { seconds: NonZeroU16::new(seconds).unwrap(), action };
        assert_eq!("30".parse(), Ok(watchdog(30, WatchdogAction::Stop)));
        assert_eq!("1,action=stop".parse(), Ok(watchdog(1, WatchdogAction::Stop)));
        assert_eq!("65535,action=panic".parse(), Ok(watchdog(65535, WatchdogAction::Panic)));
        for text in ["", "0", "-1", "65536", "x", "5,panic", "5,action=", "5,action=reset", "5,", "5s"] {
            assert_eq!(text.parse::<Watchdog>(), Err(ParseWatchdogError(text.to_owned())));
        }
    }
}
