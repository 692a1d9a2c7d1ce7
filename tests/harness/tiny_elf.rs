//! Kernels of a few bytes, for what no real kernel does.

/// `e_machine` of x86-64.
pub(crate) const X86_64: u16 = 62;
/// `e_machine` of 64-bit Arm.
pub(crate) const AARCH64: u16 = 183;

/// A 64-bit ELF executable whose one segment is `code`, loaded and entered at 16 MiB.
pub(crate) fn kernel(machine: u16, code: &[u8]) -> Vec<u8> {
    const ENTRY: u64 = 16 << 20;
    const HEADERS: u64 = 64 + 56;
    let size = u64::try_from(code.len()).unwrap();
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend(2_u16.to_le_bytes()); // ET_EXEC
    file.extend(machine.to_le_bytes());
    file.extend(1_u32.to_le_bytes());
    for field in [ENTRY, 64, 0] {
        file.extend(field.to_le_bytes()); // entry, program headers, no section headers
    }
    file.extend(0_u32.to_le_bytes());
    for field in [64_u16, 56, 1, 64, 0, 0] {
        file.extend(field.to_le_bytes());
    }
    file.extend(1_u32.to_le_bytes()); // PT_LOAD
    file.extend(5_u32.to_le_bytes()); // readable, executable
    for field in [HEADERS, ENTRY, ENTRY, size, size, 8] {
        file.extend(field.to_le_bytes());
    }
    file.extend(code);
    file
}
