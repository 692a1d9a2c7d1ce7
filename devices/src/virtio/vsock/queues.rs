//! The two queues that carry packets, against memory, the connections and an interrupt.

use std::sync::Arc;

use event_manager::EventOps;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

use super::muxer::Muxer;
use super::packet::{HEADER, Header};
use crate::virtio::chain::{Buffers, Chain, QueueError};
use crate::virtio::descriptors;
use crate::virtio::mmio::VirtioInterrupt;
use crate::virtio::used::Used;

/// The most bytes that one queue carries before other devices get their turn.
const BYTES_A_TURN: usize = 1 << 20;

/// Why a queue is not looked at any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// There is nothing to do; the driver will notify.
    Idle,
    /// It has had its turn, and could go on.
    Turn,
    /// The guest's packets bring about more refusals than it has buffers for.
    Full,
}

/// The activated queues.
pub(super) struct Queues {
    memory: GuestMemoryMmap,
    /// Packets for the guest.
    receive: Carrier,
    /// Packets from the guest.
    transmit: Carrier,
    pub(super) interrupt: Arc<VirtioInterrupt>,
}

/// A queue, and what of its used ring the driver does not know of yet.
struct Carrier {
    queue: Queue,
    used: Used,
}

impl Carrier {
    fn new(queue: Queue) -> Self {
        Self { queue, used: Used::default() }
    }

    /// Makes visible what was used in this turn, and interrupts the driver if it wants to know.
    fn tell_driver(&mut self, memory: &GuestMemoryMmap, interrupt: &VirtioInterrupt) -> Result<(), QueueError> {
        self.used.publish(&mut self.queue, memory)?;
        if self.used.needs_interrupt(&self.queue, memory)? {
            interrupt.signal_used_queue();
        }
        Ok(())
    }
}

impl Queues {
    pub(super) fn new(
        memory: GuestMemoryMmap,
        receive: Queue,
        transmit: Queue,
        interrupt: Arc<VirtioInterrupt>,
    ) -> Self {
        Self { memory, receive: Carrier::new(receive), transmit: Carrier::new(transmit), interrupt }
    }

    /// Takes in the guest's packets, at most one turn's worth.
    ///
    /// # Errors
    /// The driver broke the queue.
    pub(super) fn transmit(&mut self, muxer: &mut Muxer, ops: &mut EventOps<'_>) -> Result<Stop, QueueError> {
        let result = self.take_packets(muxer, ops);
        self.transmit.tell_driver(&self.memory, &self.interrupt)?;
        result
    }

    fn take_packets(&mut self, muxer: &mut Muxer, ops: &mut EventOps<'_>) -> Result<Stop, QueueError> {
        let Self { memory, transmit: Carrier { queue, used }, .. } = self;
        let memory: &GuestMemoryMmap = memory;
        let mut chain = Chain::default();
        let (mut packets, mut bytes) = (queue.size(), BYTES_A_TURN);
        loop {
            queue.disable_notification(memory)?;
            loop {
                if !muxer.can_receive() {
                    return Ok(Stop::Full);
                }
                let Some(descriptors) = descriptors::next(queue, memory)? else { break };
                chain.load(descriptors, memory, queue.size())?;
                let too_short = |part| QueueError::TooShort { head: chain.head, part };
                let mut header = [0; HEADER];
                chain.readable.read(&mut header).ok_or(too_short("packet header"))?;
                let header = Header::from_bytes(&header);
                let len = usize::try_from(header.len).unwrap_or(usize::MAX);
                if len > chain.readable.len() {
                    return Err(too_short("packet"));
                }
                chain.readable.truncate(len);
                muxer.receive(&header, &mut chain.readable, ops);
                used.add(queue, memory, chain.head, 0)?;
                packets -= 1;
                bytes = bytes.saturating_sub(len);
                if packets == 0 || bytes == 0 {
                    return Ok(Stop::Turn);
                }
            }
            if !queue.enable_notification(memory)? {
                return Ok(Stop::Idle);
            }
        }
    }

    /// Hands out packets for the guest, at most one turn's worth.
    ///
    /// # Errors
    /// The driver broke the queue.
    pub(super) fn receive(&mut self, muxer: &mut Muxer, ops: &mut EventOps<'_>) -> Result<Stop, QueueError> {
        if !muxer.has_news() {
            return Ok(Stop::Idle);
        }
        let result = self.hand_out_packets(muxer, ops);
        self.receive.tell_driver(&self.memory, &self.interrupt)?;
        result
    }

    fn hand_out_packets(&mut self, muxer: &mut Muxer, ops: &mut EventOps<'_>) -> Result<Stop, QueueError> {
        let Self { memory, receive: Carrier { queue, used }, .. } = self;
        let memory: &GuestMemoryMmap = memory;
        let mut rooms = Rooms::default();
        let (mut packets, mut bytes) = (usize::from(queue.size()), BYTES_A_TURN);
        queue.disable_notification(memory)?;
        while muxer.has_news() {
            let count = rooms.gather(queue, memory, muxer.expected(), packets)?;
            if count == 0 {
                if queue.enable_notification(memory)? {
                    continue;
                }
                break;
            }
            let header = muxer.next_packet(&mut rooms.data[..count], ops);
            let filled = match header {
                Some(header) => rooms.fill(count, &header, queue, memory, used)?,
                None => 0,
            };
            // The rest is the driver's as before.
            let unused = u16::try_from(count - filled).unwrap_or(0);
            queue.set_next_avail(queue.next_avail().wrapping_sub(unused));
            packets -= filled;
            bytes = bytes.saturating_sub(header.map_or(0, |header| header.len as usize));
            if packets == 0 || bytes == 0 {
                return Ok(Stop::Turn);
            }
        }
        Ok(Stop::Idle)
    }
}

/// Chains for packets to the guest, taken off the queue together so that one system call fills many of them: a driver gives a page each.
#[derive(Default)]
struct Rooms<'m> {
    chain: Chain<'m>,
    /// By which each chain is returned.
    heads: Vec<u16>,
    /// Where each packet's header goes,
    headers: Vec<Buffers<'m>>,
    /// and its data.
    data: Vec<Buffers<'m>>,
}

impl<'m> Rooms<'m> {
    /// Takes chains until they have room for `len` bytes of data, but at least one, if there are any, and at most `most`. Returns how many.
    fn gather(
        &mut self,
        queue: &mut Queue,
        memory: &'m GuestMemoryMmap,
        len: usize,
        most: usize,
    ) -> Result<usize, QueueError> {
        let (mut count, mut room) = (0, 0);
        while count < most && (count == 0 || room < len) {
            let Some(descriptors) = descriptors::next(queue, memory)? else { break };
            self.chain.load(descriptors, memory, queue.size())?;
            if self.chain.writable.len() <= HEADER {
                return Err(QueueError::TooShort { head: self.chain.head, part: "packet" });
            }
            if self.heads.len() == count {
                self.heads.push(0);
                self.headers.push(Buffers::default());
                self.data.push(Buffers::default());
            }
            self.heads[count] = self.chain.head;
            self.chain.writable.split_front(HEADER, &mut self.headers[count]);
            std::mem::swap(&mut self.chain.writable, &mut self.data[count]);
            room += self.data[count].len();
            count += 1;
        }
        Ok(count)
    }

    /// Gives the driver the first of `count` chains, as many as it takes for the data that `header` tells of, each with a header of its own.
    /// Returns how many.
    fn fill(
        &mut self,
        count: usize,
        header: &Header,
        queue: &Queue,
        memory: &GuestMemoryMmap,
        used: &mut Used,
    ) -> Result<usize, QueueError> {
        let mut left = header.len;
        for index in 0..count {
            let room = u32::try_from(self.data[index].len()).unwrap_or(u32::MAX);
            let len = left.min(room);
            left -= len;
            self.headers[index].write(&Header { len, ..*header }.to_bytes());
            let written = u32::try_from(HEADER).map_or(len, |header| header.saturating_add(len));
            used.add(queue, memory, self.heads[index], written)?;
            if left == 0 {
                return Ok(index + 1);
            }
        }
        Ok(count)
    }
}
