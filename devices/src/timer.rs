//! Clocks with timers that an event loop can wait for.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

/// A clock, and a timer that goes by it. Its descriptor is readable once the timer has expired.
pub trait Timer: AsRawFd + Send {
    /// The time since some instant. It never goes back.
    fn now(&self) -> Duration;

    /// Expires once, when `wait` has passed, and not at any time that was set before.
    ///
    /// # Errors
    /// The host refuses it.
    fn set(&mut self, wait: Duration) -> io::Result<()>;
}

/// The monotonic clock, and a timerfd.
///
/// # Errors
/// No timer can be made.
pub fn monotonic() -> io::Result<Box<dyn Timer>> {
    Ok(Box::new(Monotonic { start: Instant::now(), timer: TimerFd::new()? }))
}

struct Monotonic {
    start: Instant,
    timer: TimerFd,
}

impl Timer for Monotonic {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn set(&mut self, wait: Duration) -> io::Result<()> {
        Ok(self.timer.reset(wait, None)?)
    }
}

impl AsRawFd for Monotonic {
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}
