//! The requests of one queue, against memory, a disk and an interrupt; no bus and no event loop.

use std::io;
use std::sync::Arc;

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

use super::disk::Disk;
use super::request::{self, Request, Rules, Todo};
use super::uring::Ring;
use crate::rate_limiter::RateLimiter;
use crate::virtio::chain::{Chain, QueueError};
use crate::virtio::descriptors;
use crate::virtio::mmio::VirtioInterrupt;
use crate::virtio::used::Used;

/// How many bytes of requests are carried out before other devices get their turn, and before a monitor that wants the
/// device's end is heard.
const BYTES_A_TURN: usize = request::MAX_DATA;

/// Why the device stops until it is reset.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// The driver broke the queue.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The driver made a chain available again that it had not got back.
    #[error("descriptor chain {0} is available while it is under way")]
    Busy(u16),
    /// The host does not carry out requests any more.
    #[error("the host refuses a disk's requests")]
    Ring(#[from] io::Error),
}

impl From<virtio_queue::Error> for Fault {
    fn from(error: virtio_queue::Error) -> Self {
        Self::Queue(error.into())
    }
}

/// What the requests of a queue are carried out with. It outlives the queue.
pub(super) struct Backend {
    pub(super) disk: Disk,
    /// Where there is none, requests are carried out one after the other.
    pub(super) ring: Option<Ring>,
    pub(super) limiter: Option<RateLimiter>,
}

/// An activated request queue.
///
/// Before it goes, its back end's ring must be [drained](Ring::drain): requests under way point into `memory`.
pub(super) struct QueueHandler {
    pub(super) memory: GuestMemoryMmap,
    pub(super) queue: Queue,
    pub(super) used: Used,
    pub(super) interrupt: Arc<VirtioInterrupt>,
    pub(super) rules: Rules,
    /// The chain at hand; kept for its allocations.
    pub(super) chain: Chain<'static>,
}

/// What ended a turn.
#[derive(PartialEq)]
enum Turn {
    /// Everything available is taken.
    Empty,
    /// There is more, and other devices come first.
    Full,
    /// The rate limiter says when it goes on.
    Throttled,
}

impl QueueHandler {
    /// Carries out what the driver has made available, but at most one turn's worth of it, and tells the driver of what
    /// has ended. Returns whether there is more to do at once.
    ///
    /// # Errors
    /// The driver broke the queue. What was carried out before has been reported to it.
    pub(super) fn process(&mut self, backend: &mut Backend) -> Result<bool, Fault> {
        let result = self.carry_out(backend);
        self.tell_driver()?;
        result
    }

    /// Takes nothing more, waits for what is under way, and tells the driver of its end.
    ///
    /// # Errors
    /// As for [`process`](Self::process).
    pub(super) fn finish(&mut self, backend: &mut Backend) -> Result<(), Fault> {
        self.exchange(backend)?;
        while let Some(ring) = backend.ring.as_mut().filter(|ring| !ring.is_empty()) {
            ring.wait();
            self.exchange(backend)?;
        }
        self.tell_driver()
    }

    /// Shows the driver what has ended, all at once, and interrupts it if it wants to know.
    fn tell_driver(&mut self) -> Result<(), Fault> {
        self.used.publish(&mut self.queue, &self.memory)?;
        if self.used.needs_interrupt(&self.queue, &self.memory)? {
            self.interrupt.signal_used_queue();
        }
        Ok(())
    }

    fn carry_out(&mut self, backend: &mut Backend) -> Result<bool, Fault> {
        let (mut requests, mut bytes) = (self.queue.size(), BYTES_A_TURN);
        loop {
            self.queue.disable_notification(&self.memory)?;
            let turn = self.take(backend, &mut requests, &mut bytes);
            // Whatever ended the turn: what came before is carried out.
            let submitted = self.exchange(backend)?;
            match turn? {
                Turn::Full => return Ok(true),
                _ if !submitted => return Ok(true),
                Turn::Throttled => return Ok(false),
                Turn::Empty if !self.queue.enable_notification(&self.memory)? => return Ok(false),
                Turn::Empty => {}
            }
        }
    }

    /// Takes what is available off the queue.
    fn take(&mut self, backend: &mut Backend, requests: &mut u16, bytes: &mut usize) -> Result<Turn, Fault> {
        let Self { memory, queue, used, rules, chain, .. } = self;
        // SAFETY: The chain outlives this borrow, and is emptied before it is loaded again. What points into guest memory is
        // used only as long as this handler is there (see its documentation), and so is the memory.
        let memory: &'static GuestMemoryMmap = unsafe { &*std::ptr::from_ref(memory) };
        loop {
            if *requests == 0 || *bytes == 0 {
                return Ok(Turn::Full);
            }
            if backend.limiter.as_mut().is_some_and(|limiter| !limiter.admits()) {
                return Ok(Turn::Throttled);
            }
            let Some(descriptors) = descriptors::next(queue, memory)? else { return Ok(Turn::Empty) };
            chain.load(descriptors, memory, queue.size())?;
            let head = chain.head;
            if backend.ring.as_ref().is_some_and(|ring| ring.is_busy(head)) {
                return Err(Fault::Busy(head));
            }
            let size = chain.readable.len() + chain.writable.len();
            let (request, todo) = Request::read(chain, rules, &backend.disk)?;
            *requests -= 1;
            *bytes = bytes.saturating_sub(size);
            if let Some(limiter) = &mut backend.limiter {
                limiter.charge(chain.readable.len().max(chain.writable.len()) as u64);
            }
            let (status, slow) = match (todo, &mut backend.ring) {
                (Todo::Io(io), Some(ring)) => {
                    // SAFETY: The memory is mapped as long as this handler is there, and it drains the ring first.
                    unsafe { ring.push(&backend.disk, io, request, chain) }?;
                    continue;
                }
                (Todo::Io(io), None) => (backend.disk.perform(io, chain).into(), io.is_slow()),
                (Todo::Zero(zeroing), _) => (backend.disk.zero(zeroing).into(), true),
                (Todo::Report(status), _) => (status, false),
            };
            let written = request.finish(chain, status);
            used.add(queue, memory, head, written)?;
            if slow {
                return Ok(Turn::Full);
            }
        }
    }

    /// Tells the ring of what is new, and the driver of what has ended. Returns `false` where the ring is to be asked again.
    fn exchange(&mut self, backend: &mut Backend) -> Result<bool, Fault> {
        let Some(ring) = &mut backend.ring else { return Ok(true) };
        let Self { memory, queue, used, .. } = self;
        let submitted = ring.submit()?;
        ring.reap(&backend.disk, |ended| {
            let written = ended.request.finish(ended.chain, ended.result.into());
            used.add(queue, memory, ended.chain.head, written).map_err(Fault::from)
        })?;
        // Rests of requests that the host did in part.
        Ok(ring.submit()? && submitted)
    }
}
