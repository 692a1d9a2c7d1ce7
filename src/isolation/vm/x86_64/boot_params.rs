//! What the kernel is told at its door: memory map, initrd, command line, ACPI.

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout;

const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
const LOADER_UNDEFINED: u8 = 0xff;
const PVH_MAGIC: u32 = 0x336e_c578;

/// What both boot protocols say, each in its own form.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BootInfo {
    /// The guest's RAM in bytes.
    pub(crate) ram: u64,
    /// Where the initrd is, and its length in bytes; 0 where there is none.
    pub(crate) initrd: (u64, u64),
    /// Where the RSDP is.
    pub(crate) rsdp: u64,
}

/// Writes the zero page of the Linux boot protocol (Documentation/arch/x86/zero-page.rst).
///
/// `header` is the setup header of the bzImage that the kernel came from, where there was one.
pub(crate) fn write_zero_page(
    memory: &GuestMemoryMmap,
    info: &BootInfo,
    header: Option<setup_header>,
) -> Result<(), GuestMemoryError> {
    let hdr = header.unwrap_or(setup_header {
        kernel_alignment: 0x20_0000,
        boot_flag: BOOT_FLAG,
        header: HEADER_MAGIC,
        ..Default::default()
    });
    let mut params = boot_params { hdr, ..Default::default() };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = layout::low(layout::COMMAND_LINE);
    params.hdr.cmdline_size = layout::low(layout::COMMAND_LINE_MAX as u64) - 1;
    params.hdr.ramdisk_image = layout::low(info.initrd.0);
    params.hdr.ramdisk_size = layout::low(info.initrd.1);
    params.acpi_rsdp_addr = info.rsdp;
    let map = layout::memory_map(info.ram);
    for (slot, (addr, size, kind)) in map.iter().enumerate() {
        params.e820_table[slot] = boot_e820_entry { addr: *addr, size: *size, r#type: *kind as u32 };
    }
    params.e820_entries = u8::try_from(map.len()).unwrap_or(u8::MAX);
    // SAFETY: `boot_params` is a packed struct of integers: every byte is initialised and there is no padding.
    let bytes = unsafe { std::slice::from_raw_parts((&raw const params).cast::<u8>(), size_of::<boot_params>()) };
    memory.write_slice(bytes, GuestAddress(layout::BOOT_PARAMS))
}

/// Writes the start information of the PVH boot ABI.
pub(crate) fn write_pvh_start_info(memory: &GuestMemoryMmap, info: &BootInfo) -> Result<(), GuestMemoryError> {
    let modules = layout::PVH_START_INFO + size_of::<hvm_start_info>() as u64;
    let memory_map = modules + size_of::<hvm_modlist_entry>() as u64;
    let map = layout::memory_map(info.ram);
    let start = hvm_start_info {
        magic: PVH_MAGIC,
        version: 1,
        nr_modules: u32::from(info.initrd.1 > 0),
        modlist_paddr: modules,
        cmdline_paddr: layout::COMMAND_LINE,
        rsdp_paddr: info.rsdp,
        memmap_paddr: memory_map,
        memmap_entries: u32::try_from(map.len()).unwrap_or(0),
        ..Default::default()
    };
    let module = hvm_modlist_entry { paddr: info.initrd.0, size: info.initrd.1, ..Default::default() };
    write_words(
        memory,
        layout::PVH_START_INFO,
        &[
            u64::from(start.magic) | u64::from(start.version) << 32,
            u64::from(start.flags) | u64::from(start.nr_modules) << 32,
            start.modlist_paddr,
            start.cmdline_paddr,
            start.rsdp_paddr,
            start.memmap_paddr,
            u64::from(start.memmap_entries),
        ],
    )?;
    write_words(memory, modules, &[module.paddr, module.size, 0, 0])?;
    for (slot, (addr, size, kind)) in (0u64..).zip(map) {
        let at = memory_map + slot * size_of::<hvm_memmap_table_entry>() as u64;
        write_words(memory, at, &[addr, size, kind as u64])?;
    }
    Ok(())
}

fn write_words(memory: &GuestMemoryMmap, at: u64, words: &[u64]) -> Result<(), GuestMemoryError> {
    for (i, word) in (0u64..).zip(words) {
        memory.write_obj(*word, GuestAddress(at + 8 * i))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap()
    }

    const INFO: BootInfo = BootInfo { ram: 128 << 20, initrd: (0x700_0000, 0x1234), rsdp: layout::ACPI_TABLES };

    #[test]
    fn zero_page_has_its_fields_where_the_kernel_reads_them() {
        let memory = memory();
        write_zero_page(&memory, &INFO, None).unwrap();
        let at = |offset: u64| GuestAddress(layout::BOOT_PARAMS + offset);
        assert_eq!(memory.read_obj::<u64>(at(0x70)).unwrap(), layout::ACPI_TABLES);
        assert_eq!(memory.read_obj::<u8>(at(0x1e8)).unwrap(), 3);
        assert_eq!(memory.read_obj::<u32>(at(0x218)).unwrap(), 0x700_0000);
        assert_eq!(memory.read_obj::<u32>(at(0x21c)).unwrap(), 0x1234);
        assert_eq!(memory.read_obj::<u64>(at(0x2d0 + 2 * 20)).unwrap(), layout::HIGH_RAM);
    }

    #[test]
    fn pvh_start_info_has_its_fields_where_the_kernel_reads_them() {
        let memory = memory();
        write_pvh_start_info(&memory, &INFO).unwrap();
        let at = |offset: u64| GuestAddress(layout::PVH_START_INFO + offset);
        assert_eq!(memory.read_obj::<u32>(at(0)).unwrap(), PVH_MAGIC);
        assert_eq!(memory.read_obj::<u64>(at(32)).unwrap(), layout::ACPI_TABLES);
        let modules: u64 = memory.read_obj(at(16)).unwrap();
        assert_eq!(memory.read_obj::<u64>(GuestAddress(modules + 8)).unwrap(), 0x1234);
        let map: u64 = memory.read_obj(at(40)).unwrap();
        assert_eq!(memory.read_obj::<u32>(GuestAddress(map + 24 + 16)).unwrap(), 2);
    }
}
