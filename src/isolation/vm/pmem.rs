//! Files of the host's as persistent memory of a guest: mapped beside its RAM, and handed to KVM as slots.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use amphi_devices::virtio::pmem::Pmem;
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::GuestAddress;

use super::error::VmError;
use super::memory::Reservation;
use super::x86_64::{cpuid, layout};
use crate::image;
use crate::spec::PmemSpec;

/// What the size of a range is a multiple of: Linux maps persistent memory in huge pages.
const GRANULE: u64 = 2 << 20;

/// A file that is open, and locked as long as it is.
#[derive(Debug)]
pub(super) struct PmemFile {
    file: File,
    len: u64,
    read_only: bool,
}

impl PmemFile {
    /// Opens a file of the user's.
    pub(super) fn open(spec: &PmemSpec) -> Result<Self, VmError> {
        let failed = |source| VmError::Pmem { path: spec.path.clone(), source };
        let file = image::open_disk(&spec.path, spec.read_only).map_err(|error| failed(io::Error::other(error)))?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() || metadata.len() == 0 {
            let problem = "it is no file with something in it; a block device can be a --disk";
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, problem)));
        }
        // The rest of a granule would be lost with the guest.
        if !spec.read_only && metadata.len() % GRANULE != 0 {
            let problem = "its size is no multiple of 2 MiB, as it must be where the guest may write: `truncate -s %2M` makes \
                 it one; or add ,ro";
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, problem)));
        }
        Ok(Self { file, len: metadata.len(), read_only: spec.read_only })
    }

    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()?, ..*self })
    }
}

/// A file mapped for the guest. It must live longer than the VM.
pub(super) struct PmemRange {
    start: u64,
    size: u64,
    file: PmemFile,
    address: *mut u8,
    _reservation: Reservation,
}

// SAFETY: the address is only handed to KVM; nothing in this process reads or writes there.
unsafe impl Send for PmemRange {}
// SAFETY: as above.
unsafe impl Sync for PmemRange {}

impl PmemRange {
    /// Maps the file, so that the guest will see it at `start`.
    fn map(file: PmemFile, start: u64) -> io::Result<Self> {
        let size = file.len.next_multiple_of(GRANULE);
        let len = usize::try_from(size).map_err(io::Error::other)?;
        let (reservation, address) = Reservation::new(len)?;
        let writable = if file.read_only { 0 } else { libc::PROT_WRITE };
        let mapped = usize::try_from(file.len).map_err(io::Error::other)?;
        // SAFETY: the range lies in the reservation, and nothing else uses it. What is behind the file's last page stays as it
        // is there: pages of zeroes.
        let result = unsafe {
            libc::mmap(
                address.cast(),
                mapped,
                libc::PROT_READ | writable,
                libc::MAP_SHARED | libc::MAP_FIXED,
                file.file.as_raw_fd(),
                0,
            )
        };
        if result == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start, size, file, address, _reservation: reservation })
    }

    /// Gives KVM the range as memory slot `slot`.
    pub(super) fn register(&self, vm: &VmFd, slot: u32) -> Result<(), VmError> {
        let slot = kvm_userspace_memory_region {
            slot,
            flags: if self.file.read_only { KVM_MEM_READONLY } else { 0 },
            guest_phys_addr: self.start,
            memory_size: self.size,
            userspace_addr: self.address as u64,
        };
        // SAFETY: the range is mapped for as long as this value lives, and the machine drops its VM before it.
        unsafe { vm.set_user_memory_region(slot) }.map_err(VmError::kvm("set a memory slot for --pmem"))
    }

    /// The device that tells the guest of it.
    pub(super) fn device(&self) -> io::Result<Pmem> {
        let file = (!self.file.read_only).then(|| self.file.file.try_clone()).transpose()?;
        Pmem::new(GuestAddress(self.start), self.size, file)
    }
}

/// Maps `files` one after the other above the RAM of a guest with `memory` bytes.
pub(super) fn map(files: Vec<PmemFile>, memory: u64) -> Result<Vec<PmemRange>, VmError> {
    let mut next = layout::above_ram(memory);
    let end = 1_u64 << cpuid::physical_address_bits();
    let mut ranges = Vec::with_capacity(files.len());
    for file in files {
        let size = file.len;
        if size > end.saturating_sub(next) {
            let problem = format!("--pmem: {size} bytes at {next:#x} are beyond the addresses of this processor");
            return Err(VmError::Unsupported(problem));
        }
        let range = PmemRange::map(file, next).map_err(|source| VmError::Memory { size, source })?;
        next = layout::section_after(range.start + range.size);
        ranges.push(range);
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(len: u64) -> (tempfile::TempDir, PmemSpec) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pmem");
        File::create(&path).unwrap().set_len(len).unwrap();
        (folder, PmemSpec { path, read_only: false })
    }

    #[test]
    fn sizes_are_whole_granules_where_the_guest_may_write() {
        let (_folder, mut spec) = file(GRANULE + 4096);
        let error = PmemFile::open(&spec).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(error.to_string().contains("--pmem") && cause.contains("truncate"), "{error}: {cause}");
        spec.read_only = true;
        let range = &map(vec![PmemFile::open(&spec).unwrap()], 128 << 20).unwrap()[0];
        assert_eq!((range.start, range.size), (layout::MMIO_GAP_END, 2 * GRANULE));
        let (_folder, empty) = file(0);
        assert!(PmemFile::open(&empty).is_err());
    }

    #[test]
    fn ranges_follow_one_another_above_the_ram() {
        let (_one, first) = file(GRANULE);
        let (_two, second) = file(3 * GRANULE);
        let open = |spec| PmemFile::open(spec).unwrap();
        let ranges = map(vec![open(&first), open(&second)], (5 << 30) + 4096).unwrap();
        let places: Vec<_> = ranges.iter().map(|range| (range.start, range.size)).collect();
        let start = (6 << 30) + (128 << 20);
        assert_eq!(places, [(start, GRANULE), (start + (128 << 20), 3 * GRANULE)]);
        assert!(PmemFile::open(&second).is_err(), "it is locked");
    }
}
