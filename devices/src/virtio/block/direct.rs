//! A disk's file past the host's page cache.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};

use libc::iovec;

/// What every device and file system is content with.
const SAFE_ALIGNMENT: u64 = 4096;

/// A file that was opened with `O_DIRECT`, and what has to be aligned to how many bytes.
pub(super) struct DirectFile {
    file: File,
    offset_alignment: u64,
    memory_alignment: u64,
}

impl DirectFile {
    pub(super) fn new(file: File) -> Self {
        let (offset_alignment, memory_alignment) = alignment(&file).unwrap_or((SAFE_ALIGNMENT, SAFE_ALIGNMENT));
        Self { file, offset_alignment, memory_alignment }
    }

    /// Whether the host takes a transfer at `offset` with these buffers. A file system in the guest makes no others; a
    /// user's program may, and then the page cache is used.
    pub(super) fn takes(&self, offset: u64, buffers: &[iovec]) -> bool {
        let aligned = |value: u64, to: u64| value & (to - 1) == 0;
        aligned(offset, self.offset_alignment)
            && buffers.iter().all(|buffer| {
                aligned(buffer.iov_base.addr() as u64, self.memory_alignment)
                    && aligned(buffer.iov_len as u64, self.offset_alignment)
            })
    }
}

impl AsRawFd for DirectFile {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// What the kernel says about the alignment of offsets and of memory; Linux 6.1 is the first to say it.
fn alignment(file: &File) -> Option<(u64, u64)> {
    // SAFETY: All-zero bytes are a valid value of this plain structure.
    let mut status: libc::statx = unsafe { std::mem::zeroed() };
    let flags = libc::AT_EMPTY_PATH;
    // SAFETY: The path is a C string, and the structure lives through the call.
    let result = unsafe { libc::statx(file.as_raw_fd(), c"".as_ptr(), flags, libc::STATX_DIOALIGN, &raw mut status) };
    let known = result == 0 && status.stx_mask & libc::STATX_DIOALIGN != 0;
    let alignments = (u64::from(status.stx_dio_offset_align), u64::from(status.stx_dio_mem_align));
    (known && alignments.0.is_power_of_two() && alignments.1.is_power_of_two()).then_some(alignments)
}
