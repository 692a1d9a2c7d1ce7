//! The probe's guest: a page of machine code that runs in ring 0, and the tables it needs.

use std::arch::global_asm;

use kvm_bindings::{kvm_regs, kvm_sregs};

use super::x86_64::{
    CR0_ET, CR0_PE, CR0_PG, CR4_PAE, EFER_LMA, EFER_LME, code_segment, data_segment, descriptor, identity_directory,
    table_entry,
};

global_asm!(include_str!("probe.s"));

// SAFETY: the symbols are defined by the assembly above; only their addresses are ever used.
unsafe extern "C" {
    static amphi_probe_start: u8;
    static amphi_probe_mov_cr3: u8;
    static amphi_probe_invlpg: u8;
    static amphi_probe_msr: u8;
    static amphi_probe_int3: u8;
    static amphi_probe_popcnt: u8;
    static amphi_probe_cmpxchg16b: u8;
    static amphi_probe_xsave: u8;
    static amphi_probe_loop: u8;
    static amphi_probe_on_int3: u8;
    static amphi_probe_on_fault: u8;
    static amphi_probe_end: u8;
}

/// The guest writes here when a test is through.
pub(super) const DONE: u16 = 0x10;
/// The guest writes here when the processor raised an exception that no test expects.
pub(super) const FAULT: u16 = 0x11;
/// The guest writes here right before the counted loop.
pub(super) const BEGIN: u16 = 0x12;
/// Instructions in one round of the counted loop.
pub(super) const INSTRUCTIONS_PER_ROUND: u32 = 2;

/// Bytes of guest memory, from guest-physical address 0.
pub(super) const MEMORY_SIZE: usize = 0x10000;

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PAGE_DIRECTORY: u64 = 0x3000;
const GDT: u64 = 0x4000;
const IDT: u64 = 0x5000;
const CODE: u64 = 0x6000;
const STACK_TOP: u64 = 0x8000;
const XSAVE_AREA: u64 = 0x9000;

const CODE_SELECTOR: u16 = 0x08;
const DATA_SELECTOR: u16 = 0x10;

const CR0_MP_NE: u64 = 1 << 1 | 1 << 5;
const CR4_OSFXSR_OSXMMEXCPT: u64 = 3 << 9;
const CR4_OSXSAVE: u64 = 1 << 18;
const EFER_SCE: u64 = 1;

/// One group of instructions that is tried on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Test {
    MovCr3,
    Invlpg,
    Msr,
    Int3,
    Popcnt,
    Cmpxchg16b,
    Xsave,
    Loop,
}

impl Test {
    /// All that must work for a kernel to run; the counted loop is not among them.
    pub(super) const REQUIRED: [Self; 7] =
        [Self::MovCr3, Self::Invlpg, Self::Msr, Self::Int3, Self::Popcnt, Self::Cmpxchg16b, Self::Xsave];

    /// The instructions' names.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::MovCr3 => "mov cr3",
            Self::Invlpg => "invlpg",
            Self::Msr => "rdmsr/wrmsr",
            Self::Int3 => "int3",
            Self::Popcnt => "popcnt",
            Self::Cmpxchg16b => "cmpxchg16b",
            Self::Xsave => "xsave/xrstor",
            Self::Loop => "dec/jnz",
        }
    }

    fn entry(self) -> u64 {
        let symbol = match self {
            Self::MovCr3 => &raw const amphi_probe_mov_cr3,
            Self::Invlpg => &raw const amphi_probe_invlpg,
            Self::Msr => &raw const amphi_probe_msr,
            Self::Int3 => &raw const amphi_probe_int3,
            Self::Popcnt => &raw const amphi_probe_popcnt,
            Self::Cmpxchg16b => &raw const amphi_probe_cmpxchg16b,
            Self::Xsave => &raw const amphi_probe_xsave,
            Self::Loop => &raw const amphi_probe_loop,
        };
        guest_address(symbol)
    }
}

/// Where a label of the code lies in the guest.
fn guest_address(symbol: *const u8) -> u64 {
    CODE + (symbol.addr() - (&raw const amphi_probe_start).addr()) as u64
}

/// The guest's memory before its first instruction: code, page tables (identity-mapped), GDT, IDT.
pub(super) fn memory_image() -> Vec<u8> {
    let mut memory = vec![0u8; MEMORY_SIZE];
    let mut put = |at: u64, bytes: &[u8]| {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        if let Some(place) = memory.get_mut(at..at.saturating_add(bytes.len())) {
            place.copy_from_slice(bytes);
        }
    };
    let start = &raw const amphi_probe_start;
    let length = (&raw const amphi_probe_end).addr() - start.addr();
    // SAFETY: both labels delimit one run of initialised, immutable bytes in this program's read-only data.
    put(CODE, unsafe { std::slice::from_raw_parts(start, length) });

    put(PML4, &table_entry(PDPT).to_le_bytes());
    put(PDPT, &table_entry(PAGE_DIRECTORY).to_le_bytes());
    put(PAGE_DIRECTORY, &identity_directory());

    for segment in [code_segment(CODE_SELECTOR, true), data_segment(DATA_SELECTOR)] {
        put(GDT + u64::from(segment.selector), &descriptor(&segment).to_le_bytes());
    }

    for vector in 0..32 {
        let handler = match vector {
            3 => guest_address(&raw const amphi_probe_on_int3),
            _ => guest_address(&raw const amphi_probe_on_fault),
        };
        const PRESENT_INTERRUPT_GATE: u64 = 0x8e00 << 32;
        let low = (handler & 0xffff) | u64::from(CODE_SELECTOR) << 16 | PRESENT_INTERRUPT_GATE;
        put(IDT + vector * 16, &(low | (handler >> 16 & 0xffff) << 48).to_le_bytes());
        put(IDT + vector * 16 + 8, &(handler >> 32).to_le_bytes());
    }
    memory
}

/// Turns the registers of a reset vCPU into those of 64-bit ring 0 with the tables of [`memory_image`].
pub(super) fn system_registers(mut sregs: kvm_sregs, xsave: bool) -> kvm_sregs {
    sregs.cs = code_segment(CODE_SELECTOR, true);
    let data = data_segment(DATA_SELECTOR);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, 0x17);
    (sregs.idt.base, sregs.idt.limit) = (IDT, 32 * 16 - 1);
    sregs.cr0 = CR0_PE | CR0_MP_NE | CR0_ET | CR0_PG;
    sregs.cr3 = PML4;
    sregs.cr4 = CR4_PAE | CR4_OSFXSR_OSXMMEXCPT | if xsave { CR4_OSXSAVE } else { 0 };
    sregs.efer = EFER_SCE | EFER_LME | EFER_LMA;
    sregs
}

/// The registers at the first instruction of `test`; `rounds` counts for the loop only.
pub(super) fn registers(test: Test, rounds: u64) -> kvm_regs {
    kvm_regs { rip: test.entry(), rsp: STACK_TOP, rcx: rounds, rdi: XSAVE_AREA, rflags: 2, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_lies_where_the_tables_say() {
        let memory = memory_image();
        let at = |test: Test| usize::try_from(test.entry()).unwrap();
        assert_eq!(memory[at(Test::Int3)], 0xcc);
        assert_eq!(memory[at(Test::Popcnt)..][..5], [0xf3, 0x48, 0x0f, 0xb8, 0xc4]);
        assert_eq!(memory[at(Test::Xsave) - 2..][..2], [0xe6, 0x10], "each test ends with out 0x10, al");
    }

    #[test]
    fn the_breakpoint_gate_points_to_its_handler() {
        let memory = memory_image();
        let gate = &memory[usize::try_from(IDT).unwrap() + 3 * 16..][..16];
        let handler = usize::from(u16::from_le_bytes([gate[0], gate[1]]))
            | usize::from(u16::from_le_bytes([gate[6], gate[7]])) << 16;
        assert_eq!(memory[handler..][..2], [0x48, 0xcf], "iretq");
        assert_eq!(gate[5], 0x8e);
    }
}
