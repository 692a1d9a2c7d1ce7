//! The state in which the boot processor enters the kernel.

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::layout;
use crate::host::kvm::x86_64::{self, CR0_ET, CR0_PE, CR0_PG, CR4_PAE, EFER_LMA, EFER_LME, descriptor};

/// Which of the kernel's doors to enter by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// The 64-bit entry of the Linux boot protocol (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").
    Linux64(u64),
    /// The 32-bit entry of the PVH boot ABI (docs/misc/pvh.pandoc of Xen).
    Pvh(u64),
}

impl Entry {
    fn address(self) -> u64 {
        match self {
            Self::Linux64(address) | Self::Pvh(address) => address,
        }
    }
}

/// The type of a busy 32-bit or 64-bit task state segment.
const TSS_BUSY: u8 = 0xb;
const SELECTOR_CODE: u16 = 0x10;
const SELECTOR_DATA: u16 = 0x18;
const SELECTOR_TSS: u16 = 0x20;

/// Writes the tables that the registers will point to: a GDT, and for the 64-bit entry an identity map of 1 GiB.
pub(crate) fn write_tables(memory: &GuestMemoryMmap, entry: Entry) -> Result<(), vm_memory::GuestMemoryError> {
    let long_mode = matches!(entry, Entry::Linux64(_));
    let code = x86_64::code_segment(SELECTOR_CODE, long_mode);
    let data = x86_64::data_segment(SELECTOR_DATA);
    let gdt = [0, 0, descriptor(&code), descriptor(&data), descriptor(&tss())];
    for (i, entry) in (0u64..).zip(gdt) {
        memory.write_obj(entry, GuestAddress(layout::GDT + 8 * i))?;
    }
    if long_mode {
        memory.write_obj(x86_64::table_entry(layout::PDPT), GuestAddress(layout::PML4))?;
        memory.write_obj(x86_64::table_entry(layout::PD), GuestAddress(layout::PDPT))?;
        memory.write_slice(&x86_64::identity_directory(), GuestAddress(layout::PD))?;
    }
    Ok(())
}

fn tss() -> kvm_segment {
    kvm_segment { selector: SELECTOR_TSS, limit: 0x67, type_: TSS_BUSY, present: 1, ..Default::default() }
}

/// `IA32_MTRR_DEF_TYPE`: memory types are on, and all memory is write-back where nothing else is said.
/// Firmware would set it; without it a kernel takes memory types, and with them page attributes, for broken.
const MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// Sets what firmware would have set in each processor.
pub(crate) fn set_firmware_msrs(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let entry = kvm_msr_entry { index: MTRR_DEF_TYPE, data: MTRR_ENABLED_WRITE_BACK, ..Default::default() };
    let msrs = Msrs::from_entries(&[entry]).map_err(|_| kvm_ioctls::Error::new(libc::ENOMEM))?;
    vcpu.set_msrs(&msrs).map(|_| ())
}

/// Puts the boot processor at the kernel's door.
pub(crate) fn set_entry(vcpu: &VcpuFd, entry: Entry) -> Result<(), kvm_ioctls::Error> {
    let long_mode = matches!(entry, Entry::Linux64(_));
    let mut sregs = vcpu.get_sregs()?;
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = 5 * 8 - 1;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cs = x86_64::code_segment(SELECTOR_CODE, long_mode);
    let data = x86_64::data_segment(SELECTOR_DATA);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = tss();
    sregs.cr0 = CR0_PE | CR0_ET;
    if long_mode {
        sregs.cr0 |= CR0_PG;
        sregs.cr3 = layout::PML4;
        sregs.cr4 = CR4_PAE;
        sregs.efer = EFER_LME | EFER_LMA;
    }
    vcpu.set_sregs(&sregs)?;
    let mut regs = kvm_regs { rip: entry.address(), rflags: 2, ..Default::default() };
    match entry {
        Entry::Linux64(_) => regs.rsi = layout::BOOT_PARAMS,
        Entry::Pvh(_) => regs.rbx = layout::PVH_START_INFO,
    }
    vcpu.set_regs(&regs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_task_state_segment_is_the_usual_one() {
        assert_eq!(descriptor(&tss()), 0x0000_8b00_0000_0067);
    }

    #[test]
    fn the_identity_map_is_where_the_registers_point() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        write_tables(&memory, Entry::Linux64(0x10_0000)).unwrap();
        let last: u64 = memory.read_obj(GuestAddress(layout::PD + 511 * 8)).unwrap();
        assert_eq!(last, (511 << 21) | 0x83);
        assert_eq!(memory.read_obj::<u64>(GuestAddress(layout::PML4)).unwrap(), layout::PDPT | 3);
    }
}
