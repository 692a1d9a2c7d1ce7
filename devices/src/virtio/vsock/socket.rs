//! UNIX sockets that are never waited for.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use libc::{c_int, iovec, msghdr};

use crate::virtio::chain::{Buffers, MAX_IOVECS};

#[expect(clippy::cast_possible_truncation, reason = "the constant is 1")]
const FAMILY: libc::sa_family_t = libc::AF_UNIX.cast_unsigned() as libc::sa_family_t;
#[expect(clippy::cast_possible_truncation, reason = "an address has 110 bytes")]
const ADDRESS_LEN: libc::socklen_t = size_of::<libc::sockaddr_un>() as libc::socklen_t;

/// Connects to the socket at `path`. A listener whose queue is full refuses.
pub(super) fn connect(path: &Path) -> io::Result<UnixStream> {
    let bytes = path.as_os_str().as_bytes();
    // SAFETY: All fields are integers, for which zero is a value.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    if bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path does not fit in a socket's address"));
    }
    address.sun_family = FAMILY;
    for (to, &from) in address.sun_path.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    // SAFETY: A new descriptor belongs to nobody else; the address is initialised and lives through the call.
    unsafe {
        let fd = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = OwnedFd::from_raw_fd(fd);
        if libc::connect(fd.as_raw_fd(), (&raw const address).cast(), ADDRESS_LEN) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(fd.into())
    }
}

/// Reads into guest memory, as much as there is room for. 0 is the end of the stream.
pub(super) fn receive(socket: &UnixStream, rooms: &[Buffers<'_>]) -> io::Result<usize> {
    let gathered: Vec<iovec>;
    let iovecs = match rooms {
        [room] => room.iovecs(),
        rooms => {
            gathered = rooms.iter().flat_map(Buffers::iovecs).take(MAX_IOVECS).copied().collect();
            &gathered
        }
    };
    let mut message = message(iovecs);
    // SAFETY: The buffers point into guest memory, mapped for as long as they live.
    retried(|| unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) })
}

/// Writes from guest memory, as much as the socket takes.
pub(super) fn send(socket: &UnixStream, data: &Buffers<'_>) -> io::Result<usize> {
    send_iovecs(socket, data.iovecs())
}

/// Writes two runs of bytes, as much as the socket takes.
pub(super) fn send_slices(socket: &UnixStream, (first, second): (&[u8], &[u8])) -> io::Result<usize> {
    let iovec = |bytes: &[u8]| iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    send_iovecs(socket, &[iovec(first), iovec(second)])
}

fn send_iovecs(socket: &UnixStream, iovecs: &[iovec]) -> io::Result<usize> {
    let message = message(iovecs);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: Both callers' buffers can be read until this returns.
    retried(|| unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) })
}

/// Reads the beginning of what there is; with `take`, also takes it off.
pub(super) fn peek(socket: &UnixStream, buffer: &mut [u8], take: bool) -> io::Result<usize> {
    let flags: c_int = libc::MSG_DONTWAIT | if take { 0 } else { libc::MSG_PEEK };
    // SAFETY: The buffer is borrowed for the call.
    retried(|| unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags) })
}

fn message(iovecs: &[iovec]) -> msghdr {
    // SAFETY: Null pointers and zero lengths are what a message without address and control data has.
    let mut message: msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iovecs.as_ptr().cast_mut();
    message.msg_iovlen = iovecs.len();
    message
}

fn retried(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
