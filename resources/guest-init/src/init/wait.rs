//! Waiting for devices, which appear some time after their drivers are loaded.

use rustix::io::Errno;
use rustix::thread::nanosleep;
use rustix::time::Timespec;

/// How long a device may take.
const LIMIT_NS: i64 = 5_000_000_000;
/// The first pause, and the longest: short, because all of it is the user's waiting time.
const FIRST_PAUSE_NS: i64 = 50_000;
const LONGEST_PAUSE_NS: i64 = 1_000_000;

/// Tries until `attempt` gives something.
///
/// # Errors
/// That of `attempt`; `TIMEDOUT` after five seconds.
pub(super) fn until<T>(mut attempt: impl FnMut() -> Result<Option<T>, Errno>) -> Result<T, Errno> {
    let (mut waited, mut pause) = (0, FIRST_PAUSE_NS);
    loop {
        if let Some(found) = attempt()? {
            return Ok(found);
        }
        if waited >= LIMIT_NS {
            return Err(Errno::TIMEDOUT);
        }
        let _ = nanosleep(&Timespec { tv_sec: 0, tv_nsec: pause });
        waited += pause;
        pause = (pause + pause / 2).min(LONGEST_PAUSE_NS);
    }
}
