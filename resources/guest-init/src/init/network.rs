//! The loopback interface.

use core::ffi::c_void;

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

const SIOCSIFFLAGS: Opcode = 0x8914;
const IFF_UP: i16 = 1;

/// The part of `struct ifreq` that carries flags, and the rest of it.
#[repr(C)]
struct InterfaceFlags {
    name: [u8; 16],
    flags: i16,
    rest: [u8; 22],
}

// SAFETY: the request takes a `struct ifreq`, which is what the pointer points to, and only reads it.
unsafe impl Ioctl for &mut InterfaceFlags {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        SIOCSIFFLAGS
    }

    fn as_ptr(&mut self) -> *mut c_void {
        core::ptr::from_mut::<InterfaceFlags>(self).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> Result<(), Errno> {
        Ok(())
    }
}

/// Brings `lo` up. A kernel without a network has none, which is no failure.
pub(super) fn loopback_up() {
    let Ok(socket) = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None) else { return };
    let mut request = InterfaceFlags { name: [0; 16], flags: IFF_UP, rest: [0; 22] };
    request.name[..2].copy_from_slice(b"lo");
    // SAFETY: `InterfaceFlags` is a whole `struct ifreq`.
    let _ = unsafe { rustix::ioctl::ioctl(&socket, &mut request) };
}
