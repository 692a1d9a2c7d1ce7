//! The multiprocessor table (Intel MultiProcessor Specification 1.4, chapter 4), for kernels that know no ACPI.
//!
//! Those that do profit as well: Linux looks for the table in any case, sixteen bytes at a time through a mapping each, in
//! the last 64 KiB below 1 MiB at the end. Where the table is found at its first place, none of that is done.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout;

const SPECIFICATION: u8 = 4;
const LOCAL_APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x11;
const POINTER_LEN: u64 = 16;
const HEADER_LEN: usize = 44;

/// Kinds of entries, and what is in them.
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IO_APIC: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;
const ENABLED: u8 = 1;
const BOOT_PROCESSOR: u8 = 2;
const VECTORED: u8 = 0;
const NMI: u8 = 1;
const EXTERNAL: u8 = 3;
const ALL_LOCAL_APICS: u8 = 0xff;

/// Writes the floating pointer and the table that it points to.
pub(crate) fn write(memory: &GuestMemoryMmap, vcpus: u8) -> Result<(), GuestMemoryError> {
    let at = layout::MP_TABLE + POINTER_LEN;
    memory.write_slice(&pointer(at), GuestAddress(layout::MP_TABLE))?;
    memory.write_slice(&table(vcpus), GuestAddress(at))
}

fn pointer(table: u64) -> Vec<u8> {
    let mut bytes = b"_MP_".to_vec();
    bytes.extend(layout::low(table).to_le_bytes());
    bytes.extend([1, SPECIFICATION, 0, 0, 0, 0, 0, 0]);
    set_checksum(&mut bytes, 10);
    bytes
}

fn table(vcpus: u8) -> Vec<u8> {
    let entries = entries(vcpus);
    let mut bytes = b"PCMP".to_vec();
    bytes.extend([0, 0, SPECIFICATION, 0]);
    bytes.extend(b"AMPHI   MICROVM     ");
    bytes.extend([0; 6]);
    bytes.extend(u16::try_from(entries.len()).unwrap_or(u16::MAX).to_le_bytes());
    bytes.extend(layout::LOCAL_APIC.to_le_bytes());
    bytes.resize(HEADER_LEN, 0);
    bytes.extend(entries.concat());
    let len = u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_le_bytes();
    bytes[4..6].copy_from_slice(&len);
    set_checksum(&mut bytes, 7);
    bytes
}

fn entries(vcpus: u8) -> Vec<Vec<u8>> {
    let mut entries = Vec::new();
    for id in 0..vcpus {
        let flags = ENABLED | if id == 0 { BOOT_PROCESSOR } else { 0 };
        let mut processor = vec![PROCESSOR, id, LOCAL_APIC_VERSION, flags];
        processor.resize(20, 0);
        entries.push(processor);
    }
    entries.push([&[BUS, 0][..], b"ISA   "].concat());
    let io_apic = vcpus;
    entries.push([&[IO_APIC, io_apic, IO_APIC_VERSION, ENABLED][..], &layout::IO_APIC.to_le_bytes()].concat());
    for line in 0..=layout::LAST_GSI.to_le_bytes()[0] {
        entries.push(vec![IO_INTERRUPT, VECTORED, 0, 0, 0, line, io_apic, line]);
    }
    entries.push(vec![LOCAL_INTERRUPT, EXTERNAL, 0, 0, 0, 0, 0, 0]);
    entries.push(vec![LOCAL_INTERRUPT, NMI, 0, 0, 0, 0, ALL_LOCAL_APICS, 1]);
    entries
}

/// Makes all bytes add up to zero by the one at `at`.
fn set_checksum(bytes: &mut [u8], at: usize) {
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    bytes[at] = bytes[at].wrapping_sub(sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_found_and_whole() {
        for vcpus in [1, 2, 254] {
            let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
            write(&memory, vcpus).unwrap();
            let read = |at: u64, len: usize| {
                let mut bytes = vec![0; len];
                memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
                bytes
            };
            let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
            let pointer = read(layout::MP_TABLE, 16);
            assert_eq!((&pointer[..4], sum(&pointer)), (&b"_MP_"[..], 0));
            let at = u64::from(u32::from_le_bytes(pointer[4..8].try_into().unwrap()));
            let header = read(at, HEADER_LEN);
            let len = u16::from_le_bytes(header[4..6].try_into().unwrap());
            assert!(at + u64::from(len) <= layout::ACPI_TABLES);
            let table = read(at, usize::from(len));
            assert_eq!((&table[..4], sum(&table)), (&b"PCMP"[..], 0));
            let count = u16::from_le_bytes(header[34..36].try_into().unwrap());
            assert_eq!(count, u16::from(vcpus) + 1 + 1 + 24 + 2);
            assert_eq!(
                usize::from(len),
                HEADER_LEN + 20 * usize::from(vcpus) + 8 * (usize::from(count) - usize::from(vcpus))
            );
        }
    }
}
