//! The control messages of a multiport console (section 5.3.6.2), and those that wait for the driver's buffers.

use std::collections::VecDeque;

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

use crate::virtio::chain::{Chain, QueueError};
use crate::virtio::descriptors;

/// The length in bytes of a message.
const MESSAGE: usize = 8;
/// The same, as the used ring has it.
const MESSAGE_LEN: u32 = 8;
/// While so many messages wait for the driver's buffers, nothing new is heard of it.
const MAX_WAITING: usize = 256;

/// What a message says (`VIRTIO_CONSOLE_...` in the specification).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    DeviceReady,
    PortAdd,
    PortReady,
    PortOpen,
    Other(u16),
}

impl Event {
    fn from_wire(value: u16) -> Self {
        match value {
            0 => Self::DeviceReady,
            1 => Self::PortAdd,
            3 => Self::PortReady,
            6 => Self::PortOpen,
            other => Self::Other(other),
        }
    }

    fn to_wire(self) -> u16 {
        match self {
            Self::DeviceReady => 0,
            Self::PortAdd => 1,
            Self::PortReady => 3,
            Self::PortOpen => 6,
            Self::Other(other) => other,
        }
    }
}

/// A control message, in either direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) port: u32,
    pub(super) event: Event,
    pub(super) value: u16,
}

impl Message {
    fn from_wire(wire: [u8; MESSAGE]) -> Self {
        let [a, b, c, d, e, f, g, h] = wire;
        Self {
            port: u32::from_le_bytes([a, b, c, d]),
            event: Event::from_wire(u16::from_le_bytes([e, f])),
            value: u16::from_le_bytes([g, h]),
        }
    }

    fn to_wire(self) -> [u8; MESSAGE] {
        let mut wire = [0; MESSAGE];
        wire[..4].copy_from_slice(&self.port.to_le_bytes());
        wire[4..6].copy_from_slice(&self.event.to_wire().to_le_bytes());
        wire[6..].copy_from_slice(&self.value.to_le_bytes());
        wire
    }
}

/// The messages for the driver that it has given no buffers for yet.
#[derive(Default)]
pub(super) struct Outbox(VecDeque<Message>);

impl Outbox {
    pub(super) fn push(&mut self, port: u32, event: Event, value: bool) {
        self.0.push_back(Message { port, event, value: value.into() });
    }

    pub(super) fn is_full(&self) -> bool {
        self.0.len() >= MAX_WAITING
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Hands over as many messages as the driver has buffers for.
    pub(super) fn deliver(&mut self, queue: &mut Queue, memory: &GuestMemoryMmap) -> Result<(), QueueError> {
        let mut chain = Chain::default();
        loop {
            queue.disable_notification(memory)?;
            while let Some(message) = self.0.front() {
                let Some(descriptors) = descriptors::next(queue, memory)? else { break };
                chain.load(descriptors, memory, queue.size())?;
                if chain.writable.write(&message.to_wire()) < MESSAGE {
                    return Err(QueueError::TooShort { head: chain.head, part: "control message" });
                }
                queue.add_used(memory, chain.head, MESSAGE_LEN)?;
                self.0.pop_front();
            }
            // Without a message to send, new buffers are of no interest.
            if self.0.is_empty() || !queue.enable_notification(memory)? {
                return Ok(());
            }
        }
    }
}

/// The driver's next message, if there is one.
pub(super) fn receive(queue: &mut Queue, memory: &GuestMemoryMmap) -> Result<Option<Message>, QueueError> {
    let Some(descriptors) = descriptors::next(queue, memory)? else { return Ok(None) };
    let mut chain = Chain::default();
    chain.load(descriptors, memory, queue.size())?;
    let mut wire = [0; MESSAGE];
    let whole = chain.readable.read(&mut wire);
    whole.ok_or(QueueError::TooShort { head: chain.head, part: "control message" })?;
    queue.add_used(memory, chain.head, 0)?;
    Ok(Some(Message::from_wire(wire)))
}
