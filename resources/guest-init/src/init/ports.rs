//! The virtio-console ports to the host.

use alloc::format;
use alloc::vec::Vec;

use amphi_guest_init::{CONTROL_PORT, Decoder, Message, STDERR_PORT, STDIN_PORT, STDOUT_PORT, ToGuest};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::failure::{Context, Failure};
use super::wait;

/// How many virtio-console devices are looked at; ours is normally the first.
const DEVICES: u32 = 4;

/// The ports of the workload's standard streams.
pub(super) struct Ports {
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

impl Ports {
    /// Opens all ports once the host is connected to them.
    ///
    /// The order matters: a port that the host has not connected yet reads as ended, just as one that it has closed.
    /// The host connects the ports in the order of their numbers, and ends standard input only after it was opened;
    /// so standard input is opened after the host has been seen on ports of higher numbers.
    pub(super) fn open(stdin: bool) -> Result<(Control, Self), Failure> {
        let control = open(CONTROL_PORT)?;
        let stdout = open(STDOUT_PORT)?;
        let stderr = open(STDERR_PORT)?;
        for port in [&control, &stdout, &stderr] {
            wait::until(|| Ok(connected(port)?.then_some(()))).context(|| "the host is not at its port".into())?;
        }
        let stdin = if stdin { Some(open(STDIN_PORT)?) } else { None };
        Ok((Control { port: control, decoder: Decoder::new(), listening: true }, Self { stdin, stdout, stderr }))
    }
}

fn open(number: u32) -> Result<OwnedFd, Failure> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    wait::until(|| {
        for device in 0..DEVICES {
            match rustix::fs::open(format!("/dev/vport{device}p{number}"), flags, Mode::empty()) {
                Ok(port) => return Ok(Some(port)),
                // The node may be there a moment before the driver has the port.
                Err(Errno::NOENT | Errno::NXIO) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(None)
    })
    .context(|| format!("cannot open the virtio-console port {number}"))
}

fn connected(port: &OwnedFd) -> Result<bool, Errno> {
    let mut fds = [PollFd::new(port, PollFlags::OUT)];
    poll(&mut fds, Some(&rustix::time::Timespec::default()))?;
    Ok(!fds[0].revents().contains(PollFlags::HUP))
}

/// The control port.
pub(super) struct Control {
    pub(super) port: OwnedFd,
    decoder: Decoder<ToGuest>,
    listening: bool,
}

impl Control {
    /// Whether more messages may come.
    pub(super) fn listening(&self) -> bool {
        self.listening
    }

    /// Sends a message, waiting for room; gives up where the host has gone.
    pub(super) fn send<M: Message>(&mut self, message: &M) {
        let bytes = message.encode();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            match rustix::io::write(&self.port, rest) {
                Ok(written) => rest = &rest[written..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let mut fds = [PollFd::new(&self.port, PollFlags::OUT)];
                    let _ = poll(&mut fds, None);
                    if fds[0].revents().contains(PollFlags::HUP) {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    }

    /// Waits until the host has gone.
    pub(super) fn wait_for_hangup(&self) {
        let gone = PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL;
        loop {
            let mut fds = [PollFd::new(&self.port, PollFlags::empty())];
            match poll(&mut fds, None) {
                Ok(_) if !fds[0].revents().intersects(gone) => {}
                Err(Errno::INTR) => {}
                _ => return,
            }
        }
    }

    /// The messages that have arrived.
    pub(super) fn receive(&mut self) -> Vec<ToGuest> {
        let mut bytes = [0; 256];
        match rustix::io::read(&self.port, &mut bytes) {
            Ok(0) => self.listening = false,
            Ok(length) => self.decoder.push(&bytes[..length]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.listening = false,
        }
        let mut messages = Vec::new();
        for message in &mut self.decoder {
            match message {
                Ok(message) => messages.push(message),
                Err(_) => self.listening = false,
            }
        }
        messages
    }
}
