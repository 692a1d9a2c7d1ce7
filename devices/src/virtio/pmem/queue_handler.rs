//! The requests of the queue, against memory, a file and an interrupt.

use std::fs::File;
use std::sync::Arc;

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

use crate::virtio::chain::{Chain, QueueError};
use crate::virtio::descriptors;
use crate::virtio::doorbell::tell_driver;
use crate::virtio::mmio::VirtioInterrupt;

/// `VIRTIO_PMEM_REQ_TYPE_FLUSH`, the only request.
const FLUSH: u32 = 0;
/// What the device answers: that it is done, or that it is not.
const OK: u32 = 0;
const FAILED: u32 = 1;

/// An activated request queue.
pub(super) struct QueueHandler {
    pub(super) memory: GuestMemoryMmap,
    pub(super) queue: Queue,
    pub(super) interrupt: Arc<VirtioInterrupt>,
}

impl QueueHandler {
    /// Answers what the driver has made available, and tells the driver. Returns whether there is more.
    ///
    /// # Errors
    /// The driver broke the queue. What it had asked for before has been answered.
    pub(super) fn process(&mut self, file: Option<&File>) -> Result<bool, QueueError> {
        let result = self.answer(file);
        tell_driver(&mut self.queue, &self.memory, &self.interrupt)?;
        result
    }

    fn answer(&mut self, file: Option<&File>) -> Result<bool, QueueError> {
        let Self { memory, queue, .. } = self;
        let memory: &GuestMemoryMmap = memory;
        queue.disable_notification(memory)?;
        let mut requests = Vec::new();
        let taken = take(queue, memory, &mut requests);
        // All of them were made before this, so that one flush is as good as many.
        let flush = requests.iter().any(|(_, kind)| *kind == FLUSH);
        let flushed = if flush { flush_file(file) } else { OK };
        for (chain, kind) in &mut requests {
            let answer = if *kind == FLUSH { flushed } else { FAILED };
            chain.writable.write(&answer.to_le_bytes());
            queue.add_used(memory, chain.head, 4)?;
        }
        taken?;
        Ok(queue.enable_notification(memory)?)
    }
}

/// Takes what is available off the queue, at most as much as fits in it.
fn take<'m>(
    queue: &mut Queue,
    memory: &'m GuestMemoryMmap,
    requests: &mut Vec<(Chain<'m>, u32)>,
) -> Result<(), QueueError> {
    for _ in 0..queue.size() {
        let Some(descriptors) = descriptors::next(queue, memory)? else { break };
        let mut chain = Chain::default();
        chain.load(descriptors, memory, queue.size())?;
        let mut kind = [0; 4];
        if chain.readable.read(&mut kind).is_none() {
            return Err(QueueError::TooShort { head: chain.head, part: "request" });
        }
        if chain.writable.len() < 4 {
            return Err(QueueError::TooShort { head: chain.head, part: "response" });
        }
        requests.push((chain, u32::from_le_bytes(kind)));
    }
    Ok(())
}

/// Waits until all that was written is where it lasts, also what was written through a mapping.
fn flush_file(file: Option<&File>) -> u32 {
    match file.map(File::sync_data) {
        None | Some(Ok(())) => OK,
        Some(Err(error)) => {
            log::error!("persistent memory cannot be written back: {error}");
            FAILED
        }
    }
}
