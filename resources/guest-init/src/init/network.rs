//! The network interfaces, set up by the old requests that take a `struct ifreq`: they do all that is needed here.

use alloc::format;
use core::ffi::c_void;

use amphi_guest_init::Interface;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::failure::{Context, Failure};
use super::wait;

const SIOCADDRT: Opcode = 0x890B;
const SIOCGIFFLAGS: Opcode = 0x8913;
const SIOCSIFFLAGS: Opcode = 0x8914;
const SIOCSIFADDR: Opcode = 0x8916;
const SIOCSIFNETMASK: Opcode = 0x891C;
const IFF_UP: u16 = 1;
const IFF_RUNNING: u16 = 0x40;
const RTF_UP: u16 = 1;
const RTF_GATEWAY: u16 = 2;
const AF_INET: u16 = 2;

/// The first Ethernet interface, as the kernel names it.
const FIRST: &[u8] = b"eth0";

/// `struct sockaddr_in`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Address {
    family: u16,
    port: u16,
    address: [u8; 4],
    zero: [u8; 8],
}

impl Address {
    fn new(address: [u8; 4]) -> Self {
        Self { family: AF_INET, address, ..Self::default() }
    }
}

/// `struct ifreq` with flags or an address in its union, which is of 24 bytes.
#[repr(C)]
struct InterfaceRequest<T> {
    name: [u8; 16],
    value: T,
}

/// Flags, and what fills up the union.
type Flags = (u16, [u8; 22]);

/// An address, and what fills up the union.
type AddressValue = (Address, [u8; 8]);

/// `struct rtentry`.
#[repr(C)]
#[derive(Default)]
struct RouteRequest {
    pad1: usize,
    destination: Address,
    gateway: Address,
    mask: Address,
    flags: u16,
    pad2: i16,
    pad3: usize,
    pad4: usize,
    metric: i16,
    device: usize,
    mtu: usize,
    window: usize,
    round_trip: u16,
}

const _: () = assert!(size_of::<RouteRequest>() == 120 && size_of::<InterfaceRequest<AddressValue>>() == 40);

/// A request by its number, with the structure that it takes.
struct Request<'a, T>(Opcode, &'a mut T);

// SAFETY: all requests of this module take a pointer to the structure that their callers pass, which they read and
// partly write.
unsafe impl<T> Ioctl for Request<'_, T> {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.0
    }

    fn as_ptr(&mut self) -> *mut c_void {
        core::ptr::from_mut::<T>(self.1).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> Result<(), Errno> {
        Ok(())
    }
}

/// A request about the interface `name`, with `value`; returns what the kernel leaves there.
fn interface<T>(socket: &OwnedFd, opcode: Opcode, name: &[u8], value: T) -> Result<T, Errno> {
    let mut request = InterfaceRequest { name: [0; 16], value };
    request.name[..name.len()].copy_from_slice(name);
    // SAFETY: `InterfaceRequest` is a whole `struct ifreq`: both values fill up the union.
    unsafe { ioctl(socket, Request(opcode, &mut request)) }.map(|()| request.value)
}

fn socket() -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
}

fn flags(flags: u16) -> Flags {
    (flags, [0; 22])
}

/// Brings `lo` up. A kernel without a network has none, which is no failure.
pub(super) fn loopback_up() {
    let Ok(socket) = socket() else { return };
    let _ = interface(&socket, SIOCSIFFLAGS, b"lo", flags(IFF_UP));
}

/// Brings the first interface up, with its address and the default route, and waits until it carries packets: what is
/// sent before is lost.
pub(super) fn set_up(settings: &Interface) -> Result<(), Failure> {
    let socket = socket().context(|| "the guest's kernel has no network (IPv4)".into())?;
    let found = wait::until(|| match interface(&socket, SIOCGIFFLAGS, FIRST, flags(0)) {
        Err(Errno::NODEV) => Ok(None),
        result => result.map(Some),
    });
    found.context(|| "cannot find the network interface eth0".into())?;
    if let Some((address, prefix)) = settings.address {
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0).to_be_bytes();
        [(SIOCSIFADDR, address), (SIOCSIFNETMASK, mask)]
            .into_iter()
            .try_for_each(|(opcode, value)| interface(&socket, opcode, FIRST, (Address::new(value), [0; 8])).map(drop))
            .context(|| "cannot give the network interface its address".into())?;
    }
    interface(&socket, SIOCSIFFLAGS, FIRST, flags(IFF_UP))
        .context(|| "cannot bring up the network interface".into())?;
    let carries = || interface(&socket, SIOCGIFFLAGS, FIRST, flags(0)).map(|(flags, _)| flags & IFF_RUNNING != 0);
    // A link that is down is for the workload to see.
    let _ = wait::until(|| carries().map(|running| running.then_some(())));
    if let Some(gateway) = settings.gateway {
        let any = Address::new([0; 4]);
        let mut route = RouteRequest {
            destination: any,
            gateway: Address::new(gateway),
            mask: any,
            flags: RTF_UP | RTF_GATEWAY,
            ..RouteRequest::default()
        };
        // SAFETY: `RouteRequest` is a whole `struct rtentry`, whose name of a device is null.
        unsafe { ioctl(&socket, Request(SIOCADDRT, &mut route)) }.context(|| {
            let [a, b, c, d] = gateway;
            format!("cannot set the default route to {a}.{b}.{c}.{d}")
        })?;
    }
    Ok(())
}
