//! The requests of a device's queues, against memory and an interrupt.

use std::sync::Arc;

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

use super::session::Session;
use crate::virtio::chain::{Chain, QueueError};
use crate::virtio::descriptors;
use crate::virtio::doorbell::tell_driver;
use crate::virtio::mmio::VirtioInterrupt;

/// How many requests are carried out before a monitor that wants the device's end is heard.
const REQUESTS_A_TURN: usize = 16;

/// The activated queues.
pub(super) struct QueueHandler {
    pub(super) memory: GuestMemoryMmap,
    pub(super) queues: Vec<Queue>,
    pub(super) interrupt: Arc<VirtioInterrupt>,
}

impl QueueHandler {
    /// Carries out what the driver has made available in the queue with that index, at most one turn's worth of it, and tells
    /// the driver. Returns whether there is more.
    ///
    /// # Errors
    /// The driver broke the queue.
    pub(super) fn process(&mut self, index: usize, session: &mut Session) -> Result<bool, QueueError> {
        let Some(queue) = self.queues.get_mut(index).filter(|queue| queue.ready()) else { return Ok(false) };
        let result = carry_out(queue, &self.memory, session);
        tell_driver(queue, &self.memory, &self.interrupt)?;
        result
    }
}

fn carry_out(queue: &mut Queue, memory: &GuestMemoryMmap, session: &mut Session) -> Result<bool, QueueError> {
    let mut chain = Chain::default();
    let mut requests = REQUESTS_A_TURN;
    loop {
        queue.disable_notification(memory)?;
        while let Some(descriptors) = descriptors::next(queue, memory)? {
            chain.load(descriptors, memory, queue.size())?;
            let written = session.serve(&mut chain)?;
            queue.add_used(memory, chain.head, written)?;
            requests -= 1;
            if requests == 0 {
                return Ok(true);
            }
        }
        if !queue.enable_notification(memory)? {
            return Ok(false);
        }
    }
}
