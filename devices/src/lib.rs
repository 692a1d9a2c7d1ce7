#![doc = include_str!("../README.md")]

pub mod bus;
mod interrupt;
pub mod legacy;
mod stream;
pub mod virtio;

pub use bus::{Bus, BusDevice};
pub use interrupt::Interrupt;
