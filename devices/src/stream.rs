//! Host file descriptors that are never waited for, though `O_NONBLOCK` is not set on them.
//!
//! The flag belongs to the open file description, which other processes share: a shell whose terminal has become
//! non-blocking fails. So each kind of file gets its own way.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use event_manager::{EventOps, EventSet, Events};
use libc::{c_int, iovec};
use vmm_sys_util::eventfd::EventFd;

/// What a file takes at once without waiting when it is ready at all: pipes promise `PIPE_BUF`.
const READY_CHUNK: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the host to the guest.
    Input,
    /// From the guest to the host.
    Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// A description of our own with `O_NONBLOCK`, or a file that never makes anybody wait.
    Plain,
    /// A socket: each call says that it must not wait.
    Socket,
    /// Each call says so by `RWF_NOWAIT`, if the file knows that.
    NoWait,
    /// Readiness is asked for before each call, which then moves little.
    Ask,
}

/// One end of a port on the host.
pub(crate) struct Stream {
    file: File,
    mode: Mode,
    direction: Direction,
    /// Whether an event loop tells of readiness.
    watched: bool,
}

impl Stream {
    pub(crate) fn new(fd: OwnedFd, direction: Direction) -> io::Result<Self> {
        let file = File::from(fd);
        let kind = file.metadata()?.file_type();
        let (file, mode) = if kind.is_socket() {
            (file, Mode::Socket)
        } else if kind.is_fifo() || (kind.is_char_device() && is_terminal(&file)) {
            match reopen(&file, direction) {
                Ok(own) => (own, Mode::Plain),
                // No /proc, no permission, or a pipe that nobody reads any more.
                Err(_) => (file, Mode::NoWait),
            }
        } else if kind.is_file() || kind.is_block_device() {
            (file, Mode::Plain)
        } else {
            (file, Mode::NoWait)
        };
        Ok(Self { file, mode, direction, watched: false })
    }

    /// Asks the event loop to tell of readiness, with `token` as its data.
    pub(crate) fn watch(&mut self, ops: &mut EventOps<'_>, token: u32) {
        if !self.watched {
            match ops.add(self.events(token)) {
                Ok(()) => self.watched = true,
                Err(error) => log::error!("cannot watch a console port's stream: {error}"),
            }
        }
    }

    /// Takes that back. Needed whenever readiness is of no interest: an end that has hung up is always ready.
    pub(crate) fn unwatch(&mut self, ops: &mut EventOps<'_>) {
        if self.watched {
            self.watched = false;
            if let Err(error) = ops.remove(self.events(0)) {
                log::error!("cannot stop watching a console port's stream: {error}");
            }
        }
    }

    fn events(&self, token: u32) -> Events {
        let set = if self.direction == Direction::Input { EventSet::IN } else { EventSet::OUT };
        Events::with_data(&self.file, token, set)
    }

    /// Moves as many bytes as can be moved now between the file and `buffers`. Reading, 0 is the end of the file.
    ///
    /// # Errors
    /// [`ErrorKind::WouldBlock`]: nothing can be moved now. Others are final.
    ///
    /// # Safety
    /// Each of `buffers` is memory that may be read (output) or written (input) until this returns.
    pub(crate) unsafe fn transfer(&mut self, buffers: &[iovec]) -> io::Result<usize> {
        loop {
            // SAFETY: The caller's promise is passed on.
            let result = unsafe { self.attempt(buffers) };
            if let Ok(done) = usize::try_from(result) {
                return Ok(done);
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL) if self.mode == Mode::NoWait => {
                    self.mode = Mode::Ask;
                }
                _ => return Err(error),
            }
        }
    }

    /// # Safety
    /// As for `transfer`.
    unsafe fn attempt(&self, buffers: &[iovec]) -> isize {
        let fd = self.file.as_raw_fd();
        let first = buffers.first().map(|b| iovec { iov_base: b.iov_base, iov_len: b.iov_len.min(READY_CHUNK) });
        let small = first.as_slice();
        let buffers = if self.mode == Mode::Ask { small } else { buffers };
        let (data, len) = (buffers.as_ptr(), buffers.len());
        let count = c_int::try_from(len).unwrap_or(c_int::MAX);
        let output = self.direction == Direction::Output;
        // SAFETY: The caller vouches for the buffers, and the array of them lives through the call.
        unsafe {
            match self.mode {
                Mode::Socket => {
                    let mut message: libc::msghdr = std::mem::zeroed();
                    message.msg_iov = data.cast_mut();
                    message.msg_iovlen = len;
                    if output {
                        libc::sendmsg(fd, &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
                    } else {
                        libc::recvmsg(fd, &raw mut message, libc::MSG_DONTWAIT)
                    }
                }
                Mode::NoWait if output => libc::pwritev2(fd, data, count, -1, libc::RWF_NOWAIT),
                Mode::NoWait => libc::preadv2(fd, data, count, -1, libc::RWF_NOWAIT),
                Mode::Ask if !is_ready(fd, self.direction) => {
                    *libc::__errno_location() = libc::EAGAIN;
                    -1
                }
                Mode::Plain | Mode::Ask if output => libc::writev(fd, data, count),
                Mode::Plain | Mode::Ask => libc::readv(fd, data, count),
            }
        }
    }
}

/// Whether an error means that nothing can be moved now.
pub(crate) fn would_block(error: &io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock
}

/// Opens the file anew, for a description with `O_NONBLOCK` that nobody else has.
fn reopen(file: &File, direction: Direction) -> io::Result<File> {
    OpenOptions::new()
        .read(direction == Direction::Input)
        .write(direction == Direction::Output)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Whether this is a terminal that can be opened anew. The master of a pseudo-terminal cannot: opening it makes
/// another one.
fn is_terminal(file: &File) -> bool {
    let fd = file.as_raw_fd();
    let mut number: c_int = 0;
    // SAFETY: isatty touches no memory, and TIOCGPTN writes one int.
    unsafe { libc::isatty(fd) == 1 && libc::ioctl(fd, libc::TIOCGPTN, &raw mut number) != 0 }
}

fn is_ready(fd: RawFd, direction: Direction) -> bool {
    let events = if direction == Direction::Input { libc::POLLIN } else { libc::POLLOUT };
    let mut poll = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: One valid entry.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
}

/// How an event loop watches an eventfd that is never read: each write is one event, or one with those before it.
pub(crate) fn doorbell(event: &EventFd, token: u32) -> Events {
    Events::with_data(event, token, EventSet::IN | EventSet::EDGE_TRIGGERED)
}

/// Keeps a write to a pipe that nobody reads from ending the process: blocks the signal on the calling thread, for
/// good. The write's error is all that is wanted.
pub(crate) fn block_sigpipe() {
    thread_local!(static BLOCKED: Cell<bool> = const { Cell::new(false) });
    if !BLOCKED.replace(true) {
        // SAFETY: The set is initialised before use, and lives through the calls.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGPIPE);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn iovec(bytes: &mut [u8]) -> [iovec; 1] {
        [iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }]
    }

    fn transfer(stream: &mut Stream, bytes: &mut [u8]) -> io::Result<usize> {
        // SAFETY: The bytes are borrowed for the call.
        unsafe { stream.transfer(&iovec(bytes)) }
    }

    /// A pipe's ends in `mode`: what a host without /proc gets.
    fn pipe(mode: Mode) -> (Stream, Stream) {
        let (reader, writer) = io::pipe().unwrap();
        let mut ends = (
            Stream::new(reader.into(), Direction::Input).unwrap(),
            Stream::new(writer.into(), Direction::Output).unwrap(),
        );
        assert_eq!((ends.0.mode, ends.1.mode), (Mode::Plain, Mode::Plain));
        if mode != Mode::Plain {
            for end in [&mut ends.0, &mut ends.1] {
                // SAFETY: No memory is involved.
                assert_eq!(unsafe { libc::fcntl(end.file.as_raw_fd(), libc::F_SETFL, 0) }, 0);
                end.mode = mode;
            }
        }
        ends
    }

    #[test]
    fn no_way_to_use_a_pipe_waits() {
        for mode in [Mode::Plain, Mode::NoWait, Mode::Ask] {
            let (mut reader, mut writer) = pipe(mode);
            assert!(would_block(&transfer(&mut reader, &mut [0; 10]).unwrap_err()), "{mode:?}");
            let mut block = vec![7; 10_000];
            let mut written = 0;
            let error = loop {
                match transfer(&mut writer, &mut block) {
                    Ok(count) => written += count,
                    Err(error) => break error,
                }
            };
            assert!(would_block(&error) && written >= 56 << 10, "{mode:?}: {written} bytes, then {error}");
            let mut read = 0;
            while read < written {
                read += transfer(&mut reader, &mut block).unwrap();
            }
            assert!(would_block(&transfer(&mut reader, &mut block).unwrap_err()), "{mode:?}");
            drop(writer);
            assert_eq!(transfer(&mut reader, &mut block).unwrap(), 0, "{mode:?}");
        }
    }

    #[test]
    fn files_that_never_wait_are_used_as_they_are() {
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        let mut input = Stream::new(null.try_clone().unwrap().into(), Direction::Input).unwrap();
        let mut output = Stream::new(null.into(), Direction::Output).unwrap();
        assert_eq!(transfer(&mut input, &mut [0; 10]).unwrap(), 0);
        assert_eq!(transfer(&mut output, &mut [0; 10]).unwrap(), 10);
    }

    /// Opening `/dev/ptmx` anew makes another terminal: the master must be used as it is, the slave need not.
    #[test]
    fn terminals_are_told_from_their_masters() {
        let Ok(master) = File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open("/dev/ptmx") else {
            return;
        };
        assert!(!is_terminal(&master));
        let stream = Stream::new(master.try_clone().unwrap().into(), Direction::Input).unwrap();
        assert_eq!(stream.mode, Mode::NoWait);
        let mut unlock: c_int = 0;
        // SAFETY: TIOCSPTLCK reads one int; TIOCGPTPEER returns a new descriptor.
        let slave = unsafe {
            libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw mut unlock);
            let fd = libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, libc::O_RDWR | libc::O_NOCTTY);
            assert!(fd >= 0, "{}", io::Error::last_os_error());
            <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd)
        };
        assert!(is_terminal(&File::from(slave.try_clone().unwrap())));
        let mut input = Stream::new(slave.try_clone().unwrap(), Direction::Input).unwrap();
        let mut output = Stream::new(slave, Direction::Output).unwrap();
        assert!(would_block(&transfer(&mut input, &mut [0; 10]).unwrap_err()));
        assert_eq!(transfer(&mut output, &mut b"hello\n".to_vec()).unwrap(), 6);
        let mut echoed = [0; 16];
        let count = io::Read::read(&mut &master, &mut echoed).unwrap();
        assert_eq!(&echoed[..count], b"hello\r\n");
    }
}
