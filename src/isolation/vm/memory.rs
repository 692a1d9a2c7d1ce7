//! The guest's memory, and what it reads of its devices like memory: mapped here, handed to KVM as slots.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use amphi_devices::virtio::mmio::RegisterPages;
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use super::error::VmError;
use super::x86_64::layout;

/// The name under which guest memory shows in `/proc/PID/smaps`, so that it can be told from the VMM's own.
pub const MAPPING_NAME: &CStr = c"amphi-guest-memory";

/// The size of a huge page, which is also what one entry of a page directory maps.
const HUGE_PAGE: usize = 2 << 20;

/// The guest's memory, mapped for as long as this or a clone of its [`GuestMemory::handle`] is used.
pub(super) struct GuestMemory {
    handle: GuestMemoryMmap,
    registers: RegisterPages,
    /// Kept for its drop.
    _reservations: Vec<Reservation>,
}

/// Address space that goes back to the system when dropped.
pub(super) struct Reservation {
    base: *mut libc::c_void,
    len: usize,
}

// SAFETY: a reservation is an owned range of addresses; no thread has a special claim on it.
unsafe impl Send for Reservation {}
// SAFETY: nothing can be done with a shared reservation.
unsafe impl Sync for Reservation {}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `Reservation::new` and belongs to this value.
        unsafe { libc::munmap(self.base, self.len) };
    }
}

impl Reservation {
    /// Reserves memory of `len` bytes that starts at a multiple of a huge page, and returns its start as well.
    pub(super) fn new(len: usize) -> io::Result<(Self, *mut u8)> {
        let reserved = len.checked_add(HUGE_PAGE).ok_or(io::ErrorKind::OutOfMemory)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the system's choice touches no memory that exists.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), reserved, PROTECTION, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let offset = base.cast::<u8>().align_offset(HUGE_PAGE);
        // SAFETY: the offset is less than a huge page, so the pointer stays inside the mapping.
        let start = unsafe { base.cast::<u8>().add(offset) };
        Ok((Self { base, len: reserved }, start))
    }
}

const PROTECTION: i32 = libc::PROT_READ | libc::PROT_WRITE;

impl GuestMemory {
    /// Maps `size` bytes of guest RAM. Pages come into being when the guest or a loader first touches them.
    ///
    /// # Errors
    /// The host has not that much address space or memory to promise.
    pub(super) fn map(size: u64) -> Result<Self, VmError> {
        let error = |source| VmError::Memory { size, source };
        let mut reservations = Vec::new();
        let mut regions = Vec::new();
        for (start, len) in layout::ram_ranges(size) {
            let len = usize::try_from(len).map_err(|e| error(io::Error::other(e)))?;
            let (reservation, address) = Reservation::new(len).map_err(error)?;
            advise(address, len);
            reservations.push(reservation);
            // SAFETY: the range lies in the reservation, which lives as long as this value, and nothing else uses it.
            let mapping = unsafe { MmapRegionBuilder::new(len).with_raw_mmap_pointer(address) }
                .with_mmap_prot(PROTECTION)
                .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
                .build()
                .map_err(|e| error(io::Error::other(e.to_string())))?;
            regions.extend(GuestRegionMmap::new(mapping, GuestAddress(start)));
        }
        let handle = GuestMemoryMmap::from_regions(regions).map_err(|e| error(io::Error::other(e.to_string())))?;
        let registers =
            RegisterPages::new(layout::MAX_VIRTIO_DEVICES).map_err(VmError::host("map device registers"))?;
        Ok(Self { handle, registers, _reservations: reservations })
    }

    /// Where virtio devices keep the registers that the guest reads, from [`layout::VIRTIO_MMIO`] on.
    pub(super) fn registers(&self) -> &RegisterPages {
        &self.registers
    }

    /// What devices and loaders reach the memory by. Clones of it must not outlive this value.
    pub(super) fn handle(&self) -> &GuestMemoryMmap {
        &self.handle
    }

    /// Gives all of the RAM back to the host: it reads as zeroes from now on, and comes into being anew where it is touched. Neither
    /// the guest nor a device may use it meanwhile. The registers of devices stay.
    ///
    /// # Errors
    /// The host refuses.
    pub(super) fn discard(&self) -> Result<(), VmError> {
        for region in self.handle.iter() {
            let len = usize::try_from(region.len()).unwrap_or(usize::MAX);
            // SAFETY: the range is a private mapping of ours, of whose contents nothing in this process holds references.
            if unsafe { libc::madvise(region.as_ptr().cast(), len, libc::MADV_DONTNEED) } != 0 {
                return Err(VmError::host("discard the guest's memory")(io::Error::last_os_error()));
            }
        }
        Ok(())
    }

    /// The number of memory slots that it takes, the first ones: a region each, and one for the registers.
    pub(super) fn slots(&self) -> u32 {
        u32::try_from(self.handle.num_regions() + 1).unwrap_or(u32::MAX)
    }

    /// Gives KVM each region as a memory slot.
    pub(super) fn register(&self, vm: &VmFd) -> Result<(), VmError> {
        for (slot, region) in (0u32..).zip(self.handle.iter()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the region is mapped for as long as this value lives, and the machine drops its VM before it.
            unsafe { vm.set_user_memory_region(slot) }.map_err(VmError::kvm("set a memory slot"))?;
        }
        Ok(())
    }

    /// Lets the guest read the registers of the first `count` virtio devices without leaving it; writing them is an exit.
    pub(super) fn register_devices(&self, vm: &VmFd, count: usize) -> Result<(), VmError> {
        let slot = kvm_userspace_memory_region {
            slot: u32::try_from(self.handle.num_regions()).unwrap_or(u32::MAX),
            flags: KVM_MEM_READONLY,
            guest_phys_addr: layout::VIRTIO_MMIO,
            memory_size: count.min(layout::MAX_VIRTIO_DEVICES) as u64 * layout::VIRTIO_MMIO_LEN,
            userspace_addr: self.registers.host_address() as u64,
        };
        // SAFETY: as for RAM; there are pages for as many devices as there may be, and the guest cannot write them.
        unsafe { vm.set_user_memory_region(slot) }.map_err(VmError::kvm("set the memory slot of device registers"))
    }
}

/// Names the mapping, and asks for huge pages: because host and guest addresses agree within a huge page, KVM can then
/// map it by huge pages as well, and each saves up to 511 faults. Systems without either refuse, which costs only that.
fn advise(start: *mut u8, len: usize) {
    // SAFETY: the range is a mapping of ours; neither call changes its contents or protection.
    unsafe {
        libc::prctl(libc::PR_SET_VMA, libc::PR_SET_VMA_ANON_NAME, start, len, MAPPING_NAME.as_ptr());
        libc::madvise(start.cast(), len, libc::MADV_HUGEPAGE);
    }
}

/// Reads `len` bytes of `file`, from `offset` on, straight into guest memory at `address`.
///
/// # Errors
/// The file cannot be read, or is shorter (`UnexpectedEof`); or the memory is not there.
pub(super) fn read_from(file: &File, offset: u64, memory: &GuestMemoryMmap, address: u64, len: u64) -> io::Result<()> {
    let len = usize::try_from(len).map_err(io::Error::other)?;
    let slice = memory.get_slice(GuestAddress(address), len).map_err(io::Error::other)?;
    let mut done = 0;
    while done < len {
        let position = libc::off_t::try_from(offset + done as u64).map_err(io::Error::other)?;
        // SAFETY: the range lies within the slice, which is guest memory that nothing in this process holds
        // references into.
        let read = unsafe {
            let target = slice.ptr_guard_mut().as_ptr().add(done);
            libc::pread(file.as_raw_fd(), target.cast(), len - done, position)
        };
        match usize::try_from(read) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => done += read,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn what_is_discarded_reads_as_zeroes() {
        for size in [16 << 20, layout::MMIO_GAP + (8 << 20)] {
            let memory = GuestMemory::map(size).unwrap();
            let ends = memory.handle().iter().map(GuestRegionMmap::last_addr).collect::<Vec<_>>();
            let places = || ends.iter().copied().chain([GuestAddress(0), GuestAddress(0x12_3456)]);
            for place in places() {
                memory.handle().write_obj(7u8, place).unwrap();
            }
            memory.discard().unwrap();
            for place in places() {
                assert_eq!(memory.handle().read_obj::<u8>(place).unwrap(), 0, "{place:?}");
                memory.handle().write_obj(8u8, place).unwrap();
            }
        }
    }

    #[test]
    fn regions_are_aligned_and_usable_to_their_ends() {
        for size in [16 << 20, (16 << 20) + 4096, layout::MMIO_GAP + (8 << 20)] {
            let memory = GuestMemory::map(size).unwrap();
            assert!(memory.handle().iter().all(|region| region.as_ptr().align_offset(HUGE_PAGE) == 0));
            let last = memory.handle().last_addr();
            memory.handle().write_obj(7u8, last).unwrap();
            assert_eq!(memory.handle().read_obj::<u8>(last).unwrap(), 7);
        }
    }
}
