//! The port by which a PC tells why it has raised a non-maskable interrupt.
//!
//! Where nothing answers there, all its bits read as 1, and a kernel takes that for errors of memory and bus. A monitor that raises such
//! interrupts itself puts this device there, so that the kernel takes them for what they are: of unknown reason.

use crate::BusDevice;

/// The port of system control port B.
pub const NMI_STATUS_PORT: u64 = 0x61;
/// The output of the interval timer's second channel: a kernel that waits for its end waits for nothing.
const TIMER_OUTPUT: u8 = 1 << 5;

/// System control port B of a PC without error lines, timer or loudspeaker.
pub struct NmiStatus;

impl BusDevice for NmiStatus {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(TIMER_OUTPUT);
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) {}
}
