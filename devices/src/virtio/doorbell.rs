//! How a device's event loop hears of its driver, and the driver of its device.

use std::io;
use std::sync::Arc;

use event_manager::EventOps;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::ActivateError;
use super::chain::QueueError;
use super::mmio::VirtioInterrupt;
use crate::stream::doorbell;

/// What rang.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ring {
    /// A vCPU has activated or reset the device.
    Wake,
    /// There is something to do for the queue with this index.
    Queue(usize),
}

/// The eventfds that the driver, or the device itself, rings. In the event loop they have the data 0 (wake) and 1 + N
/// (queue N); a device's other events take data from [`Doorbells::FIRST_FREE`] on.
pub(super) struct Doorbells {
    wake: EventFd,
    /// Present since the first activation, and the same ones ever after.
    queues: Option<Arc<[EventFd]>>,
    /// Whether the event loop watches those.
    watching: bool,
}

impl Doorbells {
    /// The first data that no doorbell has: no device here has more queues.
    pub(super) const FIRST_FREE: u32 = 16;

    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?, queues: None, watching: false })
    }

    /// On activation: notes the queues' eventfds and wakes the event loop.
    pub(super) fn activate(&mut self, queues: Arc<[EventFd]>) -> Result<(), ActivateError> {
        self.queues = Some(queues);
        self.wake.write(1).map_err(|error| ActivateError(format!("the event loop cannot be told: {error}")))
    }

    /// Wakes the event loop.
    pub(super) fn wake(&self) {
        if let Err(error) = self.wake.write(1) {
            log::error!("cannot wake a virtio device's event loop: {error}");
        }
    }

    /// Lets the event loop come back to a queue after other devices had their turn.
    pub(super) fn ring(&self, queue: usize) {
        if let Some(event) = self.queues.as_ref().and_then(|events| events.get(queue))
            && let Err(error) = event.write(1)
        {
            log::error!("cannot continue with virtqueue {queue}: {error}");
        }
    }

    /// Before the first event.
    pub(super) fn init(&self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(doorbell(&self.wake, 0)) {
            log::error!("cannot watch a virtio device's activation: {error}");
        }
    }

    /// What an event with `data` is about, if it is a doorbell's. The queues are watched from the first activation on.
    pub(super) fn answer(&mut self, data: u32, ops: &mut EventOps<'_>) -> Option<Ring> {
        if data != 0 {
            return (data < Self::FIRST_FREE).then(|| Ring::Queue(data as usize - 1));
        }
        if let Some(events) = self.queues.as_ref().filter(|_| !self.watching) {
            self.watching = true;
            for (data, event) in (1..).zip(events.iter()) {
                if let Err(error) = ops.add(doorbell(event, data)) {
                    log::error!("cannot watch virtqueue {}: {error}", data - 1);
                }
            }
        }
        Some(Ring::Wake)
    }
}

/// Interrupts the driver if it wants to know of the buffers that were used.
pub(super) fn tell_driver(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    interrupt: &VirtioInterrupt,
) -> Result<(), QueueError> {
    if queue.needs_notification(memory)? {
        interrupt.signal_used_queue();
    }
    Ok(())
}
