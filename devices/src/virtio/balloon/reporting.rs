//! The queue on which the guest reports ranges of free memory (section 5.5.6.7). It does not touch them before their
//! report is returned.

use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap};

use super::{PAGE, Reclaim};
use crate::virtio::chain::QueueError;
use crate::virtio::descriptors;

/// The most reports before other devices get their turn. Linux puts up to 32 ranges in one.
const REPORTS_A_TURN: u32 = 4;

/// Gives the reported ranges back to the host. Returns whether there are more reports.
pub(super) fn take(queue: &mut Queue, memory: &GuestMemoryMmap, reclaim: &dyn Reclaim) -> Result<bool, QueueError> {
    let mut reports = REPORTS_A_TURN;
    loop {
        queue.disable_notification(memory)?;
        while let Some(report) = descriptors::next(queue, memory)? {
            let head = report.head_index();
            let limit = usize::from(queue.size());
            let mut ended = false;
            for (count, range) in report.enumerate() {
                if count >= limit {
                    return Err(QueueError::Endless { head });
                }
                ended = !range.has_next();
                let (address, len) = (range.addr(), range.len());
                // Of nothing, the address may be any.
                if len == 0 {
                    continue;
                }
                if !memory.check_range(address, len as usize) {
                    return Err(QueueError::OutsideMemory { head, address: address.0, len });
                }
                // What the guest calls free is for the device to write (section 5.5.6.7); other ranges are its own.
                if range.is_write_only() {
                    discard(address.0, u64::from(len), reclaim);
                }
            }
            if !ended {
                return Err(QueueError::Endless { head });
            }
            queue.add_used(memory, head, 0)?;
            reports -= 1;
            if reports == 0 {
                return Ok(true);
            }
        }
        if !queue.enable_notification(memory)? {
            return Ok(false);
        }
    }
}

/// The whole pages of a range, which is in memory.
fn discard(address: u64, len: u64, reclaim: &dyn Reclaim) {
    let start = address.next_multiple_of(PAGE);
    let end = (address + len) / PAGE * PAGE;
    if start < end
        && let Err(error) = reclaim.discard(vm_memory::GuestAddress(start), end - start)
    {
        log::debug!("free memory at {start:#x} is not given back: {error}");
    }
}
