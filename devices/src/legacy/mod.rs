//! The few devices of a PC that a microVM still has.

pub mod nmi;
pub mod panic;
pub mod power;
pub mod reset;
pub mod serial;

/// Whom the guest asks to switch the machine off or to reset it, or tells of its end. Called on a vCPU's thread: must not block.
pub trait PowerEvents: Send + Sync {
    /// The guest has switched the machine off.
    fn power_off(&self);
    /// The guest has asked for a reset.
    fn reset(&self);
    /// The guest's kernel has panicked.
    fn panicked(&self);
}
