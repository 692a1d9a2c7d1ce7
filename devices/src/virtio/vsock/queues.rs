//! The two queues that carry packets, against memory, the connections and an interrupt.

use std::sync::Arc;

use event_manager::EventOps;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::muxer::Muxer;
use super::packet::{HEADER, Header};
use crate::virtio::chain::{Buffers, Chain, QueueError};
use crate::virtio::descriptors;
use crate::virtio::doorbell::tell_driver;
use crate::virtio::mmio::VirtioInterrupt;

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
    pub(super) memory: GuestMemoryMmap,
    /// Packets for the guest.
    pub(super) receive: Queue,
    /// Packets from the guest.
    pub(super) transmit: Queue,
    pub(super) interrupt: Arc<VirtioInterrupt>,
}

impl Queues {
    /// Takes in the guest's packets, at most one turn's worth.
    ///
    /// # Errors
    /// The driver broke the queue.
    pub(super) fn transmit(&mut self, muxer: &mut Muxer, ops: &mut EventOps<'_>) -> Result<Stop, QueueError> {
        let result = self.take_packets(muxer, ops);
        tell_driver(&mut self.transmit, &self.memory, &self.interrupt)?;
        result
    }

    fn take_packets(&mut self, muxer: &mut Muxer, ops: &mut EventOps<'_>) -> Result<Stop, QueueError> {
        let Self { memory, transmit: queue, .. } = self;
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
                queue.add_used(memory, chain.head, 0)?;
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
        tell_driver(&mut self.receive, &self.memory, &self.interrupt)?;
        result
    }

    fn hand_out_packets(&mut self, muxer: &mut Muxer, ops: &mut EventOps<'_>) -> Result<Stop, QueueError> {
        let Self { memory, receive: queue, .. } = self;
        let memory: &GuestMemoryMmap = memory;
        let (mut chain, mut front) = (Chain::default(), Buffers::default());
        let (mut packets, mut bytes) = (queue.size(), BYTES_A_TURN);
        queue.disable_notification(memory)?;
        while muxer.has_news() {
            let Some(descriptors) = descriptors::next(queue, memory)? else {
                if queue.enable_notification(memory)? {
                    continue;
                }
                break;
            };
            chain.load(descriptors, memory, queue.size())?;
            if chain.writable.len() <= HEADER {
                return Err(QueueError::TooShort { head: chain.head, part: "packet" });
            }
            chain.writable.split_front(HEADER, &mut front);
            let Some(header) = muxer.next_packet(&mut chain.writable, ops) else {
                queue.go_to_previous_position();
                continue;
            };
            front.write(&header.to_bytes());
            let len = usize::try_from(header.len).unwrap_or(usize::MAX);
            let written = u32::try_from(len.saturating_add(HEADER)).unwrap_or(u32::MAX);
            queue.add_used(memory, chain.head, written)?;
            packets -= 1;
            bytes = bytes.saturating_sub(len);
            if packets == 0 || bytes == 0 {
                return Ok(Stop::Turn);
            }
        }
        Ok(Stop::Idle)
    }
}
