//! What the guest says of its memory (section 5.5.6.3).

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

use crate::virtio::chain::{Chain, QueueError};
use crate::virtio::descriptors;

/// The length in bytes of an entry: a tag of 16 bits and a value of 64.
const ENTRY: usize = 10;
/// The most entries that are read: some more than there are tags.
const ENTRIES: usize = 32;

/// A guest's statistics of its memory; each is absent where the guest does not tell it. All of them are the guest's
/// words, and may be untrue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// How many times the guest has told them.
    pub reports: u64,
    /// Bytes swapped in, since the guest's start.
    pub swapped_in: Option<u64>,
    /// Bytes swapped out, since the guest's start.
    pub swapped_out: Option<u64>,
    /// Page faults that took input or output.
    pub major_faults: Option<u64>,
    /// Other page faults.
    pub minor_faults: Option<u64>,
    /// Bytes that are not used for anything.
    pub free: Option<u64>,
    /// Bytes in all.
    pub total: Option<u64>,
    /// Bytes that programs could have without swapping.
    pub available: Option<u64>,
    /// Bytes of files kept in memory, which could be let go of.
    pub caches: Option<u64>,
}

impl Statistics {
    fn set(&mut self, tag: u16, value: u64) {
        let place = match tag {
            0 => &mut self.swapped_in,
            1 => &mut self.swapped_out,
            2 => &mut self.major_faults,
            3 => &mut self.minor_faults,
            4 => &mut self.free,
            5 => &mut self.total,
            6 => &mut self.available,
            7 => &mut self.caches,
            // Huge pages and what later versions add.
            _ => return,
        };
        *place = Some(value);
    }
}

/// Reads the driver's buffers into `statistics`. The last one is kept in `held`, from where it goes back when another
/// comes. Returns whether there are more.
pub(super) fn receive(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    statistics: &mut Statistics,
    held: &mut Option<u16>,
) -> Result<bool, QueueError> {
    let mut chain = Chain::default();
    for _ in 0..queue.size() {
        let Some(descriptors) = descriptors::next(queue, memory)? else { break };
        chain.load(descriptors, memory, queue.size())?;
        read(&mut chain, statistics);
        if let Some(previous) = held.replace(chain.head) {
            queue.add_used(memory, previous, 0)?;
        }
    }
    Ok(queue.enable_notification(memory)?)
}

fn read(chain: &mut Chain<'_>, statistics: &mut Statistics) {
    let mut fresh = Statistics { reports: statistics.reports + 1, ..Statistics::default() };
    let mut entry = [0; ENTRY];
    for _ in 0..ENTRIES {
        if chain.readable.read(&mut entry).is_none() {
            break;
        }
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |value, &byte| value << 8 | u64::from(byte));
        fresh.set(u16::from_le_bytes([entry[0], entry[1]]), number(&entry[2..]));
    }
    *statistics = fresh;
}
