//! A disk's rate limits, on a clock that stands still until the test moves it, and with a timer that goes by that clock. How
//! long the host takes for a request is no matter.

use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use amphi_devices::rate_limiter::{Rate, RateLimiter, RateLimits};
use amphi_devices::timer::Timer;
use amphi_devices::virtio::block::Engine;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{DATA, HEADER, IN, STATUS_BYTE, block, disk, put_header, with_both_engines};
use crate::guest::{Guest, NOTIFY, readable, writable};

with_both_engines! {
    operations_are_limited,
    bandwidth_is_limited,
}

fn rate(per_second: u64, burst: u64) -> Option<Rate> {
    Some(Rate { per_second: NonZeroU64::new(per_second).unwrap(), burst: NonZeroU64::new(burst).unwrap() })
}

/// The clock and the timer.
struct Time {
    /// The clock, and when the timer expires, if it is set.
    state: Mutex<(Duration, Option<Duration>)>,
    expired: EventFd,
}

impl Time {
    fn advance(&self, milliseconds: u64) {
        let mut state = self.state.lock().unwrap();
        state.0 = Duration::from_millis(milliseconds);
        if state.1.is_some_and(|at| at <= state.0) {
            state.1 = None;
            self.expired.write(1).unwrap();
        }
    }

    /// How long until the timer expires, in microseconds and rounded up.
    fn left(&self) -> Option<u128> {
        let (now, at) = *self.state.lock().unwrap();
        at.map(|at| (at - now).as_nanos().div_ceil(1000))
    }
}

/// The device's share of it.
struct Share(Arc<Time>);

impl Timer for Share {
    fn now(&self) -> Duration {
        self.0.state.lock().unwrap().0
    }

    fn set(&mut self, wait: Duration) -> io::Result<()> {
        let mut state = self.0.state.lock().unwrap();
        state.1 = Some(state.0 + wait);
        Ok(())
    }
}

impl AsRawFd for Share {
    fn as_raw_fd(&self) -> RawFd {
        self.0.expired.as_raw_fd()
    }
}

/// A guest with such a disk.
struct Machine {
    guest: Guest,
    time: Arc<Time>,
}

impl Machine {
    fn new(engine: Engine, limits: RateLimits) -> Self {
        let time = Arc::new(Time { state: Mutex::default(), expired: EventFd::new(EFD_NONBLOCK).unwrap() });
        let limiter = RateLimiter::with_timer(limits, Box::new(Share(Arc::clone(&time))));
        let mut guest = Guest::new(block(disk(), engine).with_limiter(limiter));
        guest.start(0);
        Self { guest, time }
    }

    fn offer(&mut self, count: usize, len: u32) {
        put_header(&self.guest, IN, 0);
        for _ in 0..count {
            self.guest.add(0, &[readable(HEADER, 16), writable(DATA, len), writable(STATUS_BYTE, 1)]);
        }
        self.guest.write(NOTIFY, 0);
    }

    /// At that time the device carries out so many requests, and then waits for the next one's so many microseconds, or for
    /// the driver. The wait says how many requests it has taken, those included that the host has not carried out yet.
    #[track_caller]
    fn carries_out(&mut self, milliseconds: u64, count: usize, wait: Option<u128>) {
        self.time.advance(milliseconds);
        self.guest.run();
        assert_eq!(self.time.left(), wait, "the wait for the next one");
        for _ in 0..count {
            self.guest.wait_for_used(0);
        }
        self.guest.run();
        assert_eq!(self.guest.used(0), None, "more than {count} requests");
        assert_eq!(self.time.left(), wait, "what has ended changes nothing");
    }
}

fn operations_are_limited(engine: Engine) {
    let mut machine = Machine::new(engine, RateLimits { operations: rate(1000, 4), bandwidth: None });
    machine.offer(20, 512);
    // The burst.
    machine.carries_out(0, 4, Some(1000));
    machine.carries_out(3, 3, Some(1000));
    // No more than the bucket holds.
    machine.carries_out(1000, 4, Some(1000));
    machine.carries_out(1001, 1, Some(1000));
    // A notification changes nothing.
    machine.offer(1, 512);
    machine.carries_out(1001, 0, Some(1000));
    for milliseconds in 1002..1010 {
        machine.carries_out(milliseconds, 1, Some(1000));
    }
    // All that is left.
    machine.carries_out(60_000, 1, None);
}

fn bandwidth_is_limited(engine: Engine) {
    let mut machine = Machine::new(engine, RateLimits { operations: None, bandwidth: rate(512 * 1000, 1024) });
    machine.offer(8, 2048);
    // A request larger than the bucket passes, and is paid for: its bytes and the next one's first take 4002 us to come, of
    // which 2000 were there.
    machine.carries_out(0, 1, Some(2002));
    machine.carries_out(2, 0, Some(2));
    machine.carries_out(3, 1, Some(3002));
}
