//! A memory balloon (specification section 5.5): memory that the guest lends back to its host.
//!
//! This file is the side that faces the transport, the event loop and the monitor; `inflate` takes the pages that the
//! guest puts into the balloon, `reporting` those that it reports as free, `statistics` reads what it says of its memory.

mod inflate;
mod reporting;
mod statistics;

use std::io;
use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};

pub use self::statistics::Statistics;

use super::chain::QueueError;
use super::config::read_config_space;
use super::doorbell::{Doorbells, Ring, tell_driver};
use super::mmio::VirtioInterrupt;
use super::{ActivateError, ActivationContext, VirtioDevice};

/// The unit of the balloon's size in bytes, whatever the guest's pages are (section 5.5.6).
pub const PAGE: u64 = 4096;

/// `VIRTIO_BALLOON_F_STATS_VQ`.
const F_STATISTICS: u64 = 1 << 1;
/// `VIRTIO_BALLOON_F_DEFLATE_ON_OOM`.
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// `VIRTIO_BALLOON_F_PAGE_REPORTING`.
const F_REPORTING: u64 = 1 << 5;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
/// The first of the queues that exist only with their features. They follow one another without gaps, as Linux has it.
const OPTIONAL: usize = 2;
/// Linux reports 32 ranges at a time, and gives up where a queue takes fewer.
const QUEUE_SIZE: u16 = 128;

/// Where the guest's memory is, as the monitor knows it.
pub trait Reclaim: Send {
    /// Gives `len` bytes from `address` on back to the host. They lie in guest memory, and both numbers are multiples of
    /// [`PAGE`]. What the guest reads there later is zeroes, or what was there.
    ///
    /// # Errors
    /// The host does not take them; the guest is not told.
    fn discard(&self, address: GuestAddress, len: u64) -> io::Result<()>;
}

/// What a balloon offers its guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalloonFeatures {
    /// The guest may take memory out of the balloon when it has none left, before it kills a process.
    pub deflate_on_oom: bool,
    /// The guest reports free memory by itself, which the host then takes.
    pub reporting: bool,
}

/// A memory balloon.
pub struct Balloon {
    doorbells: Doorbells,
    reclaim: Box<dyn Reclaim>,
    features: BalloonFeatures,
    /// How many pages the guest is to put into the balloon, and how many it says are in it.
    target: u32,
    actual: u32,
    statistics: Statistics,
    /// Present while the driver has the device activated.
    active: Option<Active>,
}

struct Active {
    memory: GuestMemoryMmap,
    queues: Vec<Queue>,
    interrupt: Arc<VirtioInterrupt>,
    statistics: Option<usize>,
    reporting: Option<usize>,
    /// The driver's buffer for statistics, which it gets back when new ones are wanted.
    held: Option<u16>,
    /// New ones are wanted, and there was no buffer to say so with.
    wanted: bool,
}

impl Balloon {
    /// A balloon that takes its memory by `reclaim`, and is to have `target` pages of [`PAGE`] bytes in it.
    ///
    /// # Errors
    /// An eventfd cannot be made.
    pub fn new(reclaim: Box<dyn Reclaim>, features: BalloonFeatures, target: u32) -> io::Result<Self> {
        let (doorbells, statistics) = (Doorbells::new()?, Statistics::default());
        Ok(Self { doorbells, reclaim, features, target, actual: 0, statistics, active: None })
    }

    /// Asks the guest to put so many pages into the balloon, or to leave no more in it.
    pub fn set_target(&mut self, pages: u32) {
        self.target = pages;
        if let Some(active) = &self.active {
            active.interrupt.signal_config_change(&self.config_space());
        }
    }

    /// How many pages the guest is to put into the balloon.
    #[must_use]
    pub fn target(&self) -> u32 {
        self.target
    }

    /// How many pages are in the balloon, as the guest says.
    #[must_use]
    pub fn actual(&self) -> u32 {
        self.actual
    }

    /// What the guest said last of its memory.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.statistics
    }

    /// Asks the guest for new statistics, which count as one more [`Statistics::reports`] when they come.
    pub fn request_statistics(&mut self) {
        if let Some(active) = &mut self.active {
            active.wanted = true;
        }
        let result = self.return_statistics_buffer();
        self.fail_on_error(result);
    }

    /// The driver answers by filling its buffer anew.
    fn return_statistics_buffer(&mut self) -> Result<(), QueueError> {
        let Some(Active { memory, queues, interrupt, statistics: Some(index), held, wanted, .. }) = &mut self.active
        else {
            return Ok(());
        };
        if *wanted && let Some(head) = held.take() {
            *wanted = false;
            queues[*index].add_used(&*memory, head, 0)?;
            tell_driver(&mut queues[*index], memory, interrupt)?;
        }
        Ok(())
    }

    fn serve(&mut self, queue: usize) -> Result<(), QueueError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let Some(number) = active.queues.get_mut(queue).filter(|queue| queue.ready()) else { return Ok(()) };
        let memory = &active.memory;
        let more = if queue == INFLATE {
            let more = inflate::inflate(number, memory, &*self.reclaim);
            tell_driver(number, memory, &active.interrupt)?;
            more?
        } else if queue == DEFLATE {
            let more = inflate::deflate(number, memory);
            tell_driver(number, memory, &active.interrupt)?;
            more?
        } else if Some(queue) == active.reporting {
            let more = reporting::take(number, memory, &*self.reclaim);
            tell_driver(number, memory, &active.interrupt)?;
            more?
        } else if Some(queue) != active.statistics {
            false
        } else {
            let more = statistics::receive(number, memory, &mut self.statistics, &mut active.held);
            tell_driver(number, memory, &active.interrupt)?;
            self.return_statistics_buffer()?;
            more?
        };
        if more {
            self.doorbells.ring(queue);
        }
        Ok(())
    }

    fn fail_on_error(&mut self, result: Result<(), QueueError>) {
        if let Err(error) = result
            && let Some(active) = self.active.take()
        {
            active.interrupt.fail(&error);
        }
    }

    fn config_space(&self) -> [u8; 8] {
        let mut space = [0; 8];
        space[..4].copy_from_slice(&self.target.to_le_bytes());
        space[4..].copy_from_slice(&self.actual.to_le_bytes());
        space
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn queue_max_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; OPTIONAL + 1 + usize::from(self.features.reporting)]
    }

    fn features(&self) -> u64 {
        let optional = |offered, feature| if offered { feature } else { 0 };
        1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | F_STATISTICS
            | optional(self.features.deflate_on_oom, F_DEFLATE_ON_OOM)
            | optional(self.features.reporting, F_REPORTING)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_space(&self.config_space(), offset, data);
    }

    /// The driver writes the balloon's size.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (4, Ok(bytes)) = (offset, data.try_into()) {
            self.actual = u32::from_le_bytes(bytes);
        }
    }

    fn activate(&mut self, context: ActivationContext) -> Result<(), ActivateError> {
        let ActivationContext { memory, queues, queue_events, interrupt, features } = context;
        if ![INFLATE, DEFLATE].iter().all(|&queue| queues[queue].ready()) {
            return Err(ActivateError("the balloon's queues are not enabled".to_owned()));
        }
        let statistics = (features & F_STATISTICS != 0).then_some(OPTIONAL);
        let reporting = (features & F_REPORTING != 0).then_some(OPTIONAL + usize::from(statistics.is_some()));
        let (held, wanted) = (None, false);
        self.active = Some(Active { memory, queues, interrupt, statistics, reporting, held, wanted });
        self.doorbells.activate(queue_events)
    }

    fn reset(&mut self) {
        self.active = None;
        // All memory is the guest's again: it forgets its balloon.
        self.actual = 0;
    }
}

impl MutEventSubscriber for Balloon {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let result = match self.doorbells.answer(events.data(), ops) {
            Some(Ring::Queue(queue)) => self.serve(queue),
            Some(Ring::Wake) => (0..self.queue_max_sizes().len()).try_for_each(|queue| self.serve(queue)),
            None => Ok(()),
        };
        self.fail_on_error(result);
    }

    fn init(&mut self, ops: &mut EventOps) {
        self.doorbells.init(ops);
    }
}
