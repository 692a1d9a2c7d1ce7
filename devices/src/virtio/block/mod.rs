//! A block device (specification section 5.2): one queue, I/O straight between guest memory and a file.
//!
//! This file is the side that faces the transport and the event loop; `queue_handler` walks the queue, `request`
//! decodes a request, `disk` and `uring` carry it out.

mod direct;
mod disk;
mod queue_handler;
mod request;
mod uring;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::disk::{Disk, SECTOR};
use self::queue_handler::{Backend, QueueHandler};
use self::request::{MAX_ZEROED_SECTORS, Rules, SERIAL};
use self::uring::Ring;
use super::config::read_config_space;
use super::{ActivateError, ActivationContext, VirtioDevice};
use crate::rate_limiter::{RateLimiter, RateLimits};
use crate::stream::doorbell;
use crate::virtio::chain::Chain;
use crate::virtio::used::Used;

/// The largest size of the request queue.
const QUEUE_SIZE: u16 = 256;
/// The most data buffers of a request: header and status take one descriptor each.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;

/// A disk whose contents are a file or a host block device.
///
/// Its requests are taken on the event loop's thread; how they are carried out says its [`Engine`].
pub struct Block {
    backend: Backend,
    read_only: bool,
    serial: [u8; SERIAL],
    /// Tells the event loop's thread that a vCPU has activated the device.
    activated: EventFd,
    /// Present while the driver has the device activated.
    handler: Option<QueueHandler>,
    /// Present since the first activation.
    queue_events: Option<Arc<[EventFd]>>,
    /// Whether the event loop watches them.
    watching: bool,
}

/// How requests are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// By the event loop's thread, one after the other.
    Sync,
    /// By the host's `io_uring`, as many at a time as the queue holds.
    IoUring,
    /// By `io_uring`, or one after the other where the host refuses that.
    PreferIoUring,
}

impl Block {
    /// A disk over `file`, which must be open for reading, and for writing too unless `read_only`.
    /// `serial` is what the guest reads as the disk's serial number; what is beyond 20 bytes is cut off.
    /// Its engine is [`Engine::Sync`], and nothing limits it.
    ///
    /// # Errors
    /// The size of the file cannot be found, or an eventfd cannot be made.
    pub fn new(file: File, read_only: bool, serial: &str) -> io::Result<Self> {
        let mut id = [0; SERIAL];
        for (to, from) in id.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        let activated = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let backend = Backend { disk: Disk::new(file)?, ring: None, limiter: None };
        Ok(Self { backend, read_only, serial: id, activated, handler: None, queue_events: None, watching: false })
    }

    /// Reads and writes through `file`, the same one opened with `O_DIRECT`, where the guest's buffers are aligned for that.
    /// Said before the engine is chosen.
    #[must_use]
    pub fn with_direct(mut self, file: File) -> Self {
        self.backend.disk.set_direct(file);
        self.backend.ring = None;
        self
    }

    /// Carries out requests with `engine`.
    ///
    /// # Errors
    /// [`Engine::IoUring`]: the host has none, or does not let this process use it.
    pub fn with_engine(mut self, engine: Engine) -> io::Result<Self> {
        self.backend.ring = match engine {
            Engine::Sync => None,
            Engine::IoUring => Some(Ring::new(&self.backend.disk)?),
            Engine::PreferIoUring => Ring::new(&self.backend.disk)
                .inspect_err(|error| log::info!("no io_uring for a disk, which works without: {error}"))
                .ok(),
        };
        Ok(self)
    }

    /// Takes requests only as fast as `limits` allow.
    ///
    /// # Errors
    /// No timer can be made.
    pub fn with_limits(self, limits: RateLimits) -> io::Result<Self> {
        Ok(self.with_limiter(RateLimiter::new(limits)?))
    }

    /// Takes requests only as fast as `limiter` allows.
    #[must_use]
    pub fn with_limiter(mut self, limiter: RateLimiter) -> Self {
        self.backend.limiter = Some(limiter);
        self
    }

    fn config_space(&self) -> [u8; 60] {
        let mut space = [0; 60];
        let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.backend.disk.sectors().to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &SECTOR.to_le_bytes()[..4]);
        put(34, &1_u16.to_le_bytes());
        // Discard: sectors, segments, alignment; then write zeroes: sectors, segments, and that it may unmap.
        put(36, &MAX_ZEROED_SECTORS.to_le_bytes());
        put(40, &1_u32.to_le_bytes());
        put(44, &1_u32.to_le_bytes());
        put(48, &MAX_ZEROED_SECTORS.to_le_bytes());
        put(52, &1_u32.to_le_bytes());
        put(56, &[1]);
        space
    }

    fn process_queue(&mut self) {
        let (Some(handler), Some(events)) = (&mut self.handler, &self.queue_events) else { return };
        match handler.process(&mut self.backend) {
            Ok(false) => {}
            // Other devices get their turn before the rest.
            Ok(true) => {
                if let Err(error) = events[0].write(1) {
                    log::error!("cannot continue a block device's queue: {error}");
                }
            }
            Err(error) => {
                handler.interrupt.fail(&error);
                self.stop();
            }
        }
    }

    /// Waits for what is under way, and forgets the queue. Guest memory is not touched any more.
    fn stop(&mut self) {
        if let Some(ring) = &mut self.backend.ring {
            ring.drain();
        }
        self.handler = None;
    }

    /// Watches what tells of work. Once only: all of it lives as long as the device.
    fn watch(&mut self, ops: &mut EventOps) {
        let Some(queue_events) = &self.queue_events else { return };
        self.watching = true;
        let edge = |fd: &dyn AsRawFd| Events::new_raw(fd.as_raw_fd(), EventSet::IN | EventSet::EDGE_TRIGGERED);
        let ring = self.backend.ring.as_ref().map(|ring| edge(ring));
        let limiter = self.backend.limiter.as_ref().map(|limiter| edge(limiter));
        for events in [Some(doorbell(&queue_events[0], 0)), ring, limiter].into_iter().flatten() {
            if let Err(error) = ops.add(events) {
                log::error!("cannot watch a block device's work: {error}");
            }
        }
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn queue_max_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        let always = [
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_FLUSH,
        ];
        let by_access: &[u32] =
            if self.read_only { &[VIRTIO_BLK_F_RO] } else { &[VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES] };
        always.iter().chain(by_access).fold(0, |features, bit| features | 1 << bit)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_space(&self.config_space(), offset, data);
    }

    /// Nothing in the configuration space is writable without `VIRTIO_BLK_F_CONFIG_WCE`.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, context: ActivationContext) -> Result<(), ActivateError> {
        let ActivationContext { memory, queues, queue_events, interrupt, features } = context;
        let queue = queues.into_iter().next().filter(QueueT::ready);
        let queue = queue.ok_or_else(|| ActivateError("the block device's queue is not enabled".to_owned()))?;
        let write_through = features & 1 << VIRTIO_BLK_F_FLUSH == 0;
        let rules = Rules { read_only: self.read_only, write_through, serial: self.serial };
        self.handler =
            Some(QueueHandler { memory, queue, used: Used::default(), interrupt, rules, chain: Chain::default() });
        self.queue_events = Some(queue_events);
        self.activated.write(1).map_err(|error| ActivateError(format!("the event loop cannot be told: {error}")))
    }

    fn reset(&mut self) {
        self.stop();
    }

    fn quiesce(&mut self) {
        let Some(handler) = &mut self.handler else { return };
        if let Err(error) = handler.finish(&mut self.backend) {
            handler.interrupt.fail(&error);
            self.stop();
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.stop();
    }
}

impl MutEventSubscriber for Block {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.fd() == self.activated.as_raw_fd() && !self.watching {
            self.watch(ops);
        }
        self.process_queue();
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(doorbell(&self.activated, 0)) {
            log::error!("cannot watch a block device's activation: {error}");
        }
    }
}
