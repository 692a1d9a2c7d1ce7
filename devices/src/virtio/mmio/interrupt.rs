//! The registers that a device's own thread may change: interrupt status, device status, generation.

use std::error::Error;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use log::Level;
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_mmio as reg;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vmm_sys_util::eventfd::EventFd;

use super::page::RegisterPage;
use crate::Interrupt;

/// How a virtio device interrupts its driver: sets the interrupt status register, then raises the line.
pub struct VirtioInterrupt {
    line: Box<dyn Interrupt>,
    /// Where the driver reads `InterruptStatus`, what it has not acknowledged yet; `Status`; and `ConfigGeneration`.
    pub(super) page: RegisterPage,
    /// The causes that stay set whatever the driver acknowledges, until the device is reset.
    lasting: AtomicU32,
    failed: AtomicBool,
}

impl VirtioInterrupt {
    /// An interrupt over `line`, with nothing pending and the device reset.
    pub(super) fn new(line: Box<dyn Interrupt>, page: RegisterPage) -> Self {
        Self { line, page, lasting: AtomicU32::new(0), failed: AtomicBool::new(false) }
    }

    /// Tells the driver that a queue has used buffers.
    pub fn signal_used_queue(&self) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// An eventfd that tells the driver, when it is written, that a queue has used buffers; for a device whose work the host's
    /// kernel does. `None` where interrupts are raised by calls only.
    ///
    /// Nobody sets the interrupt status register then: it says from now on, until the device is reset, that buffers were
    /// used, which has the driver look at its queues at each interrupt.
    pub fn used_queue_event(&self) -> Option<&EventFd> {
        let event = self.line.event()?;
        self.lasting.store(VIRTIO_MMIO_INT_VRING, Ordering::Release);
        self.page.set_bits(reg::VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_INT_VRING);
        Some(event)
    }

    /// The driver has seen these causes.
    pub(super) fn acknowledge(&self, causes: u32) {
        let causes = causes & !self.lasting.load(Ordering::Acquire);
        self.page.clear_bits(reg::VIRTIO_MMIO_INTERRUPT_STATUS, causes);
    }

    /// Nothing is pending any more, and the device is reset.
    pub(super) fn reset(&self) {
        self.lasting.store(0, Ordering::Release);
        self.page.set(reg::VIRTIO_MMIO_INTERRUPT_STATUS, 0);
        self.page.set(reg::VIRTIO_MMIO_STATUS, 0);
    }

    /// Tells the driver that the configuration space has changed, and starts a new generation of it; `config` is what it
    /// holds now, from its start. Whoever calls this lets nobody else read or change the device's configuration meanwhile.
    ///
    /// A driver that reads it at this very moment may find some of the old one and some of the new one under one generation. It
    /// reads again when it sees the interrupt.
    pub fn signal_config_change(&self, config: &[u8]) {
        // In this order: `MmioTransport::show_config` relies on it.
        self.page.new_generation();
        self.page.set_config(config);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    /// Sets `DEVICE_NEEDS_RESET` (section 2.1) and tells the driver: the device stops until it is reset.
    pub fn needs_reset(&self) {
        self.page.set_bits(reg::VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_NEEDS_RESET);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    /// The same, with the reason for the log. A guest that fails again and again fills no log: only its first failure
    /// is reported as an error.
    pub(crate) fn fail(&self, error: &dyn Error) {
        let level = if self.failed.swap(true, Ordering::Relaxed) { Level::Debug } else { Level::Error };
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        log::log!(level, "virtio device stops until it is reset: {error}{cause}");
        self.needs_reset();
    }

    /// The device status register (section 2.1).
    #[must_use]
    pub fn device_status(&self) -> u32 {
        self.page.get(reg::VIRTIO_MMIO_STATUS)
    }

    fn raise(&self, cause: u32) {
        // Release: what the device wrote to guest memory is visible before the cause is.
        self.page.set_bits(reg::VIRTIO_MMIO_INTERRUPT_STATUS, cause);
        if let Err(error) = self.line.trigger() {
            log::error!("cannot raise a virtio interrupt: {error}");
        }
    }
}
