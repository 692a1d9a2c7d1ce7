//! Persistent memory (specification section 5.19): a file of the host's as a range of the guest's physical addresses.
//!
//! The monitor maps the file there, so that reads and writes are the processor's own and pages are those of the host's page
//! cache, shared by all who map the file. The device itself is only asked to make what was written last.
//!
//! This file is the side that faces the transport and the event loop; `queue_handler` answers the requests.

mod queue_handler;

use std::fs::File;
use std::io;

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_PMEM;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vm_memory::GuestAddress;

use self::queue_handler::QueueHandler;
use super::config::read_config_space;
use super::doorbell::Doorbells;
use super::{ActivateError, ActivationContext, VirtioDevice};

/// The size of the request queue. A guest has few requests at a time, and those are answered together.
const QUEUE_SIZE: u16 = 64;

/// A range of persistent memory.
pub struct Pmem {
    doorbells: Doorbells,
    start: GuestAddress,
    size: u64,
    /// What is behind the range; `None` where it is not writable, so that there is nothing to make last.
    file: Option<File>,
    /// Present while the driver has the device activated.
    handler: Option<QueueHandler>,
}

impl Pmem {
    /// The range of `size` bytes at `start`, which the monitor has mapped: shared from `file` where the guest may write.
    ///
    /// # Errors
    /// An eventfd cannot be made.
    pub fn new(start: GuestAddress, size: u64, file: Option<File>) -> io::Result<Self> {
        Ok(Self { doorbells: Doorbells::new()?, start, size, file, handler: None })
    }

    fn process_queue(&mut self) {
        let Some(handler) = &mut self.handler else { return };
        match handler.process(self.file.as_ref()) {
            Ok(false) => {}
            Ok(true) => self.doorbells.ring(0),
            Err(error) => {
                handler.interrupt.fail(&error);
                self.handler = None;
            }
        }
    }
}

impl VirtioDevice for Pmem {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_PMEM
    }

    fn queue_max_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut space = [0; 16];
        space[..8].copy_from_slice(&self.start.0.to_le_bytes());
        space[8..].copy_from_slice(&self.size.to_le_bytes());
        read_config_space(&space, offset, data);
    }

    /// Nothing in the configuration space is writable.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, context: ActivationContext) -> Result<(), ActivateError> {
        let ActivationContext { memory, queues, queue_events, interrupt, .. } = context;
        let queue = queues.into_iter().next().filter(QueueT::ready);
        let queue = queue.ok_or_else(|| ActivateError("the persistent memory's queue is not enabled".to_owned()))?;
        self.handler = Some(QueueHandler { memory, queue, interrupt });
        self.doorbells.activate(queue_events)
    }

    fn reset(&mut self) {
        self.handler = None;
    }
}

impl MutEventSubscriber for Pmem {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if self.doorbells.answer(events.data(), ops).is_some() {
            self.process_queue();
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        self.doorbells.init(ops);
    }
}
