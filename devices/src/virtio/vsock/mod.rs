//! A socket device (specification section 5.10): stream connections between programs of the guest and of the host.
//!
//! On the host a connection is a UNIX socket. A program that wants to reach the guest connects to the device's path and
//! writes `CONNECT PORT` and a line end; when the guest agrees, it reads `OK` and a port of the host's side, and from
//! then on speaks with the guest. A program that the guest can reach listens at the same path with `_PORT` behind it; the
//! guest connects to port PORT of the host (CID 2).
//!
//! This file is the side that faces the transport and the event loop; `queues` walks the queues, `muxer` has the
//! table of connections, `connection` the life of one, `credit` its flow control, `packet` the header, and `socket` the
//! system calls.

mod connection;
mod credit;
mod muxer;
mod packet;
mod queues;
mod socket;

use std::io;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;

pub use self::muxer::MAX_CONNECTIONS;

use self::muxer::Muxer;
use self::queues::{Queues, Stop};
use super::chain::QueueError;
use super::config::read_config_space;
use super::doorbell::{Doorbells, Ring};
use super::{ActivateError, ActivationContext, VirtioDevice};

/// The queue of packets for the guest.
const RECEIVE: usize = 0;
/// The queue of packets from the guest.
const TRANSMIT: usize = 1;
const QUEUE_SIZE: u16 = 256;
/// The queue of events, of which there is none: a guest never moves to another host while it has connections.
const EVENT_SIZE: u16 = 16;

/// A socket device.
pub struct Vsock {
    doorbells: Doorbells,
    muxer: Muxer,
    /// Present while the driver has the device activated.
    queues: Option<Queues>,
    /// The connections are of an activation that is over.
    stale: bool,
}

impl Vsock {
    /// A device for a guest with the context identifier `guest_cid` (from 3 on, see section 5.10.4). Programs of the host
    /// connect to `listener`, whose name in the file system is `path`; what the guest connects to is named `path` with an
    /// underscore and the port behind it, looked up each time.
    ///
    /// # Errors
    /// An eventfd cannot be made, or the listener not be made non-blocking.
    pub fn new(guest_cid: u32, listener: UnixListener, path: PathBuf) -> io::Result<Self> {
        let muxer = Muxer::new(guest_cid.into(), listener, path)?;
        Ok(Self { doorbells: Doorbells::new()?, muxer, queues: None, stale: false })
    }

    fn serve(&mut self, ops: &mut EventOps<'_>) -> Result<(), QueueError> {
        let Some(queues) = &mut self.queues else { return Ok(()) };
        let transmitted = queues.transmit(&mut self.muxer, ops)?;
        if queues.receive(&mut self.muxer, ops)? == Stop::Turn {
            self.doorbells.ring(RECEIVE);
        }
        if transmitted == Stop::Turn || transmitted == Stop::Full && self.muxer.can_receive() {
            self.doorbells.ring(TRANSMIT);
        }
        if self.muxer.can_accept() {
            self.muxer.accept(ops);
        }
        Ok(())
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn queue_max_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE, QUEUE_SIZE, EVENT_SIZE]
    }

    /// Without a feature bit of its own the device has stream sockets (section 5.10.3).
    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_space(&self.muxer.guest_cid().to_le_bytes(), offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, context: ActivationContext) -> Result<(), ActivateError> {
        let ActivationContext { memory, queues, queue_events, interrupt, .. } = context;
        let mut queues = queues.into_iter();
        let (Some(receive), Some(transmit)) =
            (queues.next().filter(QueueT::ready), queues.next().filter(QueueT::ready))
        else {
            return Err(ActivateError("the socket device's queues are not enabled".to_owned()));
        };
        self.queues = Some(Queues::new(memory, receive, transmit, interrupt));
        self.doorbells.activate(queue_events)
    }

    fn reset(&mut self) {
        self.queues = None;
        // Sockets are let go of by the thread that watches them.
        self.stale = true;
        self.doorbells.wake();
    }
}

impl MutEventSubscriber for Vsock {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if std::mem::take(&mut self.stale) {
            self.muxer.clear(ops);
        }
        let ring = self.doorbells.answer(events.data(), ops);
        if self.queues.is_none() {
            return;
        }
        match ring {
            Some(Ring::Wake) => self.muxer.listen(ops),
            Some(Ring::Queue(_)) => {}
            None => self.muxer.host_event(&events, ops),
        }
        if let Err(error) = self.serve(ops)
            && let Some(queues) = self.queues.take()
        {
            queues.interrupt.fail(&error);
            self.muxer.clear(ops);
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        self.doorbells.init(ops);
    }
}
