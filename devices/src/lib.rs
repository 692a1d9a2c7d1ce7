#![doc = include_str!("../README.md")]

pub mod acpi;
pub mod bus;
mod interrupt;
pub mod legacy;
pub mod rate_limiter;
mod stream;
pub mod timer;
pub mod virtio;

pub use bus::{Bus, BusDevice};
pub use interrupt::Interrupt;
