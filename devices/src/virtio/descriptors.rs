//! The descriptors of one chain, as they lie in guest memory. The iterator ends silently where they break the rules: what it
//! gave last then says that another one follows.

use std::sync::atomic::Ordering;

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Error, Queue, QueueT};
use vm_memory::GuestMemoryMmap;

use super::chain::QueueError;
use super::rings;

/// The available ring's flags and index precede its elements (section 2.7.6).
const HEADER: u64 = 4;
const INDEX: u64 = 2;
const HEAD: u64 = 2;
const DESCRIPTOR: u32 = 16;

/// Iterates over the descriptors of a chain, those of an indirect table included (section 2.7.5).
pub(super) struct Descriptors<'m> {
    memory: &'m GuestMemoryMmap,
    head: u16,
    /// Where the table is that the chain goes through, and how many descriptors it has.
    table: u64,
    size: u16,
    next: u16,
    /// How many more descriptors there may be: a chain that is longer than its table loops.
    left: u16,
    indirect: bool,
    /// How many bytes all descriptors have so far. A chain has at most 2^32 (section 2.7.5.2).
    bytes: u32,
}

/// The next chain that the driver has made available, taken off the ring.
pub(super) fn next<'m>(queue: &mut Queue, memory: &'m GuestMemoryMmap) -> Result<Option<Descriptors<'m>>, QueueError> {
    if !queue.ready() {
        return Err(Error::QueueNotReady.into());
    }
    let (ring, size, next) = (queue.avail_ring(), queue.size(), queue.next_avail());
    // Acquire: what the driver wrote before the index is read after it.
    let index = rings::load_u16(memory, rings::address(ring, INDEX)?, Ordering::Acquire)?;
    let available = index.wrapping_sub(next);
    if available > size {
        return Err(Error::InvalidAvailRingIndex.into());
    }
    if available == 0 {
        return Ok(None);
    }
    let at = rings::address(ring, HEADER + u64::from(next % size) * HEAD)?;
    let head = rings::load_u16(memory, at, Ordering::Relaxed)?;
    queue.set_next_avail(next.wrapping_add(1));
    let table = queue.desc_table();
    Ok(Some(Descriptors { memory, head, table, size, next: head, left: size, indirect: false, bytes: 0 }))
}

impl Descriptors<'_> {
    /// The descriptor that the chain starts with.
    pub(super) fn head_index(&self) -> u16 {
        self.head
    }

    fn read(&self) -> Option<Descriptor> {
        if self.left == 0 || self.next >= self.size {
            return None;
        }
        let at = self.table.checked_add(u64::from(self.next) * u64::from(DESCRIPTOR))?;
        let [address, rest] = rings::load_descriptor(self.memory, at)?;
        #[expect(clippy::cast_possible_truncation, reason = "these are the fields of the second word")]
        Some(Descriptor::new(address, rest as u32, (rest >> 32) as u16, (rest >> 48) as u16))
    }

    /// Goes on in the table that `descriptor` names, of which there is one at most.
    fn enter(&mut self, descriptor: &Descriptor) -> Option<()> {
        if self.indirect || !descriptor.len().is_multiple_of(DESCRIPTOR) {
            return None;
        }
        self.size = u16::try_from(descriptor.len() / DESCRIPTOR).ok()?;
        self.table = descriptor.addr().0;
        (self.next, self.left, self.indirect) = (0, self.size, true);
        Some(())
    }
}

impl Iterator for Descriptors<'_> {
    type Item = Descriptor;

    fn next(&mut self) -> Option<Descriptor> {
        let mut descriptor = self.read()?;
        if descriptor.refers_to_indirect_table() {
            self.enter(&descriptor)?;
            descriptor = self.read().filter(|descriptor| !descriptor.refers_to_indirect_table())?;
        }
        self.bytes = self.bytes.checked_add(descriptor.len())?;
        if descriptor.has_next() {
            self.next = descriptor.next();
            self.left -= 1;
        } else {
            self.left = 0;
        }
        Some(descriptor)
    }
}
