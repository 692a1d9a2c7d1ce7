//! A network device (specification section 5.1) with one receive and one transmit queue. Frames go straight between
//! guest memory and a [`Backend`]: a [`Tap`] interface, or a [`FrameSocket`] to a program such as passt. With a tap interface,
//! the host's kernel can do all of that work: [`VhostNet`].
//!
//! This file is the side that faces the transport, `events` the one that faces the event loop; `receive` and `transmit`
//! walk the queues.

mod backend;
mod events;
mod frame_socket;
mod receive;
mod scatter;
mod tap;
mod transmit;
mod vhost;

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub use self::backend::{Backend, HEADER, MAX_FRAME, MIN_FRAME, Received};
pub use self::frame_socket::FrameSocket;
pub use self::tap::{Tap, TapError};
pub use self::vhost::{VhostError, VhostNet};

use self::receive::Receiver;
use self::transmit::Transmitter;
use super::config::read_config_space;
use super::mmio::VirtioInterrupt;
use super::{ActivateError, ActivationContext, VirtioDevice};
use crate::rate_limiter::{RateLimiter, RateLimits};

/// The largest size of either queue. With mergeable buffers, which Linux makes at least 1.5 KiB long, a full receive
/// queue holds several frames of 64 KiB.
const QUEUE_SIZE: u16 = 256;
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// What the device can do whatever it is connected to.
const OWN_FEATURES: u64 = 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_NET_F_MAC
    | 1 << VIRTIO_NET_F_STATUS
    | 1 << VIRTIO_NET_F_MRG_RXBUF;

/// What the driver is told, and how much it may do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Settings {
    /// The device's address.
    pub mac: [u8; 6],
    /// The largest IP packet in bytes, from 68 on, where the driver is to be told one.
    pub mtu: Option<u16>,
    /// Limits on what the guest receives. A frame's bytes count without the header.
    pub receive: RateLimits,
    /// Limits on what the guest sends.
    pub transmit: RateLimits,
}

/// Why one direction has come to a halt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// Its share of work is done, and there may be more.
    Turn,
    /// The driver has to make buffers available.
    Queue,
    /// The backend has nothing to receive, or takes nothing.
    Backend,
    /// The rate limit is reached.
    Limit,
}

/// A network device. Its frames are moved on the event loop's thread.
pub struct Net {
    backend: Box<dyn Backend>,
    /// Whether the backend works.
    link_up: bool,
    settings: Settings,
    receive_limit: Option<RateLimiter>,
    transmit_limit: Option<RateLimiter>,
    /// Tells the event loop's thread that a vCPU has activated the device.
    activated: EventFd,
    active: Option<Active>,
    /// Present since the first activation.
    queue_events: Option<Arc<[EventFd]>>,
    /// Whether the event loop watches them, and the backend.
    watching: bool,
}

/// What there is while the driver has the device activated.
struct Active {
    memory: GuestMemoryMmap,
    interrupt: Arc<VirtioInterrupt>,
    receiver: Receiver,
    transmitter: Transmitter,
    /// The backend could take no more when it was asked last.
    backend_full: bool,
}

impl Net {
    /// A device with its link up.
    ///
    /// # Errors
    /// The MTU is too small, or a descriptor cannot be made.
    pub fn new(backend: Box<dyn Backend>, settings: Settings) -> io::Result<Self> {
        // Section 5.1.4.1.
        if settings.mtu.is_some_and(|mtu| mtu < 68) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "an MTU is at least 68"));
        }
        let limiter = |limits| (limits != RateLimits::default()).then(|| RateLimiter::new(limits)).transpose();
        Ok(Self {
            backend,
            link_up: true,
            settings,
            receive_limit: limiter(settings.receive)?,
            transmit_limit: limiter(settings.transmit)?,
            activated: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            active: None,
            queue_events: None,
            watching: false,
        })
    }

    fn config_space(&self) -> [u8; 12] {
        config_space(&self.settings, self.link_up)
    }
}

/// mac, status, max_virtqueue_pairs (which says nothing without VIRTIO_NET_F_MQ), mtu (section 5.1.4).
fn config_space(settings: &Settings, link_up: bool) -> [u8; 12] {
    let mut space = [0; 12];
    space[..6].copy_from_slice(&settings.mac);
    if link_up {
        space[6..8].copy_from_slice(&VIRTIO_NET_S_LINK_UP.to_le_bytes()[..2]);
    }
    space[10..].copy_from_slice(&settings.mtu.unwrap_or_default().to_le_bytes());
    space
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queue_max_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    fn features(&self) -> u64 {
        let mtu = self.settings.mtu.map_or(0, |_| 1 << VIRTIO_NET_F_MTU);
        OWN_FEATURES | self.backend.offloads() | mtu
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_space(&self.config_space(), offset, data);
    }

    /// Nothing in the configuration space is writable.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, context: ActivationContext) -> Result<(), ActivateError> {
        let ActivationContext { memory, queues, queue_events, interrupt, features } = context;
        let queues: Result<[_; 2], _> = queues.try_into();
        let [receive, transmit] = queues.map_err(|_| ActivateError("the network device has two queues".to_owned()))?;
        if !receive.ready() || !transmit.ready() {
            return Err(ActivateError("the network device's queues are not enabled".to_owned()));
        }
        if self.link_up {
            let set = self.backend.set_features(features);
            set.map_err(|error| ActivateError(format!("the host refuses the offloads: {error}")))?;
        }
        let mergeable = features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0;
        let (receiver, transmitter) = (Receiver::new(receive, mergeable), Transmitter::new(transmit));
        self.active = Some(Active { memory, interrupt, receiver, transmitter, backend_full: false });
        self.queue_events = Some(queue_events);
        self.activated.write(1).map_err(|error| ActivateError(format!("the event loop cannot be told: {error}")))
    }

    fn reset(&mut self) {
        self.active = None;
    }
}
