//! The registers that a device's own thread may change: interrupt status, device status, generation.

use std::error::Error;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use log::Level;
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};

use crate::Interrupt;

/// How a virtio device interrupts its driver: sets the interrupt status register, then raises the line.
pub struct VirtioInterrupt {
    line: Box<dyn Interrupt>,
    /// `InterruptStatus`: what the driver has not acknowledged yet.
    pub(super) pending: AtomicU32,
    /// `Status`: the device status register.
    pub(super) status: AtomicU32,
    /// `ConfigGeneration`.
    pub(super) generation: AtomicU32,
    failed: AtomicBool,
}

impl VirtioInterrupt {
    /// An interrupt over `line`, with nothing pending and the device reset. A transport makes its own;
    /// tests that drive a device without a transport make one here.
    #[must_use]
    pub fn new(line: Box<dyn Interrupt>) -> Self {
        let zero = || AtomicU32::new(0);
        Self { line, pending: zero(), status: zero(), generation: zero(), failed: AtomicBool::new(false) }
    }

    /// Tells the driver that a queue has used buffers.
    pub fn signal_used_queue(&self) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// Tells the driver that the configuration space has changed, and starts a new generation of it.
    pub fn signal_config_change(&self) {
        self.generation.fetch_add(1, Ordering::Release);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    /// Sets `DEVICE_NEEDS_RESET` (section 2.1) and tells the driver: the device stops until it is reset.
    pub fn needs_reset(&self) {
        self.status.fetch_or(VIRTIO_CONFIG_S_NEEDS_RESET, Ordering::AcqRel);
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
        self.status.load(Ordering::Acquire)
    }

    fn raise(&self, cause: u32) {
        // Release: what the device wrote to guest memory is visible before the cause is.
        self.pending.fetch_or(cause, Ordering::AcqRel);
        if let Err(error) = self.line.trigger() {
            log::error!("cannot raise a virtio interrupt: {error}");
        }
    }
}
