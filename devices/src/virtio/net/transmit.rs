//! From the guest to the host: the driver's frames, sent as they lie in its memory.

use std::io::ErrorKind;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::Stop;
use super::backend::{Backend, HEADER, MAX_FRAME};
use crate::rate_limiter::RateLimiter;
use crate::virtio::chain::{Buffers, Chain, QueueError};
use crate::virtio::descriptors;
use crate::virtio::used::Used;

/// How many bytes are moved before other devices get their turn.
const BYTES_A_TURN: usize = 2 << 20;

/// An activated transmit queue.
pub(super) struct Transmitter {
    queue: Queue,
    used: Used,
    chain: Chain<'static>,
}

impl Transmitter {
    pub(super) fn new(queue: Queue) -> Self {
        Self { queue, used: Used::default(), chain: Chain::default() }
    }

    /// Sends frames until one side has had enough, or it is the others' turn. Without a backend they are lost, as on
    /// a cable that is not plugged in. Returns why it stopped, and whether the driver wants an interrupt.
    pub(super) fn run(
        &mut self,
        backend: Option<&mut dyn Backend>,
        memory: &GuestMemoryMmap,
        limiter: &mut Option<RateLimiter>,
    ) -> (Result<Stop, QueueError>, bool) {
        let mut chain = std::mem::take(&mut self.chain).recycle();
        let result = self.send_frames(backend, memory, limiter, &mut chain);
        self.chain = chain.recycle();
        let published = self.used.publish(&mut self.queue, memory);
        let interrupt = self.used.needs_interrupt(&self.queue, memory);
        match published.and(interrupt) {
            Ok(interrupt) => (result, interrupt),
            Err(error) => (result.and(Err(error)), false),
        }
    }

    fn send_frames<'m>(
        &mut self,
        mut backend: Option<&mut dyn Backend>,
        memory: &'m GuestMemoryMmap,
        limiter: &mut Option<RateLimiter>,
        chain: &mut Chain<'m>,
    ) -> Result<Stop, QueueError> {
        let (mut frames, mut bytes) = (self.queue.size(), BYTES_A_TURN);
        loop {
            self.queue.disable_notification(memory)?;
            loop {
                if frames == 0 || bytes == 0 {
                    return Ok(Stop::Turn);
                }
                if limiter.as_mut().is_some_and(|limiter| !limiter.admits()) {
                    return Ok(Stop::Limit);
                }
                let Some(descriptors) = descriptors::next(&mut self.queue, memory)? else { break };
                chain.load(descriptors, memory, self.queue.size())?;
                let (head, len) = (chain.head, chain.readable.len());
                if chain.writable.len() > 0 {
                    return Err(QueueError::Kind { head, kind: "writable" });
                }
                if len < HEADER {
                    return Err(QueueError::TooShort { head, part: "header" });
                }
                if let Some(backend) = &mut backend
                    && !send(&mut **backend, &chain.readable)
                {
                    self.queue.go_to_previous_position();
                    return Ok(Stop::Backend);
                }
                limiter.iter_mut().for_each(|limiter| limiter.charge((len - HEADER) as u64));
                self.used.add(&self.queue, memory, head, 0)?;
                frames -= 1;
                bytes = bytes.saturating_sub(len);
            }
            if !self.queue.enable_notification(memory)? {
                return Ok(Stop::Queue);
            }
        }
    }
}

/// Whether the frame is sent, or lost because it is none. Otherwise the backend would have to wait.
fn send(backend: &mut dyn Backend, frame: &Buffers<'_>) -> bool {
    let len = frame.len();
    if len > MAX_FRAME {
        log::debug!("the guest sends a frame of {len} bytes, which is dropped");
        return true;
    }
    // SAFETY: The buffers are of guest memory, which may be read, and which everybody accesses as volatile.
    match unsafe { backend.send(frame.iovecs()) } {
        Ok(()) => true,
        Err(error) if error.kind() == ErrorKind::WouldBlock => false,
        Err(error) => {
            log::debug!("the guest's frame of {len} bytes is lost: {error}");
            true
        }
    }
}
