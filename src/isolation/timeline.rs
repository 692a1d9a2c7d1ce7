//! The instants that both isolations record, on one clock.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Nanoseconds of `CLOCK_MONOTONIC`: the same for all processes of a host, so that instants of
/// different processes can be subtracted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Instant(pub u64);

impl Instant {
    /// The present instant.
    #[must_use]
    pub fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or(0);
        Self(seconds * 1_000_000_000 + nanoseconds)
    }
}

/// When a run reached each of its stages. A stage not reached is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// The VM exists with its memory and devices, or the container's child process exists.
    pub created: Option<Instant>,
    /// The first instruction: the guest's, or the container child's.
    pub first_instruction: Option<Instant>,
    /// PID 1 has set everything up and is about to execute the workload.
    pub init_ready: Option<Instant>,
    /// The first byte of the workload's standard output or error reached the host.
    pub first_byte: Option<Instant>,
    /// The workload's exit status is known.
    pub exited: Option<Instant>,
    /// Everything that was made for the run is gone.
    pub cleaned: Option<Instant>,
}

/// An instant that one thread sets and others read; only the first setting counts.
#[derive(Debug, Default)]
pub(crate) struct Stamp(AtomicU64);

impl Stamp {
    /// Sets the stamp to now, unless it is set.
    pub(crate) fn mark(&self) {
        self.mark_at(Instant::now());
    }

    /// Sets the stamp to `at`, unless it is set.
    pub(crate) fn mark_at(&self, at: Instant) {
        let _ = self.0.compare_exchange(0, at.0, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The instant, if it is set.
    pub(crate) fn get(&self) -> Option<Instant> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            at => Some(Instant(at)),
        }
    }
}
