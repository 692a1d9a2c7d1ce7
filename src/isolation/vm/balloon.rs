//! What a balloon takes out of the guest's memory, and how it is doing.

use std::io;

use amphi_devices::virtio::balloon::{PAGE, Reclaim, Statistics};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::error::VmError;

/// How a guest's balloon is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalloonState {
    /// How many bytes are to be in it.
    pub target: u64,
    /// How many bytes are in it, as the guest says.
    pub actual: u64,
    /// What the guest said last of its memory.
    pub statistics: Statistics,
}

/// The number of whole pages in `bytes`, for a guest with `memory` bytes.
pub(super) fn pages(bytes: u64, memory: u64) -> Result<u32, VmError> {
    let refused = || {
        let memory = memory >> 20;
        VmError::Unsupported(format!("--balloon: {bytes} bytes do not fit into a guest with {memory} MiB of memory"))
    };
    if bytes >= memory {
        return Err(refused());
    }
    u32::try_from(bytes / PAGE).map_err(|_| refused())
}

/// The guest's memory, whose pages the host can have back.
pub(super) struct GuestRam(pub(super) GuestMemoryMmap);

impl Reclaim for GuestRam {
    fn discard(&self, address: GuestAddress, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        for slice in self.0.get_slices(address, len) {
            let slice = slice.map_err(io::Error::other)?;
            // SAFETY: The range is guest memory, which is private and anonymous, and which nothing in this process holds
            // references into. The guest reads zeroes there afterwards.
            let result =
                unsafe { libc::madvise(slice.ptr_guard_mut().as_ptr().cast(), slice.len(), libc::MADV_DONTNEED) };
            if result != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn what_is_given_back_reads_as_zeroes_and_the_rest_stays() {
        let memory =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20), (GuestAddress(1 << 20), 1 << 20)]).unwrap();
        memory.write_slice(&[7; 2 << 20], GuestAddress(0)).unwrap();
        // Over the border of two mappings.
        GuestRam(memory.clone()).discard(GuestAddress(0xf_f000), 0x2000).unwrap();
        let mut bytes = vec![0; 2 << 20];
        memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        assert_eq!(bytes.iter().filter(|&&byte| byte == 0).count(), 0x2000);
        assert!(bytes[0xf_f000..0x10_1000].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_balloon_is_smaller_than_its_guest() {
        assert_eq!(pages(8191, 1 << 20).unwrap(), 1);
        assert!(pages(1 << 20, 1 << 20).is_err() && pages(u64::MAX, u64::MAX).is_err());
    }
}
