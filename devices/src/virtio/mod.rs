//! Virtio devices (OASIS Virtual I/O Device specification, version 1.2) and their MMIO transport.

pub mod balloon;
pub mod block;
mod chain;
mod config;
pub mod console;
mod descriptors;
mod device;
mod doorbell;
pub mod fs;
pub mod mmio;
pub mod net;
pub mod pmem;
mod rings;
pub mod rng;
mod used;
pub mod vsock;

pub use device::{ActivateError, ActivationContext, VirtioDevice};
