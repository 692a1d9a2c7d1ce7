//! The devices as a driver in a guest sees them: through registers, rings and interrupts only.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests may panic, and cut off on purpose")]

mod balloon;
mod block;
mod console;
mod fs;
mod fuzz;
mod guest;
mod hostile;
mod legacy;
mod mmio;
mod net;
mod pmem;
mod program;
mod rng;
mod tap;
mod vhost;
mod vsock;
