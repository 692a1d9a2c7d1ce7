//! What long work reports while it runs.

use std::fmt;
use std::time::Duration;

/// One step of long work. Its text fits on a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// A step begins or has ended.
    Step(String),
    /// A download goes on.
    Downloaded {
        /// Bytes so far.
        bytes: u64,
        /// Bytes in all, where that is known.
        total: Option<u64>,
    },
    /// A compilation goes on.
    Compiled {
        /// Files made so far.
        files: u64,
        /// Time since the compilation began.
        elapsed: Duration,
    },
}

impl Progress {
    /// Whether a later event of the same kind replaces this one.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        !matches!(self, Self::Step(_))
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step(text) => f.write_str(text),
            Self::Downloaded { bytes, total: Some(total) } => {
                let percent = bytes.saturating_mul(100).checked_div(*total).unwrap_or(100).min(100);
                write!(f, "downloaded {} of {} MB ({percent} %)", bytes / 1_000_000, total / 1_000_000)
            }
            Self::Downloaded { bytes, total: None } => write!(f, "downloaded {} MB", bytes / 1_000_000),
            Self::Compiled { files, elapsed } => {
                let seconds = elapsed.as_secs();
                write!(f, "compiled {files} files in {}:{:02} min", seconds / 60, seconds % 60)
            }
        }
    }
}
