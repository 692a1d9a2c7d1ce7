//! A tap interface of the host: the kernel reads and writes the header that virtio has, and does the offloads.

use std::ffi::{c_int, c_uint};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use libc::iovec;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO,
    VIRTIO_NET_F_HOST_USO,
};

use super::backend::{Backend, HEADER, MAX_FRAME, Received};
use super::scatter::{self, List};

const CONTROL: &str = "/dev/net/tun";

/// What every kernel of the last years does.
const ALWAYS: [u32; 10] = [
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_UFO,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_UFO,
];
/// What came with Linux 6.2.
const UDP_SEGMENTATION: [u32; 3] = [VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_USO];

/// Why a tap interface cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The host has no tap interfaces, or not for this user.
    #[error("cannot open {CONTROL}")]
    Control(#[source] io::Error),
    /// Not a name that Linux gives an interface.
    #[error("{0:?} is no name for an interface: it has 1 to 15 characters, and neither blanks, slashes, colons nor %")]
    Name(String),
    /// There is no such interface, and this user may not make one; or there is one of somebody else's.
    #[error("no permission to use or make the tap interface {name}")]
    Permission {
        /// The interface.
        name: String,
        /// What the operating system says.
        source: io::Error,
    },
    /// Another program uses the interface.
    #[error("the tap interface {name} is in use")]
    Busy {
        /// The interface.
        name: String,
        /// What the operating system says.
        source: io::Error,
    },
    /// The interface of that name is of another kind.
    #[error("the interface {name} is no tap interface with one queue")]
    Kind {
        /// The interface.
        name: String,
        /// What the operating system says.
        source: io::Error,
    },
    /// The interface cannot be set up.
    #[error("cannot {attempt} of the tap interface {name}")]
    SetUp {
        /// What was attempted.
        attempt: &'static str,
        /// The interface.
        name: String,
        /// What the operating system says.
        source: io::Error,
    },
}

/// A tap interface. One that [`open`](Tap::open) has made goes away with this value.
pub struct Tap {
    file: File,
    offloads: u64,
    mtu: u16,
    /// Where the part of a frame goes that the driver's buffers have no room for.
    spill: Box<[u8]>,
    spilled: Option<Spilled>,
    list: List,
}

/// A frame whose end is in the spill, because there was room in the driver's buffers only for its first bytes.
#[derive(Debug, Clone, Copy)]
struct Spilled {
    len: usize,
    in_buffers: usize,
}

impl Tap {
    /// Attaches to the tap interface `name`, which is made where there is none, and brings it up. To make one takes
    /// `CAP_NET_ADMIN`, as does to use one of another user's.
    ///
    /// # Errors
    /// The interface cannot be had, or is in use.
    pub fn open(name: &str) -> Result<Self, TapError> {
        let allowed = |c: char| !c.is_whitespace() && !c.is_control() && !matches!(c, '/' | ':' | '%');
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || !name.chars().all(allowed) || matches!(name, "." | "..") {
            return Err(TapError::Name(name.to_owned()));
        }
        let mut options = File::options();
        let file = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open(CONTROL);
        let file = file.map_err(TapError::Control)?;
        let mut request = Request::new(name);
        request.0.ifr_ifru.ifru_flags = FLAGS;
        request.issue(&file, libc::TUNSETIFF).map_err(|source| {
            let name = name.to_owned();
            match source.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => TapError::Permission { name, source },
                Some(libc::EBUSY) => TapError::Busy { name, source },
                Some(libc::EINVAL) => TapError::Kind { name, source },
                _ => TapError::SetUp { attempt: "get hold", name, source },
            }
        })?;
        let failed = |attempt| move |source| TapError::SetUp { attempt, name: name.to_owned(), source };
        #[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "it is 12")]
        set_number(&file, libc::TUNSETVNETHDRSZ, HEADER as c_int).map_err(failed("set the header length"))?;
        set_number(&file, libc::TUNSETVNETLE, 1).map_err(failed("set the byte order"))?;
        let udp_segmentation = set_offload(&file, ALL_BUT_UDP | libc::TUN_F_USO4 | libc::TUN_F_USO6).is_ok();
        set_offload(&file, 0).map_err(failed("set the offloads"))?;
        let known = ALWAYS.iter().chain(UDP_SEGMENTATION.iter().filter(|_| udp_segmentation));
        let offloads = known.fold(0, |bits, bit| bits | 1 << bit);
        let mtu = bring_up(name).map_err(failed("set the state"))?;
        Ok(Self { file, offloads, mtu, spill: vec![0; MAX_FRAME].into(), spilled: None, list: List::default() })
    }

    /// The largest IP packet that the interface takes when it was opened, in bytes.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Reads one frame into `buffers` and, as far as they are too small, the spill; returns its length.
    ///
    /// # Safety
    /// As for [`Backend::receive`].
    unsafe fn read(&mut self, buffers: &[iovec]) -> io::Result<usize> {
        let spill = iovec { iov_base: self.spill.as_mut_ptr().cast(), iov_len: self.spill.len() };
        let list = self.list.fill(buffers.iter().copied().chain([spill]));
        let count = c_int::try_from(list.len()).map_err(io::Error::other)?;
        loop {
            // SAFETY: The caller vouches for the buffers, and the spill is borrowed for as long as the call takes.
            let result = unsafe { libc::readv(self.file.as_raw_fd(), list.as_ptr(), count) };
            match usize::try_from(result) {
                // As long as all the room: more than any frame that was agreed upon, and cut off.
                Ok(len) if len >= scatter::len(list) => log::debug!("a tap interface's frame is too long"),
                Ok(len) => return Ok(len),
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the flags of a tap interface are in the lower half")]
const FLAGS: i16 = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
const ALL_BUT_UDP: c_uint =
    libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN | libc::TUN_F_UFO;

/// What the kernel may leave to a driver that accepted `features`. All of it needs that the driver makes up for
/// missing checksums (section 5.1.3.1).
fn offload_flags(features: u64) -> c_uint {
    let has = |bit: u32| features & 1 << bit != 0;
    if !has(VIRTIO_NET_F_GUEST_CSUM) {
        return 0;
    }
    let segments = has(VIRTIO_NET_F_GUEST_TSO4) || has(VIRTIO_NET_F_GUEST_TSO6);
    // The kernel takes these two together only.
    let datagrams = has(VIRTIO_NET_F_GUEST_USO4) && has(VIRTIO_NET_F_GUEST_USO6);
    [
        (has(VIRTIO_NET_F_GUEST_TSO4), libc::TUN_F_TSO4),
        (has(VIRTIO_NET_F_GUEST_TSO6), libc::TUN_F_TSO6),
        (has(VIRTIO_NET_F_GUEST_ECN) && segments, libc::TUN_F_TSO_ECN),
        (has(VIRTIO_NET_F_GUEST_UFO), libc::TUN_F_UFO),
        (datagrams, libc::TUN_F_USO4 | libc::TUN_F_USO6),
    ]
    .iter()
    .fold(libc::TUN_F_CSUM, |flags, (accepted, flag)| if *accepted { flags | flag } else { flags })
}

/// Brings the interface up unless it is, and returns its MTU.
fn bring_up(name: &str) -> io::Result<u16> {
    // SAFETY: The call makes a descriptor that nobody else has.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    let mut request = Request::new(name);
    request.issue(&socket, libc::SIOCGIFFLAGS)?;
    // SAFETY: The kernel has filled in the flags.
    let flags = unsafe { request.0.ifr_ifru.ifru_flags };
    #[expect(clippy::cast_possible_truncation, reason = "the flag is 1")]
    let up = libc::IFF_UP as i16;
    if flags & up == 0 {
        request.0.ifr_ifru.ifru_flags = flags | up;
        if let Err(error) = request.issue(&socket, libc::SIOCSIFFLAGS) {
            log::warn!("cannot bring up the tap interface {name}: {error}");
        }
    }
    request.issue(&socket, libc::SIOCGIFMTU)?;
    // SAFETY: The kernel has filled in the MTU.
    let mtu = unsafe { request.0.ifr_ifru.ifru_mtu };
    Ok(u16::try_from(mtu).unwrap_or(u16::MAX))
}

/// What requests about an interface carry.
struct Request(libc::ifreq);

impl Request {
    /// A request about the interface `name`, which must be short enough.
    fn new(name: &str) -> Self {
        // SAFETY: All zeroes are a valid `ifreq`.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        Self(request)
    }

    /// Issues a request of the kind that takes a `struct ifreq`.
    fn issue(&mut self, fd: &impl AsRawFd, request: libc::Ioctl) -> io::Result<()> {
        // SAFETY: The request reads and writes one `ifreq`, which this is.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut self.0) })
    }
}

/// Issues a request of the kind that takes a pointer to a number.
fn set_number(file: &File, request: libc::Ioctl, number: c_int) -> io::Result<()> {
    // SAFETY: The request reads one int.
    check(unsafe { libc::ioctl(file.as_raw_fd(), request, &raw const number) })
}

fn set_offload(file: &File, flags: c_uint) -> io::Result<()> {
    // SAFETY: The request takes a number.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl Backend for Tap {
    fn offloads(&self) -> u64 {
        self.offloads
    }

    fn set_features(&mut self, features: u64) -> io::Result<()> {
        self.spilled = None;
        set_offload(&self.file, offload_flags(features))
    }

    unsafe fn receive(&mut self, buffers: &[iovec]) -> io::Result<Received> {
        let room = scatter::len(buffers);
        let spilled = match self.spilled {
            Some(spilled) => spilled,
            None => {
                // SAFETY: The caller's promise is passed on.
                let len = unsafe { self.read(buffers) }?;
                if len <= room {
                    return Ok(Received::Frame(len));
                }
                Spilled { len, in_buffers: room }
            }
        };
        if spilled.len > room {
            self.spilled = Some(spilled);
            return Ok(Received::TooLarge(spilled.len));
        }
        self.spilled = None;
        let rest = &self.spill[..spilled.len - spilled.in_buffers];
        // SAFETY: The caller vouches for the buffers; the first ones hold the frame's first bytes already.
        unsafe { scatter::write(buffers, spilled.in_buffers, rest) };
        Ok(Received::Frame(spilled.len))
    }

    fn discard(&mut self) {
        self.spilled = None;
    }

    unsafe fn send(&mut self, buffers: &[iovec]) -> io::Result<()> {
        let count = c_int::try_from(buffers.len()).map_err(io::Error::other)?;
        loop {
            // SAFETY: The caller vouches for the buffers, and the array of them lives through the call.
            if unsafe { libc::writev(self.file.as_raw_fd(), buffers.as_ptr(), count) } >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
