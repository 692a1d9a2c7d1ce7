//! The generation identifier of a virtual machine: it changes when the machine goes on as another one, so that its guest does
//! not give the same random numbers twice ("Virtual Machine Generation ID", Microsoft, 2018).
//!
//! Sixteen bytes of guest memory that the guest's kernel uses for nothing else, at a multiple of 8, in a page of the memory map's reserved
//! ranges. The DSDT has a node with the compatible ID [`COMPATIBLE_ID`], whose `ADDR` is a package of the address's two halves. A
//! change is told to the guest by a notification of that node with the value [`CHANGED`]: in hardware-reduced ACPI by the
//! `_EVT` method of a generic event device ([`EVENT_DEVICE`]), which the interrupt calls.

use std::io;

use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::Interrupt;

/// `_CID` of the node that leads to the identifier.
pub const COMPATIBLE_ID: &str = "VM_Gen_Counter";
/// `_HID` of a generic event device (ACPI 6.5, section 5.6.9).
pub const EVENT_DEVICE: &str = "ACPI0013";
/// The value of the notification that tells of a change.
pub const CHANGED: u8 = 0x80;

/// An identifier. One is like no other, in this machine or elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation(pub [u8; 16]);

impl Generation {
    /// A new one.
    ///
    /// # Errors
    /// The host has no random numbers.
    pub fn random() -> io::Result<Self> {
        let mut id = [0; 16];
        // SAFETY: The buffer has room for that many bytes. So few come all at once, whatever signals do.
        let made = unsafe { libc::getrandom(id.as_mut_ptr().cast(), id.len(), 0) };
        if usize::try_from(made).is_ok_and(|made| made == id.len()) {
            Ok(Self(id))
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

/// A machine's identifier, in its memory.
pub struct GenerationId {
    memory: GuestMemoryMmap,
    address: GuestAddress,
    interrupt: Box<dyn Interrupt>,
    current: Generation,
}

impl GenerationId {
    /// Puts a new identifier at `address`. `interrupt` is the generic event device's.
    ///
    /// # Errors
    /// The host has no random numbers, or there is no memory at the address.
    pub fn new(memory: GuestMemoryMmap, address: GuestAddress, interrupt: Box<dyn Interrupt>) -> io::Result<Self> {
        let current = Generation::random()?;
        let device = Self { memory, address, interrupt, current };
        device.write()?;
        Ok(device)
    }

    /// Has the guest begin a new generation: writes a new identifier, and then notifies the guest.
    ///
    /// # Errors
    /// The host has no random numbers, or the interrupt cannot be raised.
    pub fn renew(&mut self) -> io::Result<()> {
        self.current = Generation::random()?;
        self.write()?;
        self.interrupt.trigger()
    }

    /// Puts the present identifier back into memory that was cleared: a machine that is reset is still the same one.
    ///
    /// # Errors
    /// There is no memory at the address.
    pub fn reset(&mut self) -> io::Result<()> {
        self.write()
    }

    /// The present identifier.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.current
    }

    fn write(&self) -> io::Result<()> {
        self.memory.write_slice(&self.current.0, self.address).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;

    #[test]
    fn a_new_generation_is_another_and_the_guest_is_told() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x2000)]).unwrap();
        let at = GuestAddress(0x1000);
        let interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
        let line = Box::new(interrupt.try_clone().unwrap());
        let mut device = GenerationId::new(memory.clone(), at, line).unwrap();
        let mut seen = Vec::new();
        for _ in 0..8 {
            let id = Generation(memory.read_obj(at).unwrap());
            assert!(id == device.generation() && !seen.contains(&id));
            seen.push(id);
            assert!(interrupt.read().is_err(), "nothing has changed");
            device.renew().unwrap();
            assert_eq!(interrupt.read().unwrap(), 1);
        }
        memory.write_obj([0_u8; 16], at).unwrap();
        device.reset().unwrap();
        assert_eq!(Generation(memory.read_obj(at).unwrap()), device.generation());
        assert!(interrupt.read().is_err(), "nothing has changed");
        let nowhere = GuestAddress(0x1ff8);
        assert!(GenerationId::new(memory, nowhere, Box::new(interrupt)).is_err());
    }
}
