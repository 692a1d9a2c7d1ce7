//! Where things are in the guest's physical address space and port space.

/// The boot GDT, below the BIOS data area that nobody reads.
pub(crate) const GDT: u64 = 0x500;
/// The PVH start information and what it points to.
pub(crate) const PVH_START_INFO: u64 = 0x6000;
/// The "zero page" of the Linux boot protocol.
pub(crate) const BOOT_PARAMS: u64 = 0x7000;
/// Page tables for the 64-bit entry: one page each of PML4, PDPT and PD.
pub(crate) const PML4: u64 = 0x9000;
/// See [`PML4`].
pub(crate) const PDPT: u64 = 0xa000;
/// See [`PML4`].
pub(crate) const PD: u64 = 0xb000;
/// The kernel's command line.
pub(crate) const COMMAND_LINE: u64 = 0x2_0000;
/// The most bytes that a command line may have, its closing zero included (`COMMAND_LINE_SIZE` of x86 Linux).
pub(crate) const COMMAND_LINE_MAX: usize = 2048;
/// End of the low memory that a kernel may use; above it a PC has its extended BIOS data area.
pub(crate) const LOW_RAM_END: u64 = 0x9_fc00;
/// The multiprocessor table, in the last KiB of the memory that a PC's firmware leaves, where kernels look for it.
pub(crate) const MP_TABLE: u64 = LOW_RAM_END;
/// The machine's generation identifier, in a reserved page that nothing else uses.
pub(crate) const GENERATION_ID: u64 = 0xd_f000;
/// The ACPI tables. The kernel searches 0xe0000..0x100000 for the RSDP where nothing else names it.
pub(crate) const ACPI_TABLES: u64 = 0xe_0000;
/// End of the room for ACPI tables, and start of ordinary RAM.
pub(crate) const HIGH_RAM: u64 = 0x10_0000;
/// Start of the gap below 4 GiB that holds devices instead of RAM.
pub(crate) const MMIO_GAP: u64 = 0xc000_0000;
/// End of the gap.
pub(crate) const MMIO_GAP_END: u64 = 0x1_0000_0000;
/// The first virtio-mmio device; the others follow, one page each.
pub(crate) const VIRTIO_MMIO: u64 = 0xc000_0000;
/// The length of one virtio-mmio device's range.
pub(crate) const VIRTIO_MMIO_LEN: u64 = 0x1000;
/// The byte by which a guest tells of a panic, well behind the last virtio device.
pub(crate) const PANIC_REGISTER: u32 = 0xc100_0000;
/// The I/O APIC, where KVM emulates it.
pub(crate) const IO_APIC: u32 = 0xfec0_0000;
/// The local APICs, where KVM emulates them.
pub(crate) const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that KVM needs on Intel processors without unrestricted guest mode.
pub(crate) const KVM_TSS: usize = 0xfffb_d000;

/// The interrupt line of ACPI's generic event device.
pub(crate) const EVENT_GSI: u32 = 3;
/// The interrupt line of COM1.
pub(crate) const SERIAL_GSI: u32 = 4;
/// The first interrupt line of a virtio device.
pub(crate) const VIRTIO_GSI: u32 = 5;
/// The last input of the I/O APIC.
pub(crate) const LAST_GSI: u32 = 23;

/// The most virtio devices: each has a line of its own.
pub(crate) const MAX_VIRTIO_DEVICES: usize = (LAST_GSI - VIRTIO_GSI + 1) as usize;

/// COM1's eight ports.
pub(crate) const SERIAL_PORT: u16 = 0x3f8;
/// The ACPI sleep control, sleep status and reset registers, one port each.
pub(crate) const POWER_PORT: u16 = 0x600;
/// The watchdog's registers.
pub(crate) const WATCHDOG_PORT: u16 = 0x610;
/// A range of RAM: start and length.
pub(crate) type RamRange = (u64, u64);

/// The RAM ranges of a guest with `size` bytes: what does not fit below the MMIO gap goes above 4 GiB.
pub(crate) fn ram_ranges(size: u64) -> Vec<RamRange> {
    if size <= MMIO_GAP { vec![(0, size)] } else { vec![(0, MMIO_GAP), (MMIO_GAP_END, size - MMIO_GAP)] }
}

/// What Linux adds to its memory at a time, or less: what is not RAM keeps away from RAM by that.
const SECTION: u64 = 128 << 20;

/// The first address at which something else than RAM may begin, in a guest with `size` bytes of RAM.
pub(crate) fn above_ram(size: u64) -> u64 {
    let end = ram_ranges(size).iter().map(|(start, len)| start + len).max().unwrap_or(0);
    section_after(end.max(MMIO_GAP_END))
}

/// The first section that begins at `end` or above.
pub(crate) fn section_after(end: u64) -> u64 {
    end.next_multiple_of(SECTION)
}

/// The kind of a range in the memory map that the kernel is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MapKind {
    /// `E820_TYPE_RAM`.
    Ram = 1,
    /// `E820_TYPE_RESERVED`.
    Reserved = 2,
}

/// The memory map that the kernel is given: start, length, kind.
pub(crate) fn memory_map(size: u64) -> Vec<(u64, u64, MapKind)> {
    let mut map = vec![(0, LOW_RAM_END, MapKind::Ram), (LOW_RAM_END, HIGH_RAM - LOW_RAM_END, MapKind::Reserved)];
    for (start, len) in ram_ranges(size) {
        let start_above = start.max(HIGH_RAM);
        map.push((start_above, len - (start_above - start), MapKind::Ram));
    }
    map
}

/// The low half of an address that is below 4 GiB by this layout.
#[allow(clippy::cast_possible_truncation, reason = "all of these lie below 4 GiB")]
pub(crate) fn low(address: u64) -> u32 {
    debug_assert!(address < MMIO_GAP_END);
    address as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_leaves_the_gap_free() {
        assert_eq!(ram_ranges(128 << 20), [(0, 128 << 20)]);
        assert_eq!(ram_ranges(MMIO_GAP), [(0, MMIO_GAP)]);
        assert_eq!(ram_ranges(5 << 30), [(0, MMIO_GAP), (MMIO_GAP_END, 2 << 30)]);
    }

    #[test]
    fn memory_map_is_ordered_and_covers_all_ram() {
        for size in [16 << 20, 128 << 20, MMIO_GAP, 5 << 30] {
            let map = memory_map(size);
            assert!(map.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0), "{map:x?}");
            let ram: u64 = map.iter().filter(|r| r.2 == MapKind::Ram).map(|r| r.1).sum();
            assert_eq!(ram, size - (HIGH_RAM - LOW_RAM_END));
        }
    }
}
