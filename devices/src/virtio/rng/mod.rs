//! An entropy device (specification section 5.4): the host's random numbers for the guest.
//!
//! This file is the side that faces the transport and the event loop; `queue_handler` fills the driver's buffers.

mod queue_handler;

use std::io;

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;

use self::queue_handler::QueueHandler;
use super::doorbell::Doorbells;
use super::{ActivateError, ActivationContext, VirtioDevice};

/// The size of the request queue. Linux asks for one buffer at a time.
const QUEUE_SIZE: u16 = 8;

/// A source of random numbers, which come from the host kernel's `getrandom`.
pub struct Rng {
    doorbells: Doorbells,
    /// Present while the driver has the device activated.
    handler: Option<QueueHandler>,
}

impl Rng {
    /// A source that no driver uses yet.
    ///
    /// # Errors
    /// An eventfd cannot be made.
    pub fn new() -> io::Result<Self> {
        Ok(Self { doorbells: Doorbells::new()?, handler: None })
    }

    fn process_queue(&mut self) {
        let Some(handler) = &mut self.handler else { return };
        match handler.process() {
            Ok(false) => {}
            Ok(true) => self.doorbells.ring(0),
            Err(error) => {
                handler.interrupt.fail(&error);
                self.handler = None;
            }
        }
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queue_max_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    /// There is no configuration space.
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, context: ActivationContext) -> Result<(), ActivateError> {
        let ActivationContext { memory, queues, queue_events, interrupt, .. } = context;
        let queue = queues.into_iter().next().filter(QueueT::ready);
        let queue = queue.ok_or_else(|| ActivateError("the entropy device's queue is not enabled".to_owned()))?;
        self.handler = Some(QueueHandler { memory, queue, interrupt });
        self.doorbells.activate(queue_events)
    }

    fn reset(&mut self) {
        self.handler = None;
    }
}

impl MutEventSubscriber for Rng {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if self.doorbells.answer(events.data(), ops).is_some() {
            self.process_queue();
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        self.doorbells.init(ops);
    }
}
