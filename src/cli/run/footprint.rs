//! Keeps a running instance's process small.

use std::slice;

/// Lets go of the program's own read-only pages, which are then read again (from the page cache, as a rule) one by one as
/// they are needed. What has run so far, reading the command line and making the instance, is most of the program, and
/// none of it runs again while the instance does. The system would find that out by itself, but only when it is short of
/// memory.
pub(super) fn shed() {
    // SAFETY: the kernel describes the running program's own headers, which stay where they are as long as it runs.
    let headers = unsafe {
        let address = libc::getauxval(libc::AT_PHDR) as *const libc::Elf64_Phdr;
        let count = usize::try_from(libc::getauxval(libc::AT_PHNUM)).unwrap_or(0);
        if address.is_null() { &[] } else { slice::from_raw_parts(address, count) }
    };
    // Where the program was loaded: its headers' place in memory less that in its address space.
    let Some(own) = headers.iter().find(|header| header.p_type == libc::PT_PHDR) else { return };
    let bias = (headers.as_ptr() as usize).wrapping_sub(address(own.p_vaddr));
    for header in headers {
        if header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0 {
            let start = bias.wrapping_add(address(header.p_vaddr));
            let (first, end) = (start & !0xfff, start.wrapping_add(address(header.p_memsz)));
            // SAFETY: the range is a segment of the program that is mapped from its file and never written to, so that
            // pages that are gone come back as they were.
            unsafe { libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_DONTNEED) };
        }
    }
}

/// An address of this machine.
fn address(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}
