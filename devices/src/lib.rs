#![doc = include_str!("../README.md")]

pub mod bus;
mod interrupt;
pub mod legacy;
pub mod rate_limiter;
mod stream;
pub mod virtio;

pub use bus::{Bus, BusDevice};
pub use interrupt::Interrupt;
