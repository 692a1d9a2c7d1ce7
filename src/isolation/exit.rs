//! How a workload ended.

use std::fmt;

/// A signal number of Linux on x86-64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signal(i32);

impl Signal {
    /// `SIGKILL`: cannot be caught.
    pub const KILL: Self = Self(libc::SIGKILL);
    /// `SIGTERM`: please end.
    pub const TERM: Self = Self(libc::SIGTERM);

    /// The signal of that number, where there is one (1 to 64).
    #[must_use]
    pub fn from_number(number: i32) -> Option<Self> {
        (1..=64).contains(&number).then_some(Self(number))
    }

    /// The signal's number.
    #[must_use]
    pub const fn number(self) -> i32 {
        self.0
    }
}

/// How the workload ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited with this code.
    Code(u8),
    /// This signal ended it.
    Signal(Signal),
}

impl ExitStatus {
    /// From the status word of `waitpid(2)` of a process that has ended.
    #[must_use]
    pub fn from_wait_status(status: i32) -> Self {
        if libc::WIFSIGNALED(status) {
            Self::Signal(Signal(libc::WTERMSIG(status)))
        } else {
            Self::Code(libc::WEXITSTATUS(status).to_le_bytes()[0])
        }
    }

    /// The status that a shell would give: the code, or 128 plus the signal's number.
    #[must_use]
    pub fn shell_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128u8.saturating_add(u8::try_from(signal.0).unwrap_or(127)),
        }
    }

    /// Whether the workload ended with code 0.
    #[must_use]
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal(signal) => write!(f, "signal {}", signal.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_statuses_become_shell_codes() {
        assert_eq!(ExitStatus::from_wait_status(7 << 8).shell_code(), 7);
        assert_eq!(ExitStatus::from_wait_status(libc::SIGKILL).shell_code(), 137);
        assert!(ExitStatus::from_wait_status(0).success());
    }
}
