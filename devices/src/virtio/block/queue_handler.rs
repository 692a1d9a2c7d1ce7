//! The requests of one queue, against memory, a disk and an interrupt; no bus and no event loop.

use std::sync::Arc;

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

use super::disk::Disk;
use super::request::{self, Rules};
use crate::virtio::chain::{self, Chain, QueueError};
use crate::virtio::mmio::VirtioInterrupt;

/// How many bytes of requests are carried out before other devices get their turn, and before a monitor that wants the
/// device's end is heard.
const BYTES_A_TURN: usize = request::MAX_DATA;

/// An activated request queue.
pub(super) struct QueueHandler {
    pub(super) memory: GuestMemoryMmap,
    pub(super) queue: Queue,
    pub(super) interrupt: Arc<VirtioInterrupt>,
    pub(super) rules: Rules,
}

impl QueueHandler {
    /// Carries out what the driver has made available, but at most one turn's worth of it, and tells the driver.
    /// Returns whether there is more.
    ///
    /// # Errors
    /// The driver broke the queue. What was carried out before has been reported to it.
    pub(super) fn process(&mut self, disk: &Disk) -> Result<bool, QueueError> {
        let result = self.carry_out(disk);
        if self.queue.needs_notification(&self.memory)? {
            self.interrupt.signal_used_queue();
        }
        result
    }

    fn carry_out(&mut self, disk: &Disk) -> Result<bool, QueueError> {
        let Self { memory, queue, rules, .. } = self;
        let memory: &GuestMemoryMmap = memory;
        let mut chain = Chain::default();
        let (mut requests, mut bytes) = (queue.size(), BYTES_A_TURN);
        loop {
            queue.disable_notification(memory)?;
            while let Some(descriptors) = chain::next(queue, memory)? {
                chain.load(descriptors, memory, queue.size())?;
                let size = chain.readable.len() + chain.writable.len();
                let done = request::execute(disk, rules, &mut chain)?;
                queue.add_used(memory, chain.head, done.written)?;
                requests -= 1;
                bytes = bytes.saturating_sub(size);
                if requests == 0 || bytes == 0 || done.slow {
                    return Ok(true);
                }
            }
            if !queue.enable_notification(memory)? {
                return Ok(false);
            }
        }
    }
}
