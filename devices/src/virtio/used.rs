//! A used ring that is written ahead: several chains become visible to the driver at the same instant, and one
//! interrupt tells of many.

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

use super::chain::QueueError;
use super::rings;

/// The ring's flags and index precede its elements (section 2.7.8).
const HEADER: u64 = 4;
const INDEX: u64 = 2;
const ELEMENT: u64 = 8;
/// The available ring's elements are the heads of chains (section 2.7.6).
const HEAD: u64 = 2;

/// What of a queue's used ring the driver does not know of yet. All of a queue's used chains must go through this,
/// because it counts them.
#[derive(Debug, Default)]
pub(super) struct Used {
    /// Elements written and not visible yet.
    hidden: u16,
    /// Elements made visible since the last question for an interrupt.
    unannounced: u16,
}

impl Used {
    /// Writes the element for the chain that starts with `head`, of which the device wrote `len` bytes. At most a
    /// queue's size of them may wait for [`publish`](Self::publish).
    pub(super) fn add(
        &mut self,
        queue: &Queue,
        memory: &GuestMemoryMmap,
        head: u16,
        len: u32,
    ) -> Result<(), QueueError> {
        let slot = u64::from(queue.next_used().wrapping_add(self.hidden) % queue.size());
        let at = rings::address(queue.used_ring(), HEADER + slot * ELEMENT)?;
        rings::store_pair(memory, at, [head.into(), len])?;
        self.hidden += 1;
        Ok(())
    }

    /// Makes the elements written so far visible, all at once.
    pub(super) fn publish(&mut self, queue: &mut Queue, memory: &GuestMemoryMmap) -> Result<(), QueueError> {
        if self.hidden == 0 {
            return Ok(());
        }
        let next = queue.next_used().wrapping_add(self.hidden);
        // Release: the buffers and elements are visible before the index is.
        rings::store_u16(memory, rings::address(queue.used_ring(), INDEX)?, next, Ordering::Release)?;
        queue.set_next_used(next);
        self.unannounced += self.hidden;
        self.hidden = 0;
        Ok(())
    }

    /// Whether the driver wants an interrupt for what has become visible since the last time (section 2.7.7).
    pub(super) fn needs_interrupt(&mut self, queue: &Queue, memory: &GuestMemoryMmap) -> Result<bool, QueueError> {
        let new = std::mem::take(&mut self.unannounced);
        if new == 0 {
            return Ok(false);
        }
        // The index is visible before the driver's wish is read: else both sides could wait for each other.
        fence(Ordering::SeqCst);
        let read = |offset| rings::load_u16(memory, rings::address(queue.avail_ring(), offset)?, Ordering::Relaxed);
        if !queue.event_idx_enabled() {
            return Ok(u32::from(read(0)?) & VRING_AVAIL_F_NO_INTERRUPT == 0);
        }
        let used_event = read(HEADER + u64::from(queue.size()) * HEAD)?;
        Ok(queue.next_used().wrapping_sub(used_event).wrapping_sub(1) < new)
    }
}
