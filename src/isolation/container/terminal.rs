//! The workload's pseudo-terminal: made in the container's own devpts, served by a thread of the parent.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, fchown, openat};
use rustix::io::{Errno, fcntl_dupfd_cloexec, read, write};
use rustix::process::Uid;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::devices::place;
use super::handover::{self, Received};
use super::mounts::bind;
use crate::isolation::Stdio;
use crate::isolation::timeline::Stamp;
use crate::spec::WindowSize;

/// The first terminal of a fresh devpts.
const FIRST: &std::ffi::CStr = c"0";
/// What a terminal in its usual mode takes for the end of input: control-D.
const END_OF_TRANSMISSION: u8 = 4;
const BUFFER: usize = 16 << 10;

fn winsize(size: WindowSize) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 }
}

/// In the child: makes the terminal, shows it as `/dev/console`, sends its master side over `control`,
/// and returns the workload's side. Allocates nothing.
pub(super) fn open(
    dev: BorrowedFd<'_>,
    pts: BorrowedFd<'_>,
    size: WindowSize,
    owner: Uid,
    control: BorrowedFd<'_>,
) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = openat(pts, c"ptmx", flags, Mode::empty())?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    tcsetwinsize(&master, winsize(size))?;
    fchown(&slave, Some(owner), None)?;
    place(bind(pts, FIRST)?.as_fd(), dev, c"console")?;

    handover::send(control, Some(master.as_fd()))?;
    // All descriptors of the parent are closed here, so this may have become one of the standard three.
    fcntl_dupfd_cloexec(&slave, 3)
}

/// In the parent: takes the master side that the child has sent.
pub(super) fn receive(control: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    match handover::receive(control)? {
        Received::Descriptor(master) => Ok(master),
        Received::Word | Received::End => Err(Errno::BADMSG),
    }
}

/// The host's side of a terminal.
#[derive(Debug)]
pub(super) struct Terminal {
    master: Arc<OwnedFd>,
    pump: Mutex<Option<JoinHandle<()>>>,
}

impl Terminal {
    /// Starts passing bytes between `master` and `stdio`.
    pub(super) fn serve(
        master: OwnedFd,
        stdio: Stdio,
        with_input: bool,
        first_byte: Arc<Stamp>,
    ) -> std::io::Result<Self> {
        // A workload that does not read must not keep the thread from passing its output on.
        rustix::fs::fcntl_setfl(&master, rustix::fs::fcntl_getfl(&master)? | OFlags::NONBLOCK)?;
        let master = Arc::new(master);
        let served = Arc::clone(&master);
        let pump = std::thread::Builder::new()
            .name("terminal".to_owned())
            .spawn(move || pump(served.as_fd(), &stdio, with_input, &first_byte))?;
        Ok(Self { master, pump: Mutex::new(Some(pump)) })
    }

    /// Sets the window's size; the workload gets `SIGWINCH`.
    pub(super) fn resize(&self, size: WindowSize) -> Result<(), Errno> {
        tcsetwinsize(&*self.master, winsize(size))
    }

    /// Waits until all output is delivered. All processes that could write more must have ended.
    pub(super) fn finish(&self) {
        let pump = self.pump.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(pump) = pump {
            // It has nothing to return, and a panic in it has been reported by its own hook.
            let _ = pump.join();
        }
    }
}

/// Passes bytes until no process has the terminal open any more.
fn pump(master: BorrowedFd<'_>, stdio: &Stdio, with_input: bool, first_byte: &Stamp) {
    let mut input = Input { open: with_input, pending: Vec::new() };
    let mut buffer = [0u8; BUFFER];
    loop {
        let wants_write = if input.pending.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        let mut ready = [PollFd::new(&master, PollFlags::IN | wants_write), PollFd::new(&stdio.stdin, PollFlags::IN)];
        // One chunk at a time, so that a workload that does not read holds its own input back.
        let polled = if input.open && input.pending.is_empty() { 2 } else { 1 };
        match poll(&mut ready[..polled], None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(_) => return,
        }
        let (output, typed) = (ready[0].revents(), ready[1].revents());
        if output.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            match read(master, &mut buffer) {
                Ok(0) => return,
                Ok(count) => {
                    first_byte.mark();
                    // Where nobody takes the output any more, the workload still runs to its end.
                    let _ = write_all(stdio.stdout.as_fd(), &buffer[..count]);
                }
                Err(Errno::INTR | Errno::AGAIN) => {}
                // EIO is how a master says that the other side is closed by all.
                Err(_) => return,
            }
        }
        if output.contains(PollFlags::OUT) {
            input.send(master);
        }
        if polled == 2 && !typed.is_empty() {
            input.take(stdio.stdin.as_fd());
        }
    }
}

/// What has been typed and not yet passed on.
struct Input {
    open: bool,
    pending: Vec<u8>,
}

impl Input {
    fn take(&mut self, stdin: BorrowedFd<'_>) {
        let mut buffer = [0u8; 1024];
        match read(stdin, &mut buffer) {
            Ok(0) => {
                self.open = false;
                self.pending.push(END_OF_TRANSMISSION);
            }
            Ok(count) => self.pending.extend_from_slice(&buffer[..count]),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => self.open = false,
        }
    }

    fn send(&mut self, master: BorrowedFd<'_>) {
        match write(master, &self.pending) {
            Ok(count) => drop(self.pending.drain(..count)),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => self.pending.clear(),
        }
    }
}

/// Writes all of `bytes`, waiting where it must.
pub(super) fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match write(to, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            // Standard streams shared with other processes may have been made non-blocking by one of them.
            Err(Errno::AGAIN) => {
                poll(&mut [PollFd::new(&to, PollFlags::OUT)], None)?;
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
