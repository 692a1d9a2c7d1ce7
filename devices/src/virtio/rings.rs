//! The words of virtqueues in guest memory. Each access is checked, and costs little more than the access: rings are read and
//! written several times a request.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use virtio_queue::Error;
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion,
    MemoryRegionAddress, VolatileMemory, VolatileSlice,
};

use super::chain::QueueError;

/// The `len` bytes at `address`, if all of them are in one region of memory.
pub(super) fn slice(memory: &GuestMemoryMmap, address: u64, len: usize) -> Option<VolatileSlice<'_>> {
    let region = memory.find_region(GuestAddress(address))?;
    let offset = address - region.start_addr().raw_value();
    region.get_slice(MemoryRegionAddress(offset), len).ok()
}

fn word(memory: &GuestMemoryMmap, address: u64, len: usize) -> Result<VolatileSlice<'_>, QueueError> {
    // A word of a ring is aligned, so that it does not lie in two regions.
    let outside = || QueueError::Ring(Error::GuestMemory(GuestMemoryError::InvalidGuestAddress(GuestAddress(address))));
    slice(memory, address, len).ok_or_else(outside)
}

fn unaligned(error: vm_memory::VolatileMemoryError) -> QueueError {
    QueueError::Ring(Error::GuestMemory(error.into()))
}

/// The address of what is at `offset` from the start of `ring`.
pub(super) fn address(ring: u64, offset: u64) -> Result<u64, QueueError> {
    ring.checked_add(offset).ok_or(QueueError::Ring(Error::AddressOverflow))
}

pub(super) fn load_u16(memory: &GuestMemoryMmap, address: u64, order: Ordering) -> Result<u16, QueueError> {
    let word = word(memory, address, size_of::<u16>())?;
    Ok(u16::from_le(word.get_atomic_ref::<AtomicU16>(0).map_err(unaligned)?.load(order)))
}

pub(super) fn store_u16(memory: &GuestMemoryMmap, address: u64, value: u16, order: Ordering) -> Result<(), QueueError> {
    let word = word(memory, address, size_of::<u16>())?;
    word.get_atomic_ref::<AtomicU16>(0).map_err(unaligned)?.store(value.to_le(), order);
    Ok(())
}

/// Stores two words side by side, in no order that others could rely on.
pub(super) fn store_pair(memory: &GuestMemoryMmap, address: u64, pair: [u32; 2]) -> Result<(), QueueError> {
    let words = word(memory, address, size_of::<[u32; 2]>())?;
    for (offset, value) in [(0, pair[0]), (size_of::<u32>(), pair[1])] {
        words.get_atomic_ref::<AtomicU32>(offset).map_err(unaligned)?.store(value.to_le(), Ordering::Relaxed);
    }
    Ok(())
}

/// The 16 bytes at `address`, wherever they are.
pub(super) fn load_descriptor(memory: &GuestMemoryMmap, address: u64) -> Option<[u64; 2]> {
    if let Some(words) = slice(memory, address, size_of::<[u64; 2]>())
        && let (Ok(first), Ok(second)) = (words.get_atomic_ref::<AtomicU64>(0), words.get_atomic_ref::<AtomicU64>(8))
    {
        return Some([first, second].map(|word| u64::from_le(word.load(Ordering::Relaxed))));
    }
    // A table that an indirect descriptor names may lie anywhere.
    memory.read_obj::<[u64; 2]>(GuestAddress(address)).ok().map(|words| words.map(u64::from_le))
}
