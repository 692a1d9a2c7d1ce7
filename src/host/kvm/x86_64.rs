//! What 64-bit and 32-bit guests of ours begin with: flat segments, and an identity map of the lowest GiB.

use kvm_bindings::kvm_segment;

/// Protected mode is on (Intel SDM volume 3, section 2.5, for all of CR0 and CR4).
pub(crate) const CR0_PE: u64 = 1;
/// An x87 is there.
pub(crate) const CR0_ET: u64 = 1 << 4;
/// Paging is on.
pub(crate) const CR0_PG: u64 = 1 << 31;
/// Entries of page tables have 64 bits.
pub(crate) const CR4_PAE: u64 = 1 << 5;
/// Long mode is enabled (section 2.2.1).
pub(crate) const EFER_LME: u64 = 1 << 8;
/// Long mode is active.
pub(crate) const EFER_LMA: u64 = 1 << 10;

const PRESENT_WRITABLE: u64 = 3;
const LARGE_PAGE: u64 = 1 << 7;

const EXECUTE_READ_ACCESSED: u8 = 0xb;
const READ_WRITE_ACCESSED: u8 = 0x3;

/// A segment of code that spans all addresses, with 64-bit or 32-bit instructions.
pub(crate) fn code_segment(selector: u16, long_mode: bool) -> kvm_segment {
    flat_segment(selector, EXECUTE_READ_ACCESSED, long_mode)
}

/// A segment of data that spans all addresses.
pub(crate) fn data_segment(selector: u16) -> kvm_segment {
    flat_segment(selector, READ_WRITE_ACCESSED, false)
}

fn flat_segment(selector: u16, type_: u8, long_mode: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(!long_mode),
        s: 1,
        l: u8::from(long_mode),
        g: 1,
        ..Default::default()
    }
}

/// A segment's descriptor for the GDT (Intel SDM volume 3, section 3.4.5).
pub(crate) fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = if segment.g == 1 { segment.limit >> 12 } else { segment.limit };
    let limit = u64::from(limit);
    (limit & 0xffff)
        | (segment.base & 0xff_ffff) << 16
        | u64::from(segment.type_) << 40
        | u64::from(segment.s) << 44
        | u64::from(segment.dpl) << 45
        | u64::from(segment.present) << 47
        | (limit >> 16 & 0xf) << 48
        | u64::from(segment.l) << 53
        | u64::from(segment.db) << 54
        | u64::from(segment.g) << 55
        | (segment.base >> 24 & 0xff) << 56
}

/// An entry of a page table that leads to the table at `table`.
pub(crate) fn table_entry(table: u64) -> u64 {
    table | PRESENT_WRITABLE
}

/// A page directory that maps the lowest GiB to itself, in pages of 2 MiB.
pub(crate) fn identity_directory() -> [u8; 4096] {
    let mut directory = [0u8; 4096];
    for (i, slot) in (0u64..).zip(directory.chunks_exact_mut(8)) {
        slot.copy_from_slice(&(i << 21 | LARGE_PAGE | PRESENT_WRITABLE).to_le_bytes());
    }
    directory
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_the_usual_flat_ones() {
        assert_eq!(descriptor(&code_segment(0x10, true)), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&code_segment(0x10, false)), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&data_segment(0x18)), 0x00cf_9300_0000_ffff);
    }

    #[test]
    fn identity_map_reaches_a_gibibyte() {
        let directory = identity_directory();
        assert_eq!(directory[..8], 0x83_u64.to_le_bytes());
        assert_eq!(directory[4088..], (511_u64 << 21 | 0x83).to_le_bytes());
    }
}
