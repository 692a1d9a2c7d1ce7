//! The MMIO transport, version 2 (specification section 4.2).
//!
//! The transport keeps every register, checks everything that the driver sets, and gives the device its queues
//! only when they are sound. A device sees no register at all.

mod interrupt;
mod page;
mod registers;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio as reg;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub use interrupt::VirtioInterrupt;
pub use page::{RegisterPage, RegisterPages};

use self::registers::{QueueRegisters, Registers};
use super::{ActivationContext, VirtioDevice};
use crate::{BusDevice, Interrupt};

/// The length in bytes of the range that a transport answers in.
pub const MMIO_SIZE: u64 = 0x1000;
/// Offset of `QueueNotify`: what the driver writes there (4 bytes) is the index of the queue.
/// A monitor attaches each of [`MmioTransport::queue_events`] here, with the index as its data match.
pub const NOTIFY_OFFSET: u64 = reg::VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// Offset of `InterruptACK`: what the driver writes there (4 bytes) are the causes that it has seen. A monitor may swallow
/// writes of [`ACK_USED`]: that cause then stays set until the device is reset, which only means that the driver looks at its
/// queues at each interrupt. It must have seen the cause to acknowledge it, and nothing else needs to know that it has.
pub const ACK_OFFSET: u64 = reg::VIRTIO_MMIO_INTERRUPT_ACK as u64;
/// What a driver writes to [`ACK_OFFSET`] that was only told of used buffers.
pub const ACK_USED: u32 = reg::VIRTIO_MMIO_INT_VRING;

/// `MagicValue`: "virt" in little-endian order.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// `VendorID`: "AMPH" in little-endian order; drivers do not interpret it.
const VENDOR: u32 = 0x4850_4d41;
const CONFIG: u64 = reg::VIRTIO_MMIO_CONFIG as u64;

/// A virtio device behind memory-mapped registers.
pub struct MmioTransport {
    memory: GuestMemoryMmap,
    device: Box<dyn VirtioDevice>,
    interrupt: Arc<VirtioInterrupt>,
    queue_events: Arc<[EventFd]>,
    offered: u64,
    registers: Registers,
    active: bool,
}

impl MmioTransport {
    /// A transport for `device`, in reset. `interrupt` is the line that the guest is told of;
    /// `memory` is all that the device may reach.
    ///
    /// # Errors
    /// No eventfd can be made, or the device's queue sizes are not powers of two up to 32768.
    pub fn new(
        memory: GuestMemoryMmap,
        device: Box<dyn VirtioDevice>,
        interrupt: Box<dyn Interrupt>,
    ) -> io::Result<Self> {
        Self::with_registers(memory, device, interrupt, RegisterPage::alone()?)
    }

    /// The same with the registers in `page`, which the guest may read there.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn with_registers(
        memory: GuestMemoryMmap,
        device: Box<dyn VirtioDevice>,
        interrupt: Box<dyn Interrupt>,
        page: RegisterPage,
    ) -> io::Result<Self> {
        let sizes = device.queue_max_sizes();
        if sizes.iter().any(|size| !size.is_power_of_two()) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("queue sizes {sizes:?}")));
        }
        let queue_events = sizes.iter().map(|_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)).collect::<io::Result<_>>()?;
        let offered = device.features() | 1 << VIRTIO_F_VERSION_1;
        let constants = [
            (reg::VIRTIO_MMIO_MAGIC_VALUE, MAGIC),
            (reg::VIRTIO_MMIO_VERSION, VERSION),
            (reg::VIRTIO_MMIO_DEVICE_ID, device.device_type()),
            (reg::VIRTIO_MMIO_VENDOR_ID, VENDOR),
            // There is no shared memory region: its length and base read as all ones (section 4.2.2).
            (reg::VIRTIO_MMIO_SHM_LEN_LOW, u32::MAX),
            (reg::VIRTIO_MMIO_SHM_LEN_HIGH, u32::MAX),
            (reg::VIRTIO_MMIO_SHM_BASE_LOW, u32::MAX),
            (reg::VIRTIO_MMIO_SHM_BASE_HIGH, u32::MAX),
        ];
        for (register, value) in constants {
            page.set(register, value);
        }
        let interrupt = Arc::new(VirtioInterrupt::new(interrupt, page));
        let registers = Registers::new(&sizes);
        let transport = Self { memory, device, interrupt, queue_events, offered, registers, active: false };
        transport.show_registers();
        transport.show_config();
        Ok(transport)
    }

    /// One eventfd a queue, in the order of their indices, for as long as the transport lives.
    /// Writing it has the same effect as the driver's write to [`NOTIFY_OFFSET`].
    #[must_use]
    pub fn queue_events(&self) -> &[EventFd] {
        &self.queue_events
    }

    /// Has the device hand back what the host is carrying out for it (see [`VirtioDevice::quiesce`]).
    pub fn quiesce(&mut self) {
        self.device.quiesce();
    }

    /// What pressing the machine's reset button does to the device: as if the driver had written 0 to its status. When this
    /// returns, nothing of the driver's is under way, and no guest memory is touched until it is activated again. The interrupt
    /// line is left alone: it was never held.
    pub fn reset(&mut self) {
        self.write_register(reg::VIRTIO_MMIO_STATUS, 0);
    }

    fn page(&self) -> &RegisterPage {
        &self.interrupt.page
    }

    fn status(&self) -> u32 {
        self.interrupt.device_status()
    }

    fn set_status_bit(&self, bit: u32) {
        self.page().set_bits(reg::VIRTIO_MMIO_STATUS, bit);
    }

    /// Shows the driver the registers that depend on what it writes to others.
    fn show_registers(&self) {
        let (page, queue) = (self.page(), self.registers.queue());
        let features = registers::word(self.offered, self.registers.device_features_sel);
        page.set(reg::VIRTIO_MMIO_DEVICE_FEATURES, features);
        page.set(reg::VIRTIO_MMIO_QUEUE_NUM_MAX, queue.map_or(0, |q| q.max_size.into()));
        page.set(reg::VIRTIO_MMIO_QUEUE_READY, queue.is_some_and(|q| q.ready).into());
    }

    /// Shows the driver the device's configuration. The device may change it at the same time on another thread and show it
    /// itself; then what was read here may be the older one.
    fn show_config(&self) {
        let generation = || self.page().get(reg::VIRTIO_MMIO_CONFIG_GENERATION);
        loop {
            let before = generation();
            let mut config = [0; page::CONFIG_MAX];
            self.device.read_config(0, &mut config);
            self.page().set_config(&config);
            // What was shown is visible before the question: else either side could miss the other.
            fence(Ordering::SeqCst);
            if generation() == before {
                break;
            }
        }
    }

    fn write_register(&mut self, offset: u32, value: u32) {
        match offset {
            reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.registers.device_features_sel = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.registers.driver_features_sel = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES => self.select_features(value),
            reg::VIRTIO_MMIO_QUEUE_SEL => self.registers.queue_sel = value,
            reg::VIRTIO_MMIO_QUEUE_NOTIFY => self.notify(value),
            reg::VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            reg::VIRTIO_MMIO_STATUS => {
                self.write_status(value);
                // Until it is active, the device cannot tell of changes itself.
                self.show_config();
            }
            _ => self.configure_queue(offset, value),
        }
        if !matches!(offset, reg::VIRTIO_MMIO_QUEUE_NOTIFY | reg::VIRTIO_MMIO_INTERRUPT_ACK) {
            self.show_registers();
        }
    }

    fn select_features(&mut self, value: u32) {
        let progress = VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK;
        if self.status() & progress == VIRTIO_CONFIG_S_DRIVER {
            let select = self.registers.driver_features_sel;
            registers::set_word(&mut self.registers.driver_features, select, value);
        }
    }

    /// Queues are set up between `FEATURES_OK` and `DRIVER_OK` (section 3.1.1).
    fn configure_queue(&mut self, offset: u32, value: u32) {
        let progress = VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;
        if self.status() & progress == VIRTIO_CONFIG_S_FEATURES_OK
            && let Some(queue) = self.registers.queue_mut()
        {
            queue.write(offset, value);
        }
    }

    fn notify(&self, index: u32) {
        let event = usize::try_from(index).ok().and_then(|index| self.queue_events.get(index));
        if let Some(event) = event.filter(|_| self.active)
            && let Err(error) = event.write(1)
        {
            log::error!("cannot notify virtqueue {index}: {error}");
        }
    }

    /// The driver's half of the status register (sections 2.1 and 3.1). A step whose predecessor is missing does
    /// not happen, and the driver sees that its bit stays clear.
    fn write_status(&mut self, value: u32) {
        if value == 0 {
            return self.stop();
        }
        let status = self.status();
        if status & !VIRTIO_CONFIG_S_NEEDS_RESET & !value != 0 {
            log::debug!("driver clears status bits: {status:#x} to {value:#x}");
            return;
        }
        let steps = [
            (VIRTIO_CONFIG_S_ACKNOWLEDGE, 0),
            (VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_ACKNOWLEDGE),
            (VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_DRIVER),
            (VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK),
            (VIRTIO_CONFIG_S_FAILED, 0),
        ];
        for (bit, needs) in steps {
            let status = self.status();
            let asked = value & !status & bit != 0;
            if !asked || status & needs != needs {
                continue;
            }
            match bit {
                VIRTIO_CONFIG_S_FEATURES_OK if !self.features_are_sound() => {}
                VIRTIO_CONFIG_S_DRIVER_OK => {
                    self.set_status_bit(bit);
                    self.activate();
                }
                _ => self.set_status_bit(bit),
            }
        }
    }

    fn features_are_sound(&self) -> bool {
        let driver = self.registers.driver_features;
        driver & !self.offered == 0 && driver & 1 << VIRTIO_F_VERSION_1 != 0
    }

    fn activate(&mut self) {
        let features = self.registers.driver_features;
        let event_idx = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let queues: Result<Vec<Queue>, _> =
            self.registers.queues.iter().map(|queue: &QueueRegisters| queue.build(&self.memory, event_idx)).collect();
        let result = match queues {
            Ok(queues) => self.device.activate(ActivationContext {
                memory: self.memory.clone(),
                queues,
                queue_events: Arc::clone(&self.queue_events),
                interrupt: Arc::clone(&self.interrupt),
                features,
            }),
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => self.active = true,
            Err(error) => self.interrupt.fail(&error),
        }
    }

    fn stop(&mut self) {
        // The device first: it lets go of the queues, and cannot raise anything after that.
        self.device.reset();
        self.active = false;
        self.registers.reset();
        self.interrupt.reset();
    }
}

/// The register that an access is for: control registers are only reached by aligned 32-bit accesses
/// (section 4.2.2.2).
fn register(offset: u64, len: usize) -> Option<u32> {
    u32::try_from(offset).ok().filter(|offset| len == 4 && offset % 4 == 0)
}

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset >= CONFIG || register(offset, data.len()).is_some() {
            self.page().read(offset, data);
        } else {
            data.fill(0);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset >= CONFIG {
            if self.status() & VIRTIO_CONFIG_S_DRIVER != 0 {
                self.device.write_config(offset - CONFIG, data);
                self.show_config();
            }
        } else if let Ok(value) = data.try_into().map(u32::from_le_bytes)
            && let Some(register) = register(offset, data.len())
        {
            self.write_register(register, value);
        }
    }
}
