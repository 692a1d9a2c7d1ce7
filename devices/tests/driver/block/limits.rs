//! A disk's rate limits, on a clock that stands still until the test moves it.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use amphi_devices::rate_limiter::{Rate, RateLimiter, RateLimits};
use amphi_devices::virtio::block::Engine;

use super::{DATA, HEADER, IN, STATUS_BYTE, block, disk, put_header, with_both_engines};
use crate::guest::{Guest, NOTIFY, readable, writable};

with_both_engines! {
    operations_are_limited,
    bandwidth_is_limited,
}

fn rate(per_second: u64, burst: u64) -> Option<Rate> {
    Some(Rate { per_second: NonZeroU64::new(per_second).unwrap(), burst: NonZeroU64::new(burst).unwrap() })
}

/// A guest with such a disk, and the clock in milliseconds.
fn guest(engine: Engine, limits: RateLimits) -> (Guest, Arc<AtomicU64>) {
    let clock = Arc::new(AtomicU64::new(0));
    let now = Arc::clone(&clock);
    let now = Box::new(move || Duration::from_millis(now.load(Ordering::Relaxed)));
    let limiter = RateLimiter::with_clock(limits, now).unwrap();
    let mut guest = Guest::new(block(disk(), engine).with_limiter(limiter));
    guest.start(0);
    (guest, clock)
}

fn offer(guest: &mut Guest, count: usize, len: u32) {
    put_header(guest, IN, 0);
    for _ in 0..count {
        guest.add(0, &[readable(HEADER, 16), writable(DATA, len), writable(STATUS_BYTE, 1)]);
    }
    guest.write(NOTIFY, 0);
}

/// How many requests the device carries out by the clock's present time. The timer goes by real time, so it expires again and
/// again as long as the clock stands.
fn carried_out(guest: &mut Guest) -> usize {
    let mut count = 0;
    let mut quiet = 0;
    while quiet < 5 {
        guest.events.run_with_timeout(20).unwrap();
        let new = std::iter::from_fn(|| guest.used(0)).count();
        quiet = if new == 0 { quiet + 1 } else { 0 };
        count += new;
    }
    count
}

fn operations_are_limited(engine: Engine) {
    let (mut guest, clock) = guest(engine, RateLimits { operations: rate(1000, 4), bandwidth: None });
    offer(&mut guest, 20, 512);
    assert_eq!(carried_out(&mut guest), 4, "the burst");
    clock.store(3, Ordering::Relaxed);
    assert_eq!(carried_out(&mut guest), 3);
    clock.store(1000, Ordering::Relaxed);
    assert_eq!(carried_out(&mut guest), 4, "no more than the bucket holds");
    clock.store(1001, Ordering::Relaxed);
    offer(&mut guest, 1, 512);
    assert_eq!(carried_out(&mut guest), 1, "a notification changes nothing");
    for milliseconds in 1002..1010 {
        clock.store(milliseconds, Ordering::Relaxed);
        assert_eq!(carried_out(&mut guest), 1);
    }
    clock.store(60_000, Ordering::Relaxed);
    assert_eq!(carried_out(&mut guest), 1, "all that is left");
}

fn bandwidth_is_limited(engine: Engine) {
    let (mut guest, clock) = guest(engine, RateLimits { operations: None, bandwidth: rate(512 * 1000, 1024) });
    offer(&mut guest, 8, 2048);
    assert_eq!(carried_out(&mut guest), 1, "a request larger than the bucket passes");
    clock.store(2, Ordering::Relaxed);
    assert_eq!(carried_out(&mut guest), 0, "and is paid for");
    clock.store(3, Ordering::Relaxed);
    assert_eq!(carried_out(&mut guest), 1);
}
