//! How a device reaches the guest's interrupt controller.

use std::io;

use vmm_sys_util::eventfd::EventFd;

/// An edge-triggered interrupt line.
pub trait Interrupt: Send + Sync {
    /// Raises the interrupt once.
    ///
    /// # Errors
    /// The interrupt controller could not be told.
    fn trigger(&self) -> io::Result<()>;

    /// An eventfd that raises the interrupt when it is written (an irqfd under KVM), for devices whose work the host's kernel
    /// does; `None` where there is none.
    fn event(&self) -> Option<&EventFd> {
        None
    }
}

impl Interrupt for EventFd {
    /// Writes the eventfd; the monitor has attached it to a line (an irqfd under KVM).
    fn trigger(&self) -> io::Result<()> {
        self.write(1)
    }

    fn event(&self) -> Option<&EventFd> {
        Some(self)
    }
}
