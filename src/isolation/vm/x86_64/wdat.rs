//! The table that tells a driver of the watchdog ("Hardware Watchdog Timers Design Specification", Microsoft, 2006).

use acpi_tables::sdt::Sdt;
use amphi_devices::acpi::watchdog::{CONTROL, COUNTDOWN, FEED, PERIOD};

use super::acpi::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use super::layout;

/// The length in bytes of what stands between the table's header and its entries.
const HEADER: u32 = 32;
/// There is a watchdog, and the system may use it.
const ENABLED: u8 = 1;
/// No PCI segment, bus, device and function.
const NO_PCI: [u8; 5] = [0xff, 0, 0xff, 0xff, 0xff];
const ALL_BITS: u32 = u32::MAX;

/// The kinds of instructions.
const READ_VALUE: u8 = 0;
const READ_COUNTDOWN: u8 = 1;
const WRITE_VALUE: u8 = 2;
const WRITE_COUNTDOWN: u8 = 3;

/// How a driver carries out the actions: action, instruction, register, value, mask.
const INSTRUCTIONS: [(u8, u8, u64, u32, u32); 7] = [
    // Reset the countdown.
    (0x1, WRITE_VALUE, FEED, 1, ALL_BITS),
    // Query what is left of it.
    (0x4, READ_COUNTDOWN, COUNTDOWN, 0, ALL_BITS),
    // Set its length.
    (0x6, WRITE_COUNTDOWN, COUNTDOWN, 0, ALL_BITS),
    // Query and set the running state, query and set the stopped state.
    (0x8, READ_VALUE, CONTROL, 1, 1),
    (0x9, WRITE_VALUE, CONTROL, 1, ALL_BITS),
    (0xa, READ_VALUE, CONTROL, 0, 1),
    (0xb, WRITE_VALUE, CONTROL, 0, ALL_BITS),
];

/// The table of a watchdog whose countdown has at most `longest` periods.
pub(super) fn table(longest: u32) -> Sdt {
    let mut table = Sdt::new(*b"WDAT", 36, 1, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let period = u32::try_from(PERIOD.as_millis()).unwrap_or(u32::MAX);
    let mut body = Vec::new();
    body.extend(HEADER.to_le_bytes());
    body.extend(NO_PCI);
    body.extend([0; 3]);
    for number in [period, longest, 1] {
        body.extend(number.to_le_bytes());
    }
    body.extend([ENABLED, 0, 0, 0]);
    body.extend(u32::try_from(INSTRUCTIONS.len()).unwrap_or(0).to_le_bytes());
    for (action, instruction, register, value, mask) in INSTRUCTIONS {
        body.extend([action, instruction, 0, 0]);
        // A generic address: in port space, 32 bits wide, accessed as such.
        body.extend([1, 32, 0, 3]);
        body.extend((u64::from(layout::WATCHDOG_PORT) + register).to_le_bytes());
        body.extend(value.to_le_bytes());
        body.extend(mask.to_le_bytes());
    }
    table.append_slice(&body);
    table.update_checksum();
    table
}
