//! A console device with several ports (specification section 5.3): byte streams between host and guest.
//!
//! This file is the side that faces the transport; `events` faces the event loop, `control` has the control
//! messages, `port` moves bytes between queues and host files.

mod control;
mod events;
mod port;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::control::Outbox;
use self::port::{PortState, Stop};
use super::config::read_config_space;
use super::mmio::VirtioInterrupt;
use super::{ActivateError, ActivationContext, VirtioDevice};
use crate::stream;

/// Ports are numbered below this. Linux allows for far more; each costs two queues.
pub const MAX_PORTS: u32 = 64;

/// Several ports, and the queues that control them (section 5.3.3).
const VIRTIO_CONSOLE_F_MULTIPORT: u32 = 1;
/// The queue of the messages for the driver.
const CONTROL_RECEIVE: usize = 2;
/// The queue of the driver's messages.
const CONTROL_TRANSMIT: usize = 3;
/// Linux fills each receive queue with buffers of a page, so that small queues save its memory.
const RECEIVE_SIZE: u16 = 16;
const TRANSMIT_SIZE: u16 = 64;
const CONTROL_SIZE: u16 = 16;
/// A queue that must exist and carries nothing.
const IDLE_SIZE: u16 = 2;
/// How many turns a port gets when the device is flushed: bounds the time.
const FLUSH_TURNS: u32 = 8;

type Callback = Box<dyn FnOnce() + Send>;

/// A generic port: a pair of byte streams between the host and the guest.
///
/// Neither file is ever waited for, and `O_NONBLOCK` is not set on them. The callbacks run while the device is
/// locked, mostly on the event loop's thread: they must not block, and not reach for the device.
#[derive(Default)]
pub struct Port {
    /// Its number, below [`MAX_PORTS`]; Linux calls it `/dev/vportNp<id>`. Each port of a console has its own.
    pub id: u32,
    /// Where the bytes for the guest come from. Its end closes the host's side of the port: the guest then reads what
    /// is left and end of file, and its writes wait for ever. It is not read before the guest opens the port.
    pub input: Option<OwnedFd>,
    /// Where the guest's bytes go. If writing fails (nobody reads the pipe any more, the disk is full), what follows
    /// is dropped, and the guest goes on as if it were written.
    pub output: Option<OwnedFd>,
    /// Whether `output` stays open when the guest closes the port: should it open the port again, perhaps after a reset, what it
    /// writes then goes there, too. `on_closed` is not called for such a port.
    pub reopens: bool,
    /// Called once, just after the guest's first byte has been written to `output`.
    pub on_first_output: Option<Callback>,
    /// Called once, after the guest has closed the port and all that it wrote before is in `output`, which has been
    /// closed.
    pub on_closed: Option<Callback>,
}

/// A multiport console.
///
/// A port whose output takes nothing leaves the guest's buffers where they are, so that the guest's writes wait;
/// other ports go on.
pub struct Console {
    ports: Vec<PortState>,
    /// Wakes the event loop's thread after a vCPU has activated or reset the device.
    wake: EventFd,
    /// Present while the driver has the device activated.
    active: Option<Active>,
    /// Present since the first activation.
    queue_events: Option<Arc<[EventFd]>>,
    /// Whether the event loop watches them.
    watching: bool,
}

struct Active {
    memory: GuestMemoryMmap,
    queues: Vec<Queue>,
    interrupt: Arc<VirtioInterrupt>,
    outbox: Outbox,
}

impl Console {
    /// A console with these ports, of which the guest hears in the order of their numbers. Port 0 has queues in any case, but is there for the guest only if it is given.
    ///
    /// # Errors
    /// Two ports have the same number, or a number is too large; a file cannot be examined; an eventfd cannot be made.
    pub fn new(mut ports: Vec<Port>) -> io::Result<Self> {
        ports.sort_by_key(|port| port.id);
        for (index, port) in ports.iter().enumerate() {
            if port.id >= MAX_PORTS || ports[..index].last().is_some_and(|other| other.id == port.id) {
                let what = format!("console port number {} is taken, or not below {MAX_PORTS}", port.id);
                return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
            }
        }
        let ports = ports.into_iter().map(PortState::new).collect::<io::Result<_>>()?;
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Self { ports, wake, active: None, queue_events: None, watching: false })
    }

    /// Writes what the guest has sent to the ports' outputs, as far as they take it without waiting. The event loop
    /// does so anyway: this is for a monitor whose guest has stopped without closing its ports.
    pub fn flush(&mut self) {
        stream::block_sigpipe();
        let Some(active) = &mut self.active else { return };
        for port in &mut self.ports {
            let queue = &mut active.queues[transmit_queue(port.id)];
            if !queue.ready() {
                continue;
            }
            for _ in 0..FLUSH_TURNS {
                let result = port.transmit(queue, &active.memory);
                if queue.needs_notification(&active.memory).unwrap_or(false) {
                    active.interrupt.signal_used_queue();
                }
                match result {
                    Ok(Stop::Turn) => {}
                    Ok(Stop::Queue | Stop::Stream | Stop::End) => break,
                    Err(error) => {
                        log::debug!("console port {} cannot be flushed: {error}", port.id);
                        break;
                    }
                }
            }
        }
    }

    /// `max_nr_ports` of the configuration space: one more than the highest number.
    fn port_limit(&self) -> u32 {
        self.ports.iter().map(|port| port.id + 1).max().unwrap_or(1)
    }
}

/// The queue that carries bytes to the guest (section 5.3.2).
fn receive_queue(id: u32) -> usize {
    if id == 0 { 0 } else { 2 * id as usize + 2 }
}

/// The queue that carries the guest's bytes.
fn transmit_queue(id: u32) -> usize {
    receive_queue(id) + 1
}

impl VirtioDevice for Console {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn queue_max_sizes(&self) -> Vec<u16> {
        let mut sizes = vec![IDLE_SIZE; transmit_queue(self.port_limit() - 1).max(CONTROL_TRANSMIT) + 1];
        sizes[CONTROL_RECEIVE] = CONTROL_SIZE;
        sizes[CONTROL_TRANSMIT] = CONTROL_SIZE;
        for port in &self.ports {
            if port.input.is_some() {
                sizes[receive_queue(port.id)] = RECEIVE_SIZE;
            }
            if port.output.is_some() {
                sizes[transmit_queue(port.id)] = TRANSMIT_SIZE;
            }
        }
        sizes
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_CONSOLE_F_MULTIPORT
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // Columns and rows (without VIRTIO_CONSOLE_F_SIZE they say nothing), max_nr_ports, emerg_wr.
        let mut space = [0; 12];
        space[4..8].copy_from_slice(&self.port_limit().to_le_bytes());
        read_config_space(&space, offset, data);
    }

    /// Only `emerg_wr` is writable, and it is not offered.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, context: ActivationContext) -> Result<(), ActivateError> {
        let ActivationContext { memory, queues, queue_events, interrupt, features } = context;
        let multiport = features & 1 << VIRTIO_CONSOLE_F_MULTIPORT != 0;
        if multiport && ![CONTROL_RECEIVE, CONTROL_TRANSMIT].iter().all(|&control| queues[control].ready()) {
            return Err(ActivateError("the console's control queues are not enabled".to_owned()));
        }
        if !multiport && let Some(port) = self.ports.iter_mut().find(|port| port.id == 0) {
            // There is nothing but port 0, and no way to open or close it.
            port.guest_open = true;
        }
        self.active = Some(Active { memory, queues, interrupt, outbox: Outbox::default() });
        self.queue_events = Some(queue_events);
        self.wake.write(1).map_err(|error| ActivateError(format!("the event loop cannot be told: {error}")))
    }

    fn reset(&mut self) {
        // A kernel that shuts down resets its devices, perhaps before the last output has been seen here.
        self.flush();
        self.active = None;
        for port in &mut self.ports {
            port.reset();
        }
        if let Err(error) = self.wake.write(1) {
            log::error!("cannot tell the event loop of a console's reset: {error}");
        }
    }
}
