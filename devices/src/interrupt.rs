//! How a device reaches the guest's interrupt controller.

use std::io;

/// An edge-triggered interrupt line.
pub trait Interrupt: Send + Sync {
    /// Raises the interrupt once.
    ///
    /// # Errors
    /// The interrupt controller could not be told.
    fn trigger(&self) -> io::Result<()>;
}

impl Interrupt for vmm_sys_util::eventfd::EventFd {
    /// Writes the eventfd; the monitor has attached it to a line (an irqfd under KVM).
    fn trigger(&self) -> io::Result<()> {
        self.write(1)
    }
}
