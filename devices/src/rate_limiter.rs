//! Limits on how fast a device works: token buckets, and a timer that says when a device that had to stop may go on.
//!
//! A bucket is kept as the one instant at which it will be full again. What passes moves that instant into the future by
//! the time that its tokens take to come back; as long as it is less than a bucket ahead there is a token left.
//! The last one lets a request of any size through: its excess is a debt that later requests wait for. So no
//! request is too large to pass, the rate holds in the long run, and a request's size need not be known before it is
//! taken off its queue.

use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use crate::timer::{self, Timer};

const NANOSECONDS: u128 = 1_000_000_000;
/// The part of a second whose tokens a bucket holds where nobody says how many.
const DEFAULT_BURST: u64 = 10;

/// A sustained rate, and how much may come at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Tokens a second.
    pub per_second: NonZeroU64,
    /// Tokens that the bucket holds. It is full at first.
    pub burst: NonZeroU64,
}

impl Rate {
    /// A rate whose bucket holds the tokens of a tenth of a second, but at least one.
    #[must_use]
    pub fn new(per_second: NonZeroU64) -> Self {
        let burst = NonZeroU64::new(per_second.get() / DEFAULT_BURST).unwrap_or(NonZeroU64::MIN);
        Self { per_second, burst }
    }

    /// How long `tokens` take to come, rounded up to nanoseconds.
    fn time(self, tokens: u64) -> Duration {
        let nanoseconds = (u128::from(tokens) * NANOSECONDS).div_ceil(u128::from(self.per_second.get()));
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

/// What a device is limited to. `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Bytes of data.
    pub bandwidth: Option<Rate>,
    /// Requests or packets, whatever their size.
    pub operations: Option<Rate>,
}

/// The limits of one direction of one device.
///
/// Before each request the device asks [`admits`](Self::admits), and after it says with [`charge`](Self::charge) what it
/// was. Refused, it leaves its queue alone until the limiter's descriptor becomes readable. An event loop watches that
/// edge-triggered; nobody reads it.
pub struct RateLimiter {
    bandwidth: Option<Bucket>,
    operations: Option<Bucket>,
    timer: Box<dyn Timer>,
}

impl RateLimiter {
    /// A limiter with full buckets, on the monotonic clock.
    ///
    /// # Errors
    /// No timer can be made.
    pub fn new(limits: RateLimits) -> io::Result<Self> {
        Ok(Self::with_timer(limits, timer::monotonic()?))
    }

    /// The same on a clock and a timer of the caller's.
    #[must_use]
    pub fn with_timer(limits: RateLimits, timer: Box<dyn Timer>) -> Self {
        let bucket = |rate: Rate| Bucket { rate, depth: rate.time(rate.burst.get()), full_at: Duration::ZERO };
        Self { bandwidth: limits.bandwidth.map(bucket), operations: limits.operations.map(bucket), timer }
    }

    /// Whether a request may be carried out now. If not, the timer is set for when one may.
    pub fn admits(&mut self) -> bool {
        let now = self.timer.now();
        let wait = |bucket: &Option<Bucket>| bucket.as_ref().map_or(Duration::ZERO, |bucket| bucket.wait(now));
        let wait = wait(&self.bandwidth).max(wait(&self.operations));
        if wait.is_zero() {
            return true;
        }
        match self.timer.set(wait) {
            Ok(()) => false,
            Err(error) => {
                // A device that is too fast is better than one that never goes on.
                log::error!("cannot set a rate limiter's timer: {error}");
                true
            }
        }
    }

    /// Takes the tokens of one request with `bytes` of data.
    pub fn charge(&mut self, bytes: u64) {
        let now = self.timer.now();
        for (bucket, tokens) in [(&mut self.bandwidth, bytes), (&mut self.operations, 1)] {
            if let Some(bucket) = bucket {
                bucket.take(now, tokens);
            }
        }
    }
}

impl AsRawFd for RateLimiter {
    /// The timer: readable once it has expired.
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}

struct Bucket {
    rate: Rate,
    /// How long an empty bucket takes to fill.
    depth: Duration,
    full_at: Duration,
}

impl Bucket {
    /// How long until there is a whole token.
    fn wait(&self, now: Duration) -> Duration {
        self.full_at.saturating_add(self.rate.time(1)).saturating_sub(self.depth).saturating_sub(now)
    }

    fn take(&mut self, now: Duration, tokens: u64) {
        self.full_at = self.full_at.max(now).saturating_add(self.rate.time(tokens));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn rate(per_second: u64, burst: u64) -> Option<Rate> {
        Some(Rate { per_second: NonZeroU64::new(per_second).unwrap(), burst: NonZeroU64::new(burst).unwrap() })
    }

    /// A clock in milliseconds, with a timer that nobody waits for.
    struct Clock(Arc<AtomicU64>);

    impl Timer for Clock {
        fn now(&self) -> Duration {
            Duration::from_millis(self.0.load(Ordering::Relaxed))
        }

        fn set(&mut self, wait: Duration) -> io::Result<()> {
            assert_ne!(wait, Duration::ZERO, "that would stop a timer");
            Ok(())
        }
    }

    impl AsRawFd for Clock {
        fn as_raw_fd(&self) -> RawFd {
            unreachable!("nobody waits")
        }
    }

    /// A limiter, and its clock.
    fn limiter(bandwidth: Option<Rate>, operations: Option<Rate>) -> (RateLimiter, Arc<AtomicU64>) {
        let clock = Arc::new(AtomicU64::new(0));
        let timer = Box::new(Clock(Arc::clone(&clock)));
        (RateLimiter::with_timer(RateLimits { bandwidth, operations }, timer), clock)
    }

    /// How many requests of `bytes` pass until one has to wait.
    fn pass(limiter: &mut RateLimiter, bytes: u64) -> usize {
        (0..1000)
            .find(|_| {
                let admitted = limiter.admits();
                if admitted {
                    limiter.charge(bytes);
                }
                !admitted
            })
            .unwrap()
    }

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let (mut limiter, clock) = limiter(None, rate(100, 7));
        assert_eq!(pass(&mut limiter, 1 << 30), 7);
        let passed: usize = (1..=1000)
            .map(|milliseconds| {
                clock.store(milliseconds, Ordering::Relaxed);
                pass(&mut limiter, 1 << 30)
            })
            .sum();
        assert!(passed == 100, "{passed} in a second");
        clock.store(3_600_000, Ordering::Relaxed);
        assert_eq!(pass(&mut limiter, 0), 7, "an hour fills no more than the bucket");
    }

    #[test]
    fn a_request_larger_than_the_bucket_passes_and_is_paid_for_later() {
        let (mut limiter, clock) = limiter(rate(1000, 10), None);
        assert_eq!(pass(&mut limiter, 500), 1);
        clock.store(490, Ordering::Relaxed);
        assert_eq!(pass(&mut limiter, 1), 0);
        clock.store(491, Ordering::Relaxed);
        assert_eq!(pass(&mut limiter, 1), 1);
    }

    #[test]
    fn the_stricter_of_two_limits_counts() {
        let (mut limiter, _) = limiter(rate(1000, 100), rate(1000, 5));
        assert_eq!(pass(&mut limiter, 50), 2);
        let (mut limiter, _) = self::limiter(rate(1000, 100), rate(1000, 5));
        assert_eq!(pass(&mut limiter, 1), 5);
    }

    #[test]
    fn extremes_do_no_harm() {
        let (mut limiter, clock) = limiter(rate(1, 1), rate(u64::MAX, u64::MAX));
        assert_eq!(pass(&mut limiter, u64::MAX), 1);
        clock.store(u64::MAX, Ordering::Relaxed);
        limiter.charge(u64::MAX);
        limiter.admits();
        assert_eq!(Rate::new(NonZeroU64::MIN).burst.get(), 1);
        assert_eq!(Rate::new(NonZeroU64::new(1000).unwrap()).burst.get(), 100);
    }

    #[test]
    fn the_timer_says_when_to_go_on() {
        let limits = RateLimits { operations: rate(1000, 1), bandwidth: None };
        let mut limiter = RateLimiter::new(limits).unwrap();
        let mut poll = libc::pollfd { fd: limiter.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: One valid entry.
        assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 0) }, 0, "it is not set");
        for _ in 0..3 {
            limiter.charge(0);
        }
        assert!(!limiter.admits());
        // SAFETY: One valid entry.
        assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 10_000) }, 1);
        assert!(limiter.admits());
    }
}
