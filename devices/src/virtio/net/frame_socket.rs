//! A stream socket that carries each frame behind its length: the protocol of passt, and of QEMU's `-netdev stream`.

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use libc::iovec;

use super::backend::{Backend, HEADER, MIN_FRAME, Received};
use super::scatter::{self, List};

/// The length in bytes of a frame's length, which is in network byte order.
const PREFIX: usize = 4;
/// The most bytes of a frame without its header that the other side takes.
const MAX_PLAIN: usize = 65_535;
/// How much of a frame that is dropped is read at once.
const DROPPED_AT_ONCE: usize = 4096;

/// One end of a connection to a program such as passt. Frames have no header there, and nothing is offloaded.
pub struct FrameSocket {
    socket: UnixStream,
    incoming: Incoming,
    /// What is left of a frame that was sent in part.
    backlog: Vec<u8>,
    /// How much of the backlog is sent.
    sent: usize,
    list: List,
}

/// How far the frame that is being received has come.
#[derive(Default)]
struct Incoming {
    prefix: [u8; PREFIX],
    /// How much of the prefix is there.
    known: usize,
    /// How much of the frame is there, once the prefix is.
    done: usize,
    /// How much of a frame that is not wanted any more is still to come.
    unwanted: usize,
}

impl Incoming {
    /// The frame's length without a header, if it is known.
    fn len(&self) -> io::Result<Option<usize>> {
        if self.known < PREFIX {
            return Ok(None);
        }
        let len = usize::try_from(u32::from_be_bytes(self.prefix)).unwrap_or(usize::MAX);
        if (MIN_FRAME..=MAX_PLAIN).contains(&len) {
            return Ok(Some(len));
        }
        Err(io::Error::new(ErrorKind::InvalidData, format!("a frame of {len} bytes is announced")))
    }

    /// The next frame's prefix is there in part: the bytes that came with the last of this one.
    fn next(&mut self, known: usize) {
        self.known = known;
        self.done = 0;
    }
}

impl FrameSocket {
    /// A backend over a connected stream socket.
    #[must_use]
    pub fn new(socket: UnixStream) -> Self {
        Self { socket, incoming: Incoming::default(), backlog: Vec::new(), sent: 0, list: List::default() }
    }

    /// Reads what is unwanted, and then as much of the prefix as is missing.
    fn receive_prefix(&mut self) -> io::Result<usize> {
        while self.incoming.unwanted > 0 {
            let mut trash = [0; DROPPED_AT_ONCE];
            let len = self.incoming.unwanted.min(trash.len());
            self.incoming.unwanted -= receive(&self.socket, &[to(&mut trash[..len])])?;
        }
        loop {
            if let Some(len) = self.incoming.len()? {
                return Ok(len);
            }
            let missing = to(&mut self.incoming.prefix[self.incoming.known..]);
            self.incoming.known += receive(&self.socket, &[missing])?;
        }
    }
}

impl AsRawFd for FrameSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Backend for FrameSocket {
    fn offloads(&self) -> u64 {
        0
    }

    fn set_features(&mut self, _features: u64) -> io::Result<()> {
        self.discard();
        Ok(())
    }

    unsafe fn receive(&mut self, buffers: &[iovec]) -> io::Result<Received> {
        let len = self.receive_prefix()?;
        if scatter::len(buffers) < HEADER + len {
            return Ok(Received::TooLarge(HEADER + len));
        }
        loop {
            let missing = len - self.incoming.done;
            // The next prefix comes with the rest of this frame: one call a frame where many follow each other.
            let rest = scatter::range(buffers, HEADER + self.incoming.done, missing);
            let list = self.list.fill(rest.chain([to(&mut self.incoming.prefix)]));
            let count = receive(&self.socket, list)?;
            if count >= missing {
                self.incoming.next(count - missing);
                // SAFETY: The caller vouches for the buffers.
                unsafe { scatter::write(buffers, 0, &[0; HEADER]) };
                return Ok(Received::Frame(HEADER + len));
            }
            self.incoming.done += count;
        }
    }

    fn discard(&mut self) {
        if let Ok(Some(len)) = self.incoming.len() {
            self.incoming.unwanted = len - self.incoming.done;
            self.incoming.next(0);
        }
    }

    unsafe fn send(&mut self, buffers: &[iovec]) -> io::Result<()> {
        self.flush()?;
        let len = scatter::len(buffers) - HEADER;
        let prefix = u32::try_from(len).ok().filter(|_| (MIN_FRAME..=MAX_PLAIN).contains(&len));
        let mut prefix = prefix.ok_or(ErrorKind::InvalidInput)?.to_be_bytes();
        let frame = scatter::range(buffers, HEADER, len);
        let sent = send(&self.socket, self.list.fill([to(&mut prefix)].into_iter().chain(frame)))?;
        if sent < PREFIX + len {
            self.sent = 0;
            self.backlog.extend_from_slice(prefix.get(sent..).unwrap_or_default());
            let begun = sent.saturating_sub(PREFIX);
            // SAFETY: The caller vouches for the buffers.
            unsafe { scatter::append(buffers, HEADER + begun, len - begun, &mut self.backlog) };
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.sent < self.backlog.len() {
            self.sent += send(&self.socket, &[to(&mut self.backlog[self.sent..])])?;
        }
        self.backlog.clear();
        self.sent = 0;
        Ok(())
    }
}

fn to(bytes: &mut [u8]) -> iovec {
    iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
}

/// Receives without waiting. The end of the stream is an error.
fn receive(socket: &UnixStream, list: &[iovec]) -> io::Result<usize> {
    let count = transfer(list, |message| {
        // SAFETY: The message's buffers may be written: its users made them from such that they borrow, or that their
        // callers vouch for.
        unsafe { libc::recvmsg(socket.as_raw_fd(), message, libc::MSG_DONTWAIT) }
    })?;
    if count == 0 { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(count) }
}

/// Sends without waiting.
fn send(socket: &UnixStream, list: &[iovec]) -> io::Result<usize> {
    transfer(list, |message| {
        // SAFETY: As for receiving; and a message is only read here.
        unsafe { libc::sendmsg(socket.as_raw_fd(), message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) }
    })
}

fn transfer(list: &[iovec], call: impl Fn(*mut libc::msghdr) -> isize) -> io::Result<usize> {
    // SAFETY: All zeroes are a valid message without anything.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = list.as_ptr().cast_mut();
    message.msg_iovlen = list.len();
    loop {
        if let Ok(count) = usize::try_from(call(&raw mut message)) {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        if error.kind() != ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
