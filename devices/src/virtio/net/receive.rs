//! From the host to the guest: frames into the buffers that the driver has made available.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};

use libc::iovec;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

use super::backend::{Backend, HEADER, Received};
use super::scatter;
use super::{QUEUE_SIZE, Stop};
use crate::rate_limiter::RateLimiter;
use crate::virtio::chain::{Chain, QueueError};
use crate::virtio::descriptors;
use crate::virtio::used::Used;

/// Where the header has its `num_buffers`, the last field.
const NUM_BUFFERS: usize = 10;
/// How many bytes are moved before other devices get their turn.
const BYTES_A_TURN: usize = 2 << 20;
/// No more chains are taken for a frame once their buffers are in so many pieces.
const MANY_PIECES: usize = 255;
/// The most pieces that a backend gets: it may add one, and one system call takes 1024.
const MAX_PIECES: usize = 1023;

/// Why receiving cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReceiveError {
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The backend has failed for good.
    #[error("the network device's host side has failed")]
    Backend(#[source] io::Error),
}

/// An activated receive queue.
pub(super) struct Receiver {
    queue: Queue,
    used: Used,
    /// A frame may take several chains (`VIRTIO_NET_F_MRG_RXBUF`).
    mergeable: bool,
    held: Held,
    chain: Chain<'static>,
    /// How long frames have been of late: so much room is sought for the next one.
    expected: usize,
    /// Whether the driver was asked to notify.
    notifications: bool,
}

impl Receiver {
    pub(super) fn new(queue: Queue, mergeable: bool) -> Self {
        Self {
            queue,
            used: Used::default(),
            mergeable,
            held: Held::default(),
            chain: Chain::default(),
            expected: HEADER,
            notifications: false,
        }
    }

    /// Moves frames until one side has nothing left, or it is the others' turn. Returns why it stopped, and whether the
    /// driver wants an interrupt for what was moved.
    pub(super) fn run(
        &mut self,
        backend: &mut dyn Backend,
        memory: &GuestMemoryMmap,
        limiter: &mut Option<RateLimiter>,
    ) -> (Result<Stop, ReceiveError>, bool) {
        let result = self.move_frames(backend, memory, limiter);
        let interrupt = self.used.needs_interrupt(&self.queue, memory);
        match interrupt {
            Ok(interrupt) => (result, interrupt),
            Err(error) => (result.and(Err(error.into())), false),
        }
    }

    fn move_frames(
        &mut self,
        backend: &mut dyn Backend,
        memory: &GuestMemoryMmap,
        limiter: &mut Option<RateLimiter>,
    ) -> Result<Stop, ReceiveError> {
        let (mut frames, mut bytes) = (self.queue.size(), BYTES_A_TURN);
        while frames > 0 && bytes > 0 {
            if limiter.as_mut().is_some_and(|limiter| !limiter.admits()) {
                return Ok(Stop::Limit);
            }
            if !self.gather(memory, self.expected)? {
                return Ok(Stop::Queue);
            }
            // SAFETY: Held buffers are guest memory, which is mapped as long as `memory` is, and volatile to all.
            match unsafe { backend.receive(self.held.pieces()) } {
                Ok(Received::Frame(len)) => {
                    self.deliver(memory, len)?;
                    self.expected = len.max(self.expected - self.expected / 8);
                    limiter.iter_mut().for_each(|limiter| limiter.charge((len - HEADER) as u64));
                    frames -= 1;
                    bytes = bytes.saturating_sub(len);
                }
                Ok(Received::TooLarge(len)) => {
                    self.expected = len;
                    if self.is_exhausted() {
                        log::debug!("a frame of {len} bytes does not fit into the driver's buffers, and is dropped");
                        backend.discard();
                        self.expected = HEADER;
                        frames -= 1;
                    } else if !self.gather(memory, len)? || self.held.room < len && !self.is_exhausted() {
                        return Ok(Stop::Queue);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Stop::Backend),
                Err(error) => return Err(ReceiveError::Backend(error)),
            }
        }
        Ok(Stop::Turn)
    }

    /// Whether no frame can ever get more room than there is.
    fn is_exhausted(&self) -> bool {
        let chains = if self.mergeable { usize::from(self.queue.size()) } else { 1 };
        self.held.chains.len() >= chains || self.held.pieces().len() > MANY_PIECES
    }

    /// Takes chains off the queue until they have room for `len` bytes, as far as there are any. Returns whether there
    /// is a chain at all. The driver is asked to notify if there is too little room.
    fn gather(&mut self, memory: &GuestMemoryMmap, len: usize) -> Result<bool, QueueError> {
        if self.held.room >= len && self.held.room > 0 {
            return Ok(true);
        }
        let mut chain = std::mem::take(&mut self.chain).recycle();
        let result = self.gather_into(&mut chain, memory, len);
        self.chain = chain.recycle();
        result.map(|()| self.held.room > 0)
    }

    fn gather_into<'m>(
        &mut self,
        chain: &mut Chain<'m>,
        memory: &'m GuestMemoryMmap,
        len: usize,
    ) -> Result<(), QueueError> {
        while (self.held.room < len || self.held.room == 0) && !self.is_exhausted() {
            let Some(descriptors) = descriptors::next(&mut self.queue, memory)? else {
                // Each time anew: with VIRTIO_F_EVENT_IDX a wish counts once.
                self.notifications = true;
                if self.queue.enable_notification(memory)? {
                    continue;
                }
                return Ok(());
            };
            chain.load(descriptors, memory, self.queue.size())?;
            let head = chain.head;
            if chain.readable.len() > 0 {
                return Err(QueueError::Kind { head, kind: "readable" });
            }
            if chain.writable.len() < HEADER {
                return Err(QueueError::TooShort { head, part: "header" });
            }
            if self.held.holds(head) {
                return Err(QueueError::Twice { head });
            }
            self.held.push(head, chain.writable.iovecs());
        }
        if self.notifications {
            self.notifications = false;
            self.queue.disable_notification(memory)?;
        }
        Ok(())
    }

    /// Hands the frame of `len` bytes in the held buffers to the driver, all its chains at once.
    fn deliver(&mut self, memory: &GuestMemoryMmap, len: usize) -> Result<(), QueueError> {
        let chains = self.held.chains_for(len);
        // SAFETY: As for receiving.
        unsafe { scatter::write(self.held.pieces(), NUM_BUFFERS, &chains.to_le_bytes()) };
        let mut left = len;
        for _ in 0..chains {
            let Some(chain) = self.held.pop() else { break };
            let written = left.min(chain.room);
            left -= written;
            self.used.add(&self.queue, memory, chain.head, u32::try_from(written).unwrap_or(u32::MAX))?;
        }
        self.used.publish(&mut self.queue, memory)
    }
}

/// Chains that are taken off the queue and not used yet.
#[derive(Default)]
struct Held {
    chains: VecDeque<HeldChain>,
    /// A bit for each chain's head, all of which are below the queue's size.
    heads: [u64; QUEUE_SIZE as usize / 64],
    pieces: Vec<iovec>,
    /// How many of the pieces belong to chains that are used up.
    spent: usize,
    room: usize,
}

// SAFETY: The pointers are to guest memory, which all threads of this process may access, as volatile.
unsafe impl Send for Held {}

#[derive(Clone, Copy)]
struct HeldChain {
    head: u16,
    room: usize,
    pieces: usize,
}

impl Held {
    fn holds(&self, head: u16) -> bool {
        self.heads[usize::from(head) / 64] & 1 << (head % 64) != 0
    }

    fn push(&mut self, head: u16, pieces: &[iovec]) {
        if self.spent > MANY_PIECES || self.chains.is_empty() {
            self.pieces.drain(..self.spent);
            self.spent = 0;
        }
        self.heads[usize::from(head) / 64] |= 1 << (head % 64);
        let room = scatter::len(pieces);
        self.pieces.extend_from_slice(pieces);
        self.chains.push_back(HeldChain { head, room, pieces: pieces.len() });
        self.room += room;
    }

    fn pop(&mut self) -> Option<HeldChain> {
        let chain = self.chains.pop_front()?;
        self.heads[usize::from(chain.head) / 64] &= !(1 << (chain.head % 64));
        self.spent += chain.pieces;
        self.room -= chain.room;
        Some(chain)
    }

    fn pieces(&self) -> &[iovec] {
        let pieces = &self.pieces[self.spent..];
        &pieces[..pieces.len().min(MAX_PIECES)]
    }

    /// How many chains, from the first on, `len` bytes take.
    fn chains_for(&self, len: usize) -> u16 {
        let mut room = 0;
        let mut chains = 0;
        for chain in &self.chains {
            chains += 1;
            room += chain.room;
            if room >= len {
                break;
            }
        }
        chains
    }
}
