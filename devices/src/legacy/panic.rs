//! The register by which a guest tells that its kernel has panicked (`pvpanic` of QEMU, docs/specs/pvpanic.rst).
//!
//! One byte of memory or port space. A DSDT node with the hardware ID [`HARDWARE_ID`], and the byte as its only resource,
//! leads a guest's driver there.

use std::sync::Arc;

use super::PowerEvents;
use crate::BusDevice;

/// `_HID` of the register's node.
pub const HARDWARE_ID: &str = "QEMU0001";
/// The length in bytes of the device's range.
pub const PANIC_SIZE: u64 = 1;

/// The guest's kernel has panicked, and does nothing about it.
const PANICKED: u8 = 1 << 0;
/// It has panicked, and goes on in a crash kernel.
const CRASH_LOADED: u8 = 1 << 1;

/// The register.
pub struct PanicRegister {
    events: Arc<dyn PowerEvents>,
}

impl PanicRegister {
    /// A register that reports to `events`.
    #[must_use]
    pub fn new(events: Arc<dyn PowerEvents>) -> Self {
        Self { events }
    }
}

impl BusDevice for PanicRegister {
    /// Which events there are.
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(PANICKED | CRASH_LOADED);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        // A guest that goes on in a crash kernel ends in its own time.
        if let [value] = *data
            && value & PANICKED != 0
        {
            self.events.panicked();
        }
    }
}
