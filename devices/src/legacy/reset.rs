//! The one command of the PC's keyboard controller that a machine without a keyboard needs: reset.

use std::sync::Arc;

use super::PowerEvents;
use crate::BusDevice;

/// The port of the keyboard controller's command and status registers.
pub const KEYBOARD_CONTROLLER_PORT: u64 = 0x64;
/// Pulses the processor's reset line.
const PULSE_RESET: u8 = 0xfe;

/// A single port, where the guest may ask for a reset as PCs have always done (Linux's `reboot=k`).
pub struct KeyboardReset {
    events: Arc<dyn PowerEvents>,
}

impl KeyboardReset {
    /// A port that reports to `events`.
    #[must_use]
    pub fn new(events: Arc<dyn PowerEvents>) -> Self {
        Self { events }
    }
}

impl BusDevice for KeyboardReset {
    /// The status is always 0: no input waits, so that a guest which waits for that goes on at once.
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data == [PULSE_RESET] {
            self.events.reset();
        }
    }
}
