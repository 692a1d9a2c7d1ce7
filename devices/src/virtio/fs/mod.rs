//! A file system device (specification section 5.11): a directory or file of the host, shared with the guest.
//!
//! This file is the side that faces the transport and the event loop; `queue_handler` walks the queues, `session` speaks
//! FUSE (`wire` has its structures), and `share` does what is asked for on the host.
//!
//! Requests are carried out one after the other by the event loop's thread, and wait for the host's disks: a monitor gives the
//! device an event loop of its own. [`Owners`] says what that thread must have and must not.

mod queue_handler;
mod session;
mod share;
mod wire;

use std::io;

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;

pub use share::{FILE_NAME, Owners, Settings, Share};

use self::queue_handler::QueueHandler;
use self::session::Session;
use super::config::read_config_space;
use super::doorbell::{Doorbells, Ring};
use super::{ActivateError, ActivationContext, VirtioDevice};

/// The longest tag, in bytes.
pub const TAG_MAX: usize = 36;
/// The size of the queue that forgets go through, and of the one for requests. Linux makes requests as long as a queue
/// has room for: this is enough for 1 MiB in single pages.
const QUEUE_SIZES: [u16; 2] = [128, 512];
const REQUESTS: usize = 1;

/// A file system device.
pub struct Fs {
    tag: [u8; TAG_MAX],
    doorbells: Doorbells,
    session: Session,
    /// Whether what the session has made known and opened is still to be let go of.
    stale: bool,
    /// Present while the driver has the device activated.
    handler: Option<QueueHandler>,
}

impl Fs {
    /// A device that shares `share`. The guest mounts it by its `tag`, of which bytes beyond [`TAG_MAX`] are cut off.
    ///
    /// # Errors
    /// An eventfd cannot be made.
    pub fn new(share: Share, tag: &str) -> io::Result<Self> {
        let mut name = [0; TAG_MAX];
        for (to, from) in name.iter_mut().zip(tag.bytes()) {
            *to = from;
        }
        Ok(Self { tag: name, doorbells: Doorbells::new()?, session: Session::new(share), stale: false, handler: None })
    }

    fn config_space(&self) -> [u8; TAG_MAX + 4] {
        let mut space = [0; TAG_MAX + 4];
        space[..TAG_MAX].copy_from_slice(&self.tag);
        // One queue for requests.
        space[TAG_MAX] = 1;
        space
    }

    fn process_queue(&mut self, index: usize) {
        let Some(handler) = &mut self.handler else { return };
        match handler.process(index, &mut self.session) {
            Ok(false) => {}
            Ok(true) => self.doorbells.ring(index),
            Err(error) => {
                handler.interrupt.fail(&error);
                self.handler = None;
                self.session.end();
            }
        }
    }
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn queue_max_sizes(&self) -> Vec<u16> {
        QUEUE_SIZES.into()
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_space(&self.config_space(), offset, data);
    }

    /// Nothing in the configuration space is writable.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, context: ActivationContext) -> Result<(), ActivateError> {
        let ActivationContext { memory, queues, queue_events, interrupt, .. } = context;
        if !queues.get(REQUESTS).is_some_and(QueueT::ready) {
            return Err(ActivateError("the file system device's request queue is not enabled".to_owned()));
        }
        self.handler = Some(QueueHandler { memory, queues, interrupt });
        self.doorbells.activate(queue_events)
    }

    fn reset(&mut self) {
        // What the guest has open is closed by the event loop's thread, before it serves anything else.
        self.stale = self.handler.take().is_some() || self.stale;
        if self.stale {
            self.doorbells.wake();
        }
    }
}

impl MutEventSubscriber for Fs {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if std::mem::take(&mut self.stale) {
            self.session.end();
        }
        match self.doorbells.answer(events.data(), ops) {
            Some(Ring::Wake) => (0..QUEUE_SIZES.len()).for_each(|index| self.process_queue(index)),
            Some(Ring::Queue(index)) => self.process_queue(index),
            None => {}
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        self.doorbells.init(ops);
    }
}
