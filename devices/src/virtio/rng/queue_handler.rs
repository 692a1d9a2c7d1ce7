//! The requests of the queue, against memory, the host's random numbers and an interrupt.

use std::io;
use std::sync::Arc;

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

use crate::virtio::chain::{Chain, QueueError};
use crate::virtio::descriptors;
use crate::virtio::doorbell::tell_driver;
use crate::virtio::mmio::VirtioInterrupt;

/// How many random bytes are made before other devices get their turn, and the most that one request gets: a device
/// may fill less than the buffer (section 5.4.6.1). Making them takes the host some 100 microseconds.
const BYTES_A_TURN: usize = 64 << 10;
/// What `getrandom` fills in one go, whatever signals come.
const CHUNK: usize = 256;

/// An activated request queue.
pub(super) struct QueueHandler {
    pub(super) memory: GuestMemoryMmap,
    pub(super) queue: Queue,
    pub(super) interrupt: Arc<VirtioInterrupt>,
}

impl QueueHandler {
    /// Fills what the driver has made available, at most one turn's worth of it, and tells the driver. Returns whether
    /// there is more.
    ///
    /// # Errors
    /// The driver broke the queue.
    pub(super) fn process(&mut self) -> Result<bool, QueueError> {
        let result = self.fill();
        tell_driver(&mut self.queue, &self.memory, &self.interrupt)?;
        result
    }

    fn fill(&mut self) -> Result<bool, QueueError> {
        let Self { memory, queue, .. } = self;
        let memory: &GuestMemoryMmap = memory;
        let mut chain = Chain::default();
        let (mut requests, mut bytes) = (queue.size(), BYTES_A_TURN);
        loop {
            queue.disable_notification(memory)?;
            while let Some(descriptors) = descriptors::next(queue, memory)? {
                chain.load(descriptors, memory, queue.size())?;
                // A used buffer has at least one byte in it (section 5.4.6.1).
                if chain.writable.len() == 0 {
                    return Err(QueueError::TooShort { head: chain.head, part: "byte" });
                }
                chain.writable.truncate(bytes);
                let written = randomize(&mut chain);
                bytes -= written;
                queue.add_used(memory, chain.head, u32::try_from(written).unwrap_or(0))?;
                requests -= 1;
                if requests == 0 || bytes == 0 {
                    return Ok(true);
                }
            }
            if !queue.enable_notification(memory)? {
                return Ok(false);
            }
        }
    }
}

/// Fills the chain's buffers; returns how many bytes it has written.
fn randomize(chain: &mut Chain<'_>) -> usize {
    let mut written = 0;
    let mut random = [0; CHUNK];
    while chain.writable.len() > 0 {
        let wanted = chain.writable.len().min(CHUNK);
        // SAFETY: The buffer has room for that many bytes.
        let made = unsafe { libc::getrandom(random.as_mut_ptr().cast(), wanted, 0) };
        let Ok(made) = usize::try_from(made) else {
            // Not before Linux 3.17; the driver learns of it by a shorter buffer.
            log::error!("the host has no random numbers: {}", io::Error::last_os_error());
            break;
        };
        written += chain.writable.write(&random[..made]);
    }
    written
}
