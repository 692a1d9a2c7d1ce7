//! A watchdog: unless the guest feeds it, its countdown ends, and the monitor hears of that.
//!
//! Three registers of 32 bits, in ports or memory, at the offsets below. A WDAT table ("Hardware Watchdog Timers Design
//! Specification", Microsoft, 2006) tells a guest's driver of them:
//!
//! | action of the table | instruction |
//! |---|---|
//! | reset the countdown | write 1 to [`FEED`] |
//! | query the countdown's present value | read [`COUNTDOWN`] as a countdown |
//! | set the countdown's length | write [`COUNTDOWN`] as a countdown |
//! | query, set the running state | bit 0 of [`CONTROL`] is 1 |
//! | query, set the stopped state | bit 0 of [`CONTROL`] is 0 |
//!
//! It counts in units of [`PERIOD`], and runs from the machine's start, so that a guest which never gets to its driver is noticed too.

use std::io;
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use serde::{Deserialize, Serialize};

use crate::BusDevice;
use crate::timer::Timer;

/// Offset of the control register: bit 0 says that the watchdog runs.
pub const CONTROL: u64 = 0;
/// Offset of the countdown: written, its length from now on; read, what is left of it.
pub const COUNTDOWN: u64 = 4;
/// Offset of the register to which any write begins the countdown anew.
pub const FEED: u64 = 8;
/// The length in bytes of the device's range.
pub const WATCHDOG_SIZE: u64 = 12;
/// The unit of the countdown.
pub const PERIOD: Duration = Duration::from_millis(100);

const RUNNING: u32 = 1 << 0;

/// Who hears of a guest that does not feed its watchdog. Called on the event loop's thread.
pub trait Expired: Send {
    /// The countdown has ended. Returns whether there is to be another one, the longest possible: a guest that has been
    /// woken some other way gets that long to show it.
    fn expired(&self) -> bool;
}

/// What a watchdog is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchdogState {
    /// Whether it counts.
    pub running: bool,
    /// The length of its countdown, in units of [`PERIOD`].
    pub length: u32,
    /// What is left of it.
    pub left: Duration,
}

/// A watchdog.
pub struct Watchdog {
    timer: Box<dyn Timer>,
    listener: Box<dyn Expired>,
    /// The longest countdown, in units of [`PERIOD`].
    longest: u32,
    length: u32,
    /// By the timer's clock, when it expires. The timer itself may be set for earlier: feeding does not touch it.
    deadline: Option<Duration>,
    /// While the machine is paused: how much was left when that began.
    paused: Option<Duration>,
}

impl Watchdog {
    /// A watchdog whose countdown has at most, and at first, `longest` units of [`PERIOD`]. It counts from [`Watchdog::start`] on.
    #[must_use]
    pub fn new(longest: u32, timer: Box<dyn Timer>, listener: Box<dyn Expired>) -> Self {
        Self { timer, listener, longest, length: longest, deadline: None, paused: None }
    }

    /// Begins to count, as if the guest had asked for it.
    ///
    /// # Errors
    /// The timer cannot be set.
    pub fn start(&mut self) -> io::Result<()> {
        self.feed();
        self.timer.set(PERIOD * self.length)
    }

    /// Forgets what the guest has set, and [starts](Self::start) anew; paused, it counts when it is resumed.
    ///
    /// # Errors
    /// The timer cannot be set.
    pub fn reset(&mut self) -> io::Result<()> {
        self.length = self.longest;
        let paused = self.paused.take().is_some();
        self.start()?;
        if paused {
            self.pause();
        }
        Ok(())
    }

    /// Does not count until it is [resumed](Self::resume).
    pub fn pause(&mut self) {
        self.paused = Some(self.left());
    }

    /// Counts on.
    pub fn resume(&mut self) {
        if let Some(left) = self.paused.take()
            && let Some(deadline) = &mut self.deadline
        {
            *deadline = self.timer.now() + left;
        }
    }

    /// What it is doing.
    #[must_use]
    pub fn state(&self) -> WatchdogState {
        WatchdogState { running: self.deadline.is_some(), length: self.length, left: self.left() }
    }

    fn feed(&mut self) {
        self.deadline = Some(self.timer.now() + PERIOD * self.length);
    }

    fn left(&self) -> Duration {
        let left = |deadline: Duration| deadline.saturating_sub(self.timer.now());
        self.paused.unwrap_or_else(|| self.deadline.map_or(Duration::ZERO, left))
    }

    /// Has the timer wake the event loop when the countdown ends; it may do so earlier.
    fn arm(&mut self) {
        let left = self.left().max(Duration::from_millis(1));
        if let Err(error) = self.timer.set(left) {
            log::error!("cannot set a watchdog's timer: {error}");
        }
    }

    /// The timer has expired.
    fn wake(&mut self) {
        if self.deadline.is_none() {
            return;
        }
        if self.left() == Duration::ZERO && self.paused.is_none() {
            if !self.listener.expired() {
                self.deadline = None;
                return;
            }
            self.length = self.longest;
            self.feed();
        }
        self.arm();
    }
}

impl BusDevice for Watchdog {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let Ok(data) = <&mut [u8; 4]>::try_from(data) else { return };
        let periods = |time: Duration| u32::try_from(time.as_millis() / PERIOD.as_millis()).unwrap_or(u32::MAX);
        let value = match offset {
            CONTROL if self.deadline.is_some() => RUNNING,
            COUNTDOWN => periods(self.left()),
            _ => 0,
        };
        *data = value.to_le_bytes();
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(value) = data.try_into().map(u32::from_le_bytes) else { return };
        match offset {
            CONTROL if value & RUNNING == 0 => self.deadline = None,
            CONTROL => {
                self.feed();
                self.arm();
            }
            COUNTDOWN => {
                self.length = value.clamp(1, self.longest);
                if self.deadline.is_some() {
                    self.feed();
                    self.arm();
                }
            }
            FEED if self.deadline.is_some() => self.feed(),
            _ => {}
        }
    }
}

impl MutEventSubscriber for Watchdog {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        self.wake();
    }

    fn init(&mut self, ops: &mut EventOps) {
        let edge = Events::new_raw(self.timer.as_raw_fd(), EventSet::IN | EventSet::EDGE_TRIGGERED);
        if let Err(error) = ops.add(edge) {
            log::error!("cannot watch a watchdog's timer: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, RawFd};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

    use super::*;

    #[derive(Clone, Default)]
    struct Clock {
        now: Arc<AtomicU64>,
        set_for: Arc<AtomicU64>,
    }

    impl Timer for Clock {
        fn now(&self) -> Duration {
            Duration::from_millis(self.now.load(Ordering::Relaxed))
        }

        fn set(&mut self, wait: Duration) -> io::Result<()> {
            assert_ne!(wait, Duration::ZERO, "that would stop a timer");
            self.set_for.store(u64::try_from((self.now() + wait).as_millis()).unwrap(), Ordering::Relaxed);
            Ok(())
        }
    }

    impl AsRawFd for Clock {
        fn as_raw_fd(&self) -> RawFd {
            unreachable!("nobody waits")
        }
    }

    #[derive(Clone, Default)]
    struct Listener(Arc<AtomicU32>, Arc<AtomicBool>);

    impl Expired for Listener {
        fn expired(&self) -> bool {
            self.0.fetch_add(1, Ordering::Relaxed);
            self.1.load(Ordering::Relaxed)
        }
    }

    /// A watchdog of five seconds that has started, its clock, and who listens.
    fn watchdog() -> (Watchdog, Clock, Listener) {
        let (clock, listener) = (Clock::default(), Listener::default());
        let mut watchdog = Watchdog::new(50, Box::new(clock.clone()), Box::new(listener.clone()));
        watchdog.start().unwrap();
        (watchdog, clock, listener)
    }

    fn read(watchdog: &mut Watchdog, register: u64) -> u32 {
        let mut data = [0; 4];
        watchdog.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    /// Lets time go on, with the timer's events.
    fn pass(watchdog: &mut Watchdog, clock: &Clock, time: u64) {
        let end = clock.now.load(Ordering::Relaxed) + time;
        for now in clock.now.load(Ordering::Relaxed)..=end {
            clock.now.store(now, Ordering::Relaxed);
            if clock.set_for.load(Ordering::Relaxed) == now {
                watchdog.wake();
            }
        }
    }

    #[test]
    fn a_guest_that_is_silent_is_told_of_once() {
        let (mut watchdog, clock, listener) = watchdog();
        pass(&mut watchdog, &clock, 4999);
        assert_eq!((read(&mut watchdog, CONTROL), listener.0.load(Ordering::Relaxed)), (RUNNING, 0));
        pass(&mut watchdog, &clock, 10_000);
        assert_eq!((read(&mut watchdog, CONTROL), listener.0.load(Ordering::Relaxed)), (0, 1));
    }

    #[test]
    fn a_second_countdown_follows_where_it_is_wanted() {
        let (mut watchdog, clock, listener) = watchdog();
        listener.1.store(true, Ordering::Relaxed);
        watchdog.write(COUNTDOWN, &u32::to_le_bytes(10));
        pass(&mut watchdog, &clock, 1001);
        listener.1.store(false, Ordering::Relaxed);
        pass(&mut watchdog, &clock, 4990);
        assert_eq!(listener.0.load(Ordering::Relaxed), 1);
        pass(&mut watchdog, &clock, 100);
        assert_eq!(listener.0.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_guest_that_feeds_it_lives() {
        let (mut watchdog, clock, listener) = watchdog();
        for _ in 0..20 {
            pass(&mut watchdog, &clock, 4000);
            assert_eq!(read(&mut watchdog, COUNTDOWN), 10);
            watchdog.write(FEED, &1_u32.to_le_bytes());
            assert_eq!(read(&mut watchdog, COUNTDOWN), 50);
        }
        // A shorter one, and none longer than the monitor allows.
        for (length, taken) in [(20, 20), (u32::MAX, 50), (0, 1), (7, 7)] {
            watchdog.write(COUNTDOWN, &u32::to_le_bytes(length));
            assert_eq!(read(&mut watchdog, COUNTDOWN), taken);
        }
        watchdog.write(CONTROL, &[0; 4]);
        watchdog.write(FEED, &[1, 0, 0, 0]);
        pass(&mut watchdog, &clock, 10_000);
        assert_eq!(listener.0.load(Ordering::Relaxed), 0, "it is stopped");
        watchdog.write(CONTROL, &RUNNING.to_le_bytes());
        let state = watchdog.state();
        assert_eq!((state.running, state.length, state.left), (true, 7, PERIOD * 7));
        pass(&mut watchdog, &clock, 701);
        assert_eq!(listener.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_pause_does_not_count() {
        let (mut watchdog, clock, listener) = watchdog();
        pass(&mut watchdog, &clock, 3000);
        watchdog.pause();
        pass(&mut watchdog, &clock, 60_000);
        assert_eq!(read(&mut watchdog, COUNTDOWN), 20);
        watchdog.resume();
        watchdog.wake();
        pass(&mut watchdog, &clock, 1990);
        assert_eq!(listener.0.load(Ordering::Relaxed), 0);
        pass(&mut watchdog, &clock, 20);
        assert_eq!(listener.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_reset_one_counts_as_at_first() {
        let (mut watchdog, clock, listener) = watchdog();
        watchdog.write(COUNTDOWN, &u32::to_le_bytes(7));
        watchdog.write(CONTROL, &[0; 4]);
        watchdog.reset().unwrap();
        assert_eq!(watchdog.state(), WatchdogState { running: true, length: 50, left: PERIOD * 50 });
        watchdog.pause();
        watchdog.reset().unwrap();
        pass(&mut watchdog, &clock, 60_000);
        assert_eq!((watchdog.state().left, listener.0.load(Ordering::Relaxed)), (PERIOD * 50, 0), "it is paused");
        watchdog.resume();
        watchdog.wake();
        pass(&mut watchdog, &clock, 5001);
        assert_eq!(listener.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn other_accesses_do_nothing() {
        let (mut watchdog, _, _) = watchdog();
        for (offset, len) in [(CONTROL, 1), (CONTROL + 1, 4), (FEED, 2), (12, 4), (u64::MAX, 4)] {
            watchdog.write(offset, &[0; 4][..len]);
            let mut data = [0xee; 4];
            watchdog.read(offset, &mut data[..len]);
        }
        assert!(watchdog.state().running);
    }
}
