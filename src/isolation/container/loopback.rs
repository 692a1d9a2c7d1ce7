//! The loopback interface, which a new network namespace has but does not bring up.

use std::os::fd::AsRawFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// Brings `lo` up. It then has 127.0.0.1 and ::1.
pub(super) fn bring_up() -> Result<(), Errno> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    // All other flags of a fresh loopback interface are the kernel's own and cannot be cleared.
    #[allow(clippy::cast_possible_truncation)] // The kernel's own type for them is a short.
    {
        request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    }
    // SAFETY: the request is initialised and outlives the call, which reads it only.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result == 0 {
        Ok(())
    } else {
        // SAFETY: the location is this thread's own and always readable.
        Err(Errno::from_raw_os_error(unsafe { *libc::__errno_location() }))
    }
}
