//! A network device whose frames the host's kernel moves, between guest memory and a tap interface (vhost-net).
//!
//! What is left to do here is to tell the kernel where the rings are, to start and to stop it, and to hear of a driver's
//! faults. Its thread sees neither this process's locks nor its limits.

mod kernel;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::kernel::Kernel;
use super::backend::Backend;
use super::{OWN_FEATURES, QUEUE_SIZE, Settings, Tap, config_space};
use crate::rate_limiter::RateLimits;
use crate::stream::doorbell;
use crate::virtio::config::read_config_space;
use crate::virtio::mmio::VirtioInterrupt;
use crate::virtio::{ActivateError, ActivationContext, VirtioDevice};

const QUEUES: usize = 2;

/// What an event is about, as the data that epoll keeps with it; queue N's errors have N after this.
const CONTINUE: u32 = 0;
const ERRORS: u32 = 1;

/// What of the driver's features the kernel's device is told. The others are the tap interface's, or ours.
const KERNEL_FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_NET_F_MRG_RXBUF;

/// Why the host's kernel cannot move a network device's frames.
#[derive(Debug, thiserror::Error)]
pub enum VhostError {
    /// The host has no vhost-net, or not for this user.
    #[error("cannot open {}", kernel::PATH)]
    Open(#[source] io::Error),
    /// It is there, and does not work.
    #[error("{} cannot {attempt}", kernel::PATH)]
    SetUp {
        /// What was attempted.
        attempt: &'static str,
        /// What the operating system says.
        source: io::Error,
    },
    /// The device cannot be made with these settings.
    #[error("a network device whose frames the host's kernel moves has no rate limits")]
    Limits,
}

/// A network device whose frames the host's kernel moves.
pub struct VhostNet {
    tap: Tap,
    kernel: Kernel,
    /// What the kernel's device can do.
    known: u64,
    settings: Settings,
    /// Has the event loop go on after it rested.
    go_on: EventFd,
    /// Written by the kernel when it finds nonsense in a queue.
    errors: [EventFd; QUEUES],
    active: Option<Active>,
}

/// What there is while the driver has the device activated.
struct Active {
    /// The kernel reads and writes it, by its addresses.
    _memory: GuestMemoryMmap,
    interrupt: Arc<VirtioInterrupt>,
    /// Whether the kernel works on the queues.
    running: bool,
}

/// Queue `queue` of the driver's holds something that no driver may put there.
#[derive(Debug, thiserror::Error)]
#[error("the host's kernel finds nonsense in virtqueue {queue}")]
struct QueueFault {
    queue: usize,
}

impl VhostNet {
    /// A device on `tap`, for a transport whose interrupt line has an eventfd ([`Interrupt::event`](crate::Interrupt::event)).
    /// To be made by a thread of the process that the guest's memory is mapped in.
    ///
    /// # Errors
    /// The host has no vhost-net, or `settings` have rate limits, of which it knows nothing.
    pub fn new(tap: Tap, settings: Settings) -> Result<Self, VhostError> {
        if settings.receive != RateLimits::default() || settings.transmit != RateLimits::default() {
            return Err(VhostError::Limits);
        }
        let failed = |attempt| move |source| VhostError::SetUp { attempt, source };
        let kernel = Kernel::open().map_err(VhostError::Open)?;
        let known = kernel.features().map_err(failed("tell its features"))?;
        if known & 1 << VIRTIO_F_VERSION_1 == 0 {
            let source = io::Error::from(io::ErrorKind::Unsupported);
            return Err(VhostError::SetUp { attempt: "serve drivers of virtio 1", source });
        }
        kernel.own().map_err(failed("start its thread"))?;
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(failed("have an eventfd"));
        let (go_on, errors) = (event()?, [event()?, event()?]);
        Ok(Self { tap, kernel, known, settings, go_on, errors, active: None })
    }

    /// Tells the kernel all about the queues.
    fn set_up(&mut self, context: &ActivationContext) -> Result<(), ActivateError> {
        let failed =
            |attempt| move |error| ActivateError(format!("the host's kernel does not take {attempt}: {error}"));
        self.tap.set_features(context.features).map_err(failed("the offloads"))?;
        self.kernel.set_features(context.features & KERNEL_FEATURES).map_err(failed("the features"))?;
        self.kernel.set_memory(&context.memory).map_err(failed("the guest's memory"))?;
        let call = context.interrupt.used_queue_event();
        let call =
            call.ok_or_else(|| ActivateError("the interrupt line has no eventfd for the host's kernel".to_owned()))?;
        for (index, (queue, kick)) in context.queues.iter().zip(context.queue_events.iter()).enumerate() {
            self.kernel.set_queue(index, queue, &context.memory).map_err(failed("the rings"))?;
            self.kernel.set_events(index, kick, call, &self.errors[index]).map_err(failed("the events"))?;
        }
        Ok(())
    }

    /// Lets the kernel work on the queues.
    fn run(&mut self) -> io::Result<()> {
        let Some(active) = &mut self.active else { return Ok(()) };
        active.running = true;
        let tap = Some(self.tap.as_raw_fd());
        let started = (0..QUEUES).try_for_each(|queue| self.kernel.set_backend(queue, tap));
        if started.is_err() {
            self.rest();
        }
        started
    }

    /// Takes the queues from the kernel. What it has not taken off them stays there.
    fn rest(&mut self) {
        let Some(active) = self.active.as_mut().filter(|active| active.running) else { return };
        active.running = false;
        for queue in 0..QUEUES {
            if let Err(error) = self.kernel.set_backend(queue, None) {
                log::error!("the host's kernel does not let go of a virtqueue: {error}");
            }
        }
    }

    /// Stops until the driver resets the device.
    fn fail(&mut self, error: &dyn std::error::Error) {
        self.rest();
        if let Some(active) = self.active.take() {
            active.interrupt.fail(error);
        }
    }
}

impl Drop for VhostNet {
    /// Guest memory may be unmapped from here on.
    fn drop(&mut self) {
        self.rest();
    }
}

impl VirtioDevice for VhostNet {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queue_max_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; QUEUES]
    }

    fn features(&self) -> u64 {
        let own = OWN_FEATURES & (self.known | !KERNEL_FEATURES);
        own | self.tap.offloads() | self.settings.mtu.map_or(0, |_| 1 << VIRTIO_NET_F_MTU)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_space(&config_space(&self.settings, true), offset, data);
    }

    /// Nothing in the configuration space is writable.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, context: ActivationContext) -> Result<(), ActivateError> {
        if context.queues.len() != QUEUES || !context.queues.iter().all(QueueT::ready) {
            return Err(ActivateError("the network device's queues are not enabled".to_owned()));
        }
        self.set_up(&context)?;
        let ActivationContext { memory, interrupt, .. } = context;
        self.active = Some(Active { _memory: memory, interrupt, running: false });
        self.run().map_err(|error| {
            self.active = None;
            ActivateError(format!("the host's kernel does not start: {error}"))
        })
    }

    fn reset(&mut self) {
        self.rest();
        self.active = None;
        // What was wrong with the queues is no fault of the next ones'.
        for event in &self.errors {
            let _ = event.read();
        }
    }

    /// The kernel keeps its place in the rings until it goes on.
    fn quiesce(&mut self) {
        self.rest();
        if let Err(error) = self.go_on.write(1) {
            log::error!("a network device will not go on after a pause: {error}");
        }
    }
}

impl MutEventSubscriber for VhostNet {
    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        match events.data() {
            CONTINUE => {
                if self.active.as_ref().is_some_and(|active| !active.running)
                    && let Err(error) = self.run()
                {
                    self.fail(&error);
                }
            }
            data => {
                let queue = (data - ERRORS) as usize;
                // Otherwise a reset was faster.
                if self.errors.get(queue).is_some_and(|event| event.read().is_ok()) {
                    self.fail(&QueueFault { queue });
                }
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        let [receive, transmit] = &self.errors;
        let events = [(&self.go_on, CONTINUE), (receive, ERRORS), (transmit, ERRORS + 1)];
        for (event, data) in events {
            if let Err(error) = ops.add(doorbell(event, data)) {
                log::error!("cannot watch an event of a network device: {error}");
            }
        }
    }
}
