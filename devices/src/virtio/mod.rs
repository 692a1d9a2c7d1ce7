//! Virtio devices (OASIS Virtual I/O Device specification, version 1.2) and their MMIO transport.

pub mod block;
mod chain;
mod config;
pub mod console;
mod device;
pub mod mmio;
pub mod net;
mod used;

pub use device::{ActivateError, ActivationContext, VirtioDevice};
