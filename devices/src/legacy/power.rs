//! The sleep and reset registers of hardware-reduced ACPI (ACPI 6.5, sections 4.8.3.7 and 4.8.3.6).
//!
//! Three ports of one byte each. In the FADT, `SLEEP_CONTROL_REG`, `SLEEP_STATUS_REG` and `RESET_REG` are the
//! device's base plus the offsets below, in system I/O space, 8 bits wide, accessed as bytes; `RESET_VALUE` is
//! [`RESET_VALUE`], and the flag `RESET_REG_SUP` is set. The DSDT's `_S5` package starts with [`S5_TYPE`].

use std::sync::Arc;

use super::PowerEvents;
use crate::BusDevice;

/// Offset of the sleep control register.
pub const SLEEP_CONTROL: u64 = 0;
/// Offset of the sleep status register.
pub const SLEEP_STATUS: u64 = 1;
/// Offset of the reset register.
pub const RESET: u64 = 2;
/// The length in bytes of the device's range.
pub const POWER_SIZE: u64 = 3;
/// The value that the guest writes to the reset register.
pub const RESET_VALUE: u8 = 1;
/// The sleep type of S5 (off), for the first element of the `_S5` package.
pub const S5_TYPE: u8 = 5;

/// `SLP_TYPx` are bits 2 to 4 of the sleep control register.
const TYPE_SHIFT: u8 = 2;
const TYPE_MASK: u8 = 0b111;
/// `SLP_EN`: enter the sleep type that is written along with it.
const ENABLE: u8 = 1 << 5;

/// The sleep and reset registers.
pub struct PowerControl {
    events: Arc<dyn PowerEvents>,
}

impl PowerControl {
    /// Registers that report to `events`.
    #[must_use]
    pub fn new(events: Arc<dyn PowerEvents>) -> Self {
        Self { events }
    }
}

impl BusDevice for PowerControl {
    /// All read as zero: the sleep status's only bit says that the machine has woken, which it never does.
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let [value] = *data else { return };
        match offset {
            SLEEP_CONTROL if value & ENABLE != 0 && value >> TYPE_SHIFT & TYPE_MASK == S5_TYPE => {
                self.events.power_off();
            }
            RESET if value == RESET_VALUE => self.events.reset(),
            _ => {}
        }
    }
}
